//! Teardown and removal: everything of ours goes, nothing else, and its numbers are free at once.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use weft_core::{dataplane::Forward, plan::Op};
use weft_store_schema::Family;

use crate::ground::{
    bridge, create, devices, inside, ip, json, local, mac, make_namespace, network, on_host, put_tunnel,
    remove_namespace, run,
};

#[test]
fn teardown_removes_what_is_ours_and_nothing_else() {
    on_host(|ground| {
        let (blue, red) = (network("blue"), network("red"));
        let (c1, c2) = (ground.container("c1"), ground.container("c2"));
        ground.apply(&blue, devices(100));
        ground.apply(&red, devices(101));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(
            &blue,
            vec![
                create(&web, "web"),
                Op::PutForward(mac(1), Forward::Remote(ip("10.99.0.2"))),
            ],
        );
        ground.apply(&red, vec![create(&local(&red, "db", &c2, 6), "db")]);
        run(&inside(&c1, "ip link add foreign type veth peer name other"));
        run("ip link add eth9 type veth peer name eth8");
        make_namespace(&ground.netns_dir.join("other"));
        fs::write(ground.netns_dir.join("readme"), "").unwrap();

        // By a process that has seen nothing of it.
        ground.kernel = weft_kernel::Kernel::open(ground.config.clone()).unwrap();
        let results = ground.kernel.teardown();
        assert_eq!(results.len(), 2);
        assert!(results.iter().all(|(_, result)| result.is_ok()), "{results:?}");
        assert!(results[0].0.contains("blue"), "{}", results[0].0);
        let mut left: Vec<_> = fs::read_dir(&ground.netns_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["other", "readme"]);
        assert_eq!(
            json(&inside(&c1, "ip -j link")).len(),
            3,
            "lo and the foreign pair"
        );
        assert_eq!(json(&inside(&c2, "ip -j link")).len(), 1);
        assert_eq!(json("ip -j link").len(), 3);
        assert!(ground.kernel.teardown().is_empty(), "nothing is left to do");
        ground.model.networks.clear();
        ground.apply(&blue, devices(100));
        ground.assert_as_modelled(&blue, "making it again");
    });
}

#[test]
fn vni_and_port_are_free_at_once() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let web = local(&blue, "web", &c1, 5);
        for round in 0..20 {
            ground.apply(&blue, devices(100));
            ground.apply(&blue, vec![create(&web, "web")]);
            if round % 2 == 0 {
                let results = ground.kernel.teardown();
                assert!(results.iter().all(|(_, r)| r.is_ok()), "{results:?}");
                ground.model.networks.clear();
            } else {
                ground.apply(
                    &blue,
                    vec![
                        Op::DeletePort(web.port_name.clone()),
                        Op::DeleteTunnel(Family::V4),
                        Op::DeleteTunnel(Family::V6),
                        Op::DeleteNamespace,
                    ],
                );
            }
        }
    });
}

#[test]
fn a_namespace_that_somebody_removed_is_there_again_at_once() {
    on_host(|ground| {
        let blue = network("blue");
        for round in 0..20 {
            ground.apply(&blue, devices(100));
            ground.assert_as_modelled(&blue, "making it");
            let path = ground.namespace(&blue);
            nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
            if round % 2 == 0 {
                fs::remove_file(&path).unwrap();
            }
            ground.model.networks.get_mut(&blue).unwrap().unmounted = true;
            if round % 3 == 0 {
                ground.assert_as_modelled(&blue, "removing it");
            }
        }
    });
}

/// Descriptors that are not closed would keep namespaces alive.
#[test]
fn no_descriptor_is_held_on_to() {
    on_host(|ground| {
        // A table of descriptors of its own, which the threads that weft starts from here share.
        unshare(CloneFlags::CLONE_FILES).unwrap();
        let open = || fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let blue = network("blue");
        let mut counts = Vec::new();
        for round in 0..60 {
            let name = format!("c{round}");
            let netns = ground.container(&name);
            let web = local(&blue, &name, &netns, 5);
            ground.apply(
                &blue,
                vec![
                    Op::CreateNamespace,
                    Op::PutBridge(bridge(1430)),
                    put_tunnel(Family::V4, 100, 1430),
                    create(&web, &name),
                ],
            );
            assert!(ground.observed(&blue).is_some());
            ground.apply(
                &blue,
                vec![
                    Op::DeletePort(web.port_name),
                    Op::DeleteTunnel(Family::V4),
                    Op::DeleteNamespace,
                ],
            );
            remove_namespace(&netns);
            counts.push(open());
        }
        assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    });
}
