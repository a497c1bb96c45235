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
