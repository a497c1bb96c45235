//! Convergence barriers: whether this host may say that it has caught up with a question, and who is still to say so
//! to a question of ours.
//!
//! In: the records, what the kernel holds, and how far plans have been applied. Out: answers. It must not know how a
//! question travels, nor wait for anything.

use std::{collections::BTreeSet, fmt};

use weft_store_schema::{BarrierRef, EndpointId, Key, NetworkName, NodeName, PeerKind};

use crate::{
    dataplane::Observed,
    desired::{self, Host},
    members::Members,
    record::Scope,
    snapshot::Snapshot,
};

/// How far the records are known and the kernel follows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reached {
    certain: i64,
    planned: Mark,
}

/// The state of the records that a plan was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    newest: i64,
    certain: i64,
}

impl Reached {
    /// Notes that every change up to this revision has been taken in.
    pub fn is_informed_to(&mut self, revision: i64) {
        self.certain = self.certain.max(revision);
    }

    /// Notes that revisions count anew: the store is another one, or has gone back.
    pub fn begin_anew(&mut self) {
        *self = Self::default();
    }

    /// Every change up to this revision has been taken in.
    pub fn certain(&self) -> i64 {
        self.certain
    }

    /// What a plan made now is made from, if it is made for everything that is dirty. `newest` is the newest revision
    /// heard of, with or without all that came before it.
    pub fn mark(&self, newest: i64) -> Mark {
        Mark {
            newest,
            certain: self.certain,
        }
    }

    /// Notes that such a plan has been applied.
    pub fn apply(&mut self, mark: Mark) {
        self.planned.newest = self.planned.newest.max(mark.newest);
        self.planned.certain = self.planned.certain.max(mark.certain);
    }

    /// The newest revision that plans have been made from.
    pub fn newest_applied(&self) -> i64 {
        self.planned.newest
    }

    /// Every record up to this revision is in the kernel, or its failure is known.
    pub fn applied(&self) -> i64 {
        self.planned.certain
    }

    /// Whether this covers all that came before a question of this revision.
    pub fn covers(&self, question: i64) -> bool {
        // The question itself is not programmed.
        self.planned.certain >= question - 1
    }
}

/// What keeps a host from saying that it has caught up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Not everything before the question has been programmed.
    Behind,
    /// An endpoint of this host has no addresses or MAC yet, and is about to be given some.
    Incomplete(EndpointId),
    /// The kernel refuses something of the network's forwarding.
    Refused,
    /// The network cannot be carried here, or is not yet: no VNI, no devices.
    NotCarried,
    /// There is no way to the asking host's endpoints.
    NoPath(NodeName),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind => f.write_str("it is still programming"),
            Self::Incomplete(id) => write!(f, "its endpoint {id} has no address yet"),
            Self::Refused => f.write_str("its kernel refuses something of the network"),
            Self::NotCarried => f.write_str("it cannot carry the network yet"),
            Self::NoPath(node) => write!(f, "it has no VTEP address in common with {node}"),
        }
    }
}

/// How a host stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The records.
    pub snapshot: &'a Snapshot,
    /// What of the host decides beside them; none while its underlay is not known.
    pub host: Option<&'a Host>,
    /// What its kernel holds.
    pub observed: &'a Observed,
    /// How far its kernel follows.
    pub reached: Reached,
    /// Networks of which the kernel refuses something that is no endpoint's.
    pub refused: &'a BTreeSet<NetworkName>,
    /// Keys of endpoints that cannot be completed as things are: nobody waits for them.
    pub hopeless: &'a BTreeSet<String>,
}

impl Standing<'_> {
    /// What keeps this host from answering a question of this revision, if anything does.
    pub fn obstacle(&self, network: &NetworkName, question: &BarrierRef, revision: i64) -> Option<Obstacle> {
        let unsure = self.snapshot.suspects(network);
        let covered = self.reached.covers(revision) && is_in_view(self.snapshot, network) && !unsure;
        let Some(host) = self.host.filter(|_| covered) else {
            return Some(Obstacle::Behind);
        };
        if let Some(id) = incomplete(self.snapshot, network, self.snapshot.node(), self.hopeless).next() {
            return Some(Obstacle::Incomplete(id.clone()));
        }
        if self.refused.contains(network) {
            return Some(Obstacle::Refused);
        }
        if !desired::is_carried(self.snapshot, host, self.observed, network) {
            return Some(Obstacle::NotCarried);
        }
        let asking = &question.node;
        let has_endpoints = has_endpoints(self.snapshot, network, asking);
        if asking != self.snapshot.node() && has_endpoints && !desired::has_path(self.snapshot, host, asking)
        {
            return Some(Obstacle::NoPath(asking.clone()));
        }
        None
    }
}

/// Whether everything that a network's forwarding depends on is followed.
pub fn is_in_view(snapshot: &Snapshot, network: &NetworkName) -> bool {
    snapshot.is_complete(&BTreeSet::from([
        Scope::Networks,
        Scope::Peers,
        Scope::Vnis,
        Scope::Endpoints(network.clone()),
        Scope::Addresses(network.clone()),
        Scope::Barriers(network.clone()),
    ]))
}

/// The hosts that a question about a network is to: those that have endpoints in it and an agent, which every agent says
/// by its peer record before it forwards anything.
pub fn participants(snapshot: &Snapshot, network: &NetworkName) -> BTreeSet<NodeName> {
    let nodes = snapshot.members(network).into_iter().flat_map(Members::nodes);
    nodes
        .filter(|node| takes_part(snapshot, network, node))
        .cloned()
        .collect()
}

/// The hosts that endpoints of a network name and that have no peer record: no agent is there that could answer, or forward.
pub fn unannounced(snapshot: &Snapshot, network: &NetworkName) -> BTreeSet<NodeName> {
    let nodes = snapshot.members(network).into_iter().flat_map(Members::nodes);
    nodes
        .filter(|node| snapshot.peer_slot(node).is_none())
        .cloned()
        .collect()
}

fn has_endpoints(snapshot: &Snapshot, network: &NetworkName, node: &NodeName) -> bool {
    let members = snapshot.members(network);
    members.is_some_and(|m| m.endpoints_on(node).next().is_some())
}

fn takes_part(snapshot: &Snapshot, network: &NetworkName, node: &NodeName) -> bool {
    // One whose record cannot be read may have an agent of a newer version.
    let has_agent = snapshot.peer_slot(node).is_some_and(|slot| {
        let peer = slot.value.as_ref();
        peer.is_none_or(|peer| peer.kind != PeerKind::External)
    });
    has_agent && has_endpoints(snapshot, network, node)
}

/// Those of the asked that have not answered and still take part.
pub fn missing(
    snapshot: &Snapshot,
    network: &NetworkName,
    asked: &BTreeSet<NodeName>,
    question: &BarrierRef,
) -> BTreeSet<NodeName> {
    let answered: BTreeSet<&NodeName> = snapshot.passed(question).collect();
    asked
        .iter()
        .filter(|node| !answered.contains(node) && takes_part(snapshot, network, node))
        .cloned()
        .collect()
}

/// Whether endpoints of a network were recorded without what their agents are to fill in, so that there will be more
/// to program than there was when the question was put.
pub fn any_incomplete(snapshot: &Snapshot, network: &NetworkName) -> bool {
    participants(snapshot, network).iter().any(|node| {
        incomplete(snapshot, network, node, &BTreeSet::new())
            .next()
            .is_some()
    })
}

fn incomplete<'a>(
    snapshot: &'a Snapshot,
    network: &'a NetworkName,
    node: &'a NodeName,
    hopeless: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a EndpointId> {
    let members = snapshot.members(network);
    let there = members.into_iter().flat_map(|m| m.endpoints_on(node));
    let lacking = there.filter(|(_, slot)| {
        let value = slot.value.as_ref();
        value.is_some_and(|e| e.addresses.is_empty() || e.mac.is_none())
    });
    lacking.map(|(id, _)| id).filter(|id| {
        let endpoint = weft_store_schema::EndpointRef {
            network: network.clone(),
            node: node.clone(),
            id: (*id).clone(),
        };
        !snapshot.awaits_detach(&endpoint) && !hopeless.contains(&Key::Endpoint(endpoint).to_string())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_store_schema::Prefix;

    use super::*;
    use crate::{diff, dirty::Dirty, record::Entry};

    fn entry(key: &str, revision: i64, value: &serde_json::Value) -> Entry {
        Entry {
            key: format!("/weft/v1/{key}").into_bytes(),
            value: value.to_string().into_bytes(),
            create_revision: revision,
            mod_revision: revision,
        }
    }

    fn blue() -> NetworkName {
        "blue".parse().unwrap()
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn question() -> BarrierRef {
        BarrierRef {
            node: node("host1"),
            id: "q".parse().unwrap(),
        }
    }

    fn endpoint(address: &str) -> serde_json::Value {
        json!({"attachment": {"netns": format!("/run/netns/{address}")}, "addresses": [address],
               "mac": format!("02:42:0a:01:00:0{}", &address[address.len() - 1..])})
    }

    /// host2's view of a network in which host1, host2, a switch, a host that is gone and one that never was have endpoints.
    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::new(Prefix::default(), node("host2"));
        let peer = |n: u32| json!({"vteps": [format!("10.99.0.{n}")], "mtu": 1500});
        let external = json!({"vteps": ["10.99.0.9"], "mtu": 1500, "kind": "external"});
        let network = json!({"subnets": [{"cidr": "10.1.0.0/24"}], "vni": 7});
        for (scope, entries) in [
            (Scope::Networks, vec![entry("networks/blue", 2, &network)]),
            (Scope::Vnis, vec![entry("vnis/7", 2, &json!({"network": "blue"}))]),
            (
                Scope::Peers,
                vec![
                    entry("peers/host1", 3, &peer(1)),
                    entry("peers/host2", 3, &peer(2)),
                    entry("peers/switch", 3, &external),
                    entry("peers/gone", 3, &peer(4)),
                ],
            ),
            (
                Scope::Endpoints(blue()),
                vec![
                    entry("endpoints/blue/host1/a", 4, &endpoint("10.1.0.2")),
                    entry("endpoints/blue/host2/b", 4, &endpoint("10.1.0.3")),
                    entry("endpoints/blue/gone/c", 4, &endpoint("10.1.0.4")),
                    entry("endpoints/blue/switch/d", 4, &endpoint("10.1.0.5")),
                    entry("endpoints/blue/never/e", 4, &endpoint("10.1.0.6")),
                ],
            ),
            (Scope::Addresses(blue()), vec![]),
            (Scope::Barriers(blue()), vec![]),
            (Scope::Passed, vec![]),
        ] {
            snapshot.apply_listing(&scope, 1, 10, &entries);
        }
        snapshot
    }

    fn host() -> Host {
        Host {
            v4: Some("10.99.0.2".parse().unwrap()),
            v6: None,
            mtu: 1500,
            port: 4789,
        }
    }

    fn programmed(snapshot: &Snapshot) -> Observed {
        let mut observed = Observed::default();
        let (plan, _) = diff::plan(snapshot, &host(), &observed, &Dirty::everything());
        for (network, ops) in &plan.networks {
            for op in ops {
                observed.record(network, op);
            }
        }
        observed
    }

    #[test]
    fn whoever_has_endpoints_and_an_agent_is_asked() {
        let mut snapshot = snapshot();
        let asked = participants(&snapshot, &blue());
        let names: Vec<_> = asked.iter().map(NodeName::as_str).collect();
        assert_eq!(names, ["gone", "host1", "host2"]);
        assert!(participants(&snapshot, &"red".parse().unwrap()).is_empty());
        assert_eq!(unannounced(&snapshot, &blue()), BTreeSet::from([node("never")]));
        // What a record says that cannot be read is not known; that there is one is.
        let unread = entry("peers/never", 11, &json!({"version": 9}));
        let mut newer = snapshot.clone();
        newer.apply_changes(&[crate::record::Change::Put(unread)]);
        assert!(participants(&newer, &blue()).contains(&node("never")));
        assert!(unannounced(&newer, &blue()).is_empty());

        let passed = |node: &str, at| {
            entry(
                &format!("passed/host1/q/{node}"),
                at,
                &json!({"applied_revision": 9}),
            )
        };
        snapshot.apply_listing(&Scope::Passed, 1, 11, &[passed("host2", 11)]);
        let still = |snapshot: &Snapshot| -> Vec<String> {
            let missing = missing(snapshot, &blue(), &asked, &question());
            missing.iter().map(ToString::to_string).collect()
        };
        assert_eq!(still(&snapshot), ["gone", "host1"]);
        // Its last endpoint is removed: nobody waits for it any more.
        let gone = crate::record::Change::Deleted {
            key: b"/weft/v1/endpoints/blue/gone/c".to_vec(),
            mod_revision: 12,
        };
        snapshot.apply_changes(&[gone]);
        assert_eq!(still(&snapshot), ["host1"]);
        snapshot.apply_listing(&Scope::Passed, 1, 13, &[passed("host1", 13), passed("host2", 11)]);
        assert!(still(&snapshot).is_empty());
    }

    #[test]
    fn a_host_answers_when_all_before_the_question_is_programmed() {
        let snapshot = snapshot();
        let (host, observed, nothing) = (host(), programmed(&snapshot), BTreeSet::new());
        let mut standing = Standing {
            snapshot: &snapshot,
            host: Some(&host),
            observed: &observed,
            reached: Reached::default(),
            refused: &nothing,
            hopeless: &BTreeSet::new(),
        };
        let at = |standing: &Standing<'_>, revision| standing.obstacle(&blue(), &question(), revision);
        assert_eq!(at(&standing, 11), Some(Obstacle::Behind));
        // Known is not programmed, and heard of is not known.
        standing.reached.is_informed_to(9);
        assert_eq!(at(&standing, 10), Some(Obstacle::Behind));
        let mark = standing.reached.mark(30);
        standing.reached.is_informed_to(20);
        standing.reached.apply(mark);
        assert_eq!(at(&standing, 10), None);
        assert_eq!(
            at(&standing, 11),
            Some(Obstacle::Behind),
            "the plan was made before"
        );

        let refused = BTreeSet::from([blue()]);
        standing.refused = &refused;
        assert_eq!(at(&standing, 10), Some(Obstacle::Refused));
        standing.refused = &nothing;
        let bare = Observed::default();
        standing.observed = &bare;
        assert_eq!(at(&standing, 10), Some(Obstacle::NotCarried));
        standing.host = None;
        assert_eq!(at(&standing, 10), Some(Obstacle::Behind));
    }

    #[test]
    fn a_host_that_cannot_reach_the_asking_one_does_not_answer() {
        let mut snapshot = snapshot();
        let v6 = json!({"vteps": ["fd99::1"], "mtu": 1500});
        snapshot.apply_changes(&[crate::record::Change::Put(entry("peers/host1", 12, &v6))]);
        let (host, observed) = (host(), programmed(&snapshot));
        let mut standing = Standing {
            snapshot: &snapshot,
            host: Some(&host),
            observed: &observed,
            reached: Reached::default(),
            refused: &BTreeSet::new(),
            hopeless: &BTreeSet::new(),
        };
        standing.reached.is_informed_to(20);
        standing.reached.apply(standing.reached.mark(20));
        let by = |asking: &str| {
            let question = BarrierRef {
                node: node(asking),
                id: "q".parse().unwrap(),
            };
            standing.obstacle(&blue(), &question, 20)
        };
        assert_eq!(by("host1"), Some(Obstacle::NoPath(node("host1"))));
        assert_eq!(by("elsewhere"), None, "it only asks, and is nobody's destination");
        assert_eq!(by("host2"), None);
    }

    #[test]
    fn what_is_about_to_be_completed_is_waited_for_and_what_cannot_be_is_not() {
        let mut snapshot = snapshot();
        assert!(!any_incomplete(&snapshot, &blue()));
        let bare = json!({"attachment": {"netns": "/run/netns/n"}});
        snapshot.apply_changes(&[crate::record::Change::Put(entry(
            "endpoints/blue/host2/n",
            12,
            &bare,
        ))]);
        assert!(any_incomplete(&snapshot, &blue()));
        let mut nobodys = self::snapshot();
        nobodys.apply_changes(&[crate::record::Change::Put(entry(
            "endpoints/blue/never/n",
            12,
            &bare,
        ))]);
        assert!(
            !any_incomplete(&nobodys, &blue()),
            "there is nobody to complete it"
        );
        let (host, observed) = (host(), programmed(&snapshot));
        let hopeless = BTreeSet::from(["endpoints/blue/host2/n".to_owned()]);
        let mut standing = Standing {
            snapshot: &snapshot,
            host: Some(&host),
            observed: &observed,
            reached: Reached::default(),
            refused: &BTreeSet::new(),
            hopeless: &BTreeSet::new(),
        };
        standing.reached.is_informed_to(20);
        standing.reached.apply(standing.reached.mark(20));
        let incomplete = Obstacle::Incomplete("n".parse().unwrap());
        assert_eq!(standing.obstacle(&blue(), &question(), 20), Some(incomplete));
        standing.hopeless = &hopeless;
        assert_eq!(standing.obstacle(&blue(), &question(), 20), None);
    }

    #[test]
    fn what_is_reached_never_goes_back_but_with_the_store() {
        let mut reached = Reached::default();
        reached.is_informed_to(9);
        let early = reached.mark(9);
        reached.is_informed_to(12);
        reached.is_informed_to(11);
        reached.apply(reached.mark(15));
        reached.apply(early);
        assert_eq!(
            (reached.applied(), reached.newest_applied(), reached.certain()),
            (12, 15, 12)
        );
        assert!(reached.covers(13) && !reached.covers(14));
        reached.begin_anew();
        assert!(!reached.covers(13));
    }
}
