//! Addresses and changes of networks, as people and programs ask for them.

use serde_json::{Value, json};

use crate::{fake::Agent, run};

async fn json(agent: &Agent, line: &str) -> Value {
    let (code, stdout, stderr) = run(agent, &format!("-o json {line}")).await;
    assert_eq!(code, 0, "{line}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|why| panic!("{line}: {why}: {stdout}"))
}

#[tokio::test]
async fn a_reservation_is_asked_for_listed_and_released() {
    let agent = Agent::start();
    let made = json(
        &agent,
        "address reserve blue --id r1 --address 10.1.0.9 --family ipv4 --family ipv6 --ttl 2m",
    )
    .await;
    assert_eq!(
        made,
        json!({
            "network": "blue",
            "id": "r1",
            "addresses": ["ADDRESS_FAMILY_IPV4", "ADDRESS_FAMILY_IPV6", "10.1.0.9"],
            "ends": "1970-01-01T00:02:00Z",
        })
    );
    let usual = json(&agent, "address reserve blue").await;
    assert_eq!(usual["ends"], "1970-01-01T00:01:00Z");
    let (code, _, stderr) = run(&agent, "address reserve blue --id taken").await;
    assert_eq!(
        (code, stderr.as_str()),
        (
            4,
            "weft: cannot reserve addresses in network blue: reservation blue/host1/taken already exists\n      \
             give another --id, or release it first\n"
        )
    );
    assert_eq!(
        run(&agent, "address release blue r1").await.1,
        "reservation blue/r1 released\n"
    );
    assert_eq!(
        json(&agent, "address release blue r2").await,
        json!({"existed": false})
    );
    let states = async |line| {
        let listed = json(&agent, line).await;
        let listed = listed.as_array().unwrap().iter();
        let states: Vec<String> = listed.map(|a| a["state"].as_str().unwrap().to_owned()).collect();
        states
    };
    assert_eq!(states("address list blue").await, ["held"]);
    assert_eq!(states("address ls blue --released").await, ["held", "released"]);
}

#[tokio::test]
async fn a_network_is_changed_as_asked_or_says_what_is_in_the_way() {
    let agent = Agent::start();
    let changed = json(
        &agent,
        "network update blue --add-subnet 10.4.0.0/24 --gateway 10.4.0.9 --remove-subnet 10.1.0.0/16 --mtu auto \
         --cooldown 1m --label a=",
    )
    .await;
    assert_eq!(changed["subnets"][0]["gateway"], "10.4.0.9");
    assert_eq!(changed["options"], json!({"removed": "10.1.0.0/16"}));
    assert_eq!(
        (&changed["mtu"], &changed["cooldown_seconds"]),
        (&Value::Null, &json!(60))
    );
    assert_eq!(changed["labels"], json!({"a": ""}));
    let (code, _, stderr) = run(&agent, "network update used --remove-subnet 10.1.0.0/16").await;
    assert_eq!(code, 4);
    assert!(
        stderr.starts_with("weft: cannot change network used: network used cannot change so"),
        "{stderr}"
    );
    let (code, _, stderr) = run(
        &agent,
        "network update blue --add-subnet 10.4.0.0/24 --gateway 10.5.0.1",
    )
    .await;
    assert_eq!(code, 2);
    assert!(
        stderr.contains("10.5.0.1 lies in none of the subnets (10.4.0.0/24)"),
        "{stderr}"
    );
}
