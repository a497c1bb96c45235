//! What is not known or not looked at yet is not missing: the scopes of an agent that has just started are listed one by
//! one, and a pass may be about a part.

use weft_core::{
    chores::Chore,
    diff,
    dirty::Dirty,
    plan::Op,
    record::{Change, Scope},
};
use weft_store_schema::EndpointRef;

use crate::{agent::Agent, convergence::agents, records::Families, store::Store};

const CLAIMS: [&str; 2] = ["addresses/blue/10.1.0.4", "addresses/blue/fd00::c"];

/// A network with one endpoint of host1, as agents have completed it, and an agent on host1 that knows nothing.
fn restarted(endpoint: &str) -> (Store, Agent) {
    let mut store = Store::new();
    for (key, value) in [
        (
            "networks/blue",
            r#"{"subnets":[{"cidr":"10.1.0.0/26"},{"cidr":"fd00::/122"}],"vni":100}"#,
        ),
        ("vnis/100", r#"{"network":"blue"}"#),
        ("endpoints/blue/host1/web", endpoint),
    ] {
        store.put(&Store::key(key), value.as_bytes());
    }
    (store, agents([Families::V4; 3]).swap_remove(0))
}

fn owed(agent: &Agent) -> bool {
    let of = |chore: &Chore| matches!(chore, Chore::CompleteEndpoint(EndpointRef { id, .. }) if id.as_str() == "web");
    agent.book.iter().any(of)
}

fn scopes() -> Vec<Scope> {
    let blue = || "blue".parse().unwrap();
    vec![
        Scope::Networks,
        Scope::Vnis,
        Scope::Peers,
        Scope::OwnEndpoints(blue()),
        Scope::Endpoints(blue()),
        Scope::Released(blue()),
    ]
}

#[test]
fn an_endpoint_whose_claims_are_not_listed_yet_keeps_its_addresses() {
    let (mut store, mut agent) = restarted(
        r#"{"attachment":{"netns":"/run/netns/web"},"requested_addresses":["fd00::c"],"addresses":["10.1.0.4","fd00::c"],"mac":"02:42:0a:01:00:04"}"#,
    );
    for claim in CLAIMS {
        store.put(&Store::key(claim), br#"{"endpoint":"host1/web"}"#);
    }
    for scope in scopes() {
        agent.list(&store, &scope);
        assert!(!owed(&agent), "after {scope:?}");
    }
    // A transaction of this agent was refused because of one of the claims, which is known by that, alone.
    let known = store.get(&Store::key(CLAIMS[1])).cloned().unwrap();
    let dirty = agent.snapshot.learn(&[Change::Put(known)]);
    agent.note(dirty);
    assert!(!owed(&agent));
    agent.list(&store, &Scope::Addresses("blue".parse().unwrap()));
    assert!(!owed(&agent), "nothing is missing");
}

#[test]
fn an_endpoint_that_lacks_something_is_completed_once_all_is_listed() {
    let (store, mut agent) = restarted(r#"{"attachment":{"netns":"/run/netns/web"}}"#);
    for scope in scopes() {
        agent.list(&store, &scope);
        assert!(!owed(&agent), "after {scope:?}");
    }
    agent.list(&store, &Scope::Addresses("blue".parse().unwrap()));
    assert!(owed(&agent));
}

#[test]
fn a_forwarding_entry_that_is_looked_at_alone_waits_for_its_port() {
    let (mut store, mut agent) = restarted(
        r#"{"attachment":{"netns":"/run/netns/web"},"addresses":["10.1.0.4","fd00::c"],"mac":"02:42:0a:01:00:04"}"#,
    );
    for claim in CLAIMS {
        store.put(&Store::key(claim), br#"{"endpoint":"host1/web"}"#);
    }
    agent.sync(&store);
    agent.settle();
    // The record of another has come, and before its turn the kernel said something of its MAC: it was another host's.
    let text =
        r#"{"attachment":{"netns":"/run/netns/db"},"addresses":["10.1.0.5"],"mac":"02:42:0a:01:00:05"}"#;
    store.put(&Store::key("endpoints/blue/host1/db"), text.as_bytes());
    store.put(
        &Store::key("addresses/blue/10.1.0.5"),
        br#"{"endpoint":"host1/db"}"#,
    );
    agent.sync(&store);
    let mut row = Dirty::default();
    row.mac(&"blue".parse().unwrap(), "02:42:0a:01:00:05".parse().unwrap());
    let (plan, _) = diff::plan(&agent.snapshot, &agent.host, &agent.observed, &row);
    assert!(plan.is_empty(), "{plan:#?}");
    let done = agent.pass();
    let made = |op: &Op| matches!(op, Op::CreateLocal(..));
    let put = |op: &Op| matches!(op, Op::PutForward(mac, _) if mac.to_string() == "02:42:0a:01:00:05");
    let place = |of: &dyn Fn(&Op) -> bool| done.iter().position(|(_, op)| of(op)).unwrap();
    assert!(place(&made) < place(&put), "{done:#?}");
    agent.check();
}

/// An agent that has seen an endpoint of its own, and what its own transaction says that deleted it.
fn detached() -> (Store, Agent, Vec<Change>) {
    let (mut store, mut agent) = restarted(r#"{"attachment":{"netns":"/run/netns/web"}}"#);
    for scope in scopes() {
        agent.list(&store, &scope);
    }
    let key = Store::key("endpoints/blue/host1/web");
    let before = store.clone();
    store.delete(&key);
    let deleted = Change::Deleted {
        key,
        mod_revision: store.revision,
    };
    (before, agent, vec![deleted])
}

fn is_there(agent: &Agent) -> bool {
    let web = EndpointRef {
        network: "blue".parse().unwrap(),
        node: "host1".parse().unwrap(),
        id: "web".parse().unwrap(),
    };
    agent.snapshot.endpoint(&web).is_some()
}

#[test]
fn a_listing_from_before_our_own_deletion_does_not_undo_it() {
    let (before, mut agent, deleted) = detached();
    agent.snapshot.learn(&deleted);
    assert!(!is_there(&agent));
    for scope in scopes() {
        agent.list(&before, &scope);
        assert!(!is_there(&agent), "after {scope:?}");
    }
}

#[test]
fn a_listing_of_another_scope_does_not_make_our_own_deletion_forgotten() {
    let (before, mut agent, deleted) = detached();
    agent.snapshot.learn(&deleted);
    let mut later = before.clone();
    later.put(
        &Store::key("networks/red"),
        br#"{"subnets":[{"cidr":"10.2.0.0/26"}]}"#,
    );
    later.put(
        &Store::key("networks/red"),
        br#"{"subnets":[{"cidr":"10.2.0.0/26"}]}"#,
    );
    agent.list(&later, &Scope::Networks);
    let old = before
        .get(&Store::key("endpoints/blue/host1/web"))
        .cloned()
        .unwrap();
    agent.snapshot.apply_changes(&[Change::Put(old)]);
    assert!(!is_there(&agent));
}

#[test]
fn our_own_deletion_in_another_history_is_none_in_this_one() {
    let (before, mut agent, mut deleted) = detached();
    if let Some(Change::Deleted { mod_revision, .. }) = deleted.first_mut() {
        *mod_revision += 100;
    }
    agent.snapshot.learn(&deleted);
    // The store went back to before the endpoint was, and somebody writes it again.
    let key = Store::key("endpoints/blue/host1/web");
    let mut restored = before.clone();
    restored.delete(&key);
    restored.revision = before.revision - 1;
    agent.list(&restored, &Scope::OwnEndpoints("blue".parse().unwrap()));
    restored.put(&key, br#"{"attachment":{"netns":"/run/netns/web"}}"#);
    let again = restored.get(&key).cloned().unwrap();
    agent.snapshot.apply_changes(&[Change::Put(again)]);
    assert!(is_there(&agent));
}

#[test]
fn a_store_that_went_back_and_got_further_since_deletes_nothing() {
    let (before, mut agent, _) = detached();
    let web = Store::key("endpoints/blue/host1/web");
    let mut restored = before.clone();
    restored.delete(&web);
    restored.revision += 100;
    let (scope, cluster) = (Scope::OwnEndpoints("blue".parse().unwrap()), restored.cluster_id);
    let known = agent.snapshot.clone();
    agent
        .snapshot
        .apply_other_history(&scope, cluster, restored.revision, &[]);
    assert!(is_there(&agent), "held");
    assert!(agent.snapshot.held_because().is_some());
    agent.snapshot = known;
    agent
        .snapshot
        .apply_listing(&scope, cluster, restored.revision, &[]);
    assert!(!is_there(&agent), "in a history that goes on it is deleted");
}
