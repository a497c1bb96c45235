//! Whether the kernel is waited for.

use weft_core::problem::Problem;

use super::*;
use crate::problems::Source;

#[tokio::test(start_paused = true)]
async fn the_kernel_is_waited_for_only_if_it_can_follow() {
    let web = endpoint("web", "10.1.0.2");
    let mut ground = Ground::informed(vec![web], vec![claim("10.1.0.2", "host1/web")]).await;
    assert!(!ground.reconciler.has_followed(&blue()));
    ground.looked(look(&[], Vec::new()));
    ground.looked(look(&[], Vec::new()));
    ground.applied();
    assert!(ground.reconciler.has_followed(&blue()));
    let put = |ground: &mut Ground, scope, entry| {
        let changes = vec![Change::Put(entry)];
        ground.event(StoreEvent::Changed { scope, changes });
    };
    let of = |mtu: u16| json!({"subnets": [{"cidr": "10.1.0.0/24"}], "vni": 7, "mtu": mtu});
    put(
        &mut ground,
        Scope::Networks,
        entry("networks/blue", 11, &of(1400)),
    );
    assert!(!ground.reconciler.has_followed(&blue()));

    let refused = Problem::new("networks/blue", "the kernel does not take it");
    ground
        .reconciler
        .problems
        .set(Source::Kernel, "networks/blue", Some(refused));
    assert!(ground.reconciler.has_followed(&blue()));
    ground
        .reconciler
        .problems
        .set(Source::Kernel, "networks/blue", None);
    assert!(!ground.reconciler.has_followed(&blue()));

    // Its VNI is another network's.
    put(&mut ground, Scope::Networks, entry("networks/red", 12, &of(1400)));
    let claim = entry("vnis/7", 13, &json!({"network": "red"}));
    put(&mut ground, Scope::Vnis, claim);
    assert!(ground.reconciler.has_followed(&blue()));
    // In which this host has no part.
    let green = "green".parse().unwrap();
    assert!(ground.reconciler.has_followed(&green));
}
