//! Whether the records as a whole make sense: every claim has its endpoint, every endpoint its claims, every VNI
//! its network; and what of the rest can be mended without asking.
//!
//! In: all entries below the prefix, at one revision. Out: an [`Audit`], a value. A mend is a transaction that
//! guards all that its finding rests on, so one that is late does nothing. It takes, moves and gives up claims
//! and clears away marks; what somebody wrote (a network, an endpoint, a peer) it never changes or deletes. It
//! knows neither the store nor this host: whoever asks, and wherever, gets the same findings, but for what the host that is
//! asked holds: what the store has lost and a host goes on with is there for the audit, too.

mod addresses;
mod records;
mod vnis;

use std::{collections::BTreeSet, fmt, net::IpAddr};

use weft_store_schema::{EndpointRef, Key, NodeName, Prefix};

use crate::record::{Entry, Transaction};
use records::Records;

/// What the records say as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// How many records there are.
    pub counts: Counts,
    /// What is wrong, ordered by key and kind.
    pub findings: Vec<Finding>,
}

/// How many records there are of each kind, readable or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Networks.
    pub networks: usize,
    /// Endpoints.
    pub endpoints: usize,
    /// Of them, those that their node's agent has yet to complete.
    pub pending: usize,
    /// Claims of addresses, reservations not among them.
    pub claims: usize,
    /// Reservations of addresses.
    pub reservations: usize,
    /// Claims of VNIs.
    pub vnis: usize,
    /// Peers.
    pub peers: usize,
    /// Traces of addresses that were given up.
    pub released: usize,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The record that it is about, below the prefix.
    pub key: String,
    /// What kind of thing.
    pub kind: FindingKind,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it, for people: what a repair does, or what they have to do.
    pub remedy: String,
    /// What a repair does; none where it is for people to decide, or for another node to do.
    pub mend: Option<Transaction>,
    /// Whose container must be rid of an address before that: another one may have it a moment later.
    pub after: Option<(EndpointRef, IpAddr)>,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A key or a record that cannot be read.
    Unreadable,
    /// An address is claimed for an endpoint that does not exist.
    ClaimWithoutEndpoint,
    /// An address is claimed for an endpoint that does not name it.
    ClaimNotNamed,
    /// A reservation that lies under no lease, and so never ends.
    ReservationWithoutLease,
    /// An address is claimed, and in none of the network's subnets or kept for something else.
    ClaimOutside,
    /// An endpoint names an address that nobody has claimed.
    AddressNotClaimed,
    /// An endpoint names an address whose claim is another's.
    AddressOfAnother,
    /// An endpoint names an address that another names too, and has the older right to.
    AddressTwice,
    /// An endpoint names an address that is in none of its network's subnets, or kept for something else.
    AddressOutside,
    /// An endpoint names a MAC that another one of its network names too, and has the older right to.
    MacTwice,
    /// An endpoint of a network without a record.
    EndpointWithoutNetwork,
    /// An endpoint on a node without a peer record.
    EndpointWithoutPeer,
    /// A VNI is claimed for a network that does not exist, or has another one.
    VniClaimWithoutNetwork,
    /// A network names a VNI that is not claimed.
    VniNotClaimed,
    /// A network names a VNI whose claim is another's.
    VniOfAnother,
    /// A network names a VNI that another names too, and has the older right to.
    VniTwice,
    /// An address is claimed, and there is a trace that it was given up.
    ReleasedButClaimed,
    /// Traces of addresses of a network without a record.
    ReleasedWithoutNetwork,
    /// The mark of a removed node that is back.
    RemovedButPresent,
    /// Records that the store does not have are held by the host that is asked.
    Held,
}

/// What a host goes on with although the store does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// The records.
    pub keys: BTreeSet<Key>,
    /// Why the store is not believed, if it is not: then they are held until somebody confirms.
    pub because: Option<String>,
}

/// Keys that are named in a finding that is about many.
const NAMED: usize = 5;

impl Held {
    /// What is to be said of it; `missing` are those of the records that the store does not have.
    fn finding(&self, missing: &[&Key], here: &NodeName) -> Option<Finding> {
        let mut message = match missing.len() {
            0 => {
                let because = self.because.as_ref()?;
                format!("{because}; what {here} carries and no record explains is kept")
            }
            count => {
                let records = if count == 1 { "record" } else { "records" };
                let because = self.because.iter().map(|because| format!("{because}; "));
                let named: Vec<String> = missing.iter().take(NAMED).map(ToString::to_string).collect();
                let because: String = because.collect();
                let named = named.join(", ");
                format!("{because}{count} {records} that the store does not have are held by {here}: {named}")
            }
        };
        if missing.len() > NAMED {
            message.push_str(&format!(" and {} more", missing.len() - NAMED));
        }
        let remedy = match self.because {
            Some(_) => {
                "put the records back with 'weft resync --republish' on each host, or confirm with 'weft resync --accept'"
            }
            None => {
                "put them back with 'weft resync --republish', or detach the endpoints that depend on them"
            }
        };
        Some(Finding {
            key: "(store)".to_owned(),
            kind: FindingKind::Held,
            message,
            remedy: remedy.to_owned(),
            mend: None,
            after: None,
        })
    }
}

impl FindingKind {
    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::Unreadable,
        Self::ClaimWithoutEndpoint,
        Self::ClaimNotNamed,
        Self::ReservationWithoutLease,
        Self::ClaimOutside,
        Self::AddressNotClaimed,
        Self::AddressOfAnother,
        Self::AddressTwice,
        Self::AddressOutside,
        Self::MacTwice,
        Self::EndpointWithoutNetwork,
        Self::EndpointWithoutPeer,
        Self::VniClaimWithoutNetwork,
        Self::VniNotClaimed,
        Self::VniOfAnother,
        Self::VniTwice,
        Self::ReleasedButClaimed,
        Self::ReleasedWithoutNetwork,
        Self::RemovedButPresent,
        Self::Held,
    ];

    /// Its name for programs, which never changes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::ClaimWithoutEndpoint => "claim_without_endpoint",
            Self::ClaimNotNamed => "claim_not_named",
            Self::ReservationWithoutLease => "reservation_without_lease",
            Self::ClaimOutside => "claim_outside",
            Self::AddressNotClaimed => "address_not_claimed",
            Self::AddressOfAnother => "address_of_another",
            Self::AddressTwice => "address_twice",
            Self::AddressOutside => "address_outside",
            Self::MacTwice => "mac_twice",
            Self::EndpointWithoutNetwork => "endpoint_without_network",
            Self::EndpointWithoutPeer => "endpoint_without_peer",
            Self::VniClaimWithoutNetwork => "vni_claim_without_network",
            Self::VniNotClaimed => "vni_not_claimed",
            Self::VniOfAnother => "vni_of_another",
            Self::VniTwice => "vni_twice",
            Self::ReleasedButClaimed => "released_but_claimed",
            Self::ReleasedWithoutNetwork => "released_without_network",
            Self::RemovedButPresent => "removed_but_present",
            Self::Held => "held",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to do about a claim that is held: whose it is, the agent of that knows.
const CLAIM_HELD: &str = "leave it until the claim is held no more: it may be another's; what is lost comes back with 'weft resync --republish' on each host";

/// What is missing may be held by another host, if this one does not believe the store either.
fn wait_for_records(finding: &mut Finding) {
    let rests_on_absence = matches!(
        finding.kind,
        FindingKind::ClaimWithoutEndpoint
            | FindingKind::VniClaimWithoutNetwork
            | FindingKind::ReleasedWithoutNetwork
    );
    if rests_on_absence {
        finding.mend = None;
        finding.after = None;
        finding.remedy =
            "leave it until no record is held any more: what it belongs to may be held by another host"
                .to_owned();
    }
}

/// Judges all records of a cluster: `entries` is everything below the prefix at one revision, `leased` the keys
/// among them that lie under a lease. What only the host of a container can mend, since it alone sees that the
/// container is rid of an address, is mended on the node `here`; what is left of nodes without a record, anywhere. What is
/// `held` there is as if it were in the store: nothing that rests on it is mended away, and nothing that rests on a record's
/// absence while the store is not believed.
pub fn audit(
    prefix: &Prefix,
    entries: &[Entry],
    leased: &BTreeSet<Vec<u8>>,
    here: &NodeName,
    held: &Held,
) -> Audit {
    let mut findings = Vec::new();
    let mut records = Records::read(prefix, entries, leased, &mut findings);
    records.hold(held);
    findings.extend(held.finding(&records.told_as_held(), here));
    addresses::check(&records, here, &mut findings);
    vnis::check(&records, &mut findings);
    if held.because.is_some() {
        findings.iter_mut().for_each(wait_for_records);
    }
    findings.sort_by(|a, b| (&a.key, a.kind, &a.message).cmp(&(&b.key, b.kind, &b.message)));
    Audit {
        counts: records.counts(),
        findings,
    }
}
