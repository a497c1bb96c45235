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

proptest! {
    #![proptest_config(config())]

    /// (a) and (b): after any changes, in steps, there is nothing left that a full pass would do or say.
    #[test]
    fn steps_lead_where_a_full_pass_leads(
        families in [families(), families(), families()],
        steps in collection::vec(collection::vec(any_edit(), 1..4), 1..25),
    ) {
        let mut store = Store::new();
        let mut agents = agents(families);
        for step in &steps {
            step.iter().for_each(|edit: &Edit| edit.apply(&mut store));
            for agent in &mut agents {
                agent.sync(&store);
                agent.settle();
                // What is in the kernel decides what is of interest.
                agent.follow(&store);
                agent.settle();
                agent.check();
            }
        }
    }
}
