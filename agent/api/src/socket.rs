//! The Unix socket that the agent listens on: made so that nobody but its owner and its group can ever
//! connect, and so that one agent never takes another's.
//!
//! In: a path and a group's name. Out: a [`Listener`]. It must not know what is served.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::{socket, stat};
use nix::unistd::Group;

/// Mode of the socket: its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Path of the socket, at most 107 bytes. Missing directories are made with mode 0755.
    pub path: PathBuf,
    /// Name of the group that may connect besides the agent's user. Not given: the agent's own group.
    pub group: Option<String>,
}

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The directory of the socket is missing and cannot be made.
    #[error("cannot make directory {} for the agent's socket", path.display())]
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The group cannot be looked up.
    #[error("cannot look up group {group:?} for the agent's socket")]
    LookUpGroup {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no such group.
    #[error(
        "there is no group {group:?} for the agent's socket; make it (groupadd --system {group}) or name another"
    )]
    NoSuchGroup {
        /// The group.
        group: String,
    },
    /// Another agent is there.
    #[error("another weftd{} serves {}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    Served {
        /// The socket.
        path: PathBuf,
        /// The process that listens, as far as the kernel or the lock file says.
        pid: Option<i32>,
    },
    /// Something that is not a socket is in the way; it is left alone.
    #[error("{} is there and is not a socket; remove it or name another socket", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// The lock file beside the socket cannot be used.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is at the socket's path cannot be looked at or removed.
    #[error("cannot take over {} from an agent that is gone", path.display())]
    TakeOver {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be given to its group.
    #[error("cannot give {} to its group", path.display())]
    SetAccess {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on. Dropping it removes the socket, unless someone else has put another in its
/// place.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket made, to remove no other.
    identity: (u64, u64),
    /// Held as long as the socket is: two agents that start together cannot both find it stale.
    _lock: File,
}

impl Listener {
    /// Makes the socket and listens; connections queue up until it is served.
    ///
    /// A socket that nobody listens on any more is replaced; a served one is refused.
    pub fn bind(config: &ListenerConfig) -> Result<Self, ListenError> {
        let path = config.path.clone();
        let group = config.group.as_deref().map(look_up).transpose()?;
        make_directories(&path)?;
        let lock = lock(&path)?;
        remove_stale(&path)?;
        let socket = listen_unseen(&path).map_err(|why| ListenError::Listen {
            path: path.clone(),
            source: why.into(),
        })?;
        let give = || {
            std::os::unix::fs::chown(&path, None, group.map(|group| group.gid.as_raw()))?;
            fs::set_permissions(&path, Permissions::from_mode(SOCKET_MODE))?;
            socket.set_nonblocking(true)?;
            fs::symlink_metadata(&path)
        };
        let made = give().map_err(|source| ListenError::SetAccess {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            socket,
            identity: (made.dev(), made.ino()),
            path,
            _lock: lock,
        })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A handle on the same socket for the runtime's reactor; it does not block.
    ///
    /// # Errors
    /// When the runtime cannot take it.
    pub fn accepting(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.socket.try_clone()?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(why) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %why, "cannot remove the agent's socket");
        }
    }
}

fn look_up(name: &str) -> Result<Group, ListenError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group),
        Ok(None) => Err(ListenError::NoSuchGroup {
            group: name.to_owned(),
        }),
        Err(why) => Err(ListenError::LookUpGroup {
            group: name.to_owned(),
            source: why.into(),
        }),
    }
}

/// Makes the directories that are missing above the path, open to all whatever the umask: the socket's own
/// mode guards it.
fn make_directories(path: &Path) -> Result<(), ListenError> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|directory| !directory.as_os_str().is_empty() && !directory.exists())
        .collect();
    missing.reverse();
    for directory in missing {
        let make = || {
            DirBuilder::new().mode(0o700).create(directory)?;
            fs::set_permissions(directory, Permissions::from_mode(0o755))
        };
        make().map_err(|source| ListenError::MakeDirectory {
            path: directory.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Takes the lock beside the socket, and notes in it who has it.
fn lock(socket: &Path) -> Result<File, ListenError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |source| ListenError::Lock {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = match probe(socket) {
                Ok(Probe::Served { pid: Some(pid) }) => Some(pid),
                _ => noted_pid(&mut file),
            };
            return Err(ListenError::Served {
                path: socket.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

fn noted_pid(lock: &mut File) -> Option<i32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// What is found at a socket's path.
enum Probe {
    Nothing,
    NotASocket,
    Stale,
    Served { pid: Option<i32> },
}

fn probe(path: &Path) -> io::Result<Probe> {
    match fs::symlink_metadata(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Probe::Nothing),
        Err(why) => return Err(why),
        Ok(found) if !found.file_type().is_socket() => return Ok(Probe::NotASocket),
        Ok(_) => {}
    }
    // Without blocking: a live agent with a full queue would otherwise hold us here.
    let probe = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match socket::connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        // The listener's credentials are those of the process that called listen().
        Ok(()) => {
            let credentials = socket::getsockopt(&probe, sockopt::PeerCredentials).ok();
            Ok(Probe::Served {
                pid: credentials.map(|who| who.pid()).filter(|pid| *pid != 0),
            })
        }
        Err(Errno::EAGAIN) => Ok(Probe::Served { pid: None }),
        Err(Errno::ECONNREFUSED) => Ok(Probe::Stale),
        Err(Errno::ENOENT) => Ok(Probe::Nothing),
        Err(why) => Err(why.into()),
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::TakeOver {
        path: path.to_owned(),
        source,
    };
    match probe(path).map_err(failed)? {
        Probe::Nothing => Ok(()),
        Probe::NotASocket => Err(ListenError::NotASocket {
            path: path.to_owned(),
        }),
        Probe::Served { pid } => Err(ListenError::Served {
            path: path.to_owned(),
            pid,
        }),
        Probe::Stale => {
            tracing::info!(socket = %path.display(), "replacing the socket of an agent that is gone");
            fs::remove_file(path).map_err(failed)
        }
    }
}

/// A listening socket that nobody else may connect to yet.
///
/// Linux gives the file that bind() makes the mode of the unbound socket, less the umask. So with fchmod()
/// before it the file is never there with a wider mode than is wanted, and the process's umask, which all
/// threads share, is left alone.
fn listen_unseen(path: &Path) -> nix::Result<UnixListener> {
    let socket = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    stat::fchmod(&socket, stat::Mode::empty())?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}
