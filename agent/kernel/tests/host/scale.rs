//! Many entries at once.

use std::time::Instant;

use weft_core::{dataplane::Forward, plan::Op};

use weft_kernel::{ForwardSeen, Notice};

use crate::{
    ground::{devices, ip, mac, network, on_host},
    notices::Ears,
};

#[test]
fn twenty_thousand_entries_in_one_plan() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let mut puts = Vec::new();
        let mut deletions = Vec::new();
        for n in 0..10_000_u32 {
            let vtep = ip(if n % 2 == 0 { "10.99.0.2" } else { "fd99::2" });
            let family = weft_store_schema::Family::of(vtep);
            let address = ip(&format!("10.1.{}.{}", n / 250, n % 250 + 1));
            puts.push(Op::PutForward(mac(n), Forward::Remote(vtep)));
            puts.push(Op::PutNeighbour(address, mac(n)));
            deletions.push(Op::DeleteBridgeEntry(
                mac(n),
                weft_core::dataplane::BridgeTarget::Tunnel(family),
            ));
            deletions.push(Op::DeleteVtep(mac(n), vtep));
            deletions.push(Op::DeleteNeighbour(address));
        }
        for (what, ops) in [("made", puts.clone()), ("replaced", puts), ("deleted", deletions)] {
            let count = ops.len();
            let start = Instant::now();
            let outcome = ground.apply(&blue, ops);
            let took = start.elapsed();
            assert_eq!(outcome.done, count);
            println!(
                "{what}: {count} entries in {took:.2?}, {:.0}/s",
                count as f64 / took.as_secs_f64()
            );
            let start = Instant::now();
            ground.assert_as_modelled(&blue, what);
            println!("looked at in {:.2?}", start.elapsed());
        }
    });
}

/// The kernel tells of more than a socket holds, and faster than it can be read.
#[test]
fn whoever_listens_is_not_overrun_by_one_plan() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let mut ears = Ears::open(ground);
        let puts = (0..60_000).map(|n| Op::PutForward(mac(n), Forward::Remote(ip("10.99.0.2"))));
        let puts: Vec<Op> = puts.collect();
        let last = mac(59_999);
        let is_last = |notice: &Notice| matches!(notice, Notice::Forward { mac, seen: ForwardSeen::Vtep(_), .. } if *mac == last);
        std::thread::scope(|scope| {
            let applying = scope.spawn(|| ground.kernel.apply(&crate::ground::plan(&blue, puts)).done);
            let mut all = Vec::new();
            while !all.iter().any(is_last) {
                all = ears.next().expect("all is told");
                assert!(!all.contains(&Notice::Overrun));
            }
            assert_eq!(applying.join().unwrap(), 60_000);
        });
    });
}
