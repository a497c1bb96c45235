//! What others do on the host or in a container that must neither stop weft nor be harmed by it.

use std::{fs, path::Path};

use nix::mount::{MntFlags, umount2};
use weft_core::{dataplane::ObservedNetwork, plan::Op};
use weft_store_schema::NetworkName;

use crate::ground::{
    bind, bridge, chain, create, devices, find, id, inside, json, local, make_namespace, network, on_host,
    plan, remove_namespace, run,
};

/// The device's number: another one has another.
fn number(namespace: &Path, device: &str) -> u64 {
    let links = json(&inside(namespace, "ip -j link"));
    let link = find(&links, "ifname", device).unwrap_or_else(|| panic!("no {device}: {links:?}"));
    link["ifindex"].as_u64().unwrap()
}

/// A network's devices, and an endpoint in a container.
fn devices_and_web(network: &NetworkName, container: &Path) -> Vec<Op> {
    let mut ops = devices(100);
    ops.push(create(&local(network, "web", container, 5), "web"));
    ops
}

#[test]
fn a_namespace_that_was_unmounted_is_mounted_again_with_all_that_is_in_it() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let ops = devices_and_web(&blue, &c1);
        ground.apply(&blue, ops);
        let path = ground.namespace(&blue);
        let numbers = || (number(&path, "vx4"), number(&c1, "eth0"));
        let before = numbers();
        for file_goes in [false, true] {
            umount2(&path, MntFlags::MNT_DETACH).unwrap();
            if file_goes {
                fs::remove_file(&path).unwrap();
            }
            ground.model.networks.get_mut(&blue).unwrap().unmounted = true;
            ground.assert_as_modelled(&blue, "unmounting");
            let (all, errors) = ground.kernel.observe(&[]);
            assert!(errors.is_empty(), "{errors:?}");
            assert!(all.networks[&blue].unmounted, "{all:?}");
            // A look changes nothing: what goes on there goes on.
            assert_eq!(number(&c1, "eth0"), before.1);
            let outcome = ground.apply(&blue, vec![Op::CreateNamespace]);
            assert_eq!(outcome.writes, 1);
            ground.assert_as_modelled(&blue, "mounting again what was unmounted");
            assert_eq!(numbers(), before);
        }
        // Nobody wants it any more: then it goes, mounted or not.
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        let port = local(&blue, "web", &c1, 5).port_name;
        ground.apply(&blue, vec![Op::DeletePort(port), Op::DeleteNamespace]);
        assert!(!path.exists());
        ground.assert_as_modelled(&blue, "removing what was unmounted");
        ground.apply(&blue, devices(100));
        ground.assert_as_modelled(&blue, "making it anew");
    });
}

#[test]
fn another_namespace_in_the_place_of_one_takes_over_when_something_is_done_there() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let ops = devices_and_web(&blue, &c1);
        ground.apply(&blue, ops.clone());
        let before = number(&c1, "eth0");
        let path = ground.namespace(&blue);
        remove_namespace(&path);
        make_namespace(&path);
        run(&inside(&path, "ip link add f0 type veth peer name f1"));
        let seen = ground.kernel.observe_network(&blue, &[]).unwrap();
        assert_eq!(seen, Some(ObservedNetwork::default()));
        assert_eq!(number(&c1, "eth0"), before, "a look has changed something");
        ground.model.networks.remove(&blue);
        // Held by our socket, the old one's devices would still have the VNI and the container's eth0.
        ground.apply(&blue, ops);
        ground.assert_as_modelled(&blue, "making it in the place of another");
        number(&path, "f0");
    });
}

#[test]
fn the_hosts_own_namespace_in_the_place_of_one_changes_nothing_in_it() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let ops = devices_and_web(&blue, &c1);
        ground.apply(&blue, ops);
        let before = number(&c1, "eth0");
        let path = ground.namespace(&blue);
        bind(Path::new("/proc/thread-self/ns/net"), &path);
        let error = ground.kernel.observe_network(&blue, &[]).unwrap_err();
        assert!(chain(&error).contains("it is the host's own"), "{error}");
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        ground.assert_as_modelled(&blue, "unmounting the host's own");
        assert_eq!(number(&c1, "eth0"), before);
    });
}

#[test]
fn a_route_through_another_interface_is_not_taken_over() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        for command in [
            "ip link add f0 type veth peer name f1",
            "ip link set f0 up",
            "ip route add 10.2.0.0/16 dev f0 scope link",
            "ip -6 route add fd02::/64 dev f0",
        ] {
            run(&inside(&c1, command));
        }
        ground.apply(&blue, devices(100));
        let outcome = ground
            .kernel
            .apply(&plan(&blue, vec![create(&local(&blue, "web", &c1, 5), "web")]));
        let errors: Vec<_> = outcome.failed.iter().map(|(_, _, e)| chain(e)).collect();
        assert!(
            errors.len() == 1 && errors[0].contains("10.2.0.0/16; it has one through another interface"),
            "{errors:?}"
        );
        for question in ["ip route show 10.2.0.0/16", "ip -6 route show fd02::/64"] {
            assert!(run(&inside(&c1, question)).contains("dev f0"), "{question}");
        }
        ground.assert_as_modelled(&blue, "an endpoint that cannot be made");
    });
}

#[test]
fn a_container_with_ipv6_off_gets_its_addresses() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        // As Docker makes its containers.
        run(&inside(
            &c1,
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
        ));
        run(&inside(&c1, "ip link add f0 type veth peer name f1"));
        let ops = devices_and_web(&blue, &c1);
        ground.apply(&blue, ops);
        ground.assert_as_modelled(&blue, "attaching a container with IPv6 off");
        let other = run(&inside(&c1, "sysctl -n net.ipv6.conf.f0.disable_ipv6"));
        assert_eq!(other.trim(), "1", "only the endpoint's own interface has IPv6");
    });
}

#[test]
fn bridged_frames_pass_no_packet_filter_whoever_turns_it_on() {
    on_host(|ground| {
        let blue = network("blue");
        ground.apply(&blue, devices(100));
        let namespace = ground.namespace(&blue);
        let files = ["iptables", "ip6tables", "arptables"]
            .map(|kind| format!("/proc/sys/net/bridge/bridge-nf-call-{kind}"));
        let all = || run(&inside(&namespace, &format!("cat {}", files.join(" "))));
        if !Path::new(&files[0]).exists() {
            // Without br_netfilter there is nothing that could be turned on.
            return;
        }
        assert_eq!(all(), "0\n0\n0\n");
        // So does loading br_netfilter, in every namespace.
        run(&inside(
            &namespace,
            "sysctl -qw net.bridge.bridge-nf-call-iptables=1",
        ));
        let seen = ground.kernel.observe_links(&blue, &[]).unwrap().unwrap();
        assert!(seen.bridge.unwrap().filtered);
        ground.apply(&blue, vec![Op::PutBridge(bridge(1430))]);
        assert_eq!(all(), "0\n0\n0\n");
        ground.assert_as_modelled(&blue, "a packet filter for the bridge");
    });
}

#[test]
fn a_taken_udp_port_is_named() {
    on_host(|ground| {
        let blue = network("blue");
        let taken = std::net::UdpSocket::bind("0.0.0.0:4789").unwrap();
        let outcome = ground.kernel.apply(&plan(&blue, devices(100)));
        let errors: Vec<_> = outcome.failed.iter().map(|(_, _, e)| chain(e)).collect();
        assert!(
            errors
                .iter()
                .any(|e| e.contains("UDP port 4789") && e.contains("another program")),
            "{errors:?}"
        );
        drop(taken);
        ground.apply(&blue, devices(100));
        ground.assert_as_modelled(&blue, "trying again once the port is free");
    });
}

#[test]
fn the_hosts_own_namespace_under_our_name_is_left_alone() {
    on_host(|ground| {
        let blue = network("blue");
        let file = ground.namespace(&blue);
        fs::write(&file, "").unwrap();
        bind(Path::new("/proc/thread-self/ns/net"), &file);
        run("ip link add vx4 type vxlan id 5 dstport 4789 local 127.0.0.1");
        assert!(ground.kernel.observe_network(&blue, &[]).is_err());
        let outcome = ground.kernel.apply(&plan(&blue, devices(100)));
        assert_eq!(outcome.done, 0);
        for (_, result) in ground.kernel.teardown() {
            let error = result.unwrap_err();
            assert!(chain(&error).contains("the host's own"), "{}", chain(&error));
        }
        run("ip link show vx4");
        assert!(!run("ip -br link").contains("br0"));
    });
}

#[test]
fn devices_that_go_together_go_with_what_is_gone_already() {
    on_host(|ground| {
        let blue = network("blue");
        let mut ops = devices(100);
        let mut ports = Vec::new();
        for number in 1..=5 {
            let name = format!("c{number}");
            let container = ground.container(&name);
            let end = local(&blue, &name, &container, number);
            ports.push(end.port_name.clone());
            ops.push(create(&end, &name));
        }
        ground.apply(&blue, ops);
        ground.meddle(&blue, &format!("ip link del {}", ports[2]));
        ground.apply(&blue, ports[..4].iter().cloned().map(Op::DeletePort).collect());
        ground.assert_as_modelled(&blue, "removing four, one of which was gone");
    });
}

#[test]
fn an_ipv6_address_takes_another_prefix_length_when_the_old_one_goes_first() {
    on_host(|ground| {
        let blue = network("blue");
        let c1 = ground.container("c1");
        let ops = devices_and_web(&blue, &c1);
        ground.apply(&blue, ops);
        let (old, new) = ("fd01::5/64".parse().unwrap(), "fd01::5/48".parse().unwrap());
        // The order of diff_interface; the other way round nothing is left of it.
        ground.apply(
            &blue,
            vec![Op::DeleteAddress(id("web"), old), Op::PutAddress(id("web"), new)],
        );
        ground.assert_as_modelled(&blue, "another prefix length");
    });
}
