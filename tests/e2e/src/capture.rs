//! What goes over the underlay: `tcpdump` on all ports of the lab's switch, VXLAN taken apart.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft_lab::{Lab, Namespace};

/// VXLAN's UDP port in the lab.
const VXLAN: u16 = 4789;

/// A running capture of the VXLAN packets on the underlay. Each packet is seen at several ports of the switch.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    child: Child,
    stderr: BufReader<ChildStderr>,
}

/// One frame inside VXLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where the tunnel begins.
    pub from: IpAddr,
    /// Where the tunnel ends.
    pub to: IpAddr,
    /// The VNI.
    pub vni: u32,
    /// The frame's destination.
    pub mac: String,
    /// What is in it.
    pub inner: Inner,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inner {
    /// An echo request, with its source and destination.
    EchoRequest(IpAddr, IpAddr),
    /// An echo reply, with its source and destination.
    EchoReply(IpAddr, IpAddr),
    /// ARP.
    Arp,
    /// ICMPv6 of types 130 to 143: ND, MLD and their like.
    Discovery(u8),
    /// Anything else: EtherType and protocol.
    Other(u16, u8),
}

impl Capture {
    /// Starts; it listens when this returns.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(lab: &Lab) -> Result<Self> {
        let switch = Namespace::named(&format!("{}sw", lab.record().prefix()));
        let file = lab.run_dir().join("underlay.pcap");
        let filter = format!("udp port {VXLAN}");
        let mut child = switch
            .command("tcpdump")
            .args(["-i", "any", "-y", "LINUX_SLL", "-n", "-s", "200", "-B", "16384"])
            .args(["-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(&file)
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        let mut stderr = BufReader::new(child.stderr.take().context("its standard error")?);
        let mut heard = String::new();
        while !heard.contains("listening on") {
            let length = stderr.read_line(&mut heard).context("reading tcpdump's output")?;
            ensure!(length > 0, "tcpdump ended: {heard}");
        }
        Ok(Self { file, child, stderr })
    }

    /// Frames so far.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        let mut bytes = Vec::new();
        File::open(&self.file)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .with_context(|| format!("reading {}", self.file.display()))?;
        Ok(frames(&bytes).unwrap_or_default())
    }

    /// Stops and answers all frames.
    ///
    /// # Errors
    /// When the kernel dropped any before tcpdump could see them.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGINT).context("stopping tcpdump")?;
        let mut said = String::new();
        self.stderr
            .read_to_string(&mut said)
            .context("reading tcpdump's output")?;
        self.child.wait().context("waiting for tcpdump")?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump: {said}");
        self.frames()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All complete packets of a pcap file in this machine's byte order.
fn frames(bytes: &[u8]) -> Option<Vec<Frame>> {
    let mut rest = bytes.get(24..)?;
    let mut found = Vec::new();
    while let Some(header) = rest.get(..16) {
        let length = u32::from_le_bytes(header[8..12].try_into().ok()?) as usize;
        let Some(packet) = rest.get(16..16 + length) else {
            break;
        };
        // What the filter lets through and is none of VXLAN would be an error of the test.
        found.push(frame(packet).unwrap_or(Frame {
            from: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            to: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            vni: 0,
            mac: String::new(),
            inner: Inner::Other(0, 0),
        }));
        rest = &rest[16 + length..];
    }
    Some(found)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Source, destination, protocol and payload of an IP packet.
fn ip(packet: &[u8], ethertype: u16) -> Option<(IpAddr, IpAddr, u8, &[u8])> {
    match ethertype {
        0x0800 => {
            let address = |at: usize| {
                let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::V4(Ipv4Addr::from(bytes)))
            };
            let payload = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
            Some((address(12)?, address(16)?, *packet.get(9)?, payload))
        }
        0x86dd => {
            let address = |at: usize| {
                let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            let (mut protocol, mut payload) = (*packet.get(6)?, packet.get(40..)?);
            // MLD comes behind a hop-by-hop header.
            if protocol == 0 {
                protocol = *payload.first()?;
                payload = payload.get((usize::from(*payload.get(1)?) + 1) * 8..)?;
            }
            Some((address(8)?, address(24)?, protocol, payload))
        }
        _ => None,
    }
}

/// A packet behind the 16 bytes of `LINUX_SLL`.
fn frame(packet: &[u8]) -> Option<Frame> {
    let (from, to, protocol, udp) = ip(packet.get(16..)?, word(packet, 14)?)?;
    if protocol != 17 || word(udp, 2)? != VXLAN {
        return None;
    }
    let vxlan = udp.get(8..)?;
    let vni = u32::from_be_bytes(vxlan.get(4..8)?.try_into().ok()?) >> 8;
    let ethernet = vxlan.get(8..)?;
    let mac: Vec<String> = ethernet.get(..6)?.iter().map(|b| format!("{b:02x}")).collect();
    let ethertype = word(ethernet, 12)?;
    let inner = match ip(ethernet.get(14..)?, ethertype) {
        None if ethertype == 0x0806 => Inner::Arp,
        None => Inner::Other(ethertype, 0),
        Some((from, to, protocol, payload)) => match (protocol, payload.first()?) {
            (1, 8) | (58, 128) => Inner::EchoRequest(from, to),
            (1, 0) | (58, 129) => Inner::EchoReply(from, to),
            (58, kind @ 130..=143) => Inner::Discovery(*kind),
            _ => Inner::Other(ethertype, protocol),
        },
    };
    Some(Frame {
        from,
        to,
        vni,
        mac: mac.join(":"),
        inner,
    })
}

impl Frame {
    /// Source and destination, when it is an echo reply.
    #[must_use]
    pub fn reply(&self) -> Option<(IpAddr, IpAddr)> {
        match self.inner {
            Inner::EchoReply(from, to) => Some((from, to)),
            _ => None,
        }
    }
}
