//! What is printed for fixed answers, letter by letter.

use prost_types::{Duration, Timestamp};
use weft_proto::v1::{self, EndpointState, EventKind, PeerKind, event};

use crate::output::Paint;
use crate::view::{Address, Endpoint, Event, Network, Peer, Reservation, Status};
use crate::{report, table};

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: 1_795_000_000 + seconds,
        nanos: 123_000_000,
    })
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn web() -> v1::Endpoint {
    v1::Endpoint {
        network: text("blue"),
        node: text("host1"),
        id: text("web"),
        name: text("front"),
        attachment: Some(v1::Attachment {
            netns: text("/run/netns/web"),
            ifname: text("eth0"),
        }),
        addresses: vec![text("10.1.0.5/16"), text("fd00::5/64")],
        requested_addresses: vec![text("10.1.0.5")],
        mac: text("02:42:0a:01:00:05"),
        vtep: text("10.99.0.1"),
        veth: text("ve0123456789abc"),
        veth_namespace: text("/run/netns/weft-blue"),
        state: EndpointState::Ready.into(),
        mtu: 1450,
        labels: [(text("app"), text("shop"))].into(),
        revision: 42,
        local: true,
        ..Default::default()
    }
}

fn endpoints() -> Vec<Endpoint> {
    let remote = v1::Endpoint {
        network: text("blue"),
        node: text("host2"),
        id: text("db"),
        state: EndpointState::Failed.into(),
        message: text("no VTEP"),
        ..Default::default()
    };
    vec![web().into(), remote.into()]
}

fn blue() -> v1::Network {
    v1::Network {
        name: text("blue"),
        spec: Some(v1::NetworkSpec {
            subnets: vec![
                v1::Subnet {
                    cidr: text("10.1.0.0/16"),
                    gateway: text("10.1.0.1"),
                    range: text("10.1.4.0/22"),
                    reserved: vec![text("10.1.4.9")],
                },
                v1::Subnet {
                    cidr: text("fd00::/64"),
                    ..Default::default()
                },
            ],
            labels: [(text("a"), text("b"))].into(),
            cooldown: Some(Duration {
                seconds: 90,
                nanos: 0,
            }),
            ..Default::default()
        }),
        vni: 77,
        mtu: 1450,
        local_endpoints: 1,
        remote_endpoints: Some(3),
        namespace_path: text("/run/netns/weft-blue"),
        revision: 12,
        usage: vec![v1::SubnetUsage {
            cidr: text("10.1.0.0/16"),
            used: 12,
            released: 3,
            size: 1022,
        }],
        ..Default::default()
    }
}

fn problem() -> v1::Problem {
    v1::Problem {
        key: text("networks/red"),
        field: text("subnets[0].gateway"),
        message: text("10.9.0.1 is not in 10.1.0.0/16"),
        since: at(0),
    }
}

fn agent() -> v1::AgentStatus {
    let tally = |kind: &str, count| v1::CountByKind {
        kind: text(kind),
        count,
    };
    v1::AgentStatus {
        node: text("host1"),
        version: text("0.1.0"),
        uptime: Some(Duration {
            seconds: 93_784,
            nanos: 0,
        }),
        store: Some(v1::StoreStatus {
            endpoints: vec![text("http://127.0.0.1:2379")],
            connected: true,
            since: at(0),
            revision: 120,
            cluster_id: text("cdf818194e3a8c32"),
            ..Default::default()
        }),
        applied_revision: 120,
        counts: Some(v1::StatusCounts {
            networks: Some(2),
            local_networks: 1,
            local_endpoints: Some(1),
            ready_endpoints: Some(1),
            remote_endpoints: Some(3),
            peers: Some(3),
            fdb_entries: 3,
            neighbours: 6,
        }),
        netlink_writes: 12,
        netlink_writes_by_kind: vec![tally("link", 5), tally("fdb", 7)],
        passes: 9,
        full_passes: 2,
        problems: vec![problem()],
        ..Default::default()
    }
}

#[test]
fn endpoint_list() {
    assert_eq!(
        table::endpoints(&endpoints(), Paint::never()),
        "\
NETWORK   ID    NAME    NODE    STATE    ADDRESSES                MAC                 VETH              NAMESPACE:IFNAME
blue      web   front   host1   ready    10.1.0.5/16,fd00::5/64   02:42:0a:01:00:05   ve0123456789abc   /run/netns/web:eth0
blue      db    -       host2   failed   -                        -                   -                 -
"
    );
}

#[test]
fn an_empty_list_is_its_headings() {
    let nothing = table::networks(&[], Paint::never());
    assert_eq!(
        nothing,
        "NAME   VNI   SUBNETS   MTU   LOCAL   REMOTE   PROBLEMS\n"
    );
}

#[test]
fn colours_mark_headings_and_what_is_wrong_and_nothing_else() {
    let painted = table::endpoints(&endpoints(), Paint::always());
    let lines: Vec<&str> = painted.lines().collect();
    assert!(
        lines[0].starts_with("\u{1b}[1mNETWORK") && lines[0].ends_with("\u{1b}[0m"),
        "{}",
        lines[0]
    );
    assert!(!lines[1].contains('\u{1b}'), "{}", lines[1]);
    assert!(
        lines[2].starts_with("\u{1b}[31mblue") && lines[2].ends_with("\u{1b}[0m"),
        "{}",
        lines[2]
    );
}

#[test]
fn a_name_with_control_characters_stays_on_its_line() {
    let evil = v1::Endpoint {
        name: text("a\u{1b}[2J\nb"),
        ..web()
    };
    let shown = table::endpoints(&[evil.into()], Paint::never());
    assert_eq!(shown.lines().count(), 2, "{shown:?}");
    assert!(shown.contains("a\u{fffd}[2J\u{fffd}b"), "{shown:?}");
}

#[test]
fn endpoint_inspect() {
    assert_eq!(
        report::endpoint(&web().into(), Paint::never()),
        "\
Endpoint:        blue/host1/web
Name:            front
State:           ready
Addresses:       10.1.0.5/16, fd00::5/64
Requested:       10.1.0.5
MAC:             02:42:0a:01:00:05
Container end:   eth0 in /run/netns/web
Host end:        ve0123456789abc in /run/netns/weft-blue
Tunnel to:       10.99.0.1
MTU:             1450 bytes
Labels:          app=shop
Revision:        42
"
    );
}

#[test]
fn network_list_and_inspect() {
    let network = Network::from(blue());
    assert_eq!(
        report::network(&network, Paint::never()),
        "\
Network:     blue
VNI:         77
Subnet:      10.1.0.0/16, gateway 10.1.0.1, range 10.1.4.0/22, reserved 10.1.4.9; 12 of 1022 in use
Subnet:      fd00::/64
MTU:         1450 bytes
Cool-down:   1m 30s
Multicast:   off
Endpoints:   1 here, 3 on other hosts
Namespace:   /run/netns/weft-blue
Labels:      a=b
Revision:    12
"
    );
    let mut large = blue();
    large.name = text("large");
    if let Some(spec) = &mut large.spec {
        spec.mtu = Some(9000);
    }
    let large = Network::from(large);
    let elsewhere = report::network(&v1::Network::default().into(), Paint::never());
    assert!(
        elsewhere.contains("Endpoints:   0 here; those on other hosts are not known here\n"),
        "{elsewhere}"
    );
    let shown = report::network(&large, Paint::never());
    assert!(
        shown.contains("MTU:         1450 bytes; 9000 by its record\n"),
        "{shown}"
    );
    let bad = v1::Network {
        name: text("red"),
        problems: vec![problem()],
        ..Default::default()
    };
    assert_eq!(
        table::networks(&[network, bad.into(), large], Paint::never()),
        "\
NAME    VNI   SUBNETS                 MTU               LOCAL   REMOTE   PROBLEMS
blue    77    10.1.0.0/16,fd00::/64   1450              1       3        0
red     -     -                       -                 0       -        1
large   77    10.1.0.0/16,fd00::/64   9000 (now 1450)   1       3        0
"
    );
}

#[test]
fn address_list_and_reservation() {
    let address = |address: &str, state: v1::AddressState, holder: &str| {
        let (node, id) = holder.split_once('/').unwrap_or_default();
        Address::from(v1::Address {
            address: text(address),
            state: state.into(),
            node: text(node),
            id: text(id),
            revision: 9,
        })
    };
    let addresses = [
        address("10.1.0.2/16", v1::AddressState::Held, "host1/web"),
        address("10.1.0.3/16", v1::AddressState::Reserved, "host2/r1"),
        address("10.1.0.4/16", v1::AddressState::Unspecified, ""),
        address("10.1.0.9/16", v1::AddressState::Released, ""),
    ];
    assert_eq!(
        table::addresses(&addresses, Paint::never()),
        "\
ADDRESS       STATE      HOLDER
10.1.0.2/16   held       host1/web
10.1.0.3/16   reserved   host2/r1
10.1.0.4/16   unknown    -
10.1.0.9/16   released   -
"
    );
    assert_eq!(
        serde_json::to_string(&addresses[1]).unwrap(),
        "{\"address\":\"10.1.0.3/16\",\"state\":\"reserved\",\"node\":\"host2\",\"id\":\"r1\",\"revision\":9}"
    );
    let made = v1::ReserveResponse {
        id: text("r1"),
        addresses: vec![text("10.1.0.3/16"), text("fd00::3/64")],
        ends: at(60),
    };
    let reservation = Reservation::new(text("blue"), made);
    assert_eq!(
        report::reservation(&reservation, Paint::never()),
        "\
Reservation:   blue/r1
Addresses:     10.1.0.3/16, fd00::3/64
Until:         2026-11-18T11:07:40Z
"
    );
}

#[test]
fn peer_list() {
    let agent = v1::Peer {
        node: text("host1"),
        vteps: vec![text("10.99.0.1"), text("fd99::1")],
        mtu: 1500,
        version: text("0.1.0"),
        kind: PeerKind::Agent.into(),
        alive: Some(true),
        alive_since: at(0),
        local: true,
        ..Default::default()
    };
    let gone = v1::Peer {
        node: text("host2"),
        alive: Some(false),
        alive_since: None,
        local: false,
        ..agent.clone()
    };
    let unknown = v1::Peer {
        node: text("host3"),
        alive: None,
        ..gone.clone()
    };
    let switch = v1::Peer {
        node: text("tor1"),
        vteps: vec![text("10.99.0.250")],
        kind: PeerKind::External.into(),
        ..Default::default()
    };
    let peers: Vec<Peer> = [agent, gone, unknown, switch].map(Peer::from).into();
    assert_eq!(
        table::peers(&peers, Paint::never()),
        "\
NODE      KIND       ALIVE   SINCE                  VTEPS               MTU    VERSION
host1 *   agent      yes     2026-11-18T11:06:40Z   10.99.0.1,fd99::1   1500   0.1.0
host2     agent      no      -                      10.99.0.1,fd99::1   1500   0.1.0
host3     agent      ?       -                      10.99.0.1,fd99::1   1500   0.1.0
tor1      external   -       -                      10.99.0.250         -      -
"
    );
}

#[test]
fn status_when_connected() {
    assert_eq!(
        report::status(&agent().into(), Paint::never()),
        "\
Node:             host1, weftd 0.1.0, up 1day 2h
Store:            connected to http://127.0.0.1:2379 since 2026-11-18T11:06:40Z, revision 120, cluster cdf818194e3a8c32
Applied:          up to revision 120
Networks:         2, 1 carried here
Endpoints:        1 here, 1 ready; 3 on other hosts
Peers:            3
Programmed:       3 FDB entries, 6 neighbours
Netlink writes:   12 (fdb 7, link 5)
Drift repaired:   0
Passes:           9, 2 of them full
Problems:         1

KEY            FIELD                SINCE                  PROBLEM
networks/red   subnets[0].gateway   2026-11-18T11:06:40Z   10.9.0.1 is not in 10.1.0.0/16
"
    );
}

#[test]
fn status_without_the_store() {
    let mut agent = agent();
    agent.problems.clear();
    agent.store = Some(v1::StoreStatus {
        endpoints: vec![text("http://127.0.0.1:2379")],
        since: at(0),
        last_error: text("connection refused"),
        last_error_time: at(60),
        ..Default::default()
    });
    agent.held_deletions = Some(v1::HeldDeletions {
        count: 40,
        reason: text("the store came back empty"),
        ..Default::default()
    });
    let shown = report::status(&agent.into(), Paint::never());
    let expected = "\
Store:            NOT CONNECTED to http://127.0.0.1:2379 since 2026-11-18T11:06:40Z; forwarding goes on
Last failure:     connection refused (2026-11-18T11:07:40Z)
";
    assert!(shown.contains(expected), "{shown}");
    assert!(
        shown.contains("Held back:        40 deletions: the store came back empty\n"),
        "{shown}"
    );
    assert!(shown.ends_with("Problems:         none\n"), "{shown}");
}

#[test]
fn status_before_the_records_were_read() {
    let mut agent = agent();
    agent.applied_revision = 0;
    agent.counts = Some(v1::StatusCounts {
        local_networks: 1,
        ..Default::default()
    });
    let status = Status::from(agent);
    let shown = report::status(&status, Paint::never());
    let expected = "\
Records:          NOT KNOWN YET: this agent has not read them from etcd since it started
Applied:          nothing yet
Networks:         ?, 1 carried here
Endpoints:        ? here, ? ready; ? on other hosts
Peers:            ?
";
    assert!(shown.contains(expected), "{shown}");
    let counts = serde_json::to_value(&status.counts).expect("JSON");
    assert!(
        counts["networks"].is_null() && counts["peers"].is_null(),
        "{counts}"
    );
}

/// It does not say that it does not know: what is 0 is missing.
#[test]
fn status_of_an_older_agent_with_nothing_yet() {
    let mut agent = agent();
    agent.counts = Some(v1::StatusCounts {
        peers: Some(1),
        ..Default::default()
    });
    let shown = report::status(&agent.into(), Paint::never());
    let expected = "\
Networks:         0, 0 carried here
Endpoints:        0 here, 0 ready; 0 on other hosts
Peers:            1
";
    assert!(
        shown.contains(expected) && !shown.contains("NOT KNOWN"),
        "{shown}"
    );
}

#[test]
fn event_lines() {
    let line = |event: v1::Event| report::event(&Event::from(event), Paint::never());
    let ready = v1::Event {
        time: at(0),
        kind: EventKind::EndpointReady.into(),
        network: text("blue"),
        node: text("host1"),
        endpoint_id: text("web"),
        subject: Some(event::Subject::Endpoint(web())),
        ..Default::default()
    };
    assert_eq!(
        line(ready),
        "2026-11-18T11:06:40Z  endpoint-ready    blue/host1/web  10.1.0.5/16, fd00::5/64\n"
    );
    let appeared = v1::Event {
        time: at(0),
        kind: EventKind::ProblemAppeared.into(),
        subject: Some(event::Subject::Problem(problem())),
        ..Default::default()
    };
    assert_eq!(
        line(appeared),
        "2026-11-18T11:06:40Z  problem-appeared  networks/red subnets[0].gateway: 10.9.0.1 is not in 10.1.0.0/16\n"
    );
    let unknown = v1::Event {
        kind: 999,
        ..Default::default()
    };
    assert_eq!(line(unknown), "-  unknown\n");
}

#[test]
fn json_of_an_endpoint() {
    let json = serde_json::to_string_pretty(&Endpoint::from(web())).unwrap();
    assert_eq!(
        json,
        r#"{
  "network": "blue",
  "node": "host1",
  "id": "web",
  "name": "front",
  "local": true,
  "state": "ready",
  "message": null,
  "addresses": [
    "10.1.0.5/16",
    "fd00::5/64"
  ],
  "requested_addresses": [
    "10.1.0.5"
  ],
  "mac": "02:42:0a:01:00:05",
  "vtep": "10.99.0.1",
  "attachment": {
    "netns": "/run/netns/web",
    "ifname": "eth0"
  },
  "veth": {
    "name": "ve0123456789abc",
    "namespace": "/run/netns/weft-blue"
  },
  "mtu": 1450,
  "labels": {
    "app": "shop"
  },
  "revision": 42
}"#
    );
}

#[test]
fn json_of_the_others() {
    let network = serde_json::to_string(&Network::from(blue())).unwrap();
    assert_eq!(
        network,
        "{\"name\":\"blue\",\"vni\":77,\"mtu\":1450,\"mtu_set\":null,\"subnets\":[\
         {\"cidr\":\"10.1.0.0/16\",\"gateway\":\"10.1.0.1\",\"range\":\"10.1.4.0/22\",\"reserved\":[\"10.1.4.9\"],\
         \"used\":12,\"released\":3,\"size\":1022},\
         {\"cidr\":\"fd00::/64\",\"gateway\":null,\"range\":null,\"reserved\":[],\
         \"used\":null,\"released\":null,\"size\":null}],\
         \"multicast\":false,\"cooldown_seconds\":90,\"labels\":{\"a\":\"b\"},\"options\":{},\"local_endpoints\":1,\"remote_endpoints\":3,\
         \"namespace\":\"/run/netns/weft-blue\",\"revision\":12,\"problems\":[]}"
    );
    let status = serde_json::to_value(Status::from(agent())).unwrap();
    assert_eq!(status["uptime_seconds"], 93_784);
    assert_eq!(status["store"]["since"], "2026-11-18T11:06:40.123Z");
    assert_eq!(status["netlink_writes"]["by_kind"]["fdb"], 7);
    assert_eq!(status["problems"][0]["field"], "subnets[0].gateway");
    assert!(status["held_deletions"].is_null());
    let drift = v1::Event {
        kind: EventKind::DriftRepaired.into(),
        subject: Some(event::Subject::Drift(v1::Drift {
            kind: text("fdb"),
            object: text("02:42 on vx4"),
            ..Default::default()
        })),
        ..Default::default()
    };
    let event = serde_json::to_value(Event::from(drift)).unwrap();
    assert_eq!(event["kind"], "drift_repaired");
    assert_eq!(event["subject"]["drift"]["object"], "02:42 on vx4");
}
