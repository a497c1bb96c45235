//! Keys of etcd, and the names, addresses and numbers that they and records are made of.

use weft_store_schema::{EndpointId, IfName, Mac, NetworkName, NodeName, Prefix, parse_reserved};

use super::outline;
use crate::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "keys",
    run,
    words: &[
        b"/weft/v1/",
        b"networks/",
        b"endpoints/",
        b"addresses/",
        b"released/",
        b"vnis/",
        b"peers/",
        b"alive/",
        b"status/",
        b"removed/",
        b"barriers/",
        b"passed/",
        b"/",
        b"blue",
        b"host1",
        b"10.1.0.5",
        b"fd00::5",
        b"::ffff:10.0.0.1",
        b"16777215",
    ],
};

fn run(bytes: &[u8]) -> u64 {
    let mut answer = 0;
    for prefix in ["/weft/v1/", "/"] {
        let Ok(prefix) = Prefix::new(prefix) else { continue };
        let parsed = prefix.parse(bytes);
        if let Ok(key) = &parsed {
            // A key has one form: two keys for one object would be two records of it.
            assert_eq!(prefix.key(key).as_bytes(), bytes, "{key:?}");
        }
        answer ^= outline(&parsed);
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(prefix) = Prefix::new(&text) {
        assert_eq!(Prefix::new(prefix.as_str()).as_ref(), Ok(&prefix));
    }
    let names = (
        NetworkName::new(&text).is_ok(),
        NodeName::new(&text).is_ok(),
        EndpointId::new(&text).is_ok(),
        IfName::new(&text).is_ok(),
    );
    let mac = text.parse::<Mac>();
    if let Ok(mac) = mac {
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }
    answer ^ outline(&(names, mac.is_ok(), parse_reserved(&text).is_ok()))
}
