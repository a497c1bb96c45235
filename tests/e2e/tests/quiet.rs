//! Nothing is flooded: what goes over the underlay is for an endpoint behind the tunnel's other end, and the data
//! plane is the one that somebody would make by hand with `ip` and `bridge`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::{Capture, Cluster, Frame, Inner, SOON, Station, unanswered};
use weft_lab::{Lab, Namespace, Underlay, eventually};

/// Flags of the tunnel's bridge port that stand for flooding and learning.
const OFF: [&str; 4] = ["learning", "flood", "mcast_flood", "bcast_flood"];

fn port(namespace: &Namespace, name: &str) -> Result<Value> {
    let ports = namespace.bridge_json(&["link", "show"])?;
    let found = ports.as_array().into_iter().flatten();
    found
        .into_iter()
        .find(|port| port["ifname"] == name)
        .cloned()
        .with_context(|| format!("no port {name}: {ports}"))
}

/// The underlay address behind which each MAC is.
fn places(cluster: &Cluster, stations: &[Station]) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    stations
        .iter()
        .map(|s| {
            let mac = cluster.record(s)?["mac"].as_str().context("mac")?.to_owned();
            Ok((mac, cluster.host_of(s).addresses()))
        })
        .collect()
}

/// All pairs on different hosts, over all addresses.
fn pairs(stations: &[Station]) -> BTreeSet<(IpAddr, IpAddr)> {
    let mut pairs = BTreeSet::new();
    for from in stations {
        for to in stations.iter().filter(|to| to.host != from.host) {
            for target in &to.addresses {
                pairs.insert((from.address(target.is_ipv4()), *target));
            }
        }
    }
    pairs
}

/// What a container would have flooded: questions for nobody, broadcast, multicast, frames for an unknown MAC.
fn shout(station: &Station) -> Result<()> {
    let netns = station.container.netns();
    // Packets for an address whose MAC is known to the container and to nobody else.
    station.container.exec(&[
        "ip",
        "neigh",
        "replace",
        "10.1.200.200",
        "lladdr",
        "02:42:de:ad:be:ef",
        "nud",
        "permanent",
        "dev",
        "eth0",
    ])?;
    for (from, to) in [
        ("0.0.0.0:0", "10.1.200.200:9"),
        ("0.0.0.0:0", "10.1.200.201:9"),
        ("0.0.0.0:0", "10.1.255.255:9"),
        ("0.0.0.0:0", "224.0.0.251:9"),
        ("[::]:0", "[fd00:1::dead]:9"),
        ("[::]:0", "[ff02::fb%eth0]:9"),
    ] {
        netns.within(|| -> Result<()> {
            let socket = UdpSocket::bind(from)?;
            socket.set_broadcast(true)?;
            let to: SocketAddr = match to.strip_prefix("[ff02::fb%eth0]:") {
                None => to.parse()?,
                Some(port) => {
                    let index = nix::net::if_::if_nametoindex("eth0")?;
                    std::net::SocketAddrV6::new("ff02::fb".parse()?, port.parse()?, 0, index).into()
                }
            };
            // Where there is no route for multicast, nothing could be flooded either.
            match socket.send_to(b"anybody?", to) {
                Err(error) if error.kind() != std::io::ErrorKind::NetworkUnreachable => {
                    Err(error).with_context(|| format!("to {to}"))
                }
                _ => Ok(()),
            }
        })??;
    }
    Ok(())
}

fn nothing_is_flooded(underlay: Underlay) -> Result<()> {
    let cluster = Cluster::build(Lab::builder().hosts(3).underlay(underlay))?;
    // From before the first endpoint: what agents do while they set up is quiet too.
    let capture = Capture::start(&cluster)?;
    cluster.network("blue", &["10.1.0.0/16", "fd00:1::/64"])?;
    let mut stations = Vec::new();
    for (host, id) in [(1, "a"), (1, "b"), (2, "c"), (2, "d"), (3, "e")] {
        stations.push(cluster.endpoint("blue", host, id)?);
    }
    cluster.up(&mut stations)?;
    for station in &stations {
        shout(station)?;
    }
    cluster.all_talk(&stations)?;
    // Fresh questions, as after each has forgotten all MACs.
    for station in &stations {
        station.container.exec(&["ip", "neigh", "flush", "all"])?;
    }
    let silent = unanswered(&stations, Duration::from_secs(2))?;
    assert_eq!(silent, Vec::<String>::new());

    for host in cluster.hosts() {
        for address in host.addresses() {
            let tunnel = if address.is_ipv4() { "vx4" } else { "vx6" };
            let port = port(&host.netns_of("blue"), tunnel)?;
            for flag in OFF {
                assert_eq!(port[flag], false, "{flag} of {tunnel} on {}: {port}", host.node());
            }
            assert_eq!(port["neigh_suppress"], true, "{port}");
        }
    }

    let wanted = pairs(&stations);
    eventually(SOON, "every pair was seen on the wire", || {
        let seen: BTreeSet<_> = capture.frames()?.iter().filter_map(Frame::reply).collect();
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(from, to)| !seen.contains(&(*to, *from)))
            .collect();
        ensure!(missing.is_empty(), "not seen: {missing:?}");
        Ok(())
    })?;
    let frames = capture.stop()?;
    let places = places(&cluster, &stations)?;
    for frame in &frames {
        assert!(
            matches!(frame.inner, Inner::EchoRequest(..) | Inner::EchoReply(..)),
            "{frame:?}"
        );
        let at = places
            .get(&frame.mac)
            .unwrap_or_else(|| panic!("nobody has that MAC: {frame:?}"));
        assert!(at.contains(&frame.to), "at {at:?}: {frame:?}");
    }
    assert!(frames.len() > wanted.len(), "{} frames", frames.len());
    cluster.close()
}

#[test]
fn nothing_is_flooded_over_ipv4() -> Result<()> {
    nothing_is_flooded(Underlay::V4)
}

#[test]
fn nothing_is_flooded_over_ipv6() -> Result<()> {
    nothing_is_flooded(Underlay::V6)
}

/// Of a JSON object, what is not a number that differs from device to device.
fn comparable(value: &Value, leave_out: &[&str]) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !leave_out.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), comparable(value, leave_out)))
            .collect(),
        Value::Array(items) => items.iter().map(|item| comparable(item, leave_out)).collect(),
        other => other.clone(),
    }
}

#[test]
fn the_data_plane_equals_one_made_by_hand() -> Result<()> {
    let cluster = Cluster::of(2)?;
    cluster.network("blue", &["10.1.0.0/16", "fd00:1::/64"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    let weft = cluster.host(1).netns_of("blue");
    let remote = &stations[1];
    let mac = cluster.record(remote)?["mac"].as_str().context("mac")?.to_owned();
    let local_mac = cluster.record(&stations[0])?["mac"]
        .as_str()
        .context("mac")?
        .to_owned();

    // The same with iproute2, in a namespace that stands for the network's.
    let hand = cluster.container("hand")?;
    let inner = cluster.container("hand-container")?;
    let (hand_name, inner_name) = (base_name(&hand), base_name(&inner));
    cluster.host(1).exec(&[
        "ip",
        "link",
        "add",
        "vx4",
        "netns",
        &hand_name,
        "mtu",
        "1450",
        "type",
        "vxlan",
        "id",
        "99",
        "dstport",
        "4789",
        "local",
        "10.99.0.1",
        "nolearning",
    ])?;
    for line in [
        "ip link add br0 mtu 1450 type bridge mcast_snooping 0".to_owned(),
        "ip link set br0 addrgenmode none up".to_owned(),
        "ip link set vx4 master br0 up".to_owned(),
        "bridge link set dev vx4 learning off flood off mcast_flood off bcast_flood off neigh_suppress on"
            .to_owned(),
        format!(
            "ip link add ve0 mtu 1450 type veth peer name eth0 netns {inner_name} mtu 1450 address {local_mac}"
        ),
        "ip link set ve0 master br0 up".to_owned(),
        "bridge link set dev ve0 learning off flood off".to_owned(),
        format!("bridge fdb replace {mac} dev vx4 dst 10.99.0.2 self master extern_learn static"),
        format!("bridge fdb replace {local_mac} dev ve0 master extern_learn static"),
        format!(
            "ip neigh replace {} lladdr {mac} dev br0 nud noarp extern_learn protocol 87",
            remote.address(true)
        ),
        format!(
            "ip neigh replace {} lladdr {mac} dev br0 nud noarp extern_learn protocol 87",
            remote.address(false)
        ),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        hand.exec(&words)?;
    }
    inner.exec(&["ip", "link", "set", "eth0", "up"])?;

    let numbers = [
        "ifindex",
        "ifname",
        "ifalias",
        "link",
        "address",
        "link_index",
        "link_netnsid",
        "id",
        "inet6_addr_gen_mode",
    ];
    let veth = weft.ip_json(&["link", "show", "type", "veth"])?[0]["ifname"]
        .as_str()
        .context("veth")?
        .to_owned();
    for (ours, theirs) in [("br0", "br0"), ("vx4", "vx4"), (veth.as_str(), "ve0")] {
        // Once IPv6 is up on both, operstate and flags agree.
        eventually(SOON, &format!("{ours} as {theirs} by hand"), || {
            let left_out = [
                numbers.as_slice(),
                // Random, or times that run.
                &[
                    "root_id",
                    "bridge_id",
                    "designated_bridge",
                    "designated_root",
                    "hello_timer",
                    "tcn_timer",
                    "topology_change_timer",
                    "gc_timer",
                    "hold_timer",
                    "message_age_timer",
                    "forward_delay_timer",
                    "no",
                    "port_no",
                    "designated_port",
                    "port_id",
                ],
            ]
            .concat();
            let ours = comparable(&weft_e2e::link(&weft, ours)?, &left_out);
            let theirs = comparable(&weft_e2e::link(hand.netns(), theirs)?, &left_out);
            ensure!(ours == theirs, "weft: {ours}\nhand: {theirs}");
            Ok(())
        })?;
        if ours != "br0" {
            let ours = comparable(&port(&weft, ours)?, &numbers);
            let theirs = comparable(&port(hand.netns(), theirs)?, &numbers);
            assert_eq!(ours, theirs, "flags of the port");
        }
    }
    let entries = |namespace: &Namespace, address: &str| -> Result<BTreeSet<String>> {
        let rows = namespace.bridge_json(&["fdb", "show"])?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        Ok(rows
            .iter()
            .filter(|row| row["mac"] == address)
            .map(|row| comparable(row, &["ifname", "updated", "used"]).to_string())
            .collect())
    };
    for address in [&mac, &local_mac] {
        let ours = entries(&weft, address)?;
        assert_eq!(
            ours,
            entries(hand.netns(), address)?,
            "forwarding entries of {address}"
        );
        assert!(!ours.is_empty());
    }
    let of_bridge = ["neigh", "show", "dev", "br0"];
    assert_eq!(
        sorted(&weft.ip_json(&of_bridge)?),
        sorted(&hand.netns().ip_json(&of_bridge)?),
        "neighbours"
    );
    cluster.close()
}

fn sorted(rows: &Value) -> BTreeSet<String> {
    let rows = rows.as_array().into_iter().flatten();
    rows.map(|row| comparable(row, &["updated", "used", "confirmed", "refcnt"]).to_string())
        .collect()
}

fn base_name(container: &weft_lab::Container) -> String {
    container.path().rsplit('/').next().unwrap_or_default().to_owned()
}
