//! Whatever bytes the store holds, in whatever order and with whatever revisions they come: nothing panics,
//! and what is known of sound records is not concerned.

use proptest::{collection, prelude::*, sample::select};
use serde_json::json;
use weft_core::{
    chores,
    desired::look_into,
    diff,
    dirty::Dirty,
    record::{Change, Entry, Scope},
};
use weft_store_schema::EndpointRef;

use crate::{
    agent::Agent,
    convergence::{agents, config},
    records::{Edit, Families, IDS, NETWORKS, NODES, any_edit, peer_record, world},
    store::Store,
};

/// What the store's client hands over, sound or not.
#[derive(Debug, Clone)]
enum Delivery {
    Changes(Vec<Change>),
    /// A listing with what belongs there and what does not.
    Listing(Scope, u64, i64, Vec<Entry>),
    Retain,
    Release,
    Detach(&'static str, &'static str, i64),
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any_edit().prop_map(|edit| Store::key(&edit.key)),
        1 => collection::vec(any::<u8>(), 0..40),
        1 => collection::vec(any::<u8>(), 0..40).prop_map(|rest| [b"/weft/v1/", &rest[..]].concat()),
        1 => "(networks|vnis|peers|alive|status|endpoints|addresses)(/.{0,6}){0,4}".prop_map(|key| Store::key(&key)),
    ]
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => any_edit().prop_map(|edit: Edit| edit.value.unwrap_or_default().into_bytes()),
        1 => collection::vec(any::<u8>(), 0..60),
        1 => (any_edit(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(edit, at, byte)| {
            let mut value = edit.value.unwrap_or_default().into_bytes();
            if !value.is_empty() {
                let at = at.index(value.len());
                value[at] = byte;
            }
            value
        }),
    ]
}

fn any_revision() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 1_i64..40, 1 => any::<i64>(), 1 => select(vec![0, -1, i64::MIN, i64::MAX])]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (
        any_key().boxed(),
        any_value().boxed(),
        any_revision(),
        any_revision(),
    )
        .prop_map(|(key, value, create, modified)| Entry {
            key,
            value,
            create_revision: create,
            mod_revision: modified,
        })
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => any_entry().prop_map(Change::Put),
        1 => (any_key(), any_revision()).prop_map(|(key, mod_revision)| Change::Deleted { key, mod_revision }),
    ]
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let network = || select(&NETWORKS[..]).prop_map(|n| n.parse().unwrap());
    prop_oneof![
        Just(Scope::Networks),
        Just(Scope::Peers),
        Just(Scope::Vnis),
        network().prop_map(Scope::OwnEndpoints),
        network().prop_map(Scope::Endpoints),
        network().prop_map(Scope::Addresses),
    ]
}

fn delivery() -> impl Strategy<Value = Delivery> {
    prop_oneof![
        6 => collection::vec(any_change(), 0..6).prop_map(Delivery::Changes),
        4 => (any_scope(), 1_u64..3, any_revision(), collection::vec(any_entry(), 0..6))
            .prop_map(|(scope, cluster, revision, entries)| Delivery::Listing(scope, cluster, revision, entries)),
        1 => Just(Delivery::Retain),
        1 => Just(Delivery::Release),
        1 => (select(&NETWORKS[..]), select(&IDS[..]), any_revision())
            .prop_map(|(network, id, life)| Delivery::Detach(network, id, life)),
    ]
}

fn hand_over(agent: &mut Agent, delivery: &Delivery) {
    let dirty = match delivery {
        Delivery::Changes(changes) => agent.snapshot.apply_changes(changes),
        Delivery::Listing(scope, cluster, revision, entries) => {
            agent.snapshot.apply_listing(scope, *cluster, *revision, entries)
        }
        Delivery::Retain => {
            let in_kernel = agent.observed.networks.keys().cloned().collect();
            let scopes = agent.snapshot.interest(&in_kernel, &agent.pinned);
            agent.snapshot.retain(&scopes)
        }
        Delivery::Release => agent.snapshot.release_held(),
        Delivery::Detach(network, id, life) => {
            let endpoint = endpoint(network, id);
            agent.snapshot.detach(&endpoint, *life)
        }
    };
    agent.note(dirty);
}

fn endpoint(network: &str, id: &str) -> EndpointRef {
    EndpointRef {
        network: network.parse().unwrap(),
        node: NODES[0].parse().unwrap(),
        id: id.parse().unwrap(),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_bytes_do_harm(families in select(vec![Families::V4, Families::V6, Families::Both]), deliveries in collection::vec(delivery(), 1..20)) {
        let mut agent = agents([families; 3]).swap_remove(0);
        for delivery in &deliveries {
            hand_over(&mut agent, delivery);
            agent.settle();
            prop_assert_eq!(&agent.observed, &agent.kernel.observe());
        }
        agent.tidy();
        for chore in chores::chores(&agent.snapshot, &agent.peer(), &Dirty::everything()) {
            chores::rank(&agent.snapshot, &chore);
            drop(agent.transaction(&chore));
        }
        for network in NETWORKS {
            for id in IDS {
                diff::in_place(&agent.snapshot, &agent.host, &agent.observed, &endpoint(network, id));
            }
        }
        look_into(&agent.snapshot, &Dirty::everything());
        for problem in agent.snapshot.problems().values().chain(agent.assessed.values()) {
            let text = problem.to_string();
            prop_assert!(text.len() < 2500 && !text.chars().any(char::is_control), "{text:?}");
        }
    }

    /// Any record may turn bad: what runs stays as it was, and it is told of each that is in view.
    #[test]
    fn records_that_turn_bad_change_nothing(
        world in world([Families::Both; 3]),
        bad in collection::vec((any::<prop::sample::Index>(), select(vec!["", "{", "[]", "\u{0}", r#"{"version":9}"#, r#"{"vni":-1}"#])), 1..12),
    ) {
        let mut store = Store::new();
        world.iter().for_each(|edit| edit.apply(&mut store));
        let mut agent = agents([Families::Both; 3]).swap_remove(0);
        agent.sync(&store);
        agent.settle();
        agent.sync(&store);
        agent.settle();
        let (before, assessed) = (agent.observed.clone(), agent.assessed.clone());
        let keys: Vec<Vec<u8>> = store.entries().map(|e| e.key.clone()).collect();
        for (at, value) in &bad {
            store.put(&keys[at.index(keys.len())], value.as_bytes());
        }
        agent.sync(&store);
        prop_assert_eq!(agent.settle().len(), 0);
        agent.check();
        prop_assert_eq!(&agent.observed, &before);
        prop_assert_eq!(&agent.assessed, &assessed);
        for (at, _) in &bad {
            if let Some(key) = String::from_utf8_lossy(&keys[at.index(keys.len())]).strip_prefix("/weft/v1/peers/") {
                let told = agent.snapshot.problems().contains_key(&format!("peers/{key}"));
                prop_assert!(told);
            }
        }
        world.iter().for_each(|edit| edit.apply(&mut store));
        agent.sync(&store);
        prop_assert_eq!(agent.settle().len(), 0);
        prop_assert!(agent.snapshot.problems().is_empty());
    }

    /// So too when the agent is started anew and has never seen them right, as long as nobody wants the same.
    #[test]
    fn records_that_are_bad_at_a_restart_change_nothing(
        present in any::<[bool; 12]>(),
        bad in collection::vec((any::<prop::sample::Index>(), select(vec!["", "{", "[]", r#"{"version":9}"#])), 1..12),
    ) {
        let mut store = Store::new();
        let world = peaceful_world(present);
        world.iter().for_each(|edit| edit.apply(&mut store));
        let mut agent = agents([Families::Both; 3]).swap_remove(0);
        for _ in 0..2 {
            agent.sync(&store);
            agent.settle();
        }
        let before = agent.observed.clone();
        let keys: Vec<Vec<u8>> = store.entries().map(|e| e.key.clone()).collect();
        for (at, value) in &bad {
            store.put(&keys[at.index(keys.len())], value.as_bytes());
        }
        agent.restart();
        agent.sync(&store);
        prop_assert_eq!(agent.settle(), vec![]);
        agent.check();
        world.iter().for_each(|edit| edit.apply(&mut store));
        agent.sync(&store);
        prop_assert_eq!(agent.settle(), vec![]);
        prop_assert_eq!(&agent.observed, &before);
        prop_assert!(agent.snapshot.problems().is_empty() && agent.assessed.is_empty());
    }
}

/// A complete world in which nobody is in anybody's way.
fn peaceful_world(present: [bool; 12]) -> Vec<Edit> {
    let mut world = Vec::new();
    for n in 1..=3 {
        world.push(Edit::put(
            format!("peers/host{n}"),
            &peer_record(n, Families::Both, false, None),
        ));
    }
    for (network, vni) in [("blue", 100), ("red", 101)] {
        let subnets = json!([{"cidr": "10.1.0.0/24"}, {"cidr": "fd00:1::/64"}]);
        world.push(Edit::put(
            format!("networks/{network}"),
            &json!({"subnets": subnets, "vni": vni}),
        ));
        world.push(Edit::put(format!("vnis/{vni}"), &json!({"network": network})));
    }
    for (n, present) in present.into_iter().enumerate() {
        // Two of each host in each network.
        let (network, node, id) = (NETWORKS[n % 2], NODES[n / 4], IDS[n / 2 % 2]);
        let addresses = [format!("10.1.0.{}", 10 + n), format!("fd00:1::{}", 10 + n)];
        if present {
            let record = json!({
                "attachment": {"netns": format!("/run/netns/{n}")},
                "addresses": addresses,
                "mac": format!("06:00:00:00:00:{:02x}", 10 + n),
            });
            world.push(Edit::put(format!("endpoints/{network}/{node}/{id}"), &record));
            for address in addresses {
                let claim = json!({"endpoint": format!("{node}/{id}")});
                world.push(Edit::put(format!("addresses/{network}/{address}"), &claim));
            }
        }
    }
    world
}
