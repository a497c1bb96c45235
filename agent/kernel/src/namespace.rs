//! Network namespaces: making, finding, opening and entering them, and which of them an endpoint may name.
//!
//! A thread that enters another namespace is made for it and ends with it: no thread that does anything else
//! ever changes its namespace.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{OFlag, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::Mode,
        statfs::{fstatfs, statfs},
    },
};
use weft_core::ownership;
use weft_store_schema::{Mac, NetworkName};

use crate::{KernelError, channel::Channel, fault, links};

/// The file system of namespaces (`NSFS_MAGIC`, include/uapi/linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

const NOT_ONE: &str = "it is not a network namespace";

/// Which namespace it is, whatever paths lead to it.
pub(crate) type Identity = (u64, u64);

pub(crate) fn identity(file: &File) -> io::Result<Identity> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// Opens a namespace's file, and makes sure that it is one.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc_flags())
        .open(path)?;
    ensure_network_namespace(&file)?;
    Ok(file)
}

fn libc_flags() -> i32 {
    (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits()
}

fn ensure_network_namespace(file: &File) -> io::Result<()> {
    let system = fstatfs(file)?;
    if system.filesystem_type().0 != NSFS_MAGIC || !is_network(file) {
        return Err(io::Error::other(NOT_ONE));
    }
    Ok(())
}

/// `setns` with a type succeeds only for a namespace of that type; asked in a thread of its own, which ends
/// with it.
fn is_network(file: &File) -> bool {
    thread::scope(|scope| {
        scope
            .spawn(|| setns(file.as_fd(), CloneFlags::CLONE_NEWNET).is_ok())
            .join()
            .unwrap_or(false)
    })
}

/// Runs a function in a namespace, on a thread of its own.
pub(crate) fn within<T: Send>(file: &File, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| -> io::Result<T> {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        });
        inside
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}

/// A network's namespace, with a socket in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) file: File,
    pub(crate) identity: Identity,
    pub(crate) channel: Channel,
    /// Whether its notifications are listened to.
    pub(crate) heard: bool,
    /// [`BRIDGE_FILTERS`], open: whoever reads or writes them has not to be in the namespace. None where the kernel has none (yet).
    filters: Vec<File>,
    /// For announcements; see [`Namespace::packets`].
    packets: Option<OwnedFd>,
    /// MACs that a tunnel's table (by the tunnel's index) had as somebody else's when it was last looked at.
    pub(crate) foreign: HashSet<(u32, Mac)>,
    /// Indexes of its links by name, as they were when one was last asked for. Somebody may have made another link since, so
    /// only what is refused then may rest on them.
    pub(crate) indexes: HashMap<String, u32>,
}

impl Namespace {
    /// A socket in the namespace that sends whole frames and, being of no protocol, hears none. It stays open: closing one
    /// waits for all processors to pass a quiet state (`synchronize_net`), tens of milliseconds.
    pub(crate) fn packets(&mut self) -> io::Result<BorrowedFd<'_>> {
        let socket = match self.packets.take() {
            Some(socket) => socket,
            None => within(&self.file, || {
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            })??,
        };
        let open: &OwnedFd = self.packets.insert(socket);
        Ok(open.as_fd())
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let identity = identity(&file)?;
        let (channel, filters) = within(&file, || (Channel::open(), open_filters()))?;
        Ok(Self {
            file,
            identity,
            channel: channel?,
            heard: false,
            filters,
            packets: None,
            foreign: HashSet::new(),
            indexes: HashMap::new(),
        })
    }

    /// Whether bridged frames pass the packet filter here.
    pub(crate) fn is_filtered(&mut self) -> bool {
        // Made for all namespaces at once, when `br_netfilter` is loaded.
        if self.filters.is_empty() && Path::new(SYSCTL_DIR).join(BRIDGE_FILTERS[0]).exists() {
            self.filters = within(&self.file, open_filters).unwrap_or_default();
        }
        let is_on = self.filters.iter().map(is_on).collect::<io::Result<Vec<_>>>();
        is_on.map_or_else(
            |_| {
                // They went with the module.
                self.filters.clear();
                false
            },
            |is_on| is_on.contains(&true),
        )
    }

    /// Lets bridged frames pass unfiltered; returns how much there was to change.
    pub(crate) fn unfilter(&mut self) -> io::Result<u64> {
        let mut changed = 0;
        if self.is_filtered() {
            for filter in &self.filters {
                if is_on(filter)? {
                    fault::change()?;
                    filter.write_at(b"0", 0)?;
                    changed += 1;
                }
            }
        }
        Ok(changed)
    }
}

/// Those of the calling thread's namespace.
fn open_filters() -> Vec<File> {
    let open = |name: &&str| {
        let path = Path::new(SYSCTL_DIR).join(name);
        OpenOptions::new().read(true).write(true).open(path).ok()
    };
    BRIDGE_FILTERS.iter().filter_map(open).collect()
}

fn is_on(filter: &File) -> io::Result<bool> {
    let mut text = [0; 16];
    let length = filter.read_at(&mut text, 0)?;
    Ok(text[..length].trim_ascii() != b"0")
}

const SYSCTL_DIR: &str = "/proc/sys";

/// Settings inside a network's namespace. Those of a kernel without the feature are passed over.
const SYSCTLS: &[(&str, &str)] = &[
    // The devices are switch ports: they hold no addresses and never speak for themselves.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    // Neighbours stay when a bridge has no port that is up.
    ("net/ipv4/conf/default/arp_evict_nocarrier", "0"),
    ("net/ipv6/conf/default/ndisc_evict_nocarrier", "0"),
];

/// Whether bridged frames pass the packet filter: nobody's rules are in our namespaces, and asking costs. The kernel has these
/// on in each new namespace, and in all that are there when `br_netfilter` is loaded, as Docker does.
pub(crate) const BRIDGE_FILTERS: [&str; 3] = [
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
];

/// Makes a namespace and binds it to a file. A file that is left from a crash half-way is used. Returns whether
/// there was anything to do: one that is there already stays, since a second one over it would hide devices
/// that go on holding their VNI and UDP port.
pub(crate) fn create(path: &Path) -> Result<bool, KernelError> {
    let error = |action| {
        move |source| KernelError::Namespace {
            action,
            path: path.to_owned(),
            source,
        }
    };
    if open(path).is_ok() {
        return Ok(false);
    }
    make_file(path)?;
    let made = thread::scope(|scope| {
        let inside = scope.spawn(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let unfiltered = BRIDGE_FILTERS.map(|name| (name, "0"));
            for (name, value) in SYSCTLS.iter().copied().chain(unfiltered) {
                match fs::write(Path::new(SYSCTL_DIR).join(name), value) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            links::raise_loopback(&mut Channel::open()?)?;
            bind("/proc/thread-self/ns/net", path)
        });
        inside
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    });
    made.map_err(error("make"))?;
    Ok(true)
}

/// Binds a namespace that somebody unmounted to its file again, with all that is in it: it lives as long as it is held
/// open. Returns whether there was anything to do: another one that is mounted there by now stays.
pub(crate) fn mount_again(namespace: &File, path: &Path) -> Result<bool, KernelError> {
    if open(path).is_ok() {
        return Ok(false);
    }
    make_file(path)?;
    let held = format!("/proc/thread-self/fd/{}", namespace.as_raw_fd());
    bind(&held, path).map_err(|source| KernelError::Namespace {
        action: "mount again",
        path: path.to_owned(),
        source,
    })?;
    Ok(true)
}

/// Makes the file that a namespace is to be mounted on, if it is not there.
fn make_file(path: &Path) -> Result<(), KernelError> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(|source| KernelError::Directory {
                path: parent.to_owned(),
                source,
            })?;
    }
    let made = fault::change().and_then(|()| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o444)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
    });
    made.map(drop).map_err(|source| KernelError::Namespace {
        action: "make the file of",
        path: path.to_owned(),
        source,
    })
}

fn bind(namespace: &str, path: &Path) -> io::Result<()> {
    fault::change()?;
    let bind = MsFlags::MS_BIND;
    mount(Some(namespace), path, None::<&str>, bind, None::<&str>)?;
    Ok(())
}

/// Removes a namespace's file; the kernel clears the namespace when nothing else holds it.
pub(crate) fn remove(path: &Path) -> Result<(), KernelError> {
    let error = |source: io::Error| KernelError::Namespace {
        action: "remove",
        path: path.to_owned(),
        source,
    };
    fault::change().map_err(error)?;
    loop {
        // Mounted twice by a race with somebody else, it takes two to get to the file.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(e) => return Err(error(e.into())),
        }
    }
    // Not refused: nothing is mounted there any more, and what looks for namespaces would not see the file.
    let _ = fault::change();
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(e)),
        _ => Ok(()),
    }
}

/// Removes the files that a process left which ended between unmounting a namespace and removing its file, or between
/// making one and mounting on it. Whoever looks for namespaces does not see them, so no plan names them.
pub(crate) fn remove_empty_files(dir: &Path) -> Result<(), KernelError> {
    for (_, path) in list(dir)? {
        let is_empty_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        if is_empty_file && is_gone(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Our namespaces in a directory: by name, whether or not they are whole.
pub(crate) fn list(dir: &Path) -> Result<Vec<(NetworkName, PathBuf)>, KernelError> {
    let error = |source| KernelError::Directory {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        if let Some(network) = entry
            .file_name()
            .to_str()
            .and_then(ownership::network_of_namespace)
        {
            found.push((network, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether there is surely no namespace at a path (any more): nothing is there, or something that is none. What cannot
/// be found out counts as there.
pub fn is_gone(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => statfs(path).is_ok_and(|system| system.filesystem_type().0 != NSFS_MAGIC),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Opens the namespace that an endpoint names, if it is one that an endpoint may name.
///
/// A record must not be able to turn this process against its host: the path is one component below an
/// allowed directory, no link is followed below that, the file is a network namespace, and neither the host's own nor
/// one of weft's.
pub(crate) fn open_attachment(
    path: &str,
    allowed: &[PathBuf],
    is_forbidden: impl Fn(Identity) -> bool,
) -> Result<File, KernelError> {
    let refuse = |why: String| KernelError::Attachment {
        path: path.to_owned(),
        why,
    };
    let whole = Path::new(path);
    let (Some(dir), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(refuse("it is not the path of a network namespace".to_owned()));
    };
    if !allowed.iter().any(|a| a == dir) {
        let allowed: Vec<_> = allowed.iter().map(|d| d.display().to_string()).collect();
        return Err(refuse(format!(
            "attachments have to be directly inside {}; another directory is allowed with attachment_dirs",
            allowed.join(", ")
        )));
    }
    if name
        .to_str()
        .is_some_and(|n| n.starts_with(ownership::NAMESPACE_PREFIX))
    {
        return Err(refuse("this namespace is one of weft's own".to_owned()));
    }
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
        .open(dir)
        .map_err(|e| refuse(format!("its directory cannot be opened: {e}")))?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file: File = match openat(dir.as_fd(), name, flags, Mode::empty()) {
        Ok(fd) => fd.into(),
        Err(nix::errno::Errno::ENOENT) => {
            return Err(refuse(
                "there is no such network namespace; is the container running?".to_owned(),
            ));
        }
        // A socket.
        Err(nix::errno::Errno::ENXIO) => return Err(refuse(NOT_ONE.to_owned())),
        Err(nix::errno::Errno::ELOOP) => {
            return Err(refuse(
                "it is a symbolic link; name the namespace itself".to_owned(),
            ));
        }
        Err(e) => return Err(refuse(format!("it cannot be opened: {}", e.desc()))),
    };
    ensure_network_namespace(&file).map_err(|e| refuse(e.to_string()))?;
    let identity = identity(&file).map_err(|e| refuse(e.to_string()))?;
    if is_forbidden(identity) {
        return Err(refuse(
            "this namespace is the host's own, or one of weft's".to_owned(),
        ));
    }
    Ok(file)
}
