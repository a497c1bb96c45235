//! Endpoints detached here of which nobody knows whether the store has a record: an attach may have happened whose answer
//! was lost.

use weft_core::{
    chores::Chore,
    record::{Committed, Guard},
};
use weft_store_schema::Key;

use crate::{agent::Agent, claims::endpoint, convergence::agents, records::Families, store::Store};

const RECORD: &[u8] = br#"{"attachment":{"netns":"/run/netns/w"}}"#;

fn cluster() -> (Store, Agent) {
    let mut store = Store::new();
    let network = br#"{"subnets":[{"cidr":"10.1.0.0/29"}],"vni":100}"#;
    store.put(&Store::key("networks/blue"), network);
    let mut agent = agents([Families::V4; 3]).swap_remove(0);
    agent.pinned.insert("blue".parse().unwrap());
    agent.sync(&store);
    (store, agent)
}

/// What the agent does about it, once; the revision if it happened.
fn ask(store: &mut Store, agent: &mut Agent) -> Option<i64> {
    let web = endpoint(0, "blue", "web");
    let transaction = agent.transaction(&Chore::DetachEndpoint(web.clone())).unwrap()?;
    match store.commit(&transaction, agent.node()) {
        Committed::Yes { revision } => {
            let dirty = agent.snapshot.saw_gone(&web, revision);
            agent.note(dirty);
            Some(revision)
        }
        Committed::No { .. } => None,
    }
}

#[test]
fn what_may_have_been_recorded_is_asked_for_before_it_is_forgotten() {
    let (mut store, mut agent) = cluster();
    let web = endpoint(0, "blue", "web");
    let dirty = agent.snapshot.detach(&web, 0);
    agent.note(dirty);
    assert!(!agent.snapshot.has_left(&web), "nobody has asked");

    // It had happened, and the watch has not told yet.
    let key = Store::key("endpoints/blue/host1/web");
    store.put(&key, RECORD);
    assert_eq!(ask(&mut store, &mut agent), None, "it is there");
    agent.sync(&store);
    assert!(agent.snapshot.awaits_detach(&web));
    assert!(ask(&mut store, &mut agent).is_some(), "now it is deleted");
    assert!(store.read(&Key::Endpoint(web.clone())).is_none());
    agent.sync(&store);
    assert!(agent.snapshot.has_left(&web));
}

#[test]
fn what_comes_after_the_answer_is_another_life() {
    let (mut store, mut agent) = cluster();
    let web = endpoint(0, "blue", "web");
    let dirty = agent.snapshot.detach(&web, 0);
    agent.note(dirty);
    let question = agent.transaction(&Chore::DetachEndpoint(web.clone())).unwrap();
    let question = question.unwrap();
    assert_eq!(question.guards, [Guard::Absent(Key::Endpoint(web.clone()))]);
    assert!(question.writes.is_empty());
    ask(&mut store, &mut agent).unwrap();
    store.put(&Store::key("endpoints/blue/host1/web"), RECORD);
    agent.sync(&store);
    assert!(agent.snapshot.has_left(&web) && !agent.snapshot.awaits_detach(&web));
    assert!(
        agent.book.contains(&Chore::CompleteEndpoint(web)),
        "{:?}",
        agent.book
    );
}
