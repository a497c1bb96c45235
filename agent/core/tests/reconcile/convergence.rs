//! However records come and whatever goes wrong on the way: a host ends where it should.

use proptest::{collection, prelude::*, test_runner::FileFailurePersistence};

use crate::{
    agent::Agent,
    records::{Edit, Families, any_edit, families, host, node},
    store::Store,
};

pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

pub(crate) fn agents(families: [Families; 3]) -> Vec<Agent> {
    (1..=3)
        .map(|n| Agent::new(node(&format!("host{n}")), host(n, families[n - 1])))
        .collect()
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Edits(Vec<Edit>),
    /// Everything is listed again, as after a compaction.
    Relist,
    /// The store is what it was some steps ago.
    Restore(usize),
    /// The same contents in another cluster.
    Copy,
    /// Another cluster with nothing in it.
    Empty,
    /// An operator lets go of what is held.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => collection::vec(any_edit(), 1..4).prop_map(Step::Edits),
        1 => Just(Step::Relist),
        1 => (1_usize..5).prop_map(Step::Restore),
        1 => Just(Step::Copy),
        1 => Just(Step::Empty),
        1 => Just(Step::Release),
    ]
}

/// Takes a step in the store, and whatever an agent has to do with it beyond reading it.
fn take(step: &Step, store: &mut Store, backups: &mut Vec<Store>, agents: &mut [Agent]) {
    match step {
        Step::Edits(edits) => edits.iter().for_each(|edit| edit.apply(store)),
        Step::Relist => {}
        Step::Restore(ago) => {
            if let Some(backup) = backups.len().checked_sub(*ago).and_then(|at| backups.get(at)) {
                *store = backup.clone();
            }
        }
        Step::Copy => store.cluster_id += 1,
        Step::Empty => {
            let cluster_id = store.cluster_id + 1;
            *store = Store::new();
            store.cluster_id = cluster_id;
        }
        Step::Release => {
            for agent in agents.iter_mut() {
                let dirty = agent.snapshot.release_held();
                agent.note(dirty);
            }
        }
    }
    backups.push(store.clone());
    if matches!(step, Step::Relist | Step::Restore(_) | Step::Copy | Step::Empty) {
        agents.iter_mut().for_each(|agent| agent.relist(store));
    }
}

/// Reads all news and does what is to be done.
fn catch_up(agent: &mut Agent, store: &Store) {
    agent.sync(store);
    agent.settle();
    // What is in the kernel decides what is of interest.
    agent.follow(store);
    agent.settle();
}

proptest! {
    #![proptest_config(config())]

    /// (a) and (b): after any changes, in steps, there is nothing left that a full pass would do or say.
    #[test]
    fn steps_lead_where_a_full_pass_leads(
        families in [families(), families(), families()],
        steps in collection::vec(step(), 1..25),
    ) {
        let (mut store, mut backups) = (Store::new(), Vec::new());
        let mut agents = agents(families);
        for step in &steps {
            take(step, &mut store, &mut backups, &mut agents);
            for agent in &mut agents {
                let before = agent.observed.clone();
                catch_up(agent, &store);
                agent.check();
                if let Step::Copy | Step::Empty = step {
                    prop_assert_eq!(&agent.observed, &before, "trouble in the store changed what runs");
                }
            }
        }
    }
}
