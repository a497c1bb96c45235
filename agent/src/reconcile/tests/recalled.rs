//! What a former agent wrote down, beside a store that has lost it.

use weft_core::claims::republishable;
use weft_store_schema::Key;

use super::*;

impl Ground {
    /// After an agent that knew network blue with endpoint `web`, on a host that now carries these networks.
    async fn after_another(carried: &[&str]) -> Self {
        let mut ground = Self::new().await;
        ground.reconciler.history.note((CLUSTER, 5), true);
        let copies = vec![network(), endpoint("web", "10.1.0.2")];
        let records = OwnRecords::new(ground._state.path(), &Writer::default());
        records.write(copies).await.unwrap().unwrap();
        ground.connect();
        ground.reconciler.use_underlay(underlay());
        let peer = ground.reconciler.peer_document().unwrap();
        let peer = entry("peers/host1", 2, &serde_json::to_value(peer).unwrap());
        ground.list(Scope::Peers, vec![peer]);
        ground.list(Scope::Removed, Vec::new());
        ground.list(Scope::Vnis, vec![vni()]);
        ground.list(Scope::Passed, Vec::new());
        ground.looked(look(carried, Vec::new()));
        ground.list(Scope::Networks, Vec::new());
        ground.reconciler.step();
        ground
    }

    /// What the store still has of network blue, as far as anybody wants to know.
    fn list_rest(&mut self, endpoints: Vec<Entry>, claims: Vec<Entry>) {
        self.list(Scope::Endpoints(blue()), endpoints);
        self.list(Scope::Addresses(blue()), claims);
        self.list(Scope::Released(blue()), Vec::new());
        self.list(Scope::Barriers(blue()), Vec::new());
        self.reconciler.step();
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_that_was_deleted_under_its_endpoints_while_no_agent_ran_is_held() {
    // Also where nothing in the kernel leads to it, as after a reboot.
    for carried in [&["blue"][..], &[]] {
        let mut ground = Ground::after_another(carried).await;
        assert!(!ground.reconciler.is_adopted(), "there is more to be known");
        ground.list_rest(
            vec![endpoint("web", "10.1.0.2")],
            vec![claim("10.1.0.2", "host1/web")],
        );
        assert!(ground.reconciler.is_adopted());
        let r = &ground.reconciler;
        assert_eq!(republishable(&r.snapshot), [Key::Network(blue())]);
        assert!(r.held_deletions().is_some() && !r.snapshot.is_distrusted());
        assert!(r.scopes.contains(&Scope::Endpoints(blue())) && r.pinned.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_gone_with_its_endpoints_is_asked_about() {
    let mut ground = Ground::after_another(&[]).await;
    ground.list_rest(Vec::new(), Vec::new());
    assert!(!ground.reconciler.is_adopted(), "the store is being asked");
    let all = weft_core::suspicion::Census {
        endpoints: 1,
        own_peer: true,
        ..weft_core::suspicion::Census::default()
    };
    let meant = evidence::AtStart {
        because: None,
        now: Some(all),
    };
    ground
        .reconciler
        .on_evidence(evidence::Evidence::Start(Ok(meant)));
    ground.reconciler.step();
    let r = &ground.reconciler;
    assert!(r.is_adopted() && r.held_deletions().is_none() && r.pinned.is_empty());
    assert!(!r.scopes.contains(&Scope::Endpoints(blue())));
}
