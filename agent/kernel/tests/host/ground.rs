//! A test's ground: a host of its own (a network namespace that the test's thread lives in), private
//! directories of namespaces, containers, and eyes that are not weft's (`ip`, `bridge`).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use weft_core::{
    dataplane::{Bridge, Interface, Local, LookInto, Observed, ObservedNetwork, Port, PortFlags, Tunnel},
    ownership,
    plan::{Op, Outcome, Plan},
};
use weft_kernel::{Config, Kernel, KernelError};
use weft_store_schema::{Attachment, EndpointId, EndpointRef, Family, Mac, NetworkName, Vni};

/// How long a test waits for something that should come at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The node of every test.
pub(crate) const NODE: &str = "host1";

pub(crate) struct Ground {
    pub(crate) kernel: Kernel,
    pub(crate) config: Config,
    /// What all that was done should have come to.
    pub(crate) model: Observed,
    pub(crate) netns_dir: PathBuf,
    pub(crate) containers: PathBuf,
    root: PathBuf,
}

/// Runs a test on a host of its own, and clears up whatever becomes of the test.
pub(crate) fn on_host(test: impl FnOnce(&mut Ground) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace for the test's host");
        let dir = tempfile::Builder::new().prefix("weft-kernel-").tempdir().unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let before = own_namespace();
            let mut ground = Ground::new(dir.path());
            test(&mut ground);
            assert_eq!(before, own_namespace(), "the test's thread changed its namespace");
        }));
        unmount_below(dir.path());
        result
    };
    let thread = thread::Builder::new()
        .name(thread::current().name().unwrap_or("test").to_owned())
        .spawn(body);
    match thread.unwrap().join() {
        Ok(Ok(())) => {}
        Ok(Err(panic)) | Err(panic) => resume_unwind(panic),
    }
}

/// Which network namespace the calling thread is in.
pub(crate) fn own_namespace() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

fn unmount_below(dir: &Path) {
    // Several mounts may lie on one file.
    for _ in 0..4 {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(path).starts_with(dir) {
                let _ = umount2(path, MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Runs a command and returns what it says; fails the test if the command fails.
pub(crate) fn run(command: &str) -> String {
    let (ok, out, err) = attempt(command);
    assert!(ok, "`{command}` failed: {err}");
    out
}

/// Runs a command that may fail.
pub(crate) fn attempt(command: &str) -> (bool, String, String) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Runs a command that answers in JSON.
pub(crate) fn json(command: &str) -> Vec<Value> {
    let out = run(command);
    if out.trim().is_empty() {
        return Vec::new();
    }
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("`{command}`: {e} in {out}"))
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "in {PATIENCE:?} it did not come about that {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn network(name: &str) -> NetworkName {
    name.parse().unwrap()
}

pub(crate) fn id(name: &str) -> EndpointId {
    name.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The MAC with this number.
pub(crate) fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac::new([2, 0x42, a, b, c, d]).unwrap()
}

pub(crate) fn bridge(mtu: u16) -> Bridge {
    Bridge {
        mtu,
        up: true,
        multicast_snooping: false,
        ipv6: true,
        link_local: false,
        filtered: false,
    }
}

pub(crate) fn tunnel(family: Family, vni: u64, mtu: u16) -> (Family, Tunnel) {
    let local = match family {
        Family::V4 => ip("10.99.0.1"),
        Family::V6 => ip("fd99::1"),
    };
    let tunnel = Tunnel {
        vni: Vni::new(vni).unwrap(),
        port: 4789,
        local,
        mtu,
        up: true,
        learning: false,
        bridge_port: Some(PortFlags::TUNNEL),
    };
    (family, tunnel)
}

pub(crate) fn put_tunnel(family: Family, vni: u64, mtu: u16) -> Op {
    let (family, tunnel) = tunnel(family, vni, mtu);
    Op::PutTunnel(family, tunnel)
}

/// The devices of a network with both tunnels.
pub(crate) fn devices(vni: u64) -> Vec<Op> {
    vec![
        Op::CreateNamespace,
        Op::PutBridge(bridge(1430)),
        put_tunnel(Family::V4, vni, 1430),
        put_tunnel(Family::V6, vni, 1430),
    ]
}

/// An endpoint of a network on this host.
pub(crate) fn endpoint(network: &NetworkName, name: &str) -> EndpointRef {
    EndpointRef {
        network: network.clone(),
        node: NODE.parse().unwrap(),
        id: id(name),
    }
}

/// A local endpoint with two addresses and two routes.
pub(crate) fn local(network: &NetworkName, name: &str, netns: &Path, number: u8) -> Local {
    let endpoint = endpoint(network, name);
    let alias = ownership::alias(&endpoint, Some("a name"));
    let port = Port {
        alias: alias.clone(),
        mtu: 1430,
        up: true,
        bridge_port: Some(PortFlags::ENDPOINT),
    };
    let interface = Interface {
        attachment: Attachment {
            netns: netns.to_str().unwrap().into(),
            ifname: "eth0".parse().unwrap(),
        },
        alias,
        mac: Mac::from_address(IpAddr::from([10, 1, 0, number])),
        mtu: 1430,
        up: true,
        addresses: [
            format!("10.1.0.{number}/16").parse().unwrap(),
            format!("fd01::{number:x}/64").parse().unwrap(),
        ]
        .into(),
        routes: ["10.2.0.0/16".parse().unwrap(), "fd02::/64".parse().unwrap()].into(),
    };
    Local {
        port_name: ownership::port_name(&endpoint),
        port,
        interface,
    }
}

pub(crate) fn create(local: &Local, name: &str) -> Op {
    Op::CreateLocal(id(name), Box::new(local.clone()))
}

/// Where the container ends are that the model knows.
pub(crate) fn places(network: &NetworkName, model: &ObservedNetwork) -> Vec<LookInto> {
    let place = |(id, interface): (&EndpointId, &Interface)| LookInto {
        network: network.clone(),
        id: id.clone(),
        port_name: ownership::port_name(&EndpointRef {
            network: network.clone(),
            node: NODE.parse().unwrap(),
            id: id.clone(),
        }),
        attachment: interface.attachment.clone(),
    };
    model.interfaces.iter().map(place).collect()
}

pub(crate) fn plan(network: &NetworkName, ops: Vec<Op>) -> Plan {
    Plan {
        networks: [(network.clone(), ops)].into(),
    }
}

/// The whole chain of an error in one line.
pub(crate) fn chain(error: &KernelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}

impl Ground {
    fn new(root: &Path) -> Self {
        let netns_dir = root.join("netns");
        let containers = root.join("containers");
        fs::create_dir(&netns_dir).unwrap();
        fs::create_dir(&containers).unwrap();
        let config = Config {
            netns_dir: netns_dir.clone(),
            attachment_dirs: vec![containers.clone()],
        };
        run("ip link set lo up");
        Self {
            kernel: Kernel::open(config.clone()).expect("the kernel"),
            config,
            model: Observed::default(),
            netns_dir,
            containers,
            root: root.to_owned(),
        }
    }

    /// A path beside the directories of namespaces.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a container: a namespace with a file.
    pub(crate) fn container(&self, name: &str) -> PathBuf {
        let path = self.containers.join(name);
        make_namespace(&path);
        path
    }

    /// The file of a network's namespace.
    pub(crate) fn namespace(&self, network: &NetworkName) -> PathBuf {
        self.netns_dir.join(ownership::namespace_name(network))
    }

    /// Applies operations, all of which must succeed, and remembers what they should come to.
    pub(crate) fn apply(&mut self, network: &NetworkName, ops: Vec<Op>) -> Outcome<KernelError> {
        let outcome = self.attempt(network, ops);
        let failed: Vec<_> = outcome.failed.iter().map(|(_, op, e)| (op, chain(e))).collect();
        assert!(failed.is_empty(), "refused: {failed:#?}");
        assert!(outcome.held_back.is_empty());
        outcome
    }

    /// Applies operations, some of which may fail; only those that are done are remembered.
    pub(crate) fn attempt(&mut self, network: &NetworkName, ops: Vec<Op>) -> Outcome<KernelError> {
        let plan = plan(network, ops);
        let outcome = self.kernel.apply(&plan);
        assert_eq!(
            outcome.done + outcome.failed.len() + outcome.held_back.len(),
            plan.len()
        );
        for op in &plan.networks[network] {
            let undone = outcome.failed.iter().any(|(_, o, _)| o == op)
                || outcome.held_back.iter().any(|(_, o)| o == op);
            if !undone {
                self.model.record(network, op);
            }
        }
        outcome
    }

    pub(crate) fn modelled(&self, network: &NetworkName) -> ObservedNetwork {
        self.model.networks.get(network).cloned().unwrap_or_default()
    }

    pub(crate) fn observed(&mut self, network: &NetworkName) -> Option<ObservedNetwork> {
        let places = places(network, &self.modelled(network));
        self.kernel.observe_network(network, &places).unwrap()
    }

    /// What the kernel holds is what was predicted.
    pub(crate) fn assert_as_modelled(&mut self, network: &NetworkName, after: &str) {
        let observed = self.observed(network);
        let model = self.model.networks.get(network).cloned();
        assert!(
            observed == model,
            "after {after}\n{}",
            difference(&shown(observed.as_ref()), &shown(model.as_ref()))
        );
    }

    /// Asks `ip` or `bridge` in a network's namespace.
    pub(crate) fn ask(&self, network: &NetworkName, command: &str) -> Vec<Value> {
        json(&inside(&self.namespace(network), command))
    }

    /// Does something behind weft's back in a network's namespace.
    pub(crate) fn meddle(&self, network: &NetworkName, command: &str) {
        run(&inside(&self.namespace(network), command));
    }
}

/// As text, its entries in order.
fn shown(observed: Option<&ObservedNetwork>) -> String {
    let Some(observed) = observed else {
        return "nothing".to_owned();
    };
    let mut rest = observed.clone();
    let forwards: BTreeMap<_, _> = rest.forwards.drain().collect();
    let neighbours: BTreeMap<_, _> = std::mem::take(&mut rest.neighbours)
        .iter()
        .map(|(a, mac)| (a, *mac))
        .collect();
    let mut text = format!("{rest:#?}\n");
    for (mac, row) in forwards {
        text += &format!("{mac} {row:?}\n");
    }
    for (address, mac) in neighbours {
        text += &format!("{address} {mac}\n");
    }
    text
}

/// Where two texts differ, with a few lines around it.
fn difference(there: &str, wanted: &str) -> String {
    let (there, wanted): (Vec<_>, Vec<_>) = (there.lines().collect(), wanted.lines().collect());
    let start = there.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let rest = (there.len() - start).min(wanted.len() - start);
    let end = there
        .iter()
        .rev()
        .zip(wanted.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let part = |lines: &[&str]| lines[start.saturating_sub(8)..(lines.len() - end)].join("\n");
    format!(
        "the kernel holds\n{}\nbut should hold\n{}",
        part(&there),
        part(&wanted)
    )
}

/// A command to be run in a namespace.
pub(crate) fn inside(namespace: &Path, command: &str) -> String {
    format!("nsenter --net={} {command}", namespace.display())
}

/// Makes a namespace with loopback up and binds it to a file.
pub(crate) fn make_namespace(path: &Path) {
    File::create(path).unwrap();
    let path = path.to_owned();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        bind(Path::new("/proc/thread-self/ns/net"), &path);
    })
    .join()
    .unwrap();
    // Without a loopback that is up a container is none.
}

/// Binds a file of a namespace to another file, which is there.
pub(crate) fn bind(namespace: &Path, to: &Path) {
    mount(Some(namespace), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// Removes a namespace's file the way runtimes do.
pub(crate) fn remove_namespace(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).unwrap();
    fs::remove_file(path).unwrap();
}

/// The attribute of the object of that name in `ip -j link`.
pub(crate) fn find<'v>(objects: &'v [Value], key: &str, value: &str) -> Option<&'v Value> {
    objects.iter().find(|o| o[key] == value)
}
