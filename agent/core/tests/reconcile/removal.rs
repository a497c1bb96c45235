//! A node that is removed while its writes are under way: none of them arrives, and all that it held is released.

use proptest::{collection, prelude::*};
use weft_core::{
    audit::audit,
    claims,
    fence::fenced,
    record::{Committed, Write},
    removal::Holdings,
};
use weft_store_schema::{Key, Prefix};

use crate::{
    claims::{Cluster, deed, endpoint},
    convergence::{agents, config},
    records::Families,
    store::Store,
};

fn holdings(store: &Store, cluster: &Cluster, n: usize) -> Holdings {
    let entries: Vec<_> = store.entries().cloned().collect();
    Holdings::of(&Prefix::default(), &entries, cluster.agents[n].node())
}

fn is_about_addresses(write: &Write) -> bool {
    matches!(write.key(), Some(Key::Endpoint(_) | Key::Address(..)))
}

proptest! {
    #![proptest_config(config())]

    /// However old the removed node's view is and whatever it has under way: nothing of that happens. Another agent
    /// releases all that it held, in any order of things, and what is left fits together. When the node is back, it
    /// is one as any other.
    #[test]
    fn nothing_of_an_ended_life_arrives(
        deeds in collection::vec(deed(), 1..40),
        later in collection::vec(deed(), 0..12),
    ) {
        let (removed, by) = (2, 0);
        let mut cluster = Cluster::new();
        cluster.come_to_rest();
        for deed in &deeds {
            cluster.take(deed);
        }
        let node = cluster.agents[removed].node().clone();
        let remover = cluster.agents[by].node().clone();
        let found = holdings(&cluster.store, &cluster, removed);
        let end = found.end(&node, &remover, true).unwrap();
        let committed = cluster.store.commit(&end, &remover);
        prop_assert!(matches!(committed, Committed::Yes { .. }), "{:#?}", end);
        let ended_at = cluster.store.revision;

        // Paused: it makes up more from the view that it has, and all of it arrives now, and late.
        let at_most = cluster.agents[removed].book.len();
        for deed in &later {
            // It reads no news, that is.
            if !matches!(deed, crate::claims::Deed::Sync(n) if *n == removed) {
                cluster.take(deed);
            }
        }
        for chore in cluster.agents[removed].book.clone().iter().take(at_most) {
            if let Ok(Some(transaction)) = cluster.agents[removed].transaction(chore) {
                cluster.flying.push((removed, transaction));
            }
        }
        let (late, flying) = cluster.flying.clone().into_iter().partition(|(n, _)| *n == removed);
        cluster.flying = flying;
        let late: Vec<_> = late;
        for (_, transaction) in &late {
            let committed = cluster.store.commit(transaction, &node);
            let about = transaction.writes.iter().any(is_about_addresses);
            prop_assert!(!about || matches!(committed, Committed::No { .. }), "{:#?}", transaction);
        }

        let left = holdings(&cluster.store, &cluster, removed);
        cluster.agents[by].sync(&cluster.store);
        for held in &left.endpoints {
            // The rest was put there by hand, after the end.
            if held.create_revision <= ended_at {
                let view = &cluster.agents[by].snapshot;
                let detach = fenced(view, claims::delete_endpoint(view, &held.name).unwrap());
                let committed = cluster.store.commit(&detach, &remover);
                prop_assert!(matches!(committed, Committed::Yes { .. }), "{:#?}", detach);
                cluster.agents[by].sync(&cluster.store);
            }
        }
        let left = holdings(&cluster.store, &cluster, removed);
        prop_assert!(left.endpoints.iter().all(|held| held.create_revision > ended_at));
        prop_assert!(left.endpoints.iter().all(|held| held.addresses.is_empty()), "{:?}", left);
        prop_assert_eq!(&left.strays, &[]);
        for (_, transaction) in &late {
            cluster.store.commit(transaction, &node);
        }
        prop_assert_eq!(&holdings(&cluster.store, &cluster, removed).endpoints, &left.endpoints);

        cluster.come_to_rest();
        prop_assert!(cluster.store.read(&Key::Peer(node.clone())).is_some());
        prop_assert!(cluster.store.read(&Key::Removed(node)).is_none());
        let entries: Vec<_> = cluster.store.entries().cloned().collect();
        let found = audit(
            &Prefix::default(),
            &entries,
            &Default::default(),
            &remover,
            &Default::default(),
        );
        prop_assert_eq!(&found.findings, &[]);
    }
}

/// host1 takes host3 for gone, as its view has it, when host3 is back and has the address on its interface.
#[test]
fn what_is_claimed_for_a_node_that_has_come_back_is_its_own_to_give_up() {
    let mut store = Store::new();
    let put = |store: &mut Store, key: &str, value: &str| store.put(&Store::key(key), value.as_bytes());
    put(
        &mut store,
        "networks/blue",
        r#"{"subnets":[{"cidr":"10.1.0.0/29"}],"vni":100}"#,
    );
    put(
        &mut store,
        "addresses/blue/10.1.0.2",
        r#"{"endpoint":"host3/gone"}"#,
    );
    put(
        &mut store,
        "addresses/blue/10.1.0.3",
        r#"{"endpoint":"host3/web"}"#,
    );
    put(
        &mut store,
        "endpoints/blue/host3/web",
        r#"{"attachment":{"netns":"/run/netns/w"},"addresses":["10.1.0.3"]}"#,
    );
    let mut agent = agents([Families::V4; 3]).swap_remove(0);
    agent.pinned.insert("blue".parse().unwrap());
    agent.sync(&store);
    let web = endpoint(2, "blue", "web");
    let both = |agent: &crate::agent::Agent| {
        let blue = "blue".parse().unwrap();
        let orphan = claims::release_orphan(&agent.snapshot, &blue, "10.1.0.2".parse().unwrap());
        (orphan, claims::delete_endpoint(&agent.snapshot, &web).unwrap())
    };
    let (orphan, delete) = both(&agent);
    put(&mut store, "peers/host3", r#"{"vteps":["10.99.0.3"],"mtu":1500}"#);
    for late in [orphan.unwrap(), delete] {
        let committed = store.commit(&late, agent.node());
        assert!(matches!(committed, Committed::No { .. }), "{late:#?}");
    }
    agent.sync(&store);
    let (orphan, delete) = both(&agent);
    assert_eq!(orphan, None);
    assert_eq!(delete.writes, [Write::Delete(Key::Endpoint(web.clone()))]);
}
