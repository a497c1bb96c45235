//! Addresses on real parts: full networks, reservations, ages and cool-downs, and networks that change under way.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{Cluster, SOON, addresses, attach, fails, refused};
use weft_lab::{Container, Host, eventually};

/// The only address of an endpoint.
fn address(endpoint: &Value) -> Result<String> {
    let all = addresses(endpoint)?;
    ensure!(all.len() == 1, "{endpoint}");
    Ok(all[0].to_string())
}

fn claim_key(network: &str, address: &str) -> String {
    format!("/weft/v1/addresses/{network}/{address}")
}

fn create(host: &Host, name: &str, cidrs: &[&str], more: &[&str]) -> Result<()> {
    let mut args = vec!["network", "create", name];
    for cidr in cidrs {
        args.extend(["--subnet", cidr]);
    }
    args.extend(more);
    host.weft(&args).map(drop)
}

/// Addresses as `weft address list` has them, in one state.
fn listed(host: &Host, network: &str, state: &str) -> Result<Vec<String>> {
    let all = host.weft_json(&["address", "list", network, "--released"])?;
    let all = all.as_array().context("a list")?.iter();
    Ok(all
        .filter(|a| a["state"] == state)
        .filter_map(|a| Some(a["address"].as_str()?.split('/').next()?.to_owned()))
        .collect())
}

/// Waits until a host's agent lists these addresses in a state.
fn lists(host: &Host, network: &str, state: &str, wanted: &[&str]) -> Result<()> {
    eventually(SOON, &format!("{} lists {state} {wanted:?}", host.node()), || {
        let listed = listed(host, network, state)?;
        ensure!(listed == wanted, "{listed:?}");
        Ok(())
    })
}

/// The leases that there are.
fn leases(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let text = cluster.etcdctl(&["lease", "list"])?;
    Ok(text.lines().skip(1).map(str::to_owned).collect())
}

/// Does something on several hosts at once.
fn at_once<T: Send>(jobs: Vec<impl FnOnce() -> Result<T> + Send>) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs.into_iter().map(|job| scope.spawn(job)).collect();
        let mut done = Vec::new();
        for thread in threads {
            let result = thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            done.push(result?);
        }
        Ok(done)
    })
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_last_free_address_is_found_and_then_it_says_full_at_once() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/29"], &[])?;
    let mut given = BTreeMap::new();
    for n in 0..5 {
        let id = format!("e{n}");
        let host = if n % 2 == 0 { one } else { two };
        let made = attach(host, "blue", &cluster.container(&id)?, &id, &[])?;
        given.insert(address(&made)?, (host, id));
    }
    assert_eq!(given.len(), 5, "{given:?}");
    let extra = cluster.container("extra")?;
    for host in [one, two] {
        let args = ["endpoint", "attach", "blue", &extra.path(), "--id", "extra"];
        let started = Instant::now();
        let (exit, words) = fails(host, &args)?;
        assert_eq!(exit, 1);
        assert!(
            words.contains("network blue: 10.1.0.0/29 is full (5 of 5)"),
            "{words}"
        );
        assert!(started.elapsed() < Duration::from_secs(2), "without trying again");
        let shown = host.weft(&["network", "inspect", "blue"])?;
        assert!(shown.contains("5 of 5 in use"), "{shown}");
    }
    // Wherever the last free one is.
    for (free, (host, id)) in given {
        host.weft(&["endpoint", "detach", "blue", &id])?;
        lists(two, "blue", "released", &[&free])?;
        let made = attach(two, "blue", &extra, "extra", &[])?;
        assert_eq!(address(&made)?, free);
        two.weft(&["endpoint", "detach", "blue", "extra"])?;
        let container = cluster.existing_container(&id);
        lists(host, "blue", "released", &[&free])?;
        assert_eq!(address(&attach(host, "blue", &container, &id, &[])?)?, free);
    }
    cluster.close()
}

#[test]
fn the_next_subnet_is_used_and_both_families_are_had_or_neither() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/30", "fd00:1::/64", "10.2.0.0/30"], &[])?;
    let a = attach(one, "blue", &cluster.container("a")?, "a", &[])?;
    let b = attach(two, "blue", &cluster.container("b")?, "b", &[])?;
    assert_eq!(a["addresses"][0], "10.1.0.2/30");
    assert_eq!(b["addresses"][0], "10.2.0.2/30");
    let claims = cluster.get_prefix("/weft/v1/addresses/blue/")?;
    assert_eq!(claims.len(), 4);
    let c = cluster.container("c")?;
    refused(
        two,
        &["endpoint", "attach", "blue", &c.path(), "--id", "c"],
        1,
        "network blue: 10.1.0.0/30 is full (1 of 1), 10.2.0.0/30 is full (1 of 1)",
    )?;
    assert_eq!(
        cluster.get_prefix("/weft/v1/addresses/blue/")?,
        claims,
        "no address of the other family is left behind"
    );
    // The same for a reservation, unless it asks for the one family alone.
    refused(one, &["address", "reserve", "blue"], 1, "is full")?;
    let v6 = one.weft_json(&["address", "reserve", "blue", "--family", "ipv6"])?;
    assert_eq!(v6["addresses"].as_array().map(Vec::len), Some(1), "{v6}");
    // Room in the one that is added is used.
    one.weft(&["network", "update", "blue", "--add-subnet", "10.3.0.0/29"])?;
    let made = attach(one, "blue", &c, "c", &[])?;
    let c_v4 = made["addresses"][0].as_str().context("an address")?;
    assert!(c_v4.starts_with("10.3.0.") && c_v4.ends_with("/29"), "{made}");
    cluster.close()
}

#[test]
fn a_reservation_is_adopted_and_outlives_its_lease() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/24", "fd00:1::/64"], &[])?;
    let before = leases(&cluster)?;
    let reserve = |more: &[&str]| {
        let args = ["address", "reserve", "blue", "--id", "web", "--ttl", "5s"];
        one.weft_json(&[&args, more].concat())
    };
    let made = reserve(&["--address", "10.1.0.77"])?;
    let held = addresses(&made)?;
    assert_eq!(held[0].to_string(), "10.1.0.77");
    let key = claim_key("blue", "10.1.0.77");
    let reserved = cluster.get_kv(&key)?.context("a claim")?;
    assert_ne!(reserved.lease, 0);
    assert_eq!(cluster.get_json(&key)?, Some(json!({"reservation": "host1/web"})));
    // Asked for again, it is the same one under a lease of its own; for anything else the id is taken.
    let again = reserve(&["--address", "10.1.0.77"])?;
    assert_eq!(again["addresses"], made["addresses"]);
    assert!(again["ends"].as_str() >= made["ends"].as_str(), "{again} {made}");
    refused(
        one,
        &[
            "address",
            "reserve",
            "blue",
            "--id",
            "web",
            "--address",
            "10.1.0.78",
        ],
        4,
        "reservation blue/host1/web already exists",
    )?;
    // The address is nobody else's, and neither is the reservation another host's.
    let (a, b) = (cluster.container("a")?, cluster.container("b")?);
    let wish = ["--address", "10.1.0.77"];
    let path = b.path();
    let other = ["endpoint", "attach", "blue", &path, "--id", "b"];
    refused(
        two,
        &[&other[..], &wish].concat(),
        4,
        "10.1.0.77 is held by reservation host1/web",
    )?;
    refused(
        two,
        &[&other[..], &["--reservation", "web"]].concat(),
        4,
        "there is no reservation web of host2",
    )?;

    let web = attach(one, "blue", &a, "web", &["--reservation", "web"])?;
    assert_eq!(addresses(&web)?, held);
    assert_eq!(cluster.get_kv(&key)?.context("a claim")?.lease, 0);
    assert_eq!(cluster.get_json(&key)?, Some(json!({"endpoint": "host1/web"})));
    eventually(SOON, "the reservation's leases are gone", || {
        let now = leases(&cluster)?;
        ensure!(now == before, "{now:?}, before {before:?}");
        Ok(())
    })?;
    // Attached again it is the same endpoint, although the reservation is over.
    let again = attach(one, "blue", &a, "web", &["--reservation", "web"])?;
    assert_eq!(again["addresses"], web["addresses"]);

    // What is reserved after it and adopted by nobody goes when its time is over; the endpoint stays.
    one.weft(&["address", "reserve", "blue", "--id", "idle", "--ttl", "5s"])?;
    lists(two, "blue", "held", &[&held[0].to_string(), &held[1].to_string()])?;
    eventually(SOON * 2, "the idle reservation is gone", || {
        let claims = cluster.get_prefix("/weft/v1/addresses/blue/")?;
        ensure!(claims.len() == 2, "{claims:?}");
        Ok(())
    })?;
    assert_eq!(cluster.get_json(&key)?, Some(json!({"endpoint": "host1/web"})));
    assert!(a.addresses()?.contains(&held[0]));
    cluster.close()
}

#[test]
fn a_reservation_that_nobody_adopts_ends_and_its_address_is_given_out() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/30"], &[])?;
    let before = leases(&cluster)?;
    let started = Instant::now();
    one.weft(&["address", "reserve", "blue", "--id", "r", "--ttl", "5s"])?;
    lists(two, "blue", "reserved", &["10.1.0.2"])?;
    let c = cluster.container("c")?;
    let path = c.path();
    let args = ["endpoint", "attach", "blue", &path, "--id", "c"];
    refused(two, &args, 1, "is full (1 of 1)")?;
    let made = eventually(SOON * 2, "the address is given out", || {
        attach(two, "blue", &c, "c", &[])
    })?;
    assert_eq!(address(&made)?, "10.1.0.2");
    assert!(started.elapsed() > Duration::from_secs(4), "its time was kept");
    refused(one, &["address", "reserve", "blue", "--id", "r2"], 1, "is full")?;
    two.weft(&["endpoint", "detach", "blue", "c"])?;

    // Given up before its time, it is free at once; given up again, nothing happens.
    eventually(SOON, "reserved anew", || {
        one.weft(&["address", "reserve", "blue", "--id", "r", "--ttl", "1h"])
    })?;
    let released = one.weft_json(&["address", "release", "blue", "r"])?;
    assert_eq!(released, json!({"existed": true}));
    let made = eventually(SOON, "free on the other host", || {
        attach(two, "blue", &c, "c", &[])
    })?;
    assert_eq!(address(&made)?, "10.1.0.2");
    let released = one.weft_json(&["address", "release", "blue", "r"])?;
    assert_eq!(released, json!({"existed": false}));
    assert_eq!(listed(one, "blue", "held")?, ["10.1.0.2"]);
    refused(one, &["address", "list", "none"], 3, "none")?;
    refused(one, &["address", "reserve", "none"], 3, "none")?;
    // Neither those that were refused nor those that were given up have left a lease behind.
    eventually(SOON, "no lease is left", || {
        let now = leases(&cluster)?;
        ensure!(now == before, "{now:?}, before {before:?}");
        Ok(())
    })?;
    cluster.close()
}

#[test]
fn an_address_cools_down_before_it_is_chosen_again() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/30"], &["--cooldown", "3s"])?;
    let shown = one.weft(&["network", "inspect", "blue"])?;
    assert!(shown.contains("Cool-down:   3s"), "{shown}");
    let (a, b) = (cluster.container("a")?, cluster.container("b")?);
    attach(one, "blue", &a, "a", &[])?;
    let released = Instant::now();
    one.weft(&["endpoint", "detach", "blue", "a"])?;
    let path = b.path();
    refused(
        one,
        &["endpoint", "attach", "blue", &path, "--id", "b"],
        1,
        "network blue: 10.1.0.0/30 is full (0 of 1; 1 given up less than 3 s ago)",
    )?;
    let made = eventually(SOON, "it has cooled down", || attach(one, "blue", &b, "b", &[]))?;
    assert!(
        released.elapsed() >= Duration::from_secs(3),
        "{:?}",
        released.elapsed()
    );
    assert_eq!(address(&made)?, "10.1.0.2");
    // Who asks for it gets it; without a cool-down so does everybody.
    one.weft(&["endpoint", "detach", "blue", "b"])?;
    attach(one, "blue", &a, "a", &["--address", "10.1.0.2"])?;
    one.weft(&["endpoint", "detach", "blue", "a"])?;
    one.weft(&["network", "update", "blue", "--cooldown", "0s"])?;
    attach(one, "blue", &b, "b", &[])?;
    // What is not known to have been released goes by when this agent looked: a day from then.
    one.weft(&["endpoint", "detach", "blue", "b"])?;
    one.weft(&["network", "update", "blue", "--cooldown", "1d"])?;
    eventually(SOON, "host2 knows of it", || {
        let network = two.weft_json(&["network", "inspect", "blue"])?;
        ensure!(network["cooldown_seconds"] == 86_400, "{network}");
        Ok(())
    })?;
    refused(
        two,
        &["endpoint", "attach", "blue", &path, "--id", "b"],
        1,
        "1 given up less than 86400 s ago",
    )?;
    cluster.close()
}

#[test]
fn what_was_released_longest_ago_is_chosen_first_by_any_host_after_any_restart() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/29"], &[])?;
    let mut stations: Vec<(String, usize, Container)> = Vec::new();
    for n in 0..5 {
        let container = cluster.container(&format!("e{n}"))?;
        let host = 1 + n % 2;
        let made = attach(cluster.host(host), "blue", &container, &format!("e{n}"), &[])?;
        stations.push((address(&made)?, host, container));
    }
    let mut order: Vec<&str> = Vec::new();
    for n in [2, 0, 4, 1, 3] {
        let (address, host, _) = &stations[n];
        let host = cluster.host(*host);
        host.weft(&["endpoint", "detach", "blue", &format!("e{n}")])?;
        order.push(address);
    }
    one.restart()?;
    for host in [one, two] {
        lists(host, "blue", "released", &order)?;
    }
    for n in 0..order.len() {
        if n == 3 {
            two.restart()?;
        }
        let host = cluster.host(2 - n % 2);
        lists(host, "blue", "released", &order[n..])?;
        let container = &stations[n].2;
        let made = attach(host, "blue", container, &format!("f{n}"), &[])?;
        assert_eq!(address(&made)?, order[n], "of {order:?}");
    }
    assert!(
        cluster.get_prefix("/weft/v1/released/")?.is_empty(),
        "whoever has an address has taken its trace away"
    );
    cluster.close()
}

#[test]
fn a_late_or_repeated_detach_frees_nothing_of_the_next_holder() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/30"], &[])?;
    let (a, b) = (cluster.container("a")?, cluster.container("b")?);
    attach(one, "blue", &a, "a", &[])?;
    // Detached while the store is away: the record follows when it is back.
    cluster.etcd(1).stop()?;
    let gone = one.weft_json(&["endpoint", "detach", "blue", "a"])?;
    assert_eq!(gone["record_pending"], true);
    cluster.etcd(1).start()?;
    let made = eventually(SOON * 2, "the address is free", || {
        attach(two, "blue", &b, "b", &[])
    })?;
    assert_eq!(address(&made)?, "10.1.0.2");
    let claim = cluster
        .get_kv(&claim_key("blue", "10.1.0.2"))?
        .context("a claim")?;
    // Retries of whoever did not hear of it, also of an agent that knows nothing any more.
    for round in 0..2 {
        eventually(SOON, "host1 knows that it is gone", || {
            let again = one.weft_json(&["endpoint", "detach", "blue", "a"])?;
            ensure!(
                again == json!({"existed": false, "record_pending": false, "note": null}),
                "{again}"
            );
            Ok(())
        })?;
        if round == 0 {
            one.restart()?;
        }
    }
    assert_eq!(
        one.weft_json(&["address", "release", "blue", "a"])?["existed"],
        false
    );
    let now = cluster
        .get_kv(&claim_key("blue", "10.1.0.2"))?
        .context("a claim")?;
    assert_eq!(now.mod_revision, claim.mod_revision);
    assert_eq!(b.addresses()?, addresses(&made)?);
    cluster.close()
}

#[test]
fn networks_are_made_and_changed_as_if_one_after_another() -> Result<()> {
    let cluster = Cluster::of(3)?;
    let all = cluster.etcd(1).watch("/weft/v1/networks/", 1)?;
    // All three make it, each another one: one of them did, and the others hear that it is there.
    let made = at_once(
        (1..=3)
            .map(|n| {
                let host = cluster.host(n);
                let subnet = format!("10.{n}.0.0/16");
                move || host.weft_output(&["network", "create", "blue", "--subnet", &subnet])
            })
            .collect(),
    )?;
    let codes: Vec<_> = made.iter().map(code).collect();
    let winners: Vec<usize> = (1..=3).filter(|n| codes[n - 1] == Some(0)).collect();
    assert_eq!(
        winners.len(),
        1,
        "{codes:?}: {:?}",
        made.iter().map(said).collect::<Vec<_>>()
    );
    assert_eq!(codes.iter().filter(|c| **c == Some(4)).count(), 2, "{codes:?}");
    let mut wanted = BTreeSet::from([format!("10.{}.0.0/16", winners[0])]);

    // All three change it, again and again: what each adds is there, and of what all want to add one has.
    let (wanted_ref, rounds) = (&mut wanted, 5);
    for round in 0..rounds {
        let shared = format!("10.{}.0.0/16", 100 + round);
        let outcomes = at_once(
            (1..=3)
                .map(|n| {
                    let host = cluster.host(n);
                    let own = format!("10.{}.{round}.0/24", 200 + n);
                    let label = format!("host{n}={round}");
                    let shared = shared.clone();
                    move || {
                        let change = ["network", "update", "blue", "--add-subnet"];
                        host.weft(&[&change[..], &[&own, "--label", &label]].concat())?;
                        let shared = host.weft_output(&[&change[..], &[&shared]].concat())?;
                        Ok((own, shared))
                    }
                })
                .collect(),
        )?;
        wanted_ref.extend(outcomes.iter().map(|(own, _)| own.clone()));
        let codes: Vec<_> = outcomes.iter().map(|(_, shared)| code(shared)).collect();
        assert_eq!(codes.iter().filter(|c| **c == Some(0)).count(), 1, "{codes:?}");
        for (_, output) in outcomes.iter().filter(|(_, o)| code(o) != Some(0)) {
            assert_eq!(code(output), Some(2), "{}", said(output));
            assert!(said(output).contains("overlaps"), "{}", said(output));
        }
        wanted_ref.insert(shared);
    }
    let record = cluster
        .get_json(&Cluster::network_key("blue"))?
        .context("record")?;
    let subnets = |record: &Value| -> Vec<String> {
        let subnets = record["subnets"].as_array().into_iter().flatten();
        subnets
            .filter_map(|s| Some(s["cidr"].as_str()?.to_owned()))
            .collect()
    };
    let there = subnets(&record);
    assert_eq!(there.iter().cloned().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(there.len(), wanted.len());
    assert_eq!(
        record["labels"],
        json!({"host1": "4", "host2": "4", "host3": "4"})
    );

    // No revision ever had anything twice, or lost what another had added.
    let last = cluster.get_kv(&Cluster::network_key("blue"))?.context("record")?;
    let (mut before, mut at) = (0, 0);
    while at < last.mod_revision {
        let events = all.next(SOON)?;
        ensure!(!events.is_empty(), "the watch is silent at {at}");
        for event in events {
            let record: Value = serde_json::from_slice(&event.kv.value)?;
            let there = subnets(&record);
            let apart: BTreeSet<_> = there.iter().collect();
            assert_eq!(apart.len(), there.len(), "{record}");
            assert!(there.len() >= before, "{record}");
            (before, at) = (there.len(), event.kv.mod_revision);
        }
    }
    cluster.close()
}

#[test]
fn a_change_that_would_strand_an_address_is_refused_also_in_a_race() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let (one, two) = (cluster.host(1), cluster.host(2));
    create(one, "blue", &["10.1.0.0/24", "10.2.0.0/24"], &[])?;
    let (a, b) = (cluster.container("a")?, cluster.container("b")?);
    attach(two, "blue", &a, "a", &["--address", "10.2.0.9"])?;
    two.weft(&[
        "address",
        "reserve",
        "blue",
        "--id",
        "r",
        "--address",
        "10.2.0.10",
    ])?;
    let remove = ["network", "update", "blue", "--remove-subnet", "10.2.0.0/24"];
    refused(
        one,
        &remove,
        4,
        "network blue: cannot change so, for these addresses are held: 10.2.0.9 (endpoint blue/host2/a), 10.2.0.10 (reservation host2/r)",
    )?;
    // Nor may it become the gateway, or be kept out.
    let narrowed = ["--add-subnet", "10.2.0.0/24", "--reserved", "10.2.0.9"];
    refused(one, &[&remove[..], &narrowed].concat(), 4, "10.2.0.9")?;
    // Where it stays what it is, the subnet may change around it.
    let moved = ["--add-subnet", "10.2.0.0/24", "--gateway", "10.2.0.254"];
    one.weft(&[&remove[..], &moved].concat())?;
    two.weft(&["endpoint", "detach", "blue", "a"])?;
    two.weft(&["address", "release", "blue", "r"])?;
    refused(one, &["network", "update", "none", "--mtu", "1400"], 3, "none")?;
    refused(
        one,
        &["network", "update", "blue", "--remove-subnet", "10.9.0.0/24"],
        2,
        "there is no subnet 10.9.0.0/24",
    )?;

    // An attach into the subnet and its removal at once: one of them.
    let path = b.path();
    let wish = ["--id", "b", "--address", "10.2.0.77"];
    let attach_it = [&["endpoint", "attach", "blue", &path][..], &wish].concat();
    let mut seen = BTreeMap::new();
    for round in 0..12_u64 {
        let late = Duration::from_millis(round % 4 * 3);
        let (first, second) = (round % 2 == 0, round % 2 == 1);
        let (remove, attach_it) = (&remove, &attach_it);
        let outcomes = at_once(vec![
            Box::new(move || {
                std::thread::sleep(if first { late } else { Duration::ZERO });
                one.weft_output(remove)
            }) as Box<dyn FnOnce() -> Result<Output> + Send>,
            Box::new(move || {
                std::thread::sleep(if second { late } else { Duration::ZERO });
                two.weft_output(attach_it)
            }),
        ])?;
        let codes = (code(&outcomes[0]), code(&outcomes[1]));
        let words = (said(&outcomes[0]), said(&outcomes[1]));
        let record = cluster
            .get_json(&Cluster::network_key("blue"))?
            .context("record")?;
        let subnets = record["subnets"].as_array().map(Vec::len);
        let claimed = cluster.get(&claim_key("blue", "10.2.0.77"))?.is_some();
        match codes {
            (Some(0), Some(2)) => {
                assert!(
                    words.1.contains("10.2.0.77 is in none of the subnets"),
                    "{words:?}"
                );
                assert_eq!((subnets, claimed), (Some(1), false));
                one.weft(&["network", "update", "blue", "--add-subnet", "10.2.0.0/24"])?;
                eventually(SOON, "host2 has the subnet again", || {
                    let network = two.weft_json(&["network", "inspect", "blue"])?;
                    ensure!(
                        network["subnets"].as_array().map(Vec::len) == Some(2),
                        "{network}"
                    );
                    Ok(())
                })?;
            }
            (Some(4), Some(0)) => {
                assert!(words.0.contains("10.2.0.77 (endpoint blue/host2/b)"), "{words:?}");
                assert_eq!((subnets, claimed), (Some(2), true));
                two.weft(&["endpoint", "detach", "blue", "b"])?;
            }
            other => panic!("{other:?}: {words:?}"),
        }
        *seen.entry(codes.0).or_insert(0) += 1;
    }
    println!("{seen:?}");
    cluster.close()
}
