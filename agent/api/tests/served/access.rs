//! Who may connect, and whose socket it is.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;

use nix::unistd::{Gid, Group, Uid, getegid};
use weft_api::{ListenError, Listener, ListenerConfig};

use crate::fake::{Served, config, soon};

#[test]
fn the_socket_is_its_owners_and_its_groups() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/weft/weftd.sock");
    // The first group other than our own that we may give a file to: any one as root, else our own again.
    let group = if Uid::effective().is_root() {
        Group::from_gid(Gid::from_raw(1))
            .unwrap()
            .expect("a group 1, daemon on Debian")
    } else {
        Group::from_gid(getegid())
            .unwrap()
            .expect("our own group has a name")
    };
    let config = ListenerConfig {
        path: path.clone(),
        group: Some(group.name.clone()),
    };
    let listener = Listener::bind(&config).unwrap();
    let made = fs::symlink_metadata(&path).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(format!("{:o}", made.permissions().mode() & 0o7777), "660");
    assert_eq!(
        (made.uid(), made.gid()),
        (Uid::effective().as_raw(), group.gid.as_raw())
    );
    for above in ["run", "run/weft"] {
        let mode = fs::metadata(directory.path().join(above))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(format!("{:o}", mode & 0o7777), "755", "{above}");
    }
    drop(listener);
    assert!(!path.exists(), "the socket is removed with its listener");
}

#[test]
fn an_unknown_group_is_named_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weft/weftd.sock");
    let config = ListenerConfig {
        path,
        group: Some("no-such-group".to_owned()),
    };
    let why = Listener::bind(&config).unwrap_err();
    assert!(
        matches!(&why, ListenError::NoSuchGroup { group } if group == "no-such-group"),
        "{why}"
    );
    assert!(why.to_string().contains("\"no-such-group\""), "{why}");
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weftd.sock");
    // A killed agent leaves its socket: dropping a std listener does not unlink.
    drop(UnixListener::bind(&path).unwrap());
    let stale = fs::symlink_metadata(&path).unwrap().ino();
    let listener = Listener::bind(&config(&path)).unwrap();
    assert!(
        std::os::unix::net::UnixStream::connect(&path).is_ok(),
        "someone listens"
    );
    drop(listener);
    assert!(!path.exists(), "inode {stale} and its successor are gone");
}

#[test]
fn a_served_socket_is_refused_with_its_servers_pid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weftd.sock");
    let first = Listener::bind(&config(&path)).unwrap();
    let why = Listener::bind(&config(&path)).unwrap_err();
    let expected = format!(
        "another weftd (pid {}) serves {}",
        std::process::id(),
        path.display()
    );
    assert_eq!(why.to_string(), expected);
    drop(first);
    // Also one that does not know of the lock.
    let other = UnixListener::bind(&path).unwrap();
    assert_eq!(Listener::bind(&config(&path)).unwrap_err().to_string(), expected);
    drop(other);
    Listener::bind(&config(&path)).unwrap();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weftd.sock");
    fs::write(&path, "precious").unwrap();
    let why = Listener::bind(&config(&path)).unwrap_err();
    assert!(matches!(why, ListenError::NotASocket { .. }), "{why}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_socket_put_in_our_place_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weftd.sock");
    let ours = Listener::bind(&config(&path)).unwrap();
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
}

#[test]
fn a_path_too_long_for_a_socket_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x".repeat(120));
    let why = Listener::bind(&config(&path)).unwrap_err();
    assert!(why.to_string().contains(&path.display().to_string()), "{why}");
}

#[tokio::test]
async fn the_socket_is_removed_at_shutdown() {
    let served = Served::start();
    let _open = served.channel().await;
    served.shutdown.cancel();
    soon(served.server).await.unwrap().unwrap();
    assert!(!served.path.exists());
    assert!(served.directory.path().exists());
}
