//! Rows come and go.

use super::*;

fn member(n: u8) -> Member {
    let names = (format!("host{}", n % 3), format!("e{n}"));
    (names.0.parse().unwrap(), names.1.parse().unwrap())
}

fn address(n: u8) -> IpAddr {
    [10, 1, 0, n].into()
}

fn slot<T>(value: T) -> Slot<T> {
    Slot {
        value: Some(value),
        ..Slot::default()
    }
}

fn put(members: &mut Members, n: u8) {
    let (node, id) = member(n);
    let mac = Mac::from_address(address(n));
    let record = format!(
        r#"{{"attachment":{{"netns":"/run/netns/{id}"}},"addresses":["{}"],"mac":"{mac}"}}"#,
        address(n)
    );
    let endpoint = Endpoint::decode(record.as_bytes()).unwrap();
    let holder = Holder::Endpoint;
    members.put_claim(
        address(n),
        slot(weft_store_schema::AddressClaim { holder, node, id }),
    );
    members.put_endpoint(member(n), slot(endpoint));
}

#[test]
fn rows_come_and_go_and_each_is_found_by_all_that_it_has() {
    let mut members = Members::default();
    (0..100).for_each(|n| put(&mut members, n));
    for n in (0..100).filter(|n| n % 4 != 0) {
        members.remove_claim(address(n)).unwrap();
        members.remove_endpoint(&member(n)).unwrap();
    }
    members.shrink_to_fit();
    (50..150).for_each(|n| put(&mut members, n));
    for n in 0..150 {
        let is_there = n % 4 == 0 || n >= 50;
        let mac = Mac::from_address(address(n));
        assert_eq!(members.endpoint(&member(n)).is_some(), is_there, "{n}");
        assert_eq!(members.with_mac(mac).any(|m| *m == member(n)), is_there, "{n}");
        assert_eq!(members.owner_of_address(address(n)).is_some(), is_there, "{n}");
        assert_eq!(members.is_claimed_by(address(n), &member(n)), is_there, "{n}");
        assert_eq!(members.claimed_by(&member(n)).len(), usize::from(is_there), "{n}");
    }
    let on = |n: u8| members.endpoints_on(&member(n).0).count();
    assert_eq!(
        [
            on(0) + on(1) + on(2),
            members.count(),
            members.used().len() as usize
        ],
        [113; 3]
    );
    for n in 0..150 {
        members.remove_endpoint(&member(n));
        members.remove_claim(address(n));
    }
    assert!(members.is_empty() && members.nodes().next().is_none() && members.nodes.is_empty());
}
