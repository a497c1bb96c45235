//! The loop's decisions, one by one: events are put in by hand, and what the kernel's thread and the store would answer.
//! Nothing is run beside it.

mod disk;
mod following;
mod log;
mod recalled;
mod refused;
mod taken_claims;
mod turns;
mod unread;

use serde_json::{Value, json};
use weft_core::{
    chores::Chore,
    plan::Op,
    record::{Change, Committed, Entry, StoreEvent},
};
use weft_store::StoreError;
use weft_store_schema::NodeName;

use self::log::Log;
use super::*;
use crate::state_file::Writer;

const CLUSTER: u64 = 1;

/// A loop to which nothing happens but what a test does.
struct Ground {
    reconciler: Reconciler,
    _state: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

fn blue() -> NetworkName {
    "blue".parse().unwrap()
}

fn of_blue(id: &str) -> EndpointRef {
    EndpointRef {
        network: blue(),
        node: "host1".parse().unwrap(),
        id: id.parse().unwrap(),
    }
}

fn underlay() -> Underlay {
    Underlay {
        ifname: "eth0".to_owned(),
        v4: Some("10.99.0.1".parse().unwrap()),
        v6: None,
        mtu: 1500,
    }
}

fn entry(key: &str, revision: i64, value: &Value) -> Entry {
    Entry {
        key: format!("/weft/v1/{key}").into_bytes(),
        value: value.to_string().into_bytes(),
        create_revision: revision,
        mod_revision: revision,
    }
}

fn network() -> Entry {
    entry(
        "networks/blue",
        2,
        &json!({"subnets": [{"cidr": "10.1.0.0/24"}], "vni": 7}),
    )
}

fn vni() -> Entry {
    entry("vnis/7", 2, &json!({"network": "blue"}))
}

fn claim(address: &str, endpoint: &str) -> Entry {
    entry(
        &format!("addresses/blue/{address}"),
        3,
        &json!({"endpoint": endpoint}),
    )
}

fn endpoint(id: &str, address: &str) -> Entry {
    let record = json!({"attachment": {"netns": format!("/run/netns/{id}")}, "addresses": [address],
                        "mac": "02:42:0a:01:00:02"});
    entry(&format!("endpoints/blue/host1/{id}"), 3, &record)
}

impl Ground {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let name: NodeName = "host1".parse().unwrap();
        let config = weft_store::Config::new(
            vec!["http://127.0.0.1:1".to_owned()],
            weft_store_schema::Prefix::default(),
            name.clone(),
        );
        let (store, _) = Store::open(config, stop.clone()).await.unwrap();
        let node = Node {
            name,
            boot_id: "this boot".to_owned(),
            started: std::time::SystemTime::now(),
            begun: std::time::Instant::now(),
            port: 4789,
            underlay: weft_kernel::UnderlaySelection {
                interface: None,
                addresses: Vec::new(),
            },
            mtu: None,
            netns_dir: "/run/netns".into(),
            resync: Duration::from_secs(300),
            dead_grace: Duration::from_secs(60),
            release_dead: false,
        };
        let writer = Writer::default();
        let parts = Parts {
            node,
            store,
            kernel: KernelThread::idle(),
            detachments: Detachments::open(state.path(), &writer).unwrap(),
            history: History::open(state.path(), &writer).unwrap(),
            records: OwnRecords::new(state.path(), &writer),
            events: EventHub::new(16),
            metrics: Metrics::new(),
            ready: oneshot::channel().0,
        };
        let (chores_done, _) = mpsc::unbounded_channel();
        let (answers, _) = Answers::new();
        let (trust, _) = Trust::new(parts.records.clone());
        let (identity, _) = Identity::new();
        let mut reconciler =
            Reconciler::new(parts, watch::channel(0).0, chores_done, answers, trust, identity);
        reconciler.update_interest();
        Self {
            reconciler,
            _state: state,
            _stop: stop.drop_guard(),
        }
    }

    fn event(&mut self, event: StoreEvent) {
        self.reconciler.on_store_event(event, Instant::now());
        self.reconciler.after_records();
    }

    fn connect(&mut self) {
        self.event(StoreEvent::Connection(Connection::Up { cluster_id: CLUSTER }));
    }

    fn list(&mut self, scope: Scope, entries: Vec<Entry>) {
        self.event(StoreEvent::Listed {
            scope,
            revision: 10,
            cluster_id: CLUSTER,
            continues: true,
            entries,
        });
    }

    /// Network blue, as an operator made it and agents completed it.
    fn list_blue(&mut self, peers: Vec<Entry>, endpoints: Vec<Entry>, claims: Vec<Entry>) {
        self.list(Scope::Peers, peers);
        self.list(Scope::Removed, Vec::new());
        self.list(Scope::Vnis, vec![vni()]);
        self.list(Scope::Passed, Vec::new());
        self.list(Scope::Networks, vec![network()]);
        self.list(Scope::OwnEndpoints(blue()), endpoints.clone());
        self.list(Scope::Endpoints(blue()), endpoints);
        self.list(Scope::Addresses(blue()), claims);
        self.list(Scope::Released(blue()), Vec::new());
        self.list(Scope::Barriers(blue()), Vec::new());
    }

    fn owes(&self, chore: &Chore) -> bool {
        self.reconciler.book.contains(chore)
    }
}

#[tokio::test]
async fn what_a_rebooted_host_holds_is_released_also_if_its_underlay_comes_late() {
    let mut ground = Ground::new().await;
    ground.connect();
    let before = json!({"vteps": ["10.99.0.1"], "mtu": 1500, "boot_id": "the last boot"});
    let held = claim("10.1.0.2", "host1/gone");
    ground.list_blue(vec![entry("peers/host1", 2, &before)], Vec::new(), vec![held]);
    assert!(ground.reconciler.is_informed());
    let release = Chore::ReleaseAddress(blue(), "10.1.0.2".parse().unwrap());
    ground.reconciler.use_underlay(underlay());
    assert!(ground.owes(&release), "it is this host's to give up");
    ground.event(StoreEvent::Progress { revision: 11 });
    assert!(ground.owes(&release) && ground.reconciler.is_informed());
}

#[tokio::test]
async fn a_network_that_was_listed_before_the_underlay_was_found_is_given_a_vni() {
    let mut ground = Ground::new().await;
    ground.connect();
    let bare = entry("networks/red", 2, &json!({"subnets": [{"cidr": "10.2.0.0/24"}]}));
    ground.list_blue(Vec::new(), Vec::new(), Vec::new());
    ground.list(Scope::Networks, vec![network(), bare]);
    ground.reconciler.use_underlay(underlay());
    assert!(ground.owes(&Chore::CompleteNetwork("red".parse().unwrap())));
}

fn look(seen: &[&str], errors: Vec<(String, KernelError)>) -> Look {
    let networks: BTreeSet<NetworkName> = seen.iter().map(|name| name.parse().unwrap()).collect();
    let there = |name: &NetworkName| (name.clone(), weft_core::dataplane::ObservedNetwork::default());
    Look {
        observed: Observed {
            networks: networks.iter().map(there).collect(),
        },
        networks,
        entries: Vec::new(),
        errors,
    }
}

fn not_seen(subject: &str) -> (String, KernelError) {
    let what = "dump the links".to_owned();
    (subject.to_owned(), KernelError::Lost { what })
}

impl Ground {
    /// All of blue is known, this host's own record is as it should be, and the store answers.
    async fn informed(endpoints: Vec<Entry>, claims: Vec<Entry>) -> Self {
        let mut ground = Self::new().await;
        ground.connect();
        ground.reconciler.use_underlay(underlay());
        let peer = ground.reconciler.peer_document().unwrap();
        let peer = entry("peers/host1", 2, &serde_json::to_value(peer).unwrap());
        ground.list_blue(vec![peer], endpoints, claims);
        ground
    }

    /// The kernel's thread tells what it was asked to look for.
    fn looked(&mut self, look: Look) {
        self.reconciler.step();
        assert!(matches!(self.reconciler.busy, Some(Busy::Looking { .. })));
        self.reconciler.on_answer(passes::Answer::Looked(look));
        self.reconciler.step();
    }

    /// The kernel's thread has done what it was given.
    fn applied(&mut self) {
        let Some(Busy::Applying { dirty, .. }) = &self.reconciler.busy else {
            panic!("nothing is being applied")
        };
        let (snapshot, observed) = (&self.reconciler.snapshot, &self.reconciler.observed);
        let host = self.reconciler.host().unwrap();
        let (plan, _) = weft_core::diff::plan(snapshot, &host, observed, dirty);
        let outcome = weft_core::plan::Outcome::default();
        self.reconciler
            .on_answer(passes::Answer::Applied(passes::Applied { plan, outcome }));
        self.reconciler.step();
    }

    /// A look that shows what was known.
    fn as_known(&self) -> Look {
        let observed = self.reconciler.observed.clone();
        Look {
            networks: observed.networks.keys().cloned().collect(),
            observed,
            entries: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn problem(&self, key: &str) -> Option<String> {
        self.reconciler
            .problems
            .of(key)
            .next()
            .map(|problem| problem.message.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_seen_is_neither_given_up_nor_planned_for() {
    let address = "10.1.0.2".parse().unwrap();
    let web = endpoint("web", "10.1.0.3");
    let claims = vec![claim("10.1.0.2", "host1/gone"), claim("10.1.0.3", "host1/web")];
    let mut ground = Ground::informed(vec![web], claims).await;
    let release = Chore::ReleaseAddress(blue(), address);
    for _ in 0..3 {
        ground.looked(look(&[], vec![not_seen("blue")]));
        assert!(ground.owes(&release) && ground.reconciler.may_have(&of_blue("gone"), Some(address)));
        assert!(
            !ground.reconciler.is_applying(),
            "nothing is written where nothing was seen"
        );
        assert!(ground.problem("networks/blue").unwrap().contains("cannot see"));
        tokio::time::advance(Duration::from_secs(20)).await;
        ground.reconciler.on_time();
    }
    // Seen at last: it is written, and then the address is given up.
    ground.looked(look(&["blue"], Vec::new()));
    assert!(ground.reconciler.is_applying() && ground.reconciler.unseen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_first_look_that_shows_nothing_at_all_is_none() {
    let mut ground = Ground::informed(Vec::new(), vec![claim("10.1.0.2", "host1/gone")]).await;
    ground.looked(look(&[], vec![not_seen("/run/netns")]));
    assert!(!ground.reconciler.is_adopted() && ground.problem("(kernel)").is_some());
    assert!(ground.reconciler.busy.is_none(), "not again at once");
    tokio::time::advance(Duration::from_millis(200)).await;
    ground.reconciler.on_time();
    ground.looked(look(&[], Vec::new()));
    assert!(ground.reconciler.is_adopted() && ground.problem("(kernel)").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_repeated() {
    let web = endpoint("web", "10.1.0.2");
    let mut ground = Ground::informed(vec![web], vec![claim("10.1.0.2", "host1/web")]).await;
    ground.looked(look(&[], Vec::new()));
    ground.looked(look(&[], Vec::new()));
    ground.applied();
    assert!(ground.reconciler.busy.is_none() && ground.reconciler.look.is_empty());
    // Somebody deletes an entry, and the look at it fails.
    let mac = weft_store_schema::Mac::new([2, 0x42, 10, 1, 0, 2]).unwrap();
    ground.reconciler.look.mac(&blue(), mac);
    ground.looked(look(&[], vec![not_seen("blue")]));
    assert!(ground.reconciler.busy.is_none() && ground.reconciler.look.is_empty());
    assert!(ground.problem("networks/blue").is_some());
    // Nor is it over because something else in the network was seen.
    ground.reconciler.look.links.insert(blue());
    let known = ground.as_known();
    ground.looked(known);
    assert!(ground.problem("networks/blue").is_some());
    assert!(ground.reconciler.next_wake() <= Instant::now() + Duration::from_millis(200));
    tokio::time::advance(Duration::from_millis(200)).await;
    ground.reconciler.on_time();
    assert!(ground.reconciler.look.networks.contains(&blue()));
    let mut found = ground.as_known();
    found.observed.networks.get_mut(&blue()).unwrap().forwards.clear();
    ground.looked(found);
    assert!(ground.reconciler.is_applying(), "it is put again");
    ground.applied();
    assert!(ground.problem("networks/blue").is_none() && ground.reconciler.unseen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_is_ready_when_its_container_was_looked_into() {
    let web = endpoint("web", "10.1.0.2");
    let mut ground = Ground::informed(vec![web], vec![claim("10.1.0.2", "host1/web")]).await;
    ground.looked(look(&[], Vec::new()));
    ground.looked(look(&[], Vec::new()));
    ground.applied();
    let name = ground.reconciler.own_endpoint(&blue(), &"web".parse().unwrap());
    let state = |ground: &Ground| ground.reconciler.state_of(&name).0;
    assert_eq!(state(&ground), v1::EndpointState::Ready);
    // As for an agent that has looked before it knew the records: a former one may have died half-way.
    let there = ground.reconciler.observed.networks.get_mut(&blue()).unwrap();
    let interface = there.interfaces.remove(&name.id).unwrap();
    there.unseen.insert(name.id.clone());
    assert_eq!(state(&ground), v1::EndpointState::Pending);
    let there = ground.reconciler.observed.networks.get_mut(&blue()).unwrap();
    there.unseen.clear();
    there.interfaces.insert(name.id.clone(), interface);
    assert_eq!(state(&ground), v1::EndpointState::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_one_endpoint_leaves_the_others_known() {
    // A namespace that is there, or nobody would say of it that it cannot be looked into.
    let there = |id: &str, address: &str| {
        let mac = address.replace("10.1.0.", "02:42:0a:01:00:0");
        let attachment = json!({"netns": "/proc/self/ns/net", "ifname": id});
        let record = json!({"attachment": attachment, "addresses": [address], "mac": mac});
        entry(&format!("endpoints/blue/host1/{id}"), 3, &record)
    };
    let claims = vec![claim("10.1.0.2", "host1/web"), claim("10.1.0.3", "host1/db")];
    let endpoints = vec![there("web", "10.1.0.2"), there("db", "10.1.0.3")];
    let mut ground = Ground::informed(endpoints, claims).await;
    ground.looked(look(&[], Vec::new()));
    ground.looked(look(&[], Vec::new()));
    ground.applied();
    let web = ground.reconciler.own_endpoint(&blue(), &"web".parse().unwrap());
    let db = ground.reconciler.own_endpoint(&blue(), &"db".parse().unwrap());
    ground.reconciler.look.endpoints.insert(web.clone());
    let mut found = ground.as_known();
    let network = found.observed.networks.get_mut(&blue()).unwrap();
    network.interfaces.get_mut(&web.id).unwrap().addresses.clear();
    network.interfaces.remove(&db.id);
    network.unseen.insert(db.id.clone());
    ground.looked(found);
    assert!(ground.reconciler.is_applying(), "the address is put again");
    ground.applied();
    assert_eq!(ground.problem("endpoints/blue/host1/db"), None);
    let state = |endpoint| ground.reconciler.state_of(endpoint).0;
    assert_eq!([state(&web), state(&db)], [v1::EndpointState::Ready; 2]);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_is_told_until_it_does_not() {
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    let what = "put peers/host1".to_owned();
    let too_much = StoreError::Transaction {
        what: what.clone(),
        why: "too large".to_owned(),
    };
    let lost = StoreError::Stopping { what };
    let done = |result| ChoreDone::of(Chore::PublishPeer, result);
    ground.reconciler.on_chore_done(done(Err(lost)));
    assert_eq!(ground.problem("peers/host1"), None);
    ground.reconciler.on_chore_done(done(Err(too_much)));
    assert!(ground.problem("peers/host1").unwrap().contains("too large"));
    ground
        .reconciler
        .on_chore_done(done(Ok(Committed::Yes { revision: 20 })));
    assert_eq!(ground.problem("peers/host1"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_watched_follows_what_it_depends_on() {
    let web = endpoint("web", "10.1.0.2");
    let mut ground = Ground::informed(vec![web.clone()], vec![claim("10.1.0.2", "host1/web")]).await;
    let all = Scope::Endpoints(blue());
    assert!(ground.reconciler.scopes.contains(&all) && !ground.reconciler.interest_is_stale);
    let deleted = |entry: Entry, mod_revision| Change::Deleted {
        key: entry.key,
        mod_revision,
    };
    ground.reconciler.learn(&[deleted(web, 11)]);
    let release = Chore::ReleaseAddress(blue(), "10.1.0.2".parse().unwrap());
    assert!(ground.owes(&release) && ground.reconciler.scopes.contains(&all));
    ground
        .reconciler
        .learn(&[deleted(claim("10.1.0.2", "host1/web"), 12)]);
    let done = ChoreDone::of(release, Ok(Committed::Yes { revision: 12 }));
    ground.reconciler.on_chore_done(done);
    assert!(!ground.reconciler.scopes.contains(&all));
}

#[tokio::test(start_paused = true)]
async fn a_family_whose_address_is_away_for_a_moment_is_used_on() {
    let mut ground = Ground::new().await;
    let found = |v6: bool| weft_kernel::Underlay {
        ifname: "eth0".to_owned(),
        v4: Some("10.99.0.1".parse().unwrap()),
        v6: v6.then(|| "fd99::1".parse().unwrap()),
        mtu: 1500,
    };
    let used = |ground: &Ground| ground.reconciler.underlay.as_ref().and_then(|u| u.v6).is_some();
    ground.reconciler.on_underlay(Ok(found(true)));
    for _ in 0..8 {
        ground.reconciler.on_underlay(Ok(found(false)));
        assert!(used(&ground) && ground.reconciler.underlay_due.is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    // Back again: the next time it is away is another one.
    ground.reconciler.on_underlay(Ok(found(true)));
    tokio::time::advance(Duration::from_secs(60)).await;
    ground.reconciler.on_underlay(Ok(found(false)));
    assert!(used(&ground));
    tokio::time::advance(Duration::from_secs(11)).await;
    ground.reconciler.on_underlay(Ok(found(false)));
    assert!(!used(&ground), "it is gone for good");
}

#[tokio::test]
async fn a_store_that_does_not_say_what_is_in_it_is_told_of() {
    let mut ground = Ground::new().await;
    ground.connect();
    let error = StoreError::NoEndpoint;
    for told in [false, false, false, true] {
        ground.reconciler.tell_census(Some(&error));
        assert_eq!(ground.problem("(store census)").is_some(), told);
    }
    ground.reconciler.tell_census(None);
    assert!(ground.problem("(store census)").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_host_was_given_is_given_up_without_its_mark() {
    for (created, is_lost) in [(2, false), (9, true)] {
        let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
        ground.looked(look(&[], Vec::new()));
        assert!(ground.reconciler.is_the_node() && ground.reconciler.is_adopted());
        let another =
            json!({"vteps": ["10.99.0.9"], "mtu": 1500, "boot_id": "other", "incarnation": "other"});
        let mut record = entry("peers/host1", 9, &another);
        record.create_revision = created;
        ground.list(Scope::Peers, vec![record]);
        // Written over, it is still this host's; made anew, another's.
        assert_eq!(ground.reconciler.fenced().is_some(), is_lost);
        assert_eq!(ground.reconciler.is_adopted(), !is_lost);
    }
}

#[tokio::test]
async fn of_a_plan_that_half_is_refused_the_other_half_is_known_to_be_done() {
    let mut ground = Ground::informed(Vec::new(), Vec::new()).await;
    ground.looked(look(&[], Vec::new()));
    let mac = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        weft_store_schema::Mac::new([2, 0, a, b, c, d]).unwrap()
    };
    let address = |n: u32| std::net::IpAddr::from(n.to_be_bytes());
    let ops: Vec<Op> = (0_u32..100)
        .map(|n| Op::PutNeighbour(address(n), mac(n)))
        .collect();
    let refused = |op: &Op| {
        let what = "put a neighbour".to_owned();
        (blue(), op.clone(), KernelError::Lost { what })
    };
    // Half of them refused, of the other half most are repairs.
    let (failed, done) = ops.split_at(ops.len() / 2);
    let outcome = weft_core::plan::Outcome {
        failed: failed.iter().map(refused).collect(),
        ..weft_core::plan::Outcome::default()
    };
    let plan = |ops: &[Op]| Plan {
        networks: [(blue(), ops.to_vec())].into(),
    };
    ground.reconciler.busy = Some(Busy::Applying {
        dirty: Dirty::everything(),
        expected: Some(plan(&done[1..])),
        covers: None,
        operations: ops.len(),
        answer: oneshot::channel().1,
    });
    let applied = passes::Applied {
        plan: plan(&ops),
        outcome,
    };
    ground.reconciler.on_answer(passes::Answer::Applied(applied));
    let known = &ground.reconciler.observed.networks[&blue()].neighbours;
    assert_eq!(known.len(), done.len());
}
