//! Somebody is at weft's objects: what they do to a host's part of a network, and to the containers on it.

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::Value;
use weft_lab::{Host, Namespace};
use weft_storm::fault::Course;
use weft_storm::verdict::Verdict;

/// Strikes again and again while the fault lasts, each time something else. What is hit depends on what is there.
pub(crate) fn strike(
    host: &Host,
    network: &str,
    salt: u64,
    blows: usize,
    course: &Course<'_>,
    verdict: &Verdict,
) -> Result<()> {
    let mut rng = Rng::with_seed(salt);
    for number in 0..blows {
        let pause = course.lasts / u32::try_from(blows)? * u32::try_from(number)?;
        course.rest_for(pause);
        let word = match blow(host, network, &mut rng) {
            Ok(done) => {
                verdict.note(&format!("drift on {} in {network}: {done}", host.node()));
                "blows of drift"
            }
            // What was to be hit is not there, or has just gone: the agent or a worker is at it.
            Err(_) => "blows of drift that missed",
        };
        verdict.count("faults", word, 1);
    }
    Ok(())
}

fn one<'a>(rng: &mut Rng, from: &[&'a Value]) -> Result<&'a Value> {
    rng.choice(from).copied().context("there is none")
}

fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("no {field}"))
}

/// Does one thing, and tells which.
fn blow(host: &Host, network: &str, rng: &mut Rng) -> Result<String> {
    let netns = host.netns_of(network);
    // All that is decided is decided before anything is looked at, so that the choices are the seed's.
    let (what, mut rng) = (rng.u32(0..100), rng.fork());
    let rng = &mut rng;
    match what {
        0..=29 => entry(&netns, rng),
        30..=49 => neighbour(&netns, rng),
        50..=74 => device(&netns, rng),
        75..=94 => container(&netns, rng),
        _ => {
            let path = netns.path().display().to_string();
            host.exec(&["umount", "--lazy", &path])?;
            std::fs::remove_file(netns.path())?;
            Ok("namespace unmounted".to_owned())
        }
    }
}

fn run(netns: &Namespace, command: &str) -> Result<String> {
    netns.exec(&command.split_whitespace().collect::<Vec<_>>())?;
    Ok(command.to_owned())
}

/// Forwarding entries, in both tables.
fn entry(netns: &Namespace, rng: &mut Rng) -> Result<String> {
    let rows = netns.bridge_json(&["fdb", "show"])?;
    let ours: Vec<&Value> = rows
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| {
            row["flags"]
                .as_array()
                .is_some_and(|f| f.iter().any(|f| f == "extern_learn"))
        })
        .collect();
    let row = one(rng, &ours)?;
    let (mac, device) = (text(row, "mac")?, text(row, "ifname")?);
    let how = rng.u32(0..4);
    if how == 3 {
        let last = rng.u8(..);
        let mac = format!("02:de:ad:00:00:{last:02x}");
        return run(
            netns,
            &format!("bridge fdb replace {mac} dev {device} master extern_learn"),
        );
    }
    match (row["dst"].as_str(), how) {
        (Some(dst), 0) => {
            let elsewhere = if dst.contains(':') {
                "fd99::77"
            } else {
                "10.99.0.77"
            };
            run(
                netns,
                &format!("bridge fdb replace {mac} dev {device} dst {elsewhere} self extern_learn"),
            )
        }
        (Some(dst), _) => run(
            netns,
            &format!("bridge fdb del {mac} dev {device} dst {dst} self"),
        ),
        (None, _) => run(netns, &format!("bridge fdb del {mac} dev {device} master")),
    }
}

fn neighbour(netns: &Namespace, rng: &mut Rng) -> Result<String> {
    let rows = netns.ip_json(&["neigh", "show", "dev", "br0"])?;
    let rows: Vec<&Value> = rows.as_array().into_iter().flatten().collect();
    let address = text(one(rng, &rows)?, "dst")?;
    let last = rng.u8(..);
    let ours = "dev br0 nud permanent extern_learn protocol 87";
    match rng.u32(0..4) {
        0 => run(netns, "ip neigh flush dev br0 nud all"),
        1 => run(
            netns,
            &format!("ip neigh replace {address} lladdr 02:00:00:00:00:{last:02x} {ours}"),
        ),
        2 => run(
            netns,
            &format!("ip neigh replace 10.20.3.{last} lladdr 02:00:00:00:00:{last:02x} {ours}"),
        ),
        _ => run(netns, &format!("ip neigh del {address} dev br0")),
    }
}

fn device(netns: &Namespace, rng: &mut Rng) -> Result<String> {
    let links = netns.ip_json(&["link", "show"])?;
    let links: Vec<&Value> = links
        .as_array()
        .into_iter()
        .flatten()
        .filter(|link| link["ifname"] != "lo")
        .collect();
    let link = one(rng, &links)?;
    let name = text(link, "ifname")?;
    let is_port = link["master"] == "br0";
    let flags = [
        "learning",
        "flood",
        "mcast_flood",
        "bcast_flood",
        "neigh_suppress",
    ];
    let flag = flags[rng.usize(0..flags.len())];
    let other = if link["linkinfo"]["info_slave_data"][flag] == true {
        "off"
    } else {
        "on"
    };
    match rng.u32(0..8) {
        0 | 1 => run(netns, &format!("ip link del {name}")),
        2 => run(netns, &format!("ip link set {name} down")),
        3 => run(netns, &format!("ip link set {name} mtu 1281")),
        4 if is_port => run(netns, &format!("ip link set {name} nomaster")),
        5 | 6 if is_port => run(netns, &format!("bridge link set dev {name} {flag} {other}")),
        7 if is_port => run(netns, &format!("ip link set {name} alias somebody's")),
        4 => run(netns, "ip link set br0 type bridge mcast_snooping 1"),
        5 => run(netns, "sysctl -q -w net.ipv6.conf.br0.disable_ipv6=1"),
        _ => run(netns, "ip link set br0 addrgenmode eui64"),
    }
}

/// The container of one of the host's endpoints, by its alias.
fn container(netns: &Namespace, rng: &mut Rng) -> Result<String> {
    let links = netns.ip_json(&["link", "show", "type", "veth"])?;
    let ports: Vec<&Value> = links.as_array().into_iter().flatten().collect();
    let port = one(rng, &ports)?;
    let alias = text(port, "ifalias")?;
    // In the listing, the number of the container's namespace in this one.
    let number = port["link_netnsid"].as_u64().context("no other end")?;
    let named = netns.ip_json(&["netns", "list-id"])?;
    let named = named.as_array().into_iter().flatten();
    let inside = named
        .filter(|row| row["nsid"] == number)
        .find_map(|row| row["name"].as_str())
        .context("a namespace without a name")?;
    let inside = Namespace::named(inside);
    let addresses = inside.ip_json(&["addr", "show", "dev", "eth0", "scope", "global"])?;
    let held: Vec<&Value> = addresses[0]["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let address = one(rng, &held)?;
    let done = match rng.u32(0..8) {
        0 => "ip link del eth0".to_owned(),
        1 => "ip link set eth0 down".to_owned(),
        2 => "ip link set eth0 mtu 1290".to_owned(),
        3 => "ip link set eth0 address 02:00:00:00:00:07".to_owned(),
        4 => "ip addr flush dev eth0 scope global".to_owned(),
        5 => "ip route flush dev eth0 proto 87".to_owned(),
        6 => "ip link set eth0 alias somebody's".to_owned(),
        _ => format!(
            "ip addr del {}/{} dev eth0",
            text(address, "local")?,
            address["prefixlen"]
        ),
    };
    Ok(format!("in the container of {alias:?}: {}", run(&inside, &done)?))
}
