//! The kernel of this host: what of weft's is in it, and how a plan gets into it. netlink and namespaces only.
//!
//! In: plans and questions. Out: observations, outcomes, notices. It decides nothing: it neither knows
//! records nor compares what is with what should be. Everything here blocks and belongs to one thread, except
//! [`Notifications`].

mod addresses;
mod announce;
mod apply;
mod backlog;
mod channel;
mod entries;
mod error;
mod fault;
#[doc(hidden)]
pub mod fuzzing;
mod links;
pub mod memory;
mod mounts;
mod namespace;
mod notice;
mod notify;
mod observe;
mod registry;
mod underlay;
mod wire;

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_core::ownership;
use weft_store_schema::{Attachment, EndpointId, IfName, NetworkName};

pub use error::KernelError;
pub use namespace::is_gone;
pub use notice::{ContainerSeen, DeviceSeen, ForwardSeen, Notice};
pub use notify::Notifications;
pub use underlay::{Underlay, UnderlaySelection};

use channel::{Channel, Refusal};
use namespace::Namespace;
use registry::Registry;

/// Where things are.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that holds the networks' namespaces, `/run/netns` by default.
    pub netns_dir: PathBuf,
    /// The directories whose namespaces an endpoint may name.
    pub attachment_dirs: Vec<PathBuf>,
}

/// An endpoint's container.
#[derive(Debug)]
struct Container {
    /// The path of its namespace.
    path: String,
    /// The host end of the endpoint's veth.
    port_name: IfName,
}

/// The kernel as weft sees it.
#[derive(Debug)]
pub struct Kernel {
    config: Config,
    /// A socket in the host's namespace.
    host: Channel,
    host_identity: namespace::Identity,
    networks: HashMap<NetworkName, Namespace>,
    /// Former namespaces of networks, in whose place somebody has mounted another: cleared when something is next done there.
    replaced: Vec<(NetworkName, Namespace)>,
    /// Where the containers of endpoints are that have a veth.
    containers: HashMap<(NetworkName, EndpointId), Container>,
    registry: Arc<Registry>,
    /// Announcements cannot be made, and that was told.
    mute: bool,
}

impl Kernel {
    /// Opens the kernel in the calling thread's namespace, which is the host's. Files of namespaces that are none (any more)
    /// are removed; nothing else is changed.
    ///
    /// # Errors
    /// When rights are missing or the namespaces' directory cannot be made or cleared.
    pub fn open(config: Config) -> Result<Self, KernelError> {
        check_rights()?;
        std::fs::create_dir_all(&config.netns_dir).map_err(|source| KernelError::Directory {
            path: config.netns_dir.clone(),
            source,
        })?;
        namespace::remove_empty_files(&config.netns_dir)?;
        let error = |source| KernelError::Socket {
            place: "in the host's namespace".to_owned(),
            source,
        };
        let host_namespace = File::open("/proc/thread-self/ns/net").map_err(error)?;
        Ok(Self {
            host: Channel::open().map_err(error)?,
            host_identity: namespace::identity(&host_namespace).map_err(error)?,
            config,
            networks: HashMap::new(),
            replaced: Vec::new(),
            containers: HashMap::new(),
            registry: Arc::new(Registry::default()),
            mute: false,
        })
    }

    /// Checks that an endpoint may be attached there: the path leads to a network namespace of somebody
    /// else's, inside an allowed directory.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_attachment(&mut self, attachment: &Attachment) -> Result<(), KernelError> {
        self.open_attachment(&attachment.netns).map(drop)
    }

    /// Removes everything of weft's on this host. Returns what was removed, or why it was not.
    pub fn teardown(&mut self) -> Vec<(String, Result<(), KernelError>)> {
        let found = match namespace::list(&self.config.netns_dir) {
            Ok(found) => found,
            Err(error) => return vec![(self.config.netns_dir.display().to_string(), Err(error))],
        };
        found
            .into_iter()
            .map(|(network, path)| {
                (
                    format!("network {network} ({})", path.display()),
                    self.remove_network(&network),
                )
            })
            .collect()
    }

    fn remove_network(&mut self, network: &NetworkName) -> Result<(), KernelError> {
        use weft_core::plan::{Op, Plan};
        let mut ops = Vec::new();
        if let Some(seen) = self.observe_links(network, &[])? {
            ops.extend(seen.ports.into_keys().map(Op::DeletePort));
            ops.extend(seen.tunnels.into_keys().map(Op::DeleteTunnel));
        }
        ops.push(Op::DeleteNamespace);
        let plan = Plan {
            networks: [(network.clone(), ops)].into(),
        };
        match self.apply(&plan).failed.into_iter().next() {
            Some((_, _, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn path_of(&self, network: &NetworkName) -> PathBuf {
        self.config.netns_dir.join(ownership::namespace_name(network))
    }

    /// A network's namespace; none if it is not there. One that somebody unmounted is there as long as it is held open here.
    fn enter(&mut self, network: &NetworkName) -> Result<Option<&mut Namespace>, KernelError> {
        let path = self.path_of(network);
        let there = identity_at(&path);
        if there == Some(self.host_identity) {
            return Err(KernelError::Namespace {
                action: "use",
                path,
                source: io::Error::other("it is the host's own; unmount it"),
            });
        }
        let known = self.networks.get(network).map(|known| known.identity);
        if there.is_some() && there != known {
            match Namespace::open(&path) {
                Ok(namespace) => {
                    self.registry.forget_network(network);
                    if let Some(former) = self.networks.insert(network.clone(), namespace) {
                        self.replaced.push((network.clone(), former));
                    }
                }
                // A file without a namespace is what unmounting leaves, or a crash half-way: making the namespace mends it.
                Err(_) if !is_namespace_file(&path) => {}
                Err(source) => {
                    return Err(KernelError::Namespace {
                        action: "open",
                        path,
                        source,
                    });
                }
            }
        }
        let mut namespace = self.networks.get_mut(network);
        if let Some(namespace) = &mut namespace
            && !namespace.heard
        {
            // Refused once, it is tried again whenever there is something to do there.
            let (registry, host) = (&self.registry, &mut self.host);
            namespace.heard = registry.watch_network(host, &namespace.file, network);
        }
        Ok(namespace)
    }

    /// Whether a network's namespace is held here and not mounted on its file.
    fn is_unmounted(&self, network: &NetworkName) -> bool {
        let held = self.networks.get(network);
        held.is_some_and(|held| identity_at(&self.path_of(network)) != Some(held.identity))
    }

    /// Lets go of a network's namespace.
    fn forget(&mut self, network: &NetworkName) {
        self.registry.forget_network(network);
        if let Some(namespace) = self.networks.remove(network)
            && identity_at(&self.path_of(network)) != Some(namespace.identity)
        {
            self.replaced.push((network.clone(), namespace));
        }
        self.clear_replaced(network);
    }

    /// Removes what is ours in the former namespaces of a network. The kernel clears one some time after we let go of it,
    /// and until then its devices hold what the next one needs: the tunnels their VNI, the host ends the containers'
    /// interfaces.
    fn clear_replaced(&mut self, network: &NetworkName) {
        for (_, mut former) in self.replaced.extract_if(.., |(of, _)| of == network) {
            if let Err(error) = links::delete_ours(&mut former.channel, network.as_str()) {
                tracing::debug!(%network, %error, "its devices stay until the namespace is cleared");
            }
        }
    }

    fn open_attachment(&self, path: &str) -> Result<File, KernelError> {
        // Those of weft's that this process has made or found: none is used before it is in there.
        let is_forbidden = |identity| {
            identity == self.host_identity || self.networks.values().any(|own| own.identity == identity)
        };
        namespace::open_attachment(path, &self.config.attachment_dirs, is_forbidden)
    }

    /// Remembers where an endpoint's container is, and listens there.
    fn watch_container(
        &mut self,
        file: &File,
        path: &str,
        network: &NetworkName,
        id: &EndpointId,
        port_name: &IfName,
    ) {
        let container = Container {
            path: path.to_owned(),
            port_name: port_name.clone(),
        };
        self.containers.insert((network.clone(), id.clone()), container);
        self.registry.watch_container(&mut self.host, file, network, id);
    }

    /// Forgets the container whose veth's host end has this name.
    fn forget_container(&mut self, network: &NetworkName, port: &str) {
        let registry = &self.registry;
        self.containers.retain(|(n, id), container| {
            let goes = n == network && container.port_name.as_str() == port;
            if goes {
                registry.forget_container(n, id);
            }
            !goes
        });
    }
}

fn identity_at(path: &Path) -> Option<namespace::Identity> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn is_namespace_file(path: &Path) -> bool {
    namespace::open(path).is_ok()
}

fn check_rights() -> Result<(), KernelError> {
    // Asked by doing what needs them, in a thread that ends with it: whatever grants them, it is the deed
    // that counts.
    let may_unshare = std::thread::scope(|scope| {
        scope
            .spawn(|| nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok())
            .join()
            .unwrap_or(false)
    });
    if may_unshare {
        Ok(())
    } else {
        Err(KernelError::Rights {
            what: "making network namespaces",
            capability: "CAP_SYS_ADMIN and CAP_NET_ADMIN",
        })
    }
}

fn refused(what: String, refusal: Refusal) -> KernelError {
    match refusal {
        Refusal::Errno(errno, hint) => KernelError::Refused {
            what,
            hint,
            source: io::Error::from_raw_os_error(errno),
        },
        Refusal::Lost => KernelError::Lost { what },
        Refusal::Socket(source) => KernelError::Socket {
            place: format!("({what})"),
            source,
        },
    }
}
