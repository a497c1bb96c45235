//! Networks with few addresses: the last is given out, no further one, and none twice however many want it at once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Output;

use anyhow::Result;
use serde_json::json;
use weft_e2e::{Cluster, addresses, attach, link, refused};

#[test]
fn addresses_are_given_out_up_to_the_last_and_no_further() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    one.weft(&["network", "create", "small", "--subnet", "10.1.0.0/29"])?;
    let mut given = BTreeSet::new();
    for number in 0..5 {
        let container = cluster.container(&format!("s{number}"))?;
        let host = if number % 2 == 0 { one } else { two };
        let made = attach(host, "small", &container, &format!("s{number}"), &[])?;
        given.insert(addresses(&made)?[0].to_string());
    }
    let all: BTreeSet<String> = (2..=6).map(|n| format!("10.1.0.{n}")).collect();
    assert_eq!(
        given, all,
        "neither the gateway nor the network or broadcast address"
    );
    let extra = cluster.container("extra")?;
    for host in [one, two] {
        refused(
            host,
            &["endpoint", "attach", "small", &extra.path(), "--id", "extra"],
            1,
            "is full (5 of 5)",
        )?;
    }
    assert!(link(extra.netns(), "eth0").is_err());
    // One that is given back is given out again.
    two.weft(&["endpoint", "detach", "small", "s1"])?;
    let made = attach(one, "small", &extra, "extra", &[])?;
    assert!(all.contains(&addresses(&made)?[0].to_string()));

    // Wished addresses: had, refused when taken, refused when not for endpoints.
    one.weft(&[
        "network",
        "create",
        "blue",
        "--subnet",
        "10.2.0.0/24",
        "--subnet",
        "fd00:2::/64",
        "--reserved",
        "10.2.0.50",
    ])?;
    let (first, second) = (cluster.container("first")?, cluster.container("second")?);
    let made = attach(
        one,
        "blue",
        &first,
        "first",
        &["--address", "10.2.0.77", "--address", "fd00:2::77"],
    )?;
    assert_eq!(made["addresses"], json!(["10.2.0.77/24", "fd00:2::77/64"]));
    assert_eq!(made["mac"], "02:42:0a:02:00:4d");
    let path = second.path();
    let wish = |address: &str, status: i32, words: &str| {
        refused(
            two,
            &[
                "endpoint",
                "attach",
                "blue",
                &path,
                "--id",
                "second",
                "--address",
                address,
            ],
            status,
            words,
        )
    };
    wish("10.2.0.77", 4, "first")?;
    wish("fd00:2::77", 4, "first")?;
    wish("10.2.0.1", 2, "10.2.0.1")?;
    wish("10.2.0.50", 2, "10.2.0.50")?;
    wish("10.2.0.255", 2, "10.2.0.255")?;
    wish("10.3.0.1", 2, "10.3.0.1")?;
    assert_eq!(cluster.get(&Cluster::endpoint_key("blue", 2, "second"))?, None);
    attach(two, "blue", &second, "second", &["--address", "10.2.0.78"])?;
    cluster.close()
}

#[test]
fn hosts_that_race_never_get_one_address_twice() -> Result<()> {
    let cluster = Cluster::of(3)?;
    cluster
        .host(1)
        .weft(&["network", "create", "tight", "--subnet", "10.1.0.0/28"])?;
    // Twenty-four ask for thirteen addresses, all at once on three hosts.
    let mut asking = Vec::new();
    for number in 0..24 {
        asking.push((
            number % 3 + 1,
            format!("r{number}"),
            cluster.container(&format!("r{number}"))?,
        ));
    }
    let outcomes: Vec<(String, Output)> = std::thread::scope(|scope| {
        let threads: Vec<_> = asking
            .iter()
            .map(|(host, id, container)| {
                let host = cluster.host(*host);
                scope.spawn(move || {
                    let args = [
                        "endpoint",
                        "attach",
                        "tight",
                        &container.path(),
                        "--id",
                        id,
                        "-o",
                        "json",
                    ];
                    host.weft_output(&args).map(|output| (id.clone(), output))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .collect::<Result<_>>()
    })?;
    let mut given: Vec<IpAddr> = Vec::new();
    for (id, output) in &outcomes {
        if output.status.success() {
            given.extend(addresses(&serde_json::from_slice(&output.stdout)?)?);
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(1) && said.contains("full"),
                "{id}: {said}"
            );
        }
    }
    let different: BTreeSet<_> = given.iter().collect();
    assert_eq!((given.len(), different.len()), (13, 13), "{given:?}");
    let claims = cluster.get_prefix("/weft/v1/addresses/tight/")?;
    assert_eq!(claims.len(), 13, "{claims:?}");
    assert_eq!(cluster.get_prefix("/weft/v1/endpoints/tight/")?.len(), 13);
    // And on the interfaces.
    let mut held = Vec::new();
    for (.., container) in &asking {
        held.extend(container.addresses()?);
    }
    assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "{held:?}");
    assert_eq!(held.len(), 13);
    cluster.close()
}
