//! However records come and whatever goes wrong on the way: a host ends where it should.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection, prelude::*, sample::Index, test_runner::FileFailurePersistence};
use weft_core::{
    dataplane::{BridgeTarget, Forward, Observed},
    plan::Op,
    record::Change,
};
use weft_store_schema::{Key, NetworkName};

use crate::{
    agent::Agent,
    damage::damage,
    kernel::Kernel,
    naive::expected,
    records::{ADDRESSES, Edit, Families, MACS, NETWORKS, VNIS, any_edit, families, host, node, world},
    store::Store,
    store::key_of,
};

/// Few cases, so that everybody runs them; `PROPTEST_CASES` asks for more.
pub(crate) fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() {
            config.cases
        } else {
            128
        },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 20_000,
        ..config
    }
}

pub(crate) fn agents(families: [Families; 3]) -> Vec<Agent> {
    (1..=3)
        .map(|n| Agent::new(node(&format!("host{n}")), host(n, families[n - 1])))
        .collect()
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Edits(Vec<Edit>),
    /// Everything is listed again, as after a compaction.
    Relist,
    /// The store is what it was some steps ago.
    Restore(usize),
    /// The same contents in another cluster.
    Copy,
    /// Another cluster with nothing in it.
    Empty,
    /// Everything below is deleted at one revision.
    DeleteBelow(&'static str),
    /// An operator lets go of what is held.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => collection::vec(any_edit(), 1..4).prop_map(Step::Edits),
        1 => Just(Step::Relist),
        1 => (1_usize..5).prop_map(Step::Restore),
        1 => Just(Step::Copy),
        1 => Just(Step::Empty),
        1 => prop::sample::select(vec!["", "endpoints/", "peers/", "networks/", "endpoints/b"])
            .prop_map(Step::DeleteBelow),
        1 => Just(Step::Release),
    ]
}

/// Takes a step in the store, and whatever an agent has to do with it beyond reading it.
fn take(step: &Step, store: &mut Store, backups: &mut Vec<Store>, agents: &mut [Agent]) {
    match step {
        Step::Edits(edits) => edits.iter().for_each(|edit| edit.apply(store)),
        Step::Relist => {}
        Step::Restore(ago) => {
            if let Some(backup) = backups.len().checked_sub(*ago).and_then(|at| backups.get(at)) {
                *store = backup.clone();
            }
        }
        Step::Copy => store.cluster_id += 1,
        Step::Empty => {
            let cluster_id = store.cluster_id + 1;
            *store = Store::new();
            store.cluster_id = cluster_id;
        }
        Step::DeleteBelow(prefix) => store.delete_below(&format!("/weft/v1/{prefix}")),
        Step::Release => {
            for agent in agents.iter_mut() {
                let dirty = agent.snapshot.release_held();
                agent.note(dirty);
            }
        }
    }
    backups.push(store.clone());
    if matches!(step, Step::Relist | Step::Restore(_) | Step::Copy | Step::Empty) {
        agents.iter_mut().for_each(|agent| agent.relist(store));
    }
}

/// Whether nobody means to delete all that lies below a prefix. (With all claims, who wins what may change where several
/// want the same.)
fn is_slip(store: &Store, prefix: &str) -> bool {
    let keys = store.entries().map(|e| &e.key);
    let keys = keys.filter(|key| weft_store_schema::Prefix::default().parse(key).is_ok());
    let keys = keys.map(|key| String::from_utf8_lossy(key).into_owned());
    let below = keys.filter_map(|key| Some(key.strip_prefix(&format!("/weft/v1/{prefix}"))?.to_owned()));
    let firsts: BTreeSet<String> = below
        .map(|rest| rest.split('/').next().unwrap_or_default().to_owned())
        .collect();
    firsts.len() > 1 && matches!(prefix, "endpoints/" | "networks/" | "peers/")
}

/// Reads all news and does what is to be done.
fn catch_up(agent: &mut Agent, store: &Store) {
    agent.sync(store);
    agent.settle();
    // What is in the kernel, and what is owed, decides what is of interest.
    agent.tidy();
    agent.follow(store);
    agent.settle();
}

/// Whether two hosts hold the same; in few words if not.
fn same(is: &Observed, wanted: &Observed) -> Result<(), TestCaseError> {
    let lines = |observed: &Observed| -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for (name, there) in &observed.networks {
            lines.insert(format!("{name}: {:?}", there.bridge));
            lines.extend(there.tunnels.iter().map(|it| format!("{name}: {it:?}")));
            lines.extend(there.ports.iter().map(|it| format!("{name}: {it:?}")));
            lines.extend(there.interfaces.iter().map(|it| format!("{name}: {it:?}")));
            lines.extend(there.forwards.iter().map(|it| format!("{name}: {it:?}")));
            lines.extend(there.neighbours.iter().map(|it| format!("{name}: {it:?}")));
        }
        lines
    };
    let (is, wanted) = (lines(is), lines(wanted));
    let more: Vec<_> = is.difference(&wanted).collect();
    let less: Vec<_> = wanted.difference(&is).collect();
    prop_assert!(
        is == wanted,
        "more than wanted: {more:#?}\nless than wanted: {less:#?}"
    );
    Ok(())
}

/// Three hosts, and a world for them.
fn hosts_and_world() -> impl Strategy<Value = ([Families; 3], Vec<Edit>)> {
    let hosts = [families(), families(), families()];
    hosts.prop_flat_map(|hosts| (Just(hosts), world(hosts)))
}

/// A store that holds a world and nothing else, whatever it held before. Networks and peers first: what is
/// deleted is then in nobody's use.
fn establish(world: &[Edit], store: &mut Store) {
    let strays: Vec<Vec<u8>> = store
        .entries()
        .map(|e| e.key.clone())
        .filter(|key| !world.iter().any(|edit| Store::key(&edit.key) == *key))
        .collect();
    strays.iter().for_each(|key| store.delete(key));
    world.iter().for_each(|edit| edit.apply(store));
}

/// What a host finds that starts with this store and an empty kernel.
fn fresh(families: [Families; 3], n: usize, store: &Store) -> Agent {
    let mut agent = agents(families).swap_remove(n);
    catch_up(&mut agent, store);
    agent.check();
    agent
}

/// No operation names anything that is neither there nor wanted, and none sends a local endpoint's traffic
/// into a tunnel or answers for it.
fn check_ops(ops: &[(NetworkName, Op)], before: &Observed, after: &Observed) {
    for (network, op) in ops {
        let [before, after] = [before, after].map(|o| o.networks.get(network).cloned().unwrap_or_default());
        let known = match op {
            Op::CreateNamespace | Op::DeleteNamespace | Op::PutBridge(_) => true,
            Op::PutTunnel(family, _) => after.tunnels.contains_key(family),
            Op::DeleteTunnel(family) => before.tunnels.contains_key(family),
            Op::CreateLocal(id, local) => {
                after.interfaces.get(id) == Some(&local.interface)
                    && after.ports.contains_key(&local.port_name)
            }
            Op::PutPort(_, name, _) => after.ports.contains_key(name) && before.ports.contains_key(name),
            Op::PutInterface(id, _) | Op::PutAddress(id, _) | Op::PutRoute(id, _) => {
                after.interfaces.contains_key(id)
            }
            Op::DeleteAddress(id, address) => before
                .interfaces
                .get(id)
                .is_some_and(|i| i.addresses.contains(address)),
            Op::DeleteRoute(id, route) => before
                .interfaces
                .get(id)
                .is_some_and(|i| i.routes.contains(route)),
            Op::DeletePort(name) => before.ports.contains_key(name),
            Op::PutForward(mac, _) => after.forwards.contains_key(mac),
            Op::DeleteVtep(mac, vtep) => before
                .forwards
                .get(mac)
                .is_some_and(|row| row.vteps().contains(vtep)),
            Op::DeleteBridgeEntry(mac, target) => before
                .forwards
                .get(mac)
                .is_some_and(|row| row.bridge().as_ref() == Some(target)),
            Op::PutNeighbour(address, mac) => after.neighbours.get(address) == Some(mac),
            Op::DeleteNeighbour(address) => before.neighbours.contains_key(address),
        };
        assert!(known, "{network}: {op:?} is about something foreign");
        let locals: BTreeSet<_> = after.interfaces.values().map(|i| i.mac).collect();
        let own: BTreeSet<_> = after
            .interfaces
            .values()
            .flat_map(|i| &i.addresses)
            .map(ipnet::IpNet::addr)
            .collect();
        match op {
            Op::PutForward(mac, Forward::Remote(_)) => assert!(!locals.contains(mac), "{op:?}"),
            Op::PutNeighbour(address, _) => assert!(!own.contains(address), "{op:?}"),
            _ => {}
        }
    }
}

/// What must never be, whatever the records say.
fn check_locals(observed: &Observed) {
    for there in observed.networks.values() {
        for interface in there.interfaces.values() {
            if let Some(row) = there.forwards.get(&interface.mac) {
                assert!(
                    row.vteps().is_empty(),
                    "{} is local, and at {:?}",
                    interface.mac,
                    row.vteps()
                );
                assert!(
                    !matches!(row.bridge(), Some(BridgeTarget::Tunnel(_))),
                    "{} is local",
                    interface.mac
                );
            }
            for address in &interface.addresses {
                assert!(
                    !there.neighbours.contains_key(&address.addr()),
                    "{address} is local"
                );
            }
        }
    }
}

/// Who won what, as one host sees it.
fn winners(agent: &Agent) -> BTreeMap<String, String> {
    let snapshot = &agent.snapshot;
    let mut won = BTreeMap::new();
    for network in NETWORKS {
        let name: NetworkName = network.parse().unwrap();
        let Some(members) = snapshot.members(&name).filter(|_| snapshot.takes_part(&name)) else {
            continue;
        };
        for mac in MACS {
            let owner = members
                .owner_of_mac(mac.parse().unwrap())
                .map(|(member, _)| member.clone());
            won.insert(format!("{network} {mac}"), format!("{owner:?}"));
        }
        for address in ADDRESSES {
            let owner = members
                .owner_of_address(address.parse().unwrap())
                .map(|(member, _)| member.clone());
            won.insert(format!("{network} {address}"), format!("{owner:?}"));
        }
    }
    for vni in VNIS {
        let Key::Vni(key) = crate::records::key(&format!("vnis/{vni}")) else {
            unreachable!()
        };
        won.insert(format!("vni {vni}"), format!("{:?}", snapshot.owner_of_vni(key)));
    }
    won
}

/// The changes in another order: as they were for each key, as it comes for different keys, some of them
/// told again.
fn shuffled(changes: Vec<Change>, order: &[u8], again: &Index) -> Vec<Change> {
    let repeated: Vec<Change> = match changes.len() {
        0 => Vec::new(),
        n => changes[again.index(n)..].to_vec(),
    };
    let mut waiting: BTreeMap<Vec<u8>, Vec<Change>> = BTreeMap::new();
    for change in changes.into_iter().rev() {
        waiting.entry(key_of(&change).to_vec()).or_default().push(change);
    }
    let mut out = Vec::new();
    for pick in order.iter().cycle() {
        if waiting.is_empty() {
            break;
        }
        let key = waiting
            .keys()
            .nth(usize::from(*pick) % waiting.len())
            .cloned()
            .unwrap();
        let queue = waiting.get_mut(&key).unwrap();
        out.extend(queue.pop());
        if queue.is_empty() {
            waiting.remove(&key);
        }
    }
    out.extend(repeated);
    out
}

proptest! {
    #![proptest_config(config())]

    /// (a) and (b): after any changes, in steps, there is nothing left that a full pass would do or say.
    #[test]
    fn steps_lead_where_a_full_pass_leads(
        families in [families(), families(), families()],
        steps in collection::vec(step(), 1..25),
    ) {
        let (mut store, mut backups) = (Store::new(), Vec::new());
        let mut agents = agents(families);
        for step in &steps {
            let slip = matches!(step, Step::DeleteBelow(prefix) if is_slip(&store, prefix));
            take(step, &mut store, &mut backups, &mut agents);
            for agent in &mut agents {
                let before = agent.observed.clone();
                catch_up(agent, &store);
                agent.check();
                if slip {
                    prop_assert_eq!(&agent.observed, &before, "a slip changed what runs");
                }
                // (Of two restores one may look as if time had gone on; what it brought is found only now.)
                let restored = steps.iter().any(|step| matches!(step, Step::Restore(_)));
                if let (Step::Copy | Step::Empty, false) = (step, restored) {
                    prop_assert_eq!(&agent.observed, &before, "trouble in the store changed what runs");
                }
            }
        }
    }

    /// (a): whatever was before, what a host holds and says is what a fresh one would, which is what the naive
    /// model says; (g): and all hosts agree who won what.
    #[test]
    fn history_leaves_no_trace(
        (families, world) in hosts_and_world(),
        steps in collection::vec(step(), 0..12),
    ) {
        let (mut store, mut backups) = (Store::new(), Vec::new());
        let mut agents = agents(families);
        for step in &steps {
            take(step, &mut store, &mut backups, &mut agents);
            agents.iter_mut().for_each(|agent| catch_up(agent, &store));
        }
        take(&Step::Release, &mut store, &mut backups, &mut agents);
        establish(&world, &mut store);
        let mut all = BTreeMap::new();
        for (n, agent) in agents.iter_mut().enumerate() {
            catch_up(agent, &store);
            agent.check();
            // What is owed keeps networks in view that a fresh host has no interest in.
            agent.book.clear();
            catch_up(agent, &store);
            check_locals(&agent.observed);
            let fresh = fresh(families, n, &store);
            same(&agent.observed, &fresh.observed)?;
            prop_assert_eq!(&agent.assessed, &fresh.assessed);
            prop_assert_eq!(agent.snapshot.problems(), fresh.snapshot.problems());
            same(&agent.observed, &expected(&store, agent.node(), &agent.host))?;
            for (what, owner) in winners(agent) {
                let other = all.entry(what.clone()).or_insert(owner.clone()).clone();
                prop_assert_eq!(&owner, &other, "{} on {}", what, agent.node());
            }
        }
    }

    /// (e): the order in which different keys' changes arrive does not matter, nor that some arrive again.
    #[test]
    fn order_does_not_matter(
        (families, world) in hosts_and_world(),
        edits in collection::vec(any_edit(), 0..30),
        order in any::<[u8; 24]>(),
        again in any::<Index>(),
        chunk in 1_usize..8,
    ) {
        let mut store = Store::new();
        let mut agent = agents(families).swap_remove(0);
        agent.pinned = NETWORKS.iter().map(|n| n.parse().unwrap()).collect();
        agent.sync(&store);
        edits.iter().for_each(|edit| edit.apply(&mut store));
        establish(&world, &mut store);
        let changes = shuffled(agent.fetch(&store), &order, &again);
        for some in changes.chunks(chunk) {
            agent.take_in(some);
            agent.settle_suspicions(&store);
            agent.settle();
            agent.check();
        }
        same(&agent.observed, &expected(&store, agent.node(), &agent.host))?;
        let mut fresh = agents(families).swap_remove(0);
        fresh.pinned.clone_from(&agent.pinned);
        catch_up(&mut fresh, &store);
        prop_assert_eq!(&agent.assessed, &fresh.assessed);
    }

    /// (c), (f) and (h): whatever is found in the kernel, the first pass makes it what it should be, and
    /// names nothing else.
    #[test]
    fn any_kernel_is_put_right(
        (families, world) in hosts_and_world(),
        (other_families, other) in hosts_and_world(),
        damages in collection::vec(damage(), 0..12),
        from_other in any::<bool>(),
    ) {
        let (mut store, mut other_store) = (Store::new(), Store::new());
        establish(&world, &mut store);
        establish(&other, &mut other_store);
        let mut agent = fresh(families, 0, &store);
        let wanted = agent.observed.clone();
        let mut found = if from_other { fresh(other_families, 0, &other_store).observed } else { wanted.clone() };
        for damage in &damages {
            damage.apply(&mut found, agent.node());
        }
        agent.kernel = Kernel::holding(&found);
        agent.observed = agent.kernel.observe();
        let before = agent.observed.clone();
        agent.dirty.everything = true;
        let first = agent.pass();
        check_ops(&first, &before, &wanted);
        agent.settle();
        agent.check();
        same(&agent.observed, &wanted)?;
    }

    /// (d): whichever operations fail, nothing is tried that needs them, and the next pass makes it good.
    #[test]
    fn failures_are_made_good(
        (families, world) in hosts_and_world(),
        (other_families, other) in hosts_and_world(),
        damages in collection::vec(damage(), 0..6),
        failures in collection::vec(0_u8..3, 1..20),
        rounds in 1_usize..3,
    ) {
        let (mut store, mut other_store) = (Store::new(), Store::new());
        establish(&world, &mut store);
        establish(&other, &mut other_store);
        let mut agent = fresh(families, 0, &store);
        let wanted = agent.observed.clone();
        let mut found = fresh(other_families, 0, &other_store).observed;
        for damage in &damages {
            damage.apply(&mut found, agent.node());
        }
        agent.kernel = Kernel::holding(&found);
        agent.observed = agent.kernel.observe();
        agent.dirty.everything = true;
        let mut n = 0;
        for _ in 0..rounds {
            agent.pass_with(&mut |_| {
                n += 1;
                failures[n % failures.len()] == 0
            });
            prop_assert_eq!(&agent.observed, &agent.kernel.observe());
        }
        agent.settle();
        agent.check();
        same(&agent.observed, &wanted)?;
    }

    /// What somebody changes behind weft's back is put right by looking only where it was changed.
    #[test]
    fn drift_is_put_right_where_it_is((families, world) in hosts_and_world(), damages in collection::vec(damage(), 1..4)) {
        let mut store = Store::new();
        establish(&world, &mut store);
        let mut agent = fresh(families, 0, &store);
        let wanted = agent.observed.clone();
        for damage in &damages {
            let mut found = agent.kernel.observe();
            let mut dirty = damage.apply(&mut found, agent.node());
            let before = std::mem::replace(&mut agent.kernel, Kernel::holding(&found)).observe();
            // What takes the VNI of another network takes its tunnel.
            let after = agent.kernel.observe();
            dirty.networks.extend(
                NETWORKS
                    .iter()
                    .map(|n| n.parse().unwrap())
                    .filter(|n| before.networks.get(n).map(|o| &o.tunnels) != after.networks.get(n).map(|o| &o.tunnels)),
            );
            agent.dirty.merge(dirty);
        }
        agent.observed = agent.kernel.observe();
        agent.settle();
        same(&agent.observed, &wanted)?;
        agent.check();
    }

    /// A host's agent that is started anew, after whatever went before, has nothing to do and the same to say.
    #[test]
    fn a_restart_does_nothing((families, world) in hosts_and_world(), steps in collection::vec(step(), 0..8)) {
        let (mut store, mut backups) = (Store::new(), Vec::new());
        let mut agents = agents(families);
        for step in &steps {
            take(step, &mut store, &mut backups, &mut agents);
            agents.iter_mut().for_each(|agent| catch_up(agent, &store));
        }
        take(&Step::Release, &mut store, &mut backups, &mut agents);
        establish(&world, &mut store);
        for agent in &mut agents {
            catch_up(agent, &store);
            agent.book.clear();
            catch_up(agent, &store);
            let assessed = agent.assessed.clone();
            agent.restart();
            agent.sync(&store);
            prop_assert_eq!(agent.settle(), vec![]);
            agent.check();
            catch_up(agent, &store);
            prop_assert_eq!(&agent.assessed, &assessed);
        }
    }
}
