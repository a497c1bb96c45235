//! Listening to the kernel: netlink's notifications of all namespaces that matter, and the directories of
//! namespaces. Turned into notices, each subject's last word only.
//!
//! One socket in the host's namespace hears all namespaces that have an id there (`NETLINK_LISTEN_ALL_NSID`). So no
//! socket is open inside a container's namespace: it would keep a dead container's namespace alive.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    Kernel, KernelError,
    mounts::{self, Mounts},
    notice::Notice,
    registry::Registry,
    wire,
};

/// Room for notifications that wait to be read, in bytes. When it is full, the kernel drops and says so.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Datagrams read before what they told is handed over.
const AT_ONCE: usize = 512;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// `NETLINK_LISTEN_ALL_NSID`, as a socket option and as the type of the control message.
const LISTEN_ALL_NSID: i32 = 8;

/// Listens. Belongs to the runtime, unlike the rest of this crate.
#[derive(Debug)]
pub struct Notifications {
    socket: Socket,
    /// The same descriptor, as the runtime wants it.
    readable: AsyncFd<OwnedFd>,
    inotify: Inotify,
    /// The same descriptor, as the runtime wants it.
    files: AsyncFd<OwnedFd>,
    dirs: HashMap<WatchDescriptor, PathBuf>,
    /// The table of mounts, as the runtime wants it.
    mount_table: AsyncFd<OwnedFd>,
    mounts: Mounts,
    registry: Arc<Registry>,
    buffer: Vec<u8>,
    /// What cannot be read, as far as that was told.
    complaint: Option<String>,
}

impl Notifications {
    /// Starts to listen; to be called in the host's namespace, within the runtime.
    ///
    /// # Errors
    /// When the sockets cannot be made.
    pub fn open(kernel: &Kernel) -> Result<Self, KernelError> {
        let error = |source: io::Error| KernelError::Socket {
            place: "for notifications".to_owned(),
            source,
        };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        socket.set_listen_all_namespaces(true).map_err(error)?;
        socket.set_non_blocking(true).map_err(error)?;
        let fd = socket.as_fd();
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(|e| error(e.into()))?;
        }
        kernel.registry.listener.is(&socket).map_err(error)?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group).map_err(error)?;
        }
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| error(e.into()))?;
        let mut dirs = HashMap::new();
        // Not of opening and closing: looking at a file that is no namespace would tell of itself.
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        let config = &kernel.config;
        let all: Vec<PathBuf> = config
            .attachment_dirs
            .iter()
            .chain([&config.netns_dir])
            .cloned()
            .collect();
        for dir in &all {
            // A directory that does not exist yet cannot be watched; mounts in it are told of all the same.
            if let Ok(watch) = inotify.add_watch(dir, flags) {
                dirs.insert(watch, dir.clone());
            }
        }
        let mount_table = File::open(mounts::TABLE).map_err(error)?;
        Ok(Self {
            mount_table: register(&mount_table, Interest::PRIORITY).map_err(error)?,
            mounts: Mounts::read(Path::new(mounts::TABLE), all).map_err(error)?,
            readable: register(&socket, Interest::READABLE).map_err(error)?,
            socket,
            files: register(&inotify, Interest::READABLE).map_err(error)?,
            inotify,
            dirs,
            registry: kernel.registry.clone(),
            buffer: vec![0; 1 << 16],
            complaint: None,
        })
    }

    /// What has happened since the last call; waits until something has. May be dropped while it waits.
    pub async fn next(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        while notices.is_empty() {
            tokio::select! {
                ready = self.readable.readable_mut() => {
                    let Ok(mut ready) = ready else { return vec![Notice::Overrun] };
                    for _ in 0..AT_ONCE {
                        let read = ready.try_io(|_| receive(&self.socket, &mut self.buffer));
                        match read {
                            Ok(Ok((size, nsid))) => {
                                for message in wire::split(&self.buffer[..size]).filter_map(wire::decode) {
                                    self.registry.read(nsid, message, &mut notices);
                                }
                            }
                            Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                                notices.push(Notice::Overrun);
                            }
                            Ok(Err(error)) => {
                                let why = error.to_string();
                                if self.complaint.as_ref() != Some(&why) {
                                    tracing::warn!(error = why, "notifications of the kernel cannot be read");
                                    self.complaint = Some(why);
                                }
                                notices.push(Notice::Overrun);
                                break;
                            }
                            Err(_would_block) => break,
                        }
                    }
                }
                ready = self.files.readable_mut() => {
                    let Ok(mut ready) = ready else { return vec![Notice::Overrun] };
                    let read = ready.try_io(|_| self.inotify.read_events().map_err(io::Error::from));
                    if let Ok(Ok(events)) = read {
                        let changed: BTreeSet<PathBuf> = events
                            .into_iter()
                            .filter_map(|event| Some(self.dirs.get(&event.wd)?.join(event.name?)))
                            .collect();
                        changed.iter().for_each(|path| self.mounts.forget(path));
                        notices.extend(changed.into_iter().map(Notice::Attachments));
                    }
                }
                ready = self.mount_table.ready_mut(Interest::PRIORITY), if !self.mounts.is_reading() => {
                    let Ok(mut ready) = ready else { return vec![Notice::Overrun] };
                    // Before the reading, so that what changes meanwhile is told of again.
                    ready.clear_ready();
                    self.mounts.look();
                }
                changed = self.mounts.changed(), if self.mounts.is_reading() => {
                    match changed {
                        Ok(changed) => notices.extend(changed.into_iter().map(Notice::Attachments)),
                        Err(error) => {
                            let why = error.to_string();
                            if self.complaint.as_ref() != Some(&why) {
                                tracing::warn!(error = why, "the table of mounts cannot be read");
                                self.complaint = Some(why);
                            }
                        }
                    }
                }
            }
        }
        Notice::keep_latest(&mut notices);
        notices
    }
}

/// Has the runtime tell when something can be read. The descriptor is a duplicate, so that it belongs to the
/// registration alone.
fn register(source: &impl AsFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let duplicate = source.as_fd().try_clone_to_owned()?;
    #[expect(
        unsafe_code,
        reason = "the safe constructor is deprecated for types that might change their descriptor"
    )]
    // SAFETY: `OwnedFd` keeps one descriptor, open and unchanged, until the registration drops it.
    let registered = unsafe { AsyncFd::register_with_interest(duplicate, interest) };
    registered.map_err(Into::into)
}

/// Reads a datagram, and the id of the namespace that it comes from; none for the host's own.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<NetlinkAddr>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut nsid = None;
    for control in message.cmsgs().map_err(io::Error::from)? {
        if let ControlMessageOwned::Unknown(unknown) = control
            && unknown.cmsg_header.cmsg_type == LISTEN_ALL_NSID
        {
            nsid = unknown
                .data_bytes
                .get(..4)
                .and_then(|b| b.try_into().ok())
                .map(i32::from_ne_bytes);
        }
    }
    Ok((message.bytes, nsid))
}
