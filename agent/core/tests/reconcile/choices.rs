//! Which addresses are chosen, one agent and one store at a time.

use std::{collections::BTreeSet, net::IpAddr};

use weft_core::{
    chores::{self, Chore},
    claims::{self, Choosing, NetworkChange, Refusal},
    record::{Committed, Transaction, Write},
};
use weft_store_schema::{Endpoint, EndpointDocument, EndpointRef, Family, Key, NetworkName, SubnetDocument};

use crate::{
    agent::Agent,
    claims::{endpoint, minimal},
    convergence::agents,
    records::{Families, key},
    store::Store,
};

/// A store with one network, and an agent that looks at it.
fn blue(subnet: &str) -> (Store, Agent) {
    let mut store = Store::new();
    store.put(
        &Store::key("networks/blue"),
        format!(r#"{{"subnets":[{subnet}],"vni":100}}"#).as_bytes(),
    );
    let mut agent = agents([Families::V4; 3]).swap_remove(0);
    agent.pinned.insert("blue".parse().unwrap());
    agent.sync(&store);
    (store, agent)
}

fn attach(
    store: &mut Store,
    agent: &mut Agent,
    id: &str,
    document: EndpointDocument,
) -> Result<Endpoint, Refusal> {
    let name = endpoint(0, "blue", id);
    let transaction = claims::attach(&agent.snapshot, &name, document, None, &Choosing::default())?;
    assert!(matches!(
        store.commit(&transaction, agent.node()),
        Committed::Yes { .. }
    ));
    agent.sync(store);
    Ok(agent.snapshot.endpoint(&name).unwrap().value.clone().unwrap())
}

fn wishing(address: &str) -> EndpointDocument {
    EndpointDocument {
        requested_addresses: vec![address.to_owned()],
        ..minimal()
    }
}

#[test]
fn every_free_address_is_found_and_then_it_is_full() {
    for (subnet, free, message) in [
        (
            r#"{"cidr":"10.1.0.0/29"}"#,
            5,
            "network blue: 10.1.0.0/29 is full (5 of 5)",
        ),
        (
            r#"{"cidr":"10.1.0.0/30"}"#,
            1,
            "network blue: 10.1.0.0/30 is full (1 of 1)",
        ),
        (
            r#"{"cidr":"10.1.0.0/31"}"#,
            2,
            "network blue: 10.1.0.0/31 is full (2 of 2)",
        ),
        (
            r#"{"cidr":"10.1.0.0/32"}"#,
            1,
            "network blue: 10.1.0.0/32 is full (1 of 1)",
        ),
        (
            r#"{"cidr":"10.1.0.0/32","gateway":"10.1.0.0"}"#,
            0,
            "network blue: 10.1.0.0/32 is full (0 of 0)",
        ),
        (
            r#"{"cidr":"fd00:1::/125"}"#,
            6,
            "network blue: fd00:1::/125 is full (6 of 6)",
        ),
        (
            r#"{"cidr":"fd00:1::/127"}"#,
            2,
            "network blue: fd00:1::/127 is full (2 of 2)",
        ),
        (
            r#"{"cidr":"10.1.0.0/24","range":"10.1.0.250-10.1.0.255","reserved":["10.1.0.251","10.1.0.253-10.1.0.254"]}"#,
            2,
            "network blue: 10.1.0.0/24 is full (2 of 2)",
        ),
        (
            r#"{"cidr":"10.1.0.0/30"},{"cidr":"10.2.0.0/30","gateway":"10.2.0.2"}"#,
            2,
            "network blue: 10.1.0.0/30 is full (1 of 1), 10.2.0.0/30 is full (1 of 1)",
        ),
    ] {
        let (mut store, mut agent) = blue(subnet);
        let name: NetworkName = "blue".parse().unwrap();
        let network = agent.snapshot.network(&name).unwrap().value.clone().unwrap();
        let mut given = BTreeSet::new();
        for n in 0..free {
            let endpoint = attach(&mut store, &mut agent, &format!("e{n}"), minimal()).unwrap();
            let address = endpoint.addresses[0];
            let subnet = network.subnet_of(address).unwrap();
            assert!(
                subnet.admits(address) && subnet.range.contains(address),
                "{address}"
            );
            assert!(given.insert(address), "{address} was given twice");
        }
        let refusal = attach(&mut store, &mut agent, "one-more", minimal()).unwrap_err();
        assert_eq!(refusal.to_string(), message);
        // The last free one is found, wherever it is.
        for address in given {
            let holder = agent
                .snapshot
                .members(&name)
                .unwrap()
                .owner_of_address(address)
                .unwrap()
                .0
                .1
                .clone();
            let gone = claims::detach(&agent.snapshot, &endpoint(0, "blue", holder.as_str())).unwrap();
            assert!(matches!(store.commit(&gone, agent.node()), Committed::Yes { .. }));
            agent.sync(&store);
            let again = attach(&mut store, &mut agent, holder.as_str(), minimal()).unwrap();
            assert_eq!(&again.addresses[..], [address]);
        }
    }
}

#[test]
fn a_wish_is_granted_or_refused_with_its_reason() {
    let (mut store, mut agent) =
        blue(r#"{"cidr":"10.1.0.0/24","range":"10.1.0.128/25","reserved":["10.1.0.40/29"]}"#);
    // Outside of the range is allowed to who asks for it.
    let endpoint = attach(&mut store, &mut agent, "a", wishing("10.1.0.9")).unwrap();
    assert_eq!(endpoint.addresses[0].to_string(), "10.1.0.9");
    assert_eq!(endpoint.mac.unwrap().to_string(), "02:42:0a:01:00:09");
    for (address, message) in [
        ("10.1.0.9", "10.1.0.9 is held by endpoint blue/host1/a"),
        (
            "10.2.0.9",
            "10.2.0.9 is in none of the subnets of network blue: 10.1.0.0/24",
        ),
        (
            "10.1.0.1",
            "10.1.0.1 is not for endpoints: it is the gateway, the network or broadcast address, or reserved in 10.1.0.0/24",
        ),
        (
            "10.1.0.0",
            "10.1.0.0 is not for endpoints: it is the gateway, the network or broadcast address, or reserved in 10.1.0.0/24",
        ),
        (
            "10.1.0.255",
            "10.1.0.255 is not for endpoints: it is the gateway, the network or broadcast address, or reserved in 10.1.0.0/24",
        ),
        (
            "10.1.0.41",
            "10.1.0.41 is not for endpoints: it is the gateway, the network or broadcast address, or reserved in 10.1.0.0/24",
        ),
    ] {
        let refusal = attach(&mut store, &mut agent, "b", wishing(address)).unwrap_err();
        assert_eq!(refusal.to_string(), message);
    }
    let taken = EndpointDocument {
        mac: Some("02:42:0a:01:00:09".to_owned()),
        ..minimal()
    };
    let refusal = attach(&mut store, &mut agent, "b", taken).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "02:42:0a:01:00:09 is the MAC of endpoint blue/host1/a"
    );
    let refusal = attach(&mut store, &mut agent, "a", minimal()).unwrap_err();
    assert_eq!(refusal.to_string(), "endpoint blue/host1/a exists already");
    let nowhere = EndpointRef {
        network: "red".parse().unwrap(),
        ..self::endpoint(0, "blue", "a")
    };
    let refusal =
        claims::attach(&agent.snapshot, &nowhere, minimal(), None, &Choosing::default()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "network red does not exist, or its record is not valid"
    );
    let refusal = claims::detach(&agent.snapshot, &nowhere).unwrap_err();
    assert_eq!(refusal.to_string(), "there is no endpoint red/host1/a");
}

#[test]
fn addresses_that_are_being_claimed_are_not_chosen() {
    let (_, agent) = blue(r#"{"cidr":"10.1.0.0/29"}"#);
    let mut choosing = Choosing::default();
    for n in 0..5 {
        let name = endpoint(0, "blue", &format!("e{n}"));
        let transaction = claims::attach(&agent.snapshot, &name, minimal(), None, &choosing).unwrap();
        let address = transaction.writes.iter().find_map(|write| match write {
            Write::Put(Key::Address(_, address), _) => Some(*address),
            _ => None,
        });
        assert!(choosing.claiming.insert(address.unwrap()));
    }
    let name = endpoint(0, "blue", "e5");
    assert!(matches!(
        claims::attach(&agent.snapshot, &name, minimal(), None, &choosing),
        Err(Refusal::Full { .. })
    ));
    // Who wishes for one may still race for it.
    let wished = claims::attach(&agent.snapshot, &name, wishing("10.1.0.2"), None, &choosing);
    assert!(wished.is_ok());
}

#[test]
fn a_network_with_endpoints_cannot_be_deleted_nor_attached_to_once_it_is() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29"}"#);
    let (network, node) = ("blue".parse().unwrap(), agent.node().clone());
    agent.book.clear();
    // Both are worked out from the same view; either may arrive first.
    let attach_it = claims::attach(
        &agent.snapshot,
        &endpoint(0, "blue", "a"),
        minimal(),
        None,
        &Choosing::default(),
    )
    .unwrap();
    let delete_it = claims::delete_network(&agent.snapshot, &network).unwrap();
    let mut other = store.clone();
    assert!(matches!(store.commit(&attach_it, &node), Committed::Yes { .. }));
    assert!(matches!(store.commit(&delete_it, &node), Committed::No { .. }));
    assert!(matches!(other.commit(&delete_it, &node), Committed::Yes { .. }));
    assert!(matches!(other.commit(&attach_it, &node), Committed::No { .. }));
    assert_eq!(other.entries().count(), 0, "the VNI went with it");
    assert_eq!(key("networks/blue"), Key::Network(network));
}

/// host2 is paused: of its endpoint only the record is gone, and its kernel goes on taking what comes with the VNI.
#[test]
fn a_vni_is_free_once_every_host_is_rid_of_its_network() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29"}"#);
    for (key, value) in [
        ("vnis/100", r#"{"network":"blue"}"#),
        ("addresses/blue/10.1.0.2", r#"{"endpoint":"host2/web"}"#),
    ] {
        store.put(&Store::key(key), value.as_bytes());
    }
    agent.sync(&store);
    let deletion = claims::delete_network(&agent.snapshot, &blue_name()).unwrap();
    happens(&mut store, &mut agent, &deletion);
    let free = Chore::FreeVni(weft_store_schema::Vni::new(100).unwrap());
    assert!(store.read(&key("vnis/100")).is_some());
    assert!(!agent.book.contains(&free));
    // Who does not see it is kept from it by what the store has.
    let mut other = agents([Families::V4; 3]).swap_remove(2);
    other.sync(&store);
    let blind = other.transaction(&free).unwrap().unwrap();
    assert!(matches!(store.commit(&blind, other.node()), Committed::No { .. }));

    store.delete(Store::key("addresses/blue/10.1.0.2").as_slice());
    agent.sync(&store);
    assert!(agent.book.contains(&free), "{:?}", agent.book);
    assert_eq!(chores::rank(&agent.snapshot, &free), 0);
    assert!(matches!(
        store.commit(&blind, other.node()),
        Committed::Yes { .. }
    ));
}

#[test]
fn a_claim_that_cannot_be_read_is_a_claim() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/30","gateway":"10.1.0.1"}"#);
    store.put(&Store::key("addresses/blue/10.1.0.2"), b"what?");
    agent.sync(&store);
    let refusal = attach(&mut store, &mut agent, "a", wishing("10.1.0.2")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "10.1.0.2 is held by whoever, for its claim cannot be read: delete the record addresses/blue/10.1.0.2"
    );
    let refusal = attach(&mut store, &mut agent, "a", minimal()).unwrap_err();
    assert_eq!(refusal.to_string(), "network blue: 10.1.0.0/30 is full (1 of 1)");
}

fn blue_name() -> NetworkName {
    "blue".parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn happens(store: &mut Store, agent: &mut Agent, transaction: &Transaction) {
    let committed = store.commit(transaction, agent.node());
    assert!(matches!(committed, Committed::Yes { .. }), "{transaction:#?}");
    agent.sync(store);
}

fn detach(store: &mut Store, agent: &mut Agent, id: &str) {
    let transaction = claims::detach(&agent.snapshot, &endpoint(0, "blue", id)).unwrap();
    happens(store, agent, &transaction);
}

/// What an attach would get.
fn offered(agent: &Agent, choosing: &Choosing) -> Result<Vec<IpAddr>, Refusal> {
    let name = endpoint(0, "blue", "next");
    let transaction = claims::attach(&agent.snapshot, &name, minimal(), None, choosing)?;
    Ok(claimed_by(&transaction))
}

fn claimed_by(transaction: &Transaction) -> Vec<IpAddr> {
    let claims = transaction.writes.iter().filter_map(|write| match write {
        Write::Put(Key::Address(_, address), _) | Write::PutLeased(Key::Address(_, address), ..) => {
            Some(*address)
        }
        _ => None,
    });
    claims.collect()
}

#[test]
fn what_was_never_used_comes_first_then_what_was_given_up_longest_ago() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29"}"#);
    for id in ["a", "b", "c"] {
        attach(&mut store, &mut agent, id, minimal()).unwrap();
    }
    for id in ["b", "c", "a"] {
        detach(&mut store, &mut agent, id);
    }
    // 10.1.0.2, .3 and .4 were a, b and c. A restarted agent knows it as well as one that saw it.
    let mut fresh = blue(r#"{"cidr":"10.1.0.0/29"}"#).1;
    fresh.sync(&store);
    let mut given = Vec::new();
    for (n, id) in ["d", "e", "f", "g", "h"].iter().enumerate() {
        let agent = if n % 2 == 0 { &mut agent } else { &mut fresh };
        agent.sync(&store);
        given.push(attach(&mut store, agent, id, minimal()).unwrap().addresses[0]);
    }
    assert_eq!(
        given,
        ["10.1.0.5", "10.1.0.6", "10.1.0.3", "10.1.0.4", "10.1.0.2"].map(ip)
    );
    assert_eq!(
        store.list("/weft/v1/released/").len(),
        0,
        "whoever claims an address takes its trace away"
    );
}

#[test]
fn what_was_given_up_cools_down_first() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/30","gateway":"10.1.0.1"}"#);
    let text = r#"{"subnets":[{"cidr":"10.1.0.0/30"}],"vni":100,"cooldown":30}"#;
    store.put(&Store::key("networks/blue"), text.as_bytes());
    agent.sync(&store);
    attach(&mut store, &mut agent, "a", minimal()).unwrap();
    let before = store.revision;
    detach(&mut store, &mut agent, "a");
    let at = |cooled_to| Choosing {
        cooled_to,
        ..Choosing::default()
    };
    assert_eq!(
        offered(&agent, &at(before)).unwrap_err().to_string(),
        "network blue: 10.1.0.0/30 is full (0 of 1; 1 given up less than 30 s ago)"
    );
    assert_eq!(offered(&agent, &at(before + 1)), Ok(vec![ip("10.1.0.2")]));
    // Who asks for it gets it.
    attach(&mut store, &mut agent, "b", wishing("10.1.0.2")).unwrap();
}

#[test]
fn after_a_lost_race_the_choice_is_another() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/26"}"#);
    let all: BTreeSet<IpAddr> = (0..60)
        .map(|n| {
            attach(&mut store, &mut agent, &format!("e{n}"), minimal())
                .unwrap()
                .addresses[0]
        })
        .collect();
    for n in 0..60 {
        detach(&mut store, &mut agent, &format!("e{n}"));
    }
    attach(&mut store, &mut agent, "last", minimal()).unwrap();
    let offers: BTreeSet<IpAddr> = (0..20)
        .flat_map(|lost| {
            offered(
                &agent,
                &Choosing {
                    lost,
                    ..Choosing::default()
                },
            )
            .unwrap()
        })
        .collect();
    assert!(offers.len() > 8 && offers.is_subset(&all), "{offers:?}");
}

#[test]
fn agents_choose_apart_however_full_the_network_is() {
    for taken in [0, 200, 240] {
        let mut store = Store::new();
        store.put(
            &Store::key("networks/blue"),
            br#"{"subnets":[{"cidr":"10.1.0.0/24"}],"vni":100}"#,
        );
        let mut all = agents([Families::V4; 3]);
        for agent in &mut all {
            let peer = format!("peers/{}", agent.node());
            store.put(&Store::key(&peer), br#"{"vteps":["10.99.0.1"]}"#);
            agent.pinned.insert(blue_name());
        }
        // One after another: the free ones lie all at the end.
        for n in 0..taken {
            let claim = format!("addresses/blue/10.1.0.{}", n + 2);
            store.put(&Store::key(&claim), br#"{"endpoint":"host9/x"}"#);
        }
        let offers: Vec<IpAddr> = all
            .iter_mut()
            .flat_map(|agent| {
                agent.sync(&store);
                offered(agent, &Choosing::default()).unwrap()
            })
            .collect();
        let apart: BTreeSet<&IpAddr> = offers.iter().collect();
        assert_eq!(apart.len(), 3, "{offers:?}");
    }
}

#[test]
fn the_next_subnet_is_used_when_one_is_full() {
    let (mut store, mut agent) =
        blue(r#"{"cidr":"10.1.0.0/30"},{"cidr":"fd00:1::/126"},{"cidr":"10.2.0.0/30"}"#);
    let first = attach(&mut store, &mut agent, "a", minimal()).unwrap();
    let second = attach(&mut store, &mut agent, "b", minimal()).unwrap();
    assert_eq!(first.addresses[..], [ip("10.1.0.2"), ip("fd00:1::2")]);
    assert_eq!(second.addresses[..], [ip("10.2.0.2"), ip("fd00:1::3")]);
    // One family is full: neither is claimed.
    let refusal = attach(&mut store, &mut agent, "c", minimal()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "network blue: 10.1.0.0/30 is full (1 of 1), 10.2.0.0/30 is full (1 of 1)"
    );
}

#[test]
fn a_reservation_is_taken_over_by_its_endpoint_alone() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29"},{"cidr":"fd00:1::/64"}"#);
    let id = "r1".parse().unwrap();
    let none = Choosing::default();
    let both = Family::ALL;
    let reserve = |agent: &Agent, wished: &[IpAddr], lease| {
        claims::reserve(&agent.snapshot, &blue_name(), &id, wished, &both, lease, &none)
    };
    let transaction = reserve(&agent, &[ip("10.1.0.4")], 6).unwrap();
    happens(&mut store, &mut agent, &transaction);
    // Asked for again it is the same one, for longer; anything else is another.
    let v4 = claims::reserve(&agent.snapshot, &blue_name(), &id, &[], &[Family::V4], 7, &none);
    for other in [reserve(&agent, &[ip("10.1.0.5")], 7), v4] {
        assert_eq!(
            other.unwrap_err().to_string(),
            "reservation r1 of host1 exists already in network blue"
        );
    }
    assert_eq!(
        reserve(&agent, &[], 7),
        reserve(&agent, &[ip("fd00:1::2"), ip("10.1.0.4")], 7)
    );
    let transaction = reserve(&agent, &[ip("10.1.0.4")], 7).unwrap();
    assert_eq!(claimed_by(&transaction), ["10.1.0.4", "fd00:1::2"].map(ip));
    assert!(
        transaction
            .writes
            .iter()
            .all(|w| !matches!(w, Write::Put(..)) && !matches!(w, Write::PutLeased(.., lease) if *lease != 7))
    );
    happens(&mut store, &mut agent, &transaction);
    assert_eq!(
        attach(&mut store, &mut agent, "a", wishing("10.1.0.4"))
            .unwrap_err()
            .to_string(),
        "10.1.0.4 is held by reservation host1/r1"
    );
    // Nobody clears it away while its lease lasts.
    assert!(
        !agent
            .book
            .iter()
            .any(|chore| matches!(chore, Chore::ReleaseAddress(..)))
    );

    let name = endpoint(0, "blue", "a");
    let taken_over = claims::attach(&agent.snapshot, &name, minimal(), Some(&id), &none).unwrap();
    let mut other = store.clone();
    happens(&mut store, &mut agent, &taken_over);
    let there = agent.snapshot.endpoint(&name).unwrap().value.clone().unwrap();
    assert_eq!(there.addresses[..], ["10.1.0.4", "fd00:1::2"].map(ip));
    assert!(
        claims::attach(
            &agent.snapshot,
            &endpoint(0, "blue", "b"),
            minimal(),
            Some(&id),
            &none
        )
        .is_err()
    );

    // The lease was faster: then it does not happen.
    other.delete(&Store::key("addresses/blue/10.1.0.4"));
    other.delete(&Store::key("addresses/blue/fd00:1::2"));
    assert!(matches!(
        other.commit(&taken_over, agent.node()),
        Committed::No { .. }
    ));
}

#[test]
fn a_reservation_that_is_given_up_leaves_a_trace() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29"}"#);
    let id = "r1".parse().unwrap();
    let none = Choosing::default();
    let v6 = claims::reserve(&agent.snapshot, &blue_name(), &id, &[], &[Family::V6], 7, &none);
    assert_eq!(v6.unwrap_err().to_string(), "network blue has no IPv6 subnet");
    let transaction =
        claims::reserve(&agent.snapshot, &blue_name(), &id, &[], &[Family::V4], 7, &none).unwrap();
    happens(&mut store, &mut agent, &transaction);
    let transaction = claims::unreserve(&agent.snapshot, &blue_name(), &id).unwrap();
    happens(&mut store, &mut agent, &transaction);
    assert_eq!(offered(&agent, &none), Ok(vec![ip("10.1.0.3")]));
    assert!(claims::unreserve(&agent.snapshot, &blue_name(), &id).is_err());
}

#[test]
fn a_network_does_not_change_under_held_addresses() {
    let (mut store, mut agent) = blue(r#"{"cidr":"10.1.0.0/29","mine":7},{"cidr":"10.2.0.0/29"}"#);
    attach(&mut store, &mut agent, "a", minimal()).unwrap();
    attach(&mut store, &mut agent, "b", wishing("10.2.0.3")).unwrap();
    let change =
        |agent: &Agent, change: &NetworkChange| claims::update_network(&agent.snapshot, &blue_name(), change);
    let remove = |net: &str| NetworkChange {
        remove_subnets: vec![net.parse().unwrap()],
        ..NetworkChange::default()
    };
    assert_eq!(
        change(&agent, &remove("10.2.0.0/29")).unwrap_err().to_string(),
        "network blue cannot change so, for these addresses are held: 10.2.0.3 (endpoint blue/host1/b)"
    );
    assert_eq!(
        change(&agent, &remove("10.3.0.0/29")).unwrap_err().to_string(),
        "network blue: subnets: there is no subnet 10.3.0.0/29"
    );
    let overlapping = NetworkChange {
        add_subnets: vec![SubnetDocument {
            cidr: "10.2.0.0/16".to_owned(),
            ..SubnetDocument::default()
        }],
        ..NetworkChange::default()
    };
    assert_eq!(
        change(&agent, &overlapping).unwrap_err().to_string(),
        "network blue: subnets[2].cidr: 10.2.0.0/16 overlaps 10.2.0.0/29 of the same network"
    );

    detach(&mut store, &mut agent, "b");
    let both_worked_out = (
        change(&agent, &remove("10.2.0.0/29")).unwrap(),
        claims::attach(
            &agent.snapshot,
            &endpoint(0, "blue", "c"),
            wishing("10.2.0.3"),
            None,
            &Choosing::default(),
        )
        .unwrap(),
    );
    // Either may come first; then the other does not happen.
    let mut other = store.clone();
    happens(&mut store, &mut agent, &both_worked_out.0);
    assert!(matches!(
        store.commit(&both_worked_out.1, agent.node()),
        Committed::No { .. }
    ));
    assert!(matches!(
        other.commit(&both_worked_out.1, agent.node()),
        Committed::Yes { .. }
    ));
    assert!(matches!(
        other.commit(&both_worked_out.0, agent.node()),
        Committed::No { .. }
    ));

    let record = store.get(&Store::key("networks/blue")).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&record.value),
        r#"{"subnets":[{"cidr":"10.1.0.0/29","mine":7}],"vni":100}"#
    );
    let rest = NetworkChange {
        mtu: Some(1400),
        cooldown: Some(5),
        labels: [("owner".to_owned(), Some("me".to_owned()))].into(),
        ..NetworkChange::default()
    };
    let transaction = change(&agent, &rest).unwrap();
    happens(&mut store, &mut agent, &transaction);
    let network = agent
        .snapshot
        .network(&blue_name())
        .unwrap()
        .value
        .clone()
        .unwrap();
    assert_eq!(
        (network.mtu.unwrap().get(), network.cooldown.as_secs()),
        (1400, 5)
    );
    let back = NetworkChange {
        mtu: Some(0),
        labels: [("owner".to_owned(), None)].into(),
        ..NetworkChange::default()
    };
    let transaction = change(&agent, &back).unwrap();
    happens(&mut store, &mut agent, &transaction);
    let network = agent
        .snapshot
        .network(&blue_name())
        .unwrap()
        .value
        .clone()
        .unwrap();
    assert_eq!((network.mtu, network.labels.len()), (None, 0));
}

#[test]
fn only_so_many_traces_are_kept() {
    let (mut store, mut agent) = blue(r#"{"cidr":"fd00:1::/64"}"#);
    for n in 0..chores::MOST_RELEASED + 300 {
        let key = format!("released/blue/fd00:1::{:x}", n + 2);
        store.put(&Store::key(&key), b"{}");
    }
    agent.sync(&store);
    let forget = Chore::ForgetReleased(blue_name());
    let of = |cooled_to| Choosing {
        cooled_to,
        ..Choosing::default()
    };
    let cooling = |cooled_to| chores::transaction(&agent.snapshot, &agent.peer(), &forget, &of(cooled_to));
    let oldest = agent.snapshot.members(&blue_name()).unwrap().released().next();
    let (oldest, _) = oldest.unwrap();
    assert_eq!(cooling(oldest - 1), Ok(None), "none of them has cooled down");
    assert_eq!(cooling(oldest).unwrap().unwrap().writes.len(), 1);
    while let Ok(Some(transaction)) =
        chores::transaction(&agent.snapshot, &agent.peer(), &forget, &Choosing::default())
    {
        happens(&mut store, &mut agent, &transaction);
    }
    let left = store.list("/weft/v1/released/blue/");
    assert!(
        (chores::MOST_RELEASED..chores::MOST_RELEASED + 300).contains(&left.len()),
        "{}",
        left.len()
    );
    assert!(
        left.iter()
            .all(|e| e.key != Store::key("released/blue/fd00:1::2")),
        "the oldest went first"
    );
}
