//! Networks made, changed and deleted, with their claims of VNIs.

use std::collections::BTreeMap;

use ipnet::IpNet;
use weft_store_schema::{
    Holder, Key, Network, NetworkDocument, NetworkName, RecordError, SubnetDocument, Value, Vni,
    VniClaimDocument, decode, encode, set_fields,
};

use super::{choice::holder, network_of, refusal::Refusal};
use crate::{
    members::Members,
    record::{Guard, Scope, Transaction, Write},
    snapshot::Snapshot,
};

/// The transaction that creates a network, with the claim of its VNI if it wishes for one.
///
/// # Errors
/// When the network exists, or the VNI is taken.
pub fn create_network(
    snapshot: &Snapshot,
    name: &NetworkName,
    document: &NetworkDocument,
) -> Result<Transaction, Refusal> {
    if snapshot.network(name).is_some_and(|slot| !slot.held) {
        return Err(Refusal::NetworkExists(name.clone()));
    }
    let key = Key::Network(name.clone());
    let mut transaction = Transaction {
        guards: vec![Guard::Absent(key.clone())],
        writes: vec![
            Write::Put(key, encode(document)),
            // What a former network of the name has left.
            Write::DeleteAll(Scope::Released(name.clone())),
        ],
    };
    if let Some(vni) = document.vni.and_then(Vni::new) {
        claim_vni(&mut transaction, snapshot, name, vni)?;
    }
    Ok(transaction)
}

/// Claims a VNI for a network that is written anew, if nobody else has it.
pub(super) fn claim_vni(
    transaction: &mut Transaction,
    snapshot: &Snapshot,
    name: &NetworkName,
    vni: Vni,
) -> Result<(), Refusal> {
    let claimed = snapshot
        .vni_claim(vni)
        .and_then(|slot| slot.value.as_ref())
        .map(|claim| &claim.network);
    if let Some(holder) = claimed
        .or(snapshot.owner_of_vni(vni))
        .filter(|holder| *holder != name)
    {
        return Err(Refusal::VniTaken {
            vni,
            holder: holder.clone(),
        });
    }
    let key = Key::Vni(vni);
    match snapshot.vni_claim(vni) {
        Some(own) if !own.held => transaction.guards.push(Guard::Unchanged(key, own.mod_revision)),
        _ => {
            let claim = encode(&VniClaimDocument::of(name));
            transaction.guards.push(Guard::Absent(key.clone()));
            transaction.writes.push(Write::Put(key, claim));
        }
    }
    Ok(())
}

/// The transaction that deletes a network; it cannot happen while endpoints exist. Its VNI goes with it if nothing is
/// claimed for an endpoint any more; else a host may still carry the network under that VNI, and a chore frees it when
/// the last of them is rid of it.
///
/// # Errors
/// When there is no such network.
pub fn delete_network(snapshot: &Snapshot, name: &NetworkName) -> Result<Transaction, Refusal> {
    let slot = snapshot
        .network(name)
        .ok_or_else(|| Refusal::NoNetwork(name.clone()))?;
    if snapshot.members(name).is_some_and(|members| members.count() > 0) {
        return Err(Refusal::InUse(name.clone()));
    }
    let key = Key::Network(name.clone());
    let mut transaction = Transaction {
        guards: vec![
            Guard::Unchanged(key.clone(), slot.mod_revision),
            Guard::Empty(Scope::Endpoints(name.clone())),
        ],
        writes: vec![
            Write::Delete(key),
            Write::DeleteAll(Scope::Released(name.clone())),
            Write::DeleteAll(Scope::Barriers(name.clone())),
        ],
    };
    if !snapshot.knows_claims(name) || is_carried(snapshot, name) {
        return Ok(transaction);
    }
    let addresses = Scope::Addresses(name.clone());
    let seen = snapshot.seen_of(&addresses);
    transaction.guards.push(Guard::Settled(addresses, seen));
    for (vni, claim) in snapshot.vnis().filter(|(_, slot)| !slot.held) {
        if claim.value.as_ref().is_some_and(|c| c.network == *name) {
            transaction
                .guards
                .push(Guard::Unchanged(Key::Vni(*vni), claim.mod_revision));
            transaction.writes.push(Write::Delete(Key::Vni(*vni)));
        }
    }
    Ok(transaction)
}

/// Whether a host may still have an endpoint of a network on its interfaces, as far as is in view: a host gives up the
/// claims of what it had only once it is rid of it. A reservation is on nobody's interface.
pub(crate) fn is_carried(snapshot: &Snapshot, name: &NetworkName) -> bool {
    let mut claims = snapshot.members(name).into_iter().flat_map(Members::claims);
    claims.any(|(_, slot)| {
        let claim = slot.value.as_ref();
        claim.is_none_or(|claim| claim.holder == Holder::Endpoint)
    })
}

/// What is to be changed of a network; nothing else of its record is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetworkChange {
    /// Subnets to add.
    pub add_subnets: Vec<SubnetDocument>,
    /// Subnets to take away.
    pub remove_subnets: Vec<IpNet>,
    /// The MTU of the endpoints; 0 for what follows from the underlay.
    pub mtu: Option<u64>,
    /// How long an address that was given up is not chosen again, in seconds.
    pub cooldown: Option<u64>,
    /// Labels to set, or to take away where there is no text.
    pub labels: BTreeMap<String, Option<String>>,
}

impl NetworkChange {
    fn rewrite(&self, stored: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut object: BTreeMap<String, Value> = decode(stored)?;
        let mut fields = Vec::new();
        if !(self.add_subnets.is_empty() && self.remove_subnets.is_empty()) {
            let mut subnets = match object.remove("subnets") {
                Some(Value::Array(subnets)) => subnets,
                _ => Vec::new(),
            };
            for net in &self.remove_subnets {
                let before = subnets.len();
                subnets.retain(|subnet| {
                    let cidr = subnet.get("cidr").and_then(Value::as_str);
                    cidr.and_then(|text| text.parse().ok()) != Some(*net)
                });
                if subnets.len() == before {
                    return Err(RecordError::field("subnets", format!("there is no subnet {net}")));
                }
            }
            for subnet in &self.add_subnets {
                subnets.push(decode(&encode(subnet))?);
            }
            fields.push(("subnets", Value::Array(subnets)));
        }
        if let Some(mtu) = self.mtu {
            fields.push(("mtu", if mtu == 0 { Value::Null } else { mtu.into() }));
        }
        if let Some(cooldown) = self.cooldown {
            fields.push(("cooldown", cooldown.into()));
        }
        if !self.labels.is_empty() {
            let mut labels = match object.remove("labels") {
                Some(Value::Object(labels)) => labels,
                _ => Default::default(),
            };
            for (name, text) in &self.labels {
                match text {
                    Some(text) => drop(labels.insert(name.clone(), text.clone().into())),
                    None => drop(labels.remove(name)),
                }
            }
            fields.push(("labels", Value::Object(labels)));
        }
        set_fields(stored, fields)
    }
}

/// The transaction that changes a network's record. One that takes subnets away does not happen if addresses were
/// claimed in the network meanwhile.
///
/// # Errors
/// When there is no such network, what comes out is not valid, or addresses that are held would be stranded.
pub fn update_network(
    snapshot: &Snapshot,
    name: &NetworkName,
    change: &NetworkChange,
) -> Result<Transaction, Refusal> {
    let (before, network_at) = network_of(snapshot, name)?;
    let slot = snapshot
        .network(name)
        .ok_or_else(|| Refusal::NoNetwork(name.clone()))?;
    let raw = slot.raw.as_deref().unwrap_or_default();
    let invalid = |error: RecordError| Refusal::Invalid {
        network: name.clone(),
        field: error.field_path().unwrap_or("record").to_owned(),
        why: error.why(),
    };
    let record = change.rewrite(raw).map_err(invalid)?;
    let after = Network::decode(&record).map_err(invalid)?;
    let admits = |network: &Network, address| network.subnet_of(address).is_some_and(|s| s.admits(address));
    let nobody = Members::default();
    let members = snapshot.members(name).unwrap_or(&nobody);
    let mut stranded: Vec<_> = members
        .claims()
        .map(|(address, _)| address)
        .filter(|a| admits(before, *a) && !admits(&after, *a))
        .map(|a| (a, holder(members, name, a)))
        .collect();
    if !stranded.is_empty() {
        stranded.sort_unstable_by_key(|(address, _)| *address);
        return Err(Refusal::Strands {
            network: name.clone(),
            stranded,
        });
    }
    let key = Key::Network(name.clone());
    let mut guards = vec![Guard::Unchanged(key.clone(), network_at)];
    // Nothing else can strand an address: then claims may go on being made.
    if !change.remove_subnets.is_empty() {
        let addresses = Scope::Addresses(name.clone());
        let seen = snapshot.seen_of(&addresses);
        guards.push(Guard::Settled(addresses, seen));
    }
    Ok(Transaction {
        guards,
        writes: vec![Write::Put(key, record)],
    })
}
