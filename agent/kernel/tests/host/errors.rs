//! What is said of operations that fail, and what becomes of the others.

use weft_core::{
    dataplane::{BridgeTarget, Forward},
    plan::Op,
};
use weft_kernel::KernelError;
use weft_store_schema::Family;

use crate::ground::{chain, create, devices, id, ip, local, mac, network, on_host, put_tunnel};

#[test]
fn the_kernels_own_words_are_there() {
    on_host(|ground| {
        let (blue, red) = (network("blue"), network("red"));
        ground.apply(&blue, devices(100));
        let outcome = ground.attempt(&red, devices(100));
        assert_eq!(outcome.failed.len(), 2, "both tunnels: {:?}", outcome.failed);
        let said = chain(&outcome.failed[0].2);
        assert_eq!(
            said,
            "cannot make vxlan device vx4 with VNI 100 on UDP port 4789 in weft-red (kernel: A VXLAN device with \
             the specified VNI already exists): File exists (os error 17)"
        );
        ground.assert_as_modelled(&red, "a refused tunnel");
        // What needs the tunnel is held back, what does not is done.
        let outcome = ground.attempt(
            &red,
            vec![
                put_tunnel(Family::V4, 100, 1430),
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
                Op::PutNeighbour(ip("10.1.0.1"), mac(1)),
                Op::DeleteVtep(mac(1), ip("10.99.0.2")),
            ],
        );
        assert_eq!(
            (outcome.done, outcome.failed.len(), outcome.held_back.len()),
            (2, 1, 1)
        );
        ground.assert_as_modelled(&red, "held back");
    });
}

#[test]
fn without_a_namespace_everything_is_refused_and_nothing_panics() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let web = local(&blue, "web", &c1, 5);
        let puts = vec![
            Op::PutBridge(crate::ground::bridge(1430)),
            Op::PutNeighbour(ip("10.1.0.1"), mac(1)),
            Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
            create(&web, "web"),
        ];
        for op in puts {
            let outcome = ground.attempt(&blue, vec![op.clone()]);
            assert_eq!(outcome.failed.len(), 1, "{op:?}");
        }
        let deletions = vec![
            Op::DeleteNeighbour(ip("10.1.0.1")),
            Op::DeleteVtep(mac(1), ip("10.99.0.2")),
            Op::DeleteBridgeEntry(mac(1), BridgeTarget::Tunnel(Family::V4)),
            Op::DeletePort(web.port_name.clone()),
            Op::DeleteTunnel(Family::V4),
            Op::DeleteNamespace,
        ];
        for op in deletions {
            let outcome = ground.attempt(&blue, vec![op.clone()]);
            assert!(outcome.failed.is_empty(), "{op:?}: {:?}", outcome.failed);
        }
    });
}

#[test]
fn deleting_what_is_gone_is_done() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        ground.apply(
            &blue,
            vec![
                Op::DeleteVtep(mac(1), ip("10.99.0.2")),
                Op::DeleteVtep(mac(1), ip("fd99::2")),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Tunnel(Family::V4)),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Port(web.port_name.clone())),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Port("vegone".parse().unwrap())),
                Op::DeleteNeighbour(ip("10.1.0.1")),
                Op::DeleteNeighbour(ip("fd01::1")),
                Op::DeleteAddress(id("web"), "10.1.0.99/16".parse().unwrap()),
                Op::DeleteAddress(id("web"), "fd01::99/64".parse().unwrap()),
                Op::DeleteRoute(id("web"), "10.99.0.0/16".parse().unwrap()),
                Op::DeleteRoute(id("web"), "fd77::/64".parse().unwrap()),
                Op::DeletePort("vegone".parse().unwrap()),
                Op::DeleteTunnel(Family::V4),
                Op::DeleteTunnel(Family::V4),
                Op::DeleteVtep(mac(1), ip("10.99.0.2")),
                Op::DeleteBridgeEntry(mac(1), BridgeTarget::Tunnel(Family::V4)),
            ],
        );
        ground.assert_as_modelled(&blue, "deletions of nothing");
    });
}

/// Of a container that is gone, taking something from it is done; giving it something is not.
#[test]
fn an_interface_that_is_gone_needs_a_look() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        crate::ground::run(&crate::ground::inside(&c1, "ip link del eth0"));
        let outcome = ground.attempt(
            &blue,
            vec![
                Op::PutInterface(id("web"), Box::new(web.interface.clone())),
                Op::PutPort(id("web"), web.port_name.clone(), web.port.clone()),
                Op::PutForward(web.interface.mac, Forward::Local(web.port_name.clone())),
                Op::PutNeighbour(ip("10.1.0.5"), web.interface.mac),
            ],
        );
        assert_eq!(outcome.done, 1);
        // What a failed one makes impossible may be held back instead.
        assert_eq!(outcome.failed.len() + outcome.held_back.len(), 3);
        for (_, op, error) in &outcome.failed {
            assert!(error.needs_look(), "{op:?}: {}", chain(error));
        }
    });
}

/// Of many operations in several sends, those that fail are named, and only they.
#[test]
fn errors_in_a_batch_find_their_operations() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        ground.meddle(&blue, "ip link add loose type veth peer name other");
        let mut ops = Vec::new();
        let mut bad = Vec::new();
        for n in 0..700_u32 {
            let op = match n % 7 {
                // A port that is not there: known before it is sent.
                0 if n % 3 == 0 => Op::PutForward(mac(n), Forward::Local("vegone".parse().unwrap())),
                // A device that is no port of the bridge: only the kernel refuses that.
                1 => Op::PutForward(mac(n), Forward::Local("loose".parse().unwrap())),
                2 => Op::PutNeighbour(ip(&format!("10.1.{}.{}", n / 250, n % 250 + 1)), mac(n)),
                3 => Op::DeleteNeighbour(ip("10.200.0.1")),
                4 => Op::PutNeighbour(ip(&format!("fd01::{:x}", n + 1)), mac(n)),
                5 => Op::PutForward(mac(n), Forward::Remote(ip("fd99::2"))),
                _ => Op::PutForward(mac(n), Forward::Remote(ip("10.99.0.2"))),
            };
            if matches!(&op, Op::PutForward(_, Forward::Local(_))) {
                bad.push(op.clone());
            }
            ops.push(op);
        }
        let total = ops.len();
        let outcome = ground.attempt(&blue, ops);
        let failed: Vec<_> = outcome.failed.iter().map(|(_, op, _)| op.clone()).collect();
        assert_eq!(failed, bad);
        assert_eq!(outcome.done, total - bad.len());
        assert!(
            outcome
                .failed
                .iter()
                .any(|(_, _, e)| matches!(e, KernelError::NoInterface { .. }))
        );
        assert!(
            outcome
                .failed
                .iter()
                .any(|(_, _, e)| matches!(e, KernelError::Refused { .. }))
        );
        ground.assert_as_modelled(&blue, "a batch with failures");
    });
}

/// A device that goes while entries are put to it: its entries fail, the others are done.
#[test]
fn entries_of_a_device_that_is_gone() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        ground.meddle(&blue, "ip link del vx6");
        let ops: Vec<Op> = (0..400)
            .map(|n| {
                let vtep = if n % 2 == 0 { "10.99.0.2" } else { "fd99::2" };
                Op::PutForward(mac(n), Forward::Remote(ip(vtep)))
            })
            .collect();
        let outcome = ground.attempt(&blue, ops);
        assert_eq!((outcome.done, outcome.failed.len()), (200, 200));
        assert!(outcome.failed.iter().all(|(_, _, e)| e.needs_look()));
        ground
            .model
            .networks
            .get_mut(&blue)
            .unwrap()
            .tunnels
            .remove(&Family::V6);
        ground.assert_as_modelled(&blue, "entries of a device that is gone");
    });
}
