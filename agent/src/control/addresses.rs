//! Addresses reserved, given up and listed.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::OwnedMutexGuard;
use weft_api::{ApiError, Call, Subject};
use weft_core::{claims, members::Member, record::Write};
use weft_proto::v1;
use weft_store::Store;
use weft_store_schema::{AddressClaim, EndpointId, Family, Holder, Key, Network, NetworkName};

use super::{AgentControl, STORE_PATIENCE, made_up_id, parse, store_error, until};
use crate::{
    reconcile::{Reconciler, chain},
    view,
};

/// How long a reservation lasts if its maker does not say.
const USUAL_TTL: Duration = Duration::from_secs(60);
const SHORTEST_TTL: Duration = Duration::from_secs(5);
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// As many as an endpoint may wish for.
const MOST_WISHES: usize = 16;

/// A lease that nothing lies under yet; revoked when it is dropped, unless it is kept.
struct Granted {
    store: Store,
    id: i64,
    kept: bool,
}

impl Drop for Granted {
    fn drop(&mut self) {
        if !self.kept {
            revoke(&self.store, self.id);
        }
    }
}

/// Revokes a lease soon. What cannot be revoked expires.
fn revoke(store: &Store, id: i64) {
    let store = store.clone();
    // Also from where nothing can be awaited: when the client has left.
    tokio::spawn(async move {
        if let Err(error) = store.revoke(id, STORE_PATIENCE).await {
            tracing::debug!(lease = id, error = %chain(&error), "not revoked; it will expire");
        }
    });
}

/// One at a time for each reservation: two that asked for the same one at once would both find that there is none.
#[derive(Default)]
pub(crate) struct Turns {
    waiting: Mutex<HashMap<(NetworkName, EndpointId), Weak<Turn>>>,
}

type Turn = tokio::sync::Mutex<()>;

impl Turns {
    async fn take(&self, network: &NetworkName, id: &EndpointId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|_, turn| turn.strong_count() > 0);
            let slot = waiting.entry((network.clone(), id.clone())).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let turn = Arc::default();
                *slot = Arc::downgrade(&turn);
                turn
            })
        };
        turn.lock_owned().await
    }
}

pub(super) fn wishes(texts: &[String]) -> Result<Vec<IpAddr>, ApiError> {
    let mut wished = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let field = format!("requested_addresses[{i}]");
        let address = parse(&field, text)?;
        if wished.contains(&address) {
            return Err(ApiError::invalid(field, format!("{address} is named twice")));
        }
        wished.push(address);
    }
    if wished.len() > MOST_WISHES {
        let why = format!("{} addresses; at most {MOST_WISHES} are allowed", wished.len());
        return Err(ApiError::invalid("requested_addresses", why));
    }
    Ok(wished)
}

pub(super) fn families(asked: &[i32]) -> Result<BTreeSet<Family>, ApiError> {
    let family = |(i, number): (usize, &i32)| match v1::AddressFamily::try_from(*number) {
        Ok(v1::AddressFamily::Ipv4) => Ok(Family::V4),
        Ok(v1::AddressFamily::Ipv6) => Ok(Family::V6),
        _ => Err(ApiError::invalid(
            format!("families[{i}]"),
            "is none that is known",
        )),
    };
    asked.iter().enumerate().map(family).collect()
}

pub(super) fn time_to_live(asked: Option<prost_types::Duration>) -> Result<Duration, ApiError> {
    let Some(asked) = asked else {
        return Ok(USUAL_TTL);
    };
    match Duration::try_from(asked) {
        Ok(ttl) if (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) && ttl.subsec_nanos() == 0 => Ok(ttl),
        _ => Err(ApiError::invalid("ttl", "must be whole seconds, 5 s to 24 h")),
    }
}

/// The families to have an address of: those asked for and those of the wishes, or all that the network has.
fn families_in(
    r: &Reconciler,
    network: &NetworkName,
    asked: &BTreeSet<Family>,
    wished: &[IpAddr],
) -> Vec<Family> {
    let slot = r.snapshot.network(network);
    let has: Vec<Family> = slot
        .and_then(|slot| slot.value.as_ref())
        .into_iter()
        .flat_map(Network::families)
        .collect();
    if asked.is_empty() {
        return has;
    }
    let of_wishes = wished.iter().map(|a| Family::of(*a)).filter(|f| has.contains(f));
    let all: BTreeSet<Family> = asked.iter().copied().chain(of_wishes).collect();
    all.into_iter().collect()
}

/// Whether a claim, as the store has it, is a reservation's: the view may lag, and the address be another's by now.
fn is_of(reservation: &Member, claim: &[u8]) -> bool {
    AddressClaim::decode(claim)
        .is_ok_and(|claim| claim.holder == Holder::Reservation && (claim.node, claim.id) == *reservation)
}

impl AgentControl {
    pub(super) async fn make_reservation(
        &self,
        call: Call,
        request: v1::ReserveRequest,
    ) -> Result<v1::ReserveResponse, ApiError> {
        let network: NetworkName = parse("network", &request.network)?;
        let id: EndpointId = match request.id.as_str() {
            "" => parse("id", &made_up_id())?,
            given => parse("id", given)?,
        };
        let wished = wishes(&request.requested_addresses)?;
        let asked = families(&request.families)?;
        let ttl = time_to_live(request.ttl)?;

        let what = Subject::reservation(network.as_str(), self.node.as_str(), id.as_str());
        self.look_up_network(&call, &network).await?;
        let _pin = self.view_of(&call, &network).await?;
        let _turn = self.turns.take(&network, &id).await;
        let replaced = self.lease_of(&call, &network, &id).await?;
        let ends = SystemTime::now() + ttl;
        let patience = until(call.deadline, STORE_PATIENCE);
        let lease = self.store.grant(ttl, patience).await;
        let mut granted = Granted {
            store: self.store.clone(),
            id: lease.map_err(|error| store_error(&error))?,
            kept: false,
        };
        let (lease, made) = (granted.id, (network.clone(), id.clone()));
        let done = self
            .write(&call, &what, move |r, lost| {
                let (network, id) = &made;
                let families = families_in(r, network, &asked, &wished);
                let choosing = r.choosing(network, lost);
                claims::reserve(&r.snapshot, network, id, &wished, &families, lease, &choosing)
            })
            .await?;
        granted.kept = true;
        if let Some(replaced) = replaced {
            revoke(&self.store, replaced);
        }
        let addresses: BTreeSet<IpAddr> = done
            .writes
            .iter()
            .filter_map(|write| match write {
                Write::PutLeased(Key::Address(_, address), ..) => Some(*address),
                _ => None,
            })
            .collect();
        let addresses = self
            .ask(move |r| {
                let shown = addresses.iter();
                shown.map(|a| view::with_length(r, &network, *a)).collect()
            })
            .await?;
        Ok(v1::ReserveResponse {
            id: id.to_string(),
            addresses,
            ends: Some(ends.into()),
        })
    }

    pub(super) async fn give_reservation_up(
        &self,
        call: Call,
        network: &str,
        id: &str,
    ) -> Result<v1::UnreserveResponse, ApiError> {
        let (network, id): (NetworkName, EndpointId) = (parse("network", network)?, parse("id", id)?);
        let what = Subject::reservation(network.as_str(), self.node.as_str(), id.as_str());
        self.look_up_network(&call, &network).await?;
        let known = network.clone();
        if !self.ask(move |r| r.snapshot.network(&known).is_some()).await? {
            let what = Subject::network(network.as_str());
            return Err(ApiError::NotFound { what });
        }
        let _pin = self.view_of(&call, &network).await?;
        let _turn = self.turns.take(&network, &id).await;
        if self.reserved(&network, &id).await?.is_empty() {
            return Ok(v1::UnreserveResponse { existed: false });
        }
        let lease = self.lease_of(&call, &network, &id).await?;
        let gone = (network.clone(), id.clone());
        let done = self
            .write(&call, &what, move |r, _| {
                claims::unreserve(&r.snapshot, &gone.0, &gone.1)
            })
            .await;
        if let Err(error) = done {
            // Its time may have been over meanwhile.
            return match self.reserved(&network, &id).await?.is_empty() {
                true => Ok(v1::UnreserveResponse { existed: false }),
                false => Err(error),
            };
        }
        if let Some(lease) = lease {
            revoke(&self.store, lease);
        }
        Ok(v1::UnreserveResponse { existed: true })
    }

    pub(super) async fn addresses_of(
        &self,
        call: Call,
        network: &str,
        released: bool,
    ) -> Result<Vec<v1::Address>, ApiError> {
        let network: NetworkName = parse("network", network)?;
        let known = network.clone();
        let _pin = if self.ask(move |r| r.snapshot.knows_claims(&known)).await? {
            None
        } else {
            self.look_up_network(&call, &network).await?;
            Some(self.view_of(&call, &network).await?)
        };
        let what = Subject::network(network.as_str());
        self.ask(move |r| {
            r.snapshot
                .network(&network)
                .map(|_| view::addresses(r, &network, released))
        })
        .await?
        .ok_or(ApiError::NotFound { what })
    }

    /// What a reservation of this node holds, as far as it is in view.
    async fn reserved(&self, network: &NetworkName, id: &EndpointId) -> Result<BTreeSet<IpAddr>, ApiError> {
        let network = network.clone();
        let reservation: Member = (self.node.clone(), id.clone());
        self.ask(move |r| {
            let members = r.snapshot.members(&network);
            members.map(|m| m.reserved_by(&reservation)).unwrap_or_default()
        })
        .await
    }

    /// The lease that a reservation lies under, to end it when nothing does any more.
    pub(super) async fn lease_of(
        &self,
        call: &Call,
        network: &NetworkName,
        id: &EndpointId,
    ) -> Result<Option<i64>, ApiError> {
        let reserved = self.reserved(network, id).await?;
        let Some(address) = reserved.first() else {
            return Ok(None);
        };
        let key = Key::Address(network.clone(), *address);
        let fetched = self.store.get(&key, until(call.deadline, STORE_PATIENCE)).await;
        let fetched = fetched.map_err(|error| store_error(&error))?;
        let reservation: Member = (self.node.clone(), id.clone());
        let is_its = fetched
            .entry
            .is_some_and(|entry| is_of(&reservation, &entry.value));
        Ok((is_its && fetched.lease != 0).then_some(fetched.lease))
    }

    /// Ends the lease of a reservation that an endpoint has taken over, and nothing lies under any more.
    pub(super) fn end_lease(&self, lease: Option<i64>) {
        if let Some(lease) = lease {
            revoke(&self.store, lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_for_each_reservation() {
        let turns = Turns::default();
        let (blue, a, b): (NetworkName, EndpointId, EndpointId) = (
            "blue".parse().unwrap(),
            "a".parse().unwrap(),
            "b".parse().unwrap(),
        );
        let first = turns.take(&blue, &a).await;
        let _other = turns.take(&blue, &b).await;
        let mut second = std::pin::pin!(turns.take(&blue, &a));
        let long = Duration::from_secs(60);
        assert!(tokio::time::timeout(long, &mut second).await.is_err());
        drop(first);
        drop(second.await);
        let _third = turns.take(&blue, &a).await;
        assert_eq!(turns.waiting.lock().unwrap().len(), 2);
    }

    #[test]
    fn only_the_lease_of_a_reservation_of_its_own_is_replaced() {
        let own: Member = ("host1".parse().unwrap(), "a".parse().unwrap());
        assert!(is_of(&own, br#"{"reservation":"host1/a"}"#));
        for others in [
            r#"{"reservation":"host2/a"}"#,
            r#"{"reservation":"host1/b"}"#,
            r#"{"endpoint":"host1/a"}"#,
            "{",
        ] {
            assert!(!is_of(&own, others.as_bytes()), "{others}");
        }
    }

    #[test]
    fn what_cannot_be_reserved_is_named_by_its_field() {
        let field = |error: ApiError| match error {
            ApiError::InvalidArgument { field, .. } => field,
            other => panic!("{other:?}"),
        };
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            field(wishes(&texts(&["10.1.0.5", "10.1.0.5/16"])).unwrap_err()),
            "requested_addresses[1]"
        );
        assert_eq!(
            field(wishes(&texts(&["10.1.0.5", "10.1.0.5"])).unwrap_err()),
            "requested_addresses[1]"
        );
        let many: Vec<String> = (0..17).map(|n| format!("10.1.0.{n}")).collect();
        assert_eq!(field(wishes(&many).unwrap_err()), "requested_addresses");
        assert_eq!(field(families(&[1, 2, 3]).unwrap_err()), "families[2]");
        assert_eq!(
            families(&[2, 1, 2]).unwrap(),
            BTreeSet::from([Family::V4, Family::V6])
        );
        let seconds = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        for bad in [
            seconds(4, 0),
            seconds(86_401, 0),
            seconds(-1, 0),
            seconds(9, 500_000_000),
        ] {
            assert_eq!(field(time_to_live(bad).unwrap_err()), "ttl", "{bad:?}");
        }
        assert_eq!(time_to_live(None).unwrap(), USUAL_TTL);
        assert_eq!(time_to_live(seconds(5, 0)).unwrap(), SHORTEST_TTL);
    }
}
