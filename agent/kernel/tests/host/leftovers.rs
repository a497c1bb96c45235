//! What a crash leaves half-way is mended by the operations that a diff of it names.

use std::fs;

use weft_core::{dataplane::Forward, plan::Op};
use weft_store_schema::Family;

use crate::ground::{
    chain, create, devices, inside, json, local, mac, make_namespace, network, on_host, run,
};

#[test]
fn a_file_without_a_namespace() {
    on_host(|ground| {
        let blue = network("blue");
        fs::write(ground.namespace(&blue), "").unwrap();
        assert_eq!(ground.kernel.observe_network(&blue, &[]).unwrap(), None);
        let (observed, errors) = ground.kernel.observe(&[]);
        assert!(observed.networks.is_empty() && errors.is_empty());
        ground.apply(&blue, devices(100));
        ground.assert_as_modelled(&blue, "mending");
    });
}

#[test]
fn a_file_without_a_namespace_is_removed() {
    on_host(|ground| {
        let blue = network("blue");
        fs::write(ground.namespace(&blue), "").unwrap();
        let results = ground.kernel.teardown();
        assert!(results.iter().all(|(_, r)| r.is_ok()), "{results:?}");
        assert!(!ground.namespace(&blue).exists());
    });
}

/// It is what a process leaves that ends between unmounting a namespace and removing its file, and no look sees it.
#[test]
fn a_file_without_a_namespace_is_removed_at_the_start() {
    on_host(|ground| {
        let (blue, red) = (network("blue"), network("red"));
        ground.apply(&red, devices(100));
        let kept = ground.netns_dir.join("weft-notes");
        fs::write(&kept, "somebody's").unwrap();
        fs::write(ground.namespace(&blue), "").unwrap();
        drop(weft_kernel::Kernel::open(ground.config.clone()).unwrap());
        assert!(!ground.namespace(&blue).exists());
        assert!(kept.exists());
        ground.assert_as_modelled(&red, "starting again");
    });
}

#[test]
fn a_namespace_without_a_bridge() {
    on_host(|ground| {
        let blue = network("blue");
        make_namespace(&ground.namespace(&blue));
        let seen = ground.kernel.observe_network(&blue, &[]).unwrap();
        assert_eq!(seen, Some(weft_core::dataplane::ObservedNetwork::default()));
        // The namespace is somebody's, without our settings: the devices are as they should be all the same.
        ground.apply(&blue, devices(100));
        ground.assert_as_modelled(&blue, "mending");
    });
}

#[test]
fn a_tunnel_that_is_not_enslaved() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        ground.meddle(&blue, "ip link set vx4 nomaster down");
        let seen = ground.observed(&blue).unwrap();
        assert_eq!(seen.tunnels[&Family::V4].bridge_port, None);
        ground.apply(&blue, devices(100)[2..3].to_vec());
        ground.assert_as_modelled(&blue, "mending");
    });
}

/// Between the making of a veth pair and the naming of its ends.
#[test]
fn a_veth_pair_without_aliases() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.meddle(
            &blue,
            &format!(
                "ip link add {} master br0 type veth peer name eth0 netns {}",
                web.port_name,
                c1.display()
            ),
        );
        let ports = ground.observed(&blue).unwrap().ports;
        assert_eq!(
            ports.get(&web.port_name).map(|port| port.alias.as_str()),
            Some(""),
            "ours by its name"
        );
        ground.apply(
            &blue,
            vec![
                Op::DeletePort(web.port_name.clone()),
                create(&web, "web"),
                Op::PutForward(web.interface.mac, Forward::Local(web.port_name.clone())),
            ],
        );
        ground.assert_as_modelled(&blue, "mending");
    });
}

/// The container end lost its alias, or never got it: it is not there, and its port is removed and made again.
#[test]
fn a_container_end_without_its_alias() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        let index = json(&inside(&c1, "ip -j link show eth0"))[0]["ifindex"].clone();
        run(&inside(&c1, "ip link set eth0 alias other"));
        let seen = ground.observed(&blue).unwrap();
        assert!(seen.interfaces.is_empty() && seen.unseen.is_empty());
        assert!(seen.ports.contains_key(&web.port_name));
        ground.apply(
            &blue,
            vec![Op::DeletePort(web.port_name.clone()), create(&web, "web")],
        );
        ground.assert_as_modelled(&blue, "mending");
        assert_ne!(json(&inside(&c1, "ip -j link show eth0"))[0]["ifindex"], index);
    });
}

/// A veth pair that is whole and ours is not torn down by a plan that does not know of it.
#[test]
fn making_what_is_there_is_refused() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(&blue, vec![create(&web, "web")]);
        let outcome = ground.attempt(&blue, vec![create(&web, "web")]);
        let said = chain(&outcome.failed[0].2);
        assert!(
            said.contains("make the veth pair") && said.contains("File exists"),
            "{said}"
        );
        ground.assert_as_modelled(&blue, "a refusal");
    });
}

/// A new process finds everything that the one before it made.
#[test]
fn a_new_process_adopts_what_is_there() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        ground.apply(&blue, devices(100));
        let web = local(&blue, "web", &c1, 5);
        ground.apply(
            &blue,
            vec![
                create(&web, "web"),
                Op::PutForward(web.interface.mac, Forward::Local(web.port_name.clone())),
                Op::PutForward(mac(1), Forward::Remote(crate::ground::ip("10.99.0.2"))),
            ],
        );
        ground.kernel = weft_kernel::Kernel::open(ground.config.clone()).unwrap();
        ground.assert_as_modelled(&blue, "a restart");
        ground.apply(
            &blue,
            vec![Op::PutAddress(
                crate::ground::id("web"),
                "10.1.0.9/16".parse().unwrap(),
            )],
        );
        ground.assert_as_modelled(&blue, "a change after a restart");
    });
}
