//! Apply alone: a plan of entries carried out by weft's kernel side, beside raw netlink and the batch tools, in one and the
//! same namespace.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_bench::{Against, Figure, Goal, Progress, Row, rotated};
use weft_core::{
    dataplane::{Bridge, Forward, PortFlags, Tunnel},
    ownership,
    plan::{Op, Plan},
};
use weft_kernel::{Config, Kernel};
use weft_lab::Namespace;
use weft_store_schema::{Family, NetworkName, Vni};

use crate::{
    records::{Remote, check, remotes},
    wire::Wire,
};

/// A network in the kernel with no entries, and three hands that can fill it.
pub(crate) struct Bed {
    kernel: Kernel,
    network: NetworkName,
    netns: Namespace,
    wire: Wire,
    tunnel: u32,
    bridge: u32,
    dir: PathBuf,
}

impl Bed {
    /// In the calling thread's namespace, which is the host's; below `dir`.
    pub(crate) fn make(dir: &Path, local: Ipv4Addr) -> Result<Self> {
        let netns_dir = dir.join("bed");
        let mut kernel = Kernel::open(Config {
            netns_dir: netns_dir.clone(),
            attachment_dirs: vec!["/run/netns".into()],
        })?;
        let network: NetworkName = "bed".parse()?;
        let bridge = Bridge {
            mtu: 1450,
            up: true,
            multicast_snooping: false,
            ipv6: true,
            link_local: false,
            filtered: false,
        };
        let tunnel = Tunnel {
            vni: Vni::new(99).context("a VNI")?,
            port: 4789,
            local: local.into(),
            mtu: 1450,
            up: true,
            learning: false,
            bridge_port: Some(PortFlags::TUNNEL),
        };
        let devices = vec![
            Op::CreateNamespace,
            Op::PutBridge(bridge),
            Op::PutTunnel(Family::V4, tunnel),
        ];
        carry_out(&mut kernel, &network, devices)?;
        let netns = Namespace::at(netns_dir.join(ownership::namespace_name(&network)));
        Ok(Self {
            wire: netns.within(|| Wire::open(false))??,
            tunnel: index(&netns, ownership::tunnel_name(Family::V4))?,
            bridge: index(&netns, ownership::BRIDGE)?,
            dir: dir.to_path_buf(),
            kernel,
            network,
            netns,
        })
    }

    /// By raw netlink.
    pub(crate) fn raw(&mut self, remotes: &[Remote]) -> Result<Duration> {
        self.wire.program(remotes, self.tunnel, self.bridge, true)
    }

    fn weft(&mut self, plan: &Plan) -> Result<Duration> {
        let started = Instant::now();
        let outcome = self.kernel.apply(plan);
        let took = started.elapsed();
        ensure!(
            outcome.failed.is_empty() && outcome.held_back.is_empty(),
            "{outcome:?}"
        );
        Ok(took)
    }

    fn batch(&self, files: &[PathBuf; 2]) -> Result<Duration> {
        // Started inside: entering by a program of its own would count as theirs.
        self.netns.within(|| {
            let started = Instant::now();
            for (tool, file) in ["bridge", "ip"].into_iter().zip(files) {
                let status = Command::new(tool)
                    .arg("-batch")
                    .arg(file)
                    .stdin(Stdio::null())
                    .status()
                    .with_context(|| format!("starting {tool}"))?;
                ensure!(status.success(), "{tool} -batch: {status}");
            }
            Ok(started.elapsed())
        })?
    }

    fn batch_files(&self, remotes: &[Remote]) -> Result<[PathBuf; 2]> {
        let (mut forwarding, mut neighbours) = (String::new(), String::new());
        for Remote {
            address, mac, vtep, ..
        } in remotes
        {
            writeln!(
                forwarding,
                "fdb replace {mac} dev vx4 dst {vtep} self master static extern_learn"
            )?;
            writeln!(
                neighbours,
                "neigh replace {address} lladdr {mac} dev br0 nud noarp extern_learn protocol 87"
            )?;
        }
        let files = ["bridge", "ip"].map(|tool| self.dir.join(format!("{tool}-{}.batch", remotes.len())));
        std::fs::write(&files[0], forwarding)?;
        std::fs::write(&files[1], neighbours)?;
        Ok(files)
    }

    /// Empties the tables. One by one: a namespace that goes with many entries in it is cleared by the kernel in the
    /// background, in somebody else's time.
    pub(crate) fn empty(&mut self, remotes: &[Remote]) -> Result<()> {
        self.wire.program(remotes, self.tunnel, self.bridge, false)?;
        let left = self.wire.rows()?.len();
        ensure!(left == 0, "{left} rows are left");
        Ok(())
    }

    fn check(&mut self, remotes: &[Remote]) -> Result<()> {
        check(&self.wire.rows()?, remotes, self.tunnel)
    }

    /// Removes the namespace.
    pub(crate) fn remove(mut self) -> Result<()> {
        let ops = vec![Op::DeleteTunnel(Family::V4), Op::DeleteNamespace];
        carry_out(&mut self.kernel, &self.network, ops)
    }
}

fn carry_out(kernel: &mut Kernel, network: &NetworkName, ops: Vec<Op>) -> Result<()> {
    let plan = Plan {
        networks: [(network.clone(), ops)].into(),
    };
    let outcome = kernel.apply(&plan);
    ensure!(
        outcome.failed.is_empty() && outcome.held_back.is_empty(),
        "{outcome:?}"
    );
    Ok(())
}

/// The index of a device in a namespace.
pub(crate) fn index(netns: &Namespace, name: &str) -> Result<u32> {
    let shown = netns.ip_json(&["link", "show", name])?;
    let index = shown[0]["ifindex"]
        .as_u64()
        .with_context(|| format!("no {name}: {shown}"))?;
    Ok(u32::try_from(index)?)
}

/// The rows of one size.
pub(crate) fn measure(bed: &mut Bed, count: u32, rounds: usize, progress: Progress) -> Result<Vec<Row>> {
    progress.say(format!("apply alone, {count} endpoints"));
    let remotes = remotes(count);
    let plan = Plan {
        networks: [(bed.network.clone(), ops(&remotes))].into(),
    };
    let files = bed.batch_files(&remotes)?;
    // What the kernel makes larger once and keeps so is nobody's cost.
    bed.raw(&remotes)?;
    bed.empty(&remotes)?;
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..rounds {
        for who in rotated(3, round) {
            let took = match who {
                0 => bed.weft(&plan)?,
                1 => bed.raw(&remotes)?,
                _ => bed.batch(&files)?,
            };
            bed.check(&remotes)?;
            bed.empty(&remotes)?;
            rates[who].push(2.0 * f64::from(count) / took.as_secs_f64());
        }
    }
    for file in files {
        std::fs::remove_file(file)?;
    }
    let [weft, raw, batch] = rates.map(Figure::from);
    let row = |what, figure, goal| {
        let against = Against { what, figure };
        Row::new(
            format!("apply alone, {count} endpoints"),
            "entries/s",
            &weft,
            Some(against),
            Some(Goal::RatioAtLeast(goal)),
        )
    };
    Ok(vec![
        row("raw netlink, 128 a send", &raw, 0.85),
        row("bridge -batch + ip -batch", &batch, 3.0),
    ])
}

/// In the order in which weft makes them.
fn ops(remotes: &[Remote]) -> Vec<Op> {
    let forwards = remotes
        .iter()
        .map(|remote| Op::PutForward(remote.mac, Forward::Remote(remote.vtep.into())));
    let neighbours = remotes
        .iter()
        .map(|remote| Op::PutNeighbour(IpAddr::V4(remote.address), remote.mac));
    forwards.chain(neighbours).collect()
}
