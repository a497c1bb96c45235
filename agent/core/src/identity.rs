//! Whose a node's name is, when two hosts may have been given the same one.
//!
//! A node's record says who keeps it: by its incarnation, which the agent has in its state directory, by the boot, and by
//! the VTEP addresses. A host that finds another's record under its name must not touch anything: it would take over
//! that host's endpoints, and the two would rewrite the record for ever.
//!
//! In: the record, and what this host is. Out: a judgement. It must not know who is alive: presence comes and goes.

use std::net::IpAddr;

use weft_store_schema::{Peer, PeerKind};

use crate::members::Slot;

/// What tells this host from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own<'a> {
    /// The life of the node that this agent goes on with.
    pub incarnation: &'a str,
    /// The run of the kernel.
    pub boot_id: &'a str,
    /// This host's VTEP addresses, as far as they are known.
    pub vteps: Vec<IpAddr>,
}

/// Whose the name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// Nobody has it.
    Free,
    /// This host's.
    Ours,
    /// This host's, if nobody else is alive under it: the record is of the life that this agent goes on with, but of
    /// another boot and other addresses. So it is this host's after a reboot that gave it another address, or that of
    /// the host whose disk this one has a copy of.
    OursIfAlone(&'a Peer),
    /// Another host's.
    Anothers(&'a Peer),
}

/// Judges a node's record, from the host that has been given the node's name.
pub fn whose<'a>(record: Option<&'a Slot<Peer>>, own: &Own<'_>) -> Whose<'a> {
    let Some(peer) = record.filter(|slot| !slot.held).map(|slot| slot.value.as_ref()) else {
        return Whose::Free;
    };
    let Some(peer) = peer else {
        // It has never been valid: a node's own record is the node's to write.
        return Whose::Ours;
    };
    let same_address = peer.vteps().any(|vtep| own.vteps.contains(&vtep));
    let same_boot = peer.boot_id.as_deref() == Some(own.boot_id);
    match peer.incarnation.as_deref() {
        // Two hosts with one address could not both talk to the store: it is this one, its state directory lost.
        _ if same_address => Whose::Ours,
        Some(life) if life == own.incarnation => {
            if same_boot {
                Whose::Ours
            } else {
                Whose::OursIfAlone(peer)
            }
        }
        Some(_) => Whose::Anothers(peer),
        None if peer.kind == PeerKind::External => Whose::Anothers(peer),
        // Written by hand, to be completed by the node's agent.
        None => Whose::Ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(json: &str) -> Slot<Peer> {
        Slot {
            value: Some(Peer::decode(json.as_bytes()).unwrap()),
            ..Slot::default()
        }
    }

    fn judged(json: &str) -> &'static str {
        let own = Own {
            incarnation: "life",
            boot_id: "boot",
            vteps: vec!["10.99.0.1".parse().unwrap(), "fd99::1".parse().unwrap()],
        };
        match whose(Some(&record(json)), &own) {
            Whose::Free => "free",
            Whose::Ours => "ours",
            Whose::OursIfAlone(_) => "ours if alone",
            Whose::Anothers(_) => "another's",
        }
    }

    #[test]
    fn a_name_is_whose_record_it_is() {
        for (json, whose) in [
            // A restart; a reboot; another address; a lost state directory; by hand; by a version without lives.
            (
                r#"{"vteps":["10.99.0.1"],"boot_id":"boot","incarnation":"life"}"#,
                "ours",
            ),
            (
                r#"{"vteps":["10.99.0.1"],"boot_id":"other","incarnation":"life"}"#,
                "ours",
            ),
            (
                r#"{"vteps":["10.99.0.9"],"boot_id":"boot","incarnation":"life"}"#,
                "ours",
            ),
            (
                r#"{"vteps":["10.99.0.1"],"boot_id":"boot","incarnation":"lost"}"#,
                "ours",
            ),
            (
                r#"{"vteps":["fd99::1"],"boot_id":"other","incarnation":"lost"}"#,
                "ours",
            ),
            (r#"{"vteps":["10.99.0.9"]}"#, "ours"),
            (r#"{"vteps":["10.99.0.1"],"kind":"external"}"#, "ours"),
            // A reboot with another address, or a copied disk.
            (
                r#"{"vteps":["10.99.0.9"],"boot_id":"other","incarnation":"life"}"#,
                "ours if alone",
            ),
            // Another host, also one that shares the kernel; a router.
            (
                r#"{"vteps":["10.99.0.9"],"boot_id":"other","incarnation":"other"}"#,
                "another's",
            ),
            (
                r#"{"vteps":["10.99.0.9"],"boot_id":"boot","incarnation":"other"}"#,
                "another's",
            ),
            (r#"{"vteps":["10.99.0.9"],"kind":"external"}"#, "another's"),
        ] {
            assert_eq!(judged(json), whose, "{json}");
        }
    }

    #[test]
    fn without_a_record_it_is_free() {
        let own = Own {
            incarnation: "life",
            boot_id: "boot",
            vteps: Vec::new(),
        };
        assert_eq!(whose(None, &own), Whose::Free);
        let mut held = record(r#"{"vteps":["10.99.0.9"],"incarnation":"other"}"#);
        held.held = true;
        assert_eq!(whose(Some(&held), &own), Whose::Free);
        let never_valid = Slot {
            bad: true,
            ..Slot::default()
        };
        assert_eq!(whose(Some(&never_valid), &own), Whose::Ours);
    }
}
