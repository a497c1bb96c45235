//! How much of what the kernel has told waits to be read: whoever changes very much at once gives the listener time. The
//! kernel tells of each entry, faster than that can be read; what does not fit is dropped, and then all has to be looked at.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, sockopt};

/// The kernel's table of netlink sockets in the thread's namespace (net/netlink/af_netlink.c, `netlink_native_seq_show`).
const TABLE: &str = "/proc/thread-self/net/netlink";
/// Of its socket's room the listener may have this part to read, one in so many, before others wait for it.
const PART: usize = 4;
/// It is waited for no longer than this: it may be ending.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(500);

/// The socket that listens.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// Its inode; 0 if there is none.
    inode: AtomicU64,
    /// How many bytes may wait there, as the kernel counts them.
    most: AtomicU64,
}

impl Listener {
    /// From now on this one listens.
    pub(crate) fn is(&self, socket: &impl AsFd) -> io::Result<()> {
        let file = fs::File::from(socket.as_fd().try_clone_to_owned()?);
        // As the kernel has it: less than was asked for, perhaps, or twice as much.
        let room = getsockopt(socket, sockopt::RcvBuf)?;
        self.most.store((room / PART) as u64, Ordering::Relaxed);
        self.inode.store(file.metadata()?.ino(), Ordering::Relaxed);
        Ok(())
    }

    /// Waits until it is not far behind. Returns whether it is not.
    pub(crate) fn catch_up(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let most = self.most.load(Ordering::Relaxed);
        while self.backlog().is_some_and(|bytes| bytes > most) {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }

    /// Bytes that wait to be read; none if nobody listens.
    fn backlog(&self) -> Option<u64> {
        let inode = self.inode.load(Ordering::Relaxed);
        if inode == 0 {
            return None;
        }
        waiting(&fs::read_to_string(TABLE).ok()?, inode)
    }
}

/// What waits at the socket with this inode: `Rmem` is the fifth column, the inode the last.
fn waiting(table: &str, inode: u64) -> Option<u64> {
    let inode = inode.to_string();
    let mut rows = table.lines().map(str::split_ascii_whitespace);
    rows.find_map(|row| (row.clone().next_back() == Some(&*inode)).then_some(row))
        .and_then(|mut row| row.nth(4)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

    #[test]
    fn a_row_is_found_by_its_inode() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                     0000000068c4b309 0   0          00000000 0        0        0     2        0        4       \n\
                     00000000ce3e0e03 0   95         00000544 70400    0        0     2        3        1495    \n";
        assert_eq!(waiting(table, 1495), Some(70400));
        assert_eq!(waiting(table, 95), None);
    }

    #[test]
    fn a_listener_of_this_namespace_is_found() {
        let listener = Listener::default();
        assert_eq!(listener.backlog(), None);
        assert!(listener.catch_up());
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind_auto().unwrap();
        listener.is(&socket).unwrap();
        assert_eq!(listener.backlog(), Some(0));
    }
}
