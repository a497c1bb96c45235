//! The steady traffic: one endpoint on each host in a network of its own, each pair talking all the time. It needs
//! neither agents nor etcd, so only faults of the paths themselves may cost packets, and only on their own paths.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_e2e::{Cluster, SOON, Station, link};
use weft_lab::{Container, FlowSummary, Traffic, eventually};
use weft_storm::containers;
use weft_storm::verdict::Verdict;

/// The network.
pub const NETWORK: &str = "steady";
/// Its subnets: two of one family, so that there are routes in the containers; room for bursts.
pub const CIDRS: [&str; 3] = ["10.20.0.0/22", "10.21.0.0/24", "fd20::/64"];

/// The id of the endpoint on a host.
#[must_use]
pub fn id(host: usize) -> String {
    format!("s{host}")
}

/// The key of its record.
#[must_use]
pub fn key(host: usize) -> String {
    Cluster::endpoint_key(NETWORK, host, &id(host))
}

/// The traffic, renewed for each round so that each round is accounted for by itself.
#[derive(Debug)]
pub struct Steady {
    stations: Vec<Station>,
    traffic: Traffic,
    _keeper: Keeper,
}

impl Steady {
    /// Makes network and endpoints, and starts to talk.
    ///
    /// # Errors
    /// When they do not talk within the time.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        cluster.network(NETWORK, &CIDRS)?;
        let hosts = cluster.hosts().iter();
        let mut stations = hosts
            .map(|host| cluster.endpoint(NETWORK, host.number(), &id(host.number())))
            .collect::<Result<Vec<_>>>()?;
        cluster.up(&mut stations)?;
        let traffic = begin(&stations)?;
        let keeper = Keeper::start(&stations)?;
        Ok(Self {
            stations,
            traffic,
            _keeper: keeper,
        })
    }

    /// Starts traffic for the next round, and only then ends that of the last one and judges it: all flows that no fault
    /// concerned have lost nothing. The others only begin anew.
    ///
    /// # Errors
    /// When not all talk, although all has settled.
    pub fn renew(&mut self, concerned: &BTreeSet<usize>, verdict: &Verdict) -> Result<()> {
        let next = begin(&self.stations).context("steady traffic, all settled")?;
        let last = std::mem::replace(&mut self.traffic, next);
        let flows = last.stop();
        ensure!(
            flows.len() == pairs(&self.stations).len(),
            "{} flows",
            flows.len()
        );
        for ((from, to), flow) in pairs(&self.stations).into_iter().zip(&flows) {
            let spared = concerned.contains(&from.host) || concerned.contains(&to.host);
            judge(flow, spared, verdict);
        }
        Ok(())
    }
}

fn judge(flow: &FlowSummary, spared: bool, verdict: &Verdict) {
    let word = |what: &str| format!("{what}{}", if spared { ", cut by faults" } else { "" });
    verdict.count("traffic", &word("flows"), 1);
    verdict.count("traffic", &word("echo requests"), flow.pings.sent);
    verdict.count("traffic", &word("of them lost"), flow.lost());
    verdict.count("traffic", &word("replies never sent"), flow.given_up);
    verdict.count("traffic", &word("bytes of streams echoed"), flow.echoed);
    if !spared && (flow.lost() > 0 || flow.broken.is_some()) {
        let when = flow.pings.lost_from_to.map_or_else(String::new, |(from, to)| {
            format!(", from {:.2} to {:.2} s", verdict.at(from), verdict.at(to))
        });
        verdict.violated(format!("traffic that no fault concerns: {flow}{when}"));
    }
}

/// Every ordered pair.
fn pairs(stations: &[Station]) -> Vec<(&Station, &Station)> {
    let all = stations
        .iter()
        .flat_map(|from| stations.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.host != to.host).collect()
}

/// One way by IPv4, the other by IPv6.
fn begin(stations: &[Station]) -> Result<Traffic> {
    for (from, to) in pairs(stations) {
        for v4 in [true, false] {
            let address = to.address(v4);
            eventually(SOON, &format!("{} talks to {address}", from.id), || {
                ensure!(from.container.ping(address), "no answer");
                Ok(())
            })?;
            keep_neighbour(&from.container, &mac(&to.container)?, address)?;
        }
    }
    Traffic::start(pairs(stations).into_iter().map(|(from, to)| {
        let address = to.address(from.host < to.host);
        (&from.container, &to.container, address)
    }))
}

fn mac(container: &Container) -> Result<String> {
    let mac = link(container.netns(), "eth0")?["address"].clone();
    mac.as_str().map(str::to_owned).context("no MAC address")
}

/// Tells a container that got its interface anew its neighbours at once. It would ask for them, and where it is not
/// answered at once ask again after a second, and keep that long its answers to the echo requests of all others: the kernel
/// answers for all namespaces of a machine from one socket (a processor, a family), and with that one's buffer full no
/// container of any host is answered any more.
#[derive(Debug)]
struct Keeper {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(stations: &[Station]) -> Result<Self> {
        let stations = stations
            .iter()
            .map(|station| Ok((station.clone(), mac(&station.container)?)))
            .collect::<Result<Vec<_>>>()?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut known = BTreeMap::new();
            while !ended.load(Ordering::Relaxed) {
                for (from, _) in &stations {
                    let now = containers::look(&from.container).ok().flatten();
                    let now = now.filter(|now| !now.addresses.is_empty()).map(|now| now.index);
                    let before = known.insert(from.id.clone(), now);
                    if now.is_some() && before.is_some_and(|before| before != now) {
                        // It may be gone again; then it is told when it is back.
                        for (to, mac) in stations.iter().filter(|(to, _)| to.host != from.host) {
                            let addresses = to.addresses.iter();
                            addresses.for_each(|a| drop(keep_neighbour(&from.container, mac, *a)));
                        }
                    }
                }
                // Not a wait for anything: how soon it is seen.
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // A panic of it has been told.
        self.thread.take().map(JoinHandle::join);
    }
}

/// Has a container not forget a neighbour before its time. The kernel's table of neighbours is one for all namespaces of
/// a machine: when that is full (1024 of a family), also those that are in use are forgotten, and asking for them anew
/// fails; that would be a loss of this machine's own. The entry ages and is asked for as before.
fn keep_neighbour(from: &Container, mac: &str, address: IpAddr) -> Result<()> {
    let command = format!("ip neigh replace {address} lladdr {mac} dev eth0 nud stale extern_learn");
    from.exec(&command.split(' ').collect::<Vec<_>>()).map(drop)
}
