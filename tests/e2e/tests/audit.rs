//! `weft audit` against a real store: what fits together, what does not, and what a repair makes of it.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::{Cluster, SOON};
use weft_lab::{Host, eventually};

/// The exit status and what `weft -o json audit` says.
fn audit(host: &Host, more: &[&str]) -> Result<(i32, Value)> {
    let output = host.weft_output(&[&["-o", "json", "audit"], more].concat())?;
    let told = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code().context("ended by a signal")?, told))
}

/// The findings, as pairs of key and kind, that are not mended.
fn left(told: &Value) -> Vec<(String, String)> {
    let findings = told["findings"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut left: Vec<_> = findings
        .filter(|finding| finding["mended"] == false)
        .map(|finding| (text(&finding["key"]), text(&finding["kind"])))
        .collect();
    left.sort_unstable();
    left
}

fn v1(key: &str) -> String {
    format!("/weft/v1/{key}")
}

#[test]
fn what_does_not_fit_together_is_found_and_mended() -> Result<()> {
    let cluster = Cluster::of(2)?;
    let host = cluster.host(1);
    cluster.network("blue", &["10.1.0.0/24", "fd00:1::/64"])?;
    let mut stations = vec![
        cluster.endpoint("blue", 1, "a")?,
        cluster.endpoint("blue", 2, "b")?,
    ];
    cluster.up(&mut stations)?;
    // In a network that no host takes part in, no agent looks.
    cluster.network("quiet", &["10.2.0.0/24"])?;
    eventually(SOON, "the networks have their VNIs", || {
        let (status, told) = audit(host, &[])?;
        ensure!(status == 0 && told["vni_claims"] == 2, "{told}");
        Ok(())
    })?;
    let (status, told) = audit(host, &[])?;
    assert_eq!((status, &told["clean"]), (0, &true.into()), "{told}");
    assert_eq!(told["findings"], Value::Array(vec![]));
    assert_eq!(
        (
            &told["endpoints"],
            &told["claims"],
            &told["networks"],
            &told["peers"]
        ),
        (&2.into(), &4.into(), &2.into(), &2.into())
    );
    let text = host.weft(&["audit"])?;
    assert!(
        text.starts_with("2 endpoints, 4 claims, 2 networks at revision "),
        "{text}"
    );
    assert!(text.ends_with(": clean\n"), "{text}");

    cluster.put(&v1("addresses/quiet/10.2.0.9"), r#"{"endpoint":"host1/gone"}"#)?;
    cluster.put(&v1("released/was/10.3.0.9"), r#"{"endpoint":"host1/gone"}"#)?;
    cluster.put(&v1("addresses/quiet/10.2.0.10"), r#"{"reservation":"host1/r"}"#)?;
    cluster.put(
        &v1("endpoints/quiet/host9/x"),
        r#"{"attachment":{"netns":"/run/netns/x"},"addresses":["10.2.0.4"],"mac":"02:42:0a:02:00:04"}"#,
    )?;
    cluster.put(&v1("addresses/quiet/10.2.0.11"), "what?")?;
    let (status, told) = audit(host, &[])?;
    assert_eq!(status, 1, "{told}");
    let owned = |(key, kind): (&str, &str)| (key.to_owned(), kind.to_owned());
    let for_people = [
        ("addresses/quiet/10.2.0.11", "unreadable"),
        ("endpoints/quiet/host9/x", "endpoint_without_peer"),
    ]
    .map(owned);
    let mut expected = [
        ("addresses/quiet/10.2.0.10", "reservation_without_lease"),
        ("addresses/quiet/10.2.0.9", "claim_without_endpoint"),
        ("endpoints/quiet/host9/x", "address_not_claimed"),
        ("released/was/", "released_without_network"),
    ]
    .map(owned)
    .to_vec();
    expected.extend(for_people.clone());
    expected.sort_unstable();
    assert_eq!(left(&told), expected, "{told}");
    // Looking changes nothing, and says the same everywhere. What host1's containers may have is not host2's to mend.
    let (_, told) = audit(cluster.host(2), &[])?;
    assert_eq!(left(&told), expected);
    let findings = told["findings"].as_array().into_iter().flatten();
    let claim = findings
        .into_iter()
        .find(|f| f["key"] == "addresses/quiet/10.2.0.9");
    assert_eq!(claim.context("the claim")?["mendable"], false, "{told}");

    let before = cluster.get_prefix(&v1("endpoints/"))?;
    let (status, told) = audit(host, &["--repair"])?;
    assert_eq!(status, 1, "{told}");
    assert_eq!(left(&told), for_people, "{told}");
    assert_eq!(told["findings"].as_array().map(Vec::len), Some(6), "{told}");
    assert_eq!(cluster.get_prefix(&v1("endpoints/"))?, before);
    assert_eq!(cluster.get(&v1("addresses/quiet/10.2.0.9"))?, None);
    assert!(cluster.get(&v1("released/quiet/10.2.0.9"))?.is_some());
    let claim = cluster.get_json(&v1("addresses/quiet/10.2.0.4"))?;
    assert_eq!(claim.context("a claim")?["endpoint"], "host9/x");

    cluster.del(&v1("addresses/quiet/10.2.0.11"))?;
    cluster.del(&v1("endpoints/quiet/host9/x"))?;
    let (status, told) = audit(host, &["--repair"])?;
    assert_eq!(status, 0, "{told}");
    cluster.all_talk(&stations)?;
    cluster.close()
}

#[test]
fn without_the_store_it_says_so() -> Result<()> {
    let cluster = Cluster::of(1)?;
    cluster.etcd(1).kill9()?;
    eventually(SOON, "the agent has lost the store", || {
        ensure!(weft_e2e::status(cluster.host(1))?["store"]["connected"] == false);
        Ok(())
    })?;
    let output = cluster.host(1).weft_output(&["audit"])?;
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the store is not available"));
    cluster.close()
}
