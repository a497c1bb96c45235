//! That this is the only agent: of its state directory, of its directory of namespaces, of its node on this host.
//! Two of them would undo each other's work.
//!
//! Whatever is held ends with the process, however that ends: a lock on a file, and sockets with abstract names, which
//! are those of the host's network namespace. Files would lie in directories that others list (`ip netns`), and a lock on
//! such a directory is what iproute2 takes.
//!
//! In: the configuration. Out: something to keep, or who else there is.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _},
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use thiserror::Error;

use crate::{config::Config, node::VERSION};

/// How long another agent may take to say who it is.
const PATIENCE: Duration = Duration::from_millis(500);

/// Kept for as long as this is the only agent.
#[derive(Debug)]
pub(crate) struct Sole {
    _state_dir: File,
}

/// Why this is not the only agent, or cannot be known to be.
#[derive(Debug, Error)]
pub(crate) enum SoleError {
    /// Another one is at work.
    #[error("another agent of this host has the same {what} {value}: {who}; {hint}")]
    Another {
        what: &'static str,
        value: String,
        who: String,
        hint: &'static str,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory {}", path.display())]
    StateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The directory of namespaces cannot be used.
    #[error("cannot use the directory of namespaces {}", path.display())]
    NetnsDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A name cannot be held.
    #[error("cannot hold the name {name} on this host")]
    Name {
        name: String,
        #[source]
        source: io::Error,
    },
}

impl Sole {
    /// Takes everything that only one agent may have.
    ///
    /// # Errors
    /// When another has one of them; says which, and who.
    pub(crate) fn claim(config: &Config) -> Result<Self, SoleError> {
        let who = format!(
            "weftd {VERSION}, pid {}, node {}, socket {}, since {}",
            std::process::id(),
            config.node,
            config.socket.display(),
            humantime::format_rfc3339_seconds(SystemTime::now())
        );
        let state_dir = lock(&config.state_dir, &who)?;
        let dir = &config.netns_dir;
        let found = fs::create_dir_all(dir).and_then(|()| fs::metadata(dir));
        let found = found.map_err(|source| SoleError::NetnsDir {
            path: dir.clone(),
            source,
        })?;
        let another = |what, value, hint| {
            move |who| SoleError::Another {
                what,
                value,
                who,
                hint,
            }
        };
        hold(
            &format!("weftd/netns_dir/{}:{}", found.dev(), found.ino()),
            &who,
            another("netns_dir", dir.display().to_string(), "stop one of them"),
        )?;
        hold(
            &format!("weftd/node/{}{}", config.prefix.as_str(), config.node),
            &who,
            another("node name", config.node.to_string(), "stop one of them"),
        )?;
        Ok(Self {
            _state_dir: state_dir,
        })
    }
}

fn lock(dir: &Path, who: &str) -> Result<File, SoleError> {
    let failed = |source| SoleError::StateDir {
        path: dir.to_owned(),
        source,
    };
    fs::create_dir_all(dir).map_err(failed)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("weftd.lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut who = String::new();
            file.take(512).read_to_string(&mut who).map_err(failed)?;
            return Err(SoleError::Another {
                what: "state_dir",
                value: dir.display().to_string(),
                who: who.trim().to_owned(),
                hint: "stop it, or give this one another state_dir, node and netns_dir",
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // Room on the disk is no condition for running: then the next one is told less.
    if let Err(error) = file.set_len(0).and_then(|()| writeln!(file, "{who}")) {
        tracing::debug!(%error, "cannot write down who has the state directory");
    }
    Ok(file)
}

/// Holds a name in the host's network namespace until the process ends, and answers whoever asks whose it is.
fn hold(name: &str, who: &str, another: impl FnOnce(String) -> SoleError) -> Result<(), SoleError> {
    let failed = |source| SoleError::Name {
        name: name.to_owned(),
        source,
    };
    let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
    let socket = match UnixListener::bind_addr(&address) {
        Ok(socket) => socket,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match ask(&address) {
            Ok(Some(holder)) => return Err(another(holder)),
            // Anybody on a host may take such a name; only an agent is a reason to stay away.
            found => {
                tracing::warn!(
                    name,
                    ?found,
                    "a name of the agent's is held by somebody who is none"
                );
                return Ok(());
            }
        },
        Err(error) => return Err(failed(error)),
    };
    let who = who.to_owned();
    let answer = move || {
        for asking in socket.incoming() {
            match asking {
                // Whoever asked may have left.
                Ok(mut asking) => drop(asking.write_all(who.as_bytes())),
                Err(_) => thread::sleep(PATIENCE),
            }
        }
    };
    thread::Builder::new()
        .name("sole".to_owned())
        .spawn(answer)
        .map(drop)
        .map_err(failed)
}

/// Who holds a name, by its own words; none if that is somebody who could not be an agent.
fn ask(address: &SocketAddr) -> io::Result<Option<String>> {
    let stream = UnixStream::connect_addr(address)?;
    let holder = getsockopt(&stream, PeerCredentials)?;
    if holder.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(None);
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut who = String::new();
    // One that is stopped says nothing, and is there all the same.
    if (&stream).take(512).read_to_string(&mut who).is_err() || who.is_empty() {
        who = format!("pid {}", holder.pid());
    }
    Ok(Some(who))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(who: String) -> SoleError {
        SoleError::Another {
            what: "node name",
            value: "host1".to_owned(),
            who,
            hint: "stop one of them",
        }
    }

    #[test]
    fn a_name_is_held_once_and_says_by_whom() {
        let name = format!("weftd-test/{}", std::process::id());
        hold(&name, "weftd of this test", refused).unwrap();
        let error = hold(&name, "another", refused).unwrap_err();
        assert_eq!(
            error.to_string(),
            "another agent of this host has the same node name host1: weftd of this test; stop one of them"
        );
    }

    #[test]
    fn a_state_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = lock(dir.path(), "the first").unwrap();
        let error = lock(dir.path(), "the second").unwrap_err();
        assert!(error.to_string().contains("the first"), "{error}");
        drop(kept);
        lock(dir.path(), "the third").unwrap();
    }
}
