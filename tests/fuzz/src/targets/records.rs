//! Single records: the first line is the key below the prefix, the rest its value.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use weft_store_schema::{
    AddressClaimDocument, AliveDocument, BarrierDocument, EndpointDocument, Key, NetworkDocument,
    PassedDocument, PeerDocument, Prefix, ReleasedDocument, RemovedDocument, StatusDocument, Value, VniClaim,
    VniClaimDocument, decode, encode, set_fields,
};

use super::outline;
use crate::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "records",
    run,
    words: WORDS,
};

/// What records are made of.
pub(super) const WORDS: &[&[u8]] = &[
    b"{\"subnets\":[{\"cidr\":\"",
    b"\"gateway\":\"",
    b"\"range\":\"",
    b"\"reserved\":[\"",
    b"\"vni\":",
    b"\"mtu\":",
    b"\"multicast\":true",
    b"\"cooldown\":",
    b"\"labels\":{\"a\":\"b\"}",
    b"\"options\":{",
    b"\"attachment\":{\"netns\":\"/run/netns/",
    b"\"ifname\":\"eth0\"",
    b"\"requested_addresses\":[\"",
    b"\"addresses\":[\"",
    b"\"mac\":\"02:42:0a:01:00:05\"",
    b"\"vteps\":[\"",
    b"\"endpoint\":\"host1/web\"",
    b"\"network\":\"blue\"",
    b"\"kind\":\"external\"",
    b"\"version\":",
    b"null",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"10.1.0.0/16",
    b"0.0.0.0/0",
    b"::/0",
    b"fd00:1::/64",
    b"255.255.255.255",
    b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    b"\xff",
    b"networks/blue\n",
    b"endpoints/blue/host1/web\n",
    b"[[[[[[[[",
];

fn run(bytes: &[u8]) -> u64 {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (key, value) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let prefix = Prefix::default();
    let key = prefix.parse(&[prefix.as_str().as_bytes(), key].concat());
    let answer = match key {
        Ok(Key::Network(_)) => judge(value, NetworkDocument::validate),
        Ok(Key::Endpoint(_)) => judge(value, EndpointDocument::validate),
        Ok(Key::Peer(_)) => judge(value, PeerDocument::validate),
        Ok(Key::Address(..)) => judge(value, AddressClaimDocument::validate),
        Ok(Key::Vni(_)) => judge(value, |_: VniClaimDocument| VniClaim::decode(value)),
        Ok(Key::Removed(_)) => judge(value, Ok::<RemovedDocument, ()>),
        Ok(Key::Released(..)) => judge(value, Ok::<ReleasedDocument, ()>),
        Ok(Key::Alive(_)) => judge(value, Ok::<AliveDocument, ()>),
        Ok(Key::Status(_)) => judge(value, Ok::<StatusDocument, ()>),
        Ok(Key::Barrier(..)) => judge(value, Ok::<BarrierDocument, ()>),
        Ok(Key::Passed(..)) => judge(value, Ok::<PassedDocument, ()>),
        Err(error) => outline(&error),
    };
    // What an agent writes into a record that it does not understand whole.
    let completed = set_fields(value, [("addresses", Value::from(vec!["10.1.0.5"]))]);
    if let Ok(completed) = &completed {
        let again = set_fields(completed, []);
        assert_eq!(
            again.as_ref().ok(),
            Some(completed),
            "a rewrite changes a record that it should keep"
        );
    }
    answer ^ u64::from(completed.is_ok())
}

/// Decodes and checks a record. What is understood must be understood the same when it is written and read again.
fn judge<T, V, E>(bytes: &[u8], validate: impl Fn(T) -> Result<V, E>) -> u64
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
    V: Debug,
    E: Debug,
{
    let document: T = match decode(bytes) {
        Ok(document) => document,
        Err(error) => return outline(&error),
    };
    let again: Result<T, _> = decode(&encode(&document));
    assert_eq!(again.as_ref().ok(), Some(&document), "{again:?}");
    outline(&validate(document))
}
