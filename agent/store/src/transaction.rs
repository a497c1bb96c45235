//! Conditional writes: one round trip, and exactly once in effect although answers get lost.
//!
//! A lost answer leaves open whether the transaction happened. It is sent again only if it *guards what it
//! writes*, that is, if its own success breaks one of its guards: then it cannot happen twice in a row. If
//! the second sending is turned away, the state that etcd returns with the refusal is weighed against what
//! would be there had the first sending happened; where that does not decide, the answer is
//! [`StoreError::Unknown`] and the records must be looked at.
//!
//! Known and accepted: a request that was given up may still sit in a frozen member and happen later, if its
//! guards hold then. Being all or nothing, it can leave no half-made state behind; the watch shows it.

use std::{collections::BTreeSet, time::Duration};

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse, TxnResponse,
};
use weft_core::{
    answer::{Place, Weighed, guards_itself, places, weigh},
    record::{Committed, Entry, Guard, Transaction, Write},
    snapshot::directory,
};
use weft_store_schema::{Key, NodeName, Prefix};

use crate::{
    StoreError,
    members::Members,
    read::{end_of, entry_of},
};

/// etcd's own bound (`--max-txn-ops`), for the guards and for each branch.
const MOST_OPERATIONS: usize = 128;
/// etcd's own bound (`--max-request-bytes`) is 1.5 MiB; the rest is left for framing.
const MOST_BYTES: usize = (3 << 19) - (16 << 10);

/// What is being done, for messages.
fn subject(transaction: &Transaction, prefix: &Prefix, node: &NodeName) -> String {
    let keys: Vec<_> = transaction
        .writes
        .iter()
        .map(|write| match write {
            Write::Put(key, _) | Write::PutLeased(key, ..) => format!("writing {key}"),
            Write::Delete(key) => format!("deleting {key}"),
            Write::DeleteAll(scope) => format!("deleting all below {}", directory(prefix, node, scope)),
        })
        .collect();
    match keys.as_slice() {
        [] => "a transaction without writes".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} (and {} more in one transaction)", rest.len()),
    }
}

fn check(transaction: &Transaction, prefix: &Prefix) -> Result<(), String> {
    let (guards, writes) = (transaction.guards.len(), transaction.writes.len());
    let reads = places(transaction).len();
    if guards == 0 {
        return Err("a transaction without guards is never made: guard what it relies on".to_owned());
    }
    if reads > MOST_OPERATIONS {
        return Err(format!(
            "{guards} guards and {writes} writes touch {reads} keys, etcd takes at most {MOST_OPERATIONS}"
        ));
    }
    let mut keys = BTreeSet::new();
    if let Some(twice) = transaction
        .writes
        .iter()
        .filter_map(Write::key)
        .find(|key| !keys.insert(*key))
    {
        return Err(format!("{twice} is written twice in one transaction"));
    }
    let key_bytes = |key: &Key| prefix.key(key).len() + 24;
    let guard_bytes = |guard: &Guard| match Place::of(guard) {
        Place::Key(key) => 2 * key_bytes(key),
        Place::FirstOf(_) | Place::NewestOf(_) => 4 * (prefix.as_str().len() + 160),
    };
    let bytes: usize = transaction
        .writes
        .iter()
        .map(|write| match write {
            Write::Put(key, value) | Write::PutLeased(key, value, _) => key_bytes(key) + value.len(),
            Write::Delete(key) => key_bytes(key),
            Write::DeleteAll(_) => 2 * (prefix.as_str().len() + 160),
        })
        .chain(transaction.guards.iter().map(guard_bytes))
        .sum();
    if bytes > MOST_BYTES {
        return Err(format!(
            "{bytes} bytes are more than etcd takes in one request ({MOST_BYTES})"
        ));
    }
    Ok(())
}

fn build(transaction: &Transaction, prefix: &Prefix, node: &NodeName) -> Txn {
    let compares: Vec<_> = transaction
        .guards
        .iter()
        .map(|guard| match guard {
            Guard::Absent(key) => Compare::create_revision(prefix.key(key), CompareOp::Equal, 0),
            Guard::Unchanged(key, revision) => {
                Compare::mod_revision(prefix.key(key), CompareOp::Equal, *revision)
            }
            // No key has creation revision 0: over a range, this holds only if nothing is there.
            Guard::Empty(scope) => {
                let directory = directory(prefix, node, scope);
                let end = end_of(&directory);
                Compare::create_revision(directory, CompareOp::Equal, 0).with_range(end)
            }
            Guard::Settled(scope, revision) => {
                let directory = directory(prefix, node, scope);
                let end = end_of(&directory);
                Compare::mod_revision(directory, CompareOp::Less, revision + 1).with_range(end)
            }
        })
        .collect();
    let writes: Vec<_> = transaction
        .writes
        .iter()
        .map(|write| match write {
            Write::Put(key, value) => TxnOp::put(prefix.key(key), value.clone(), None),
            Write::PutLeased(key, value, lease) => TxnOp::put(
                prefix.key(key),
                value.clone(),
                Some(PutOptions::new().with_lease(*lease)),
            ),
            Write::Delete(key) => TxnOp::delete(prefix.key(key), None),
            Write::DeleteAll(scope) => {
                let directory = directory(prefix, node, scope);
                let options = DeleteOptions::new().with_range(end_of(&directory));
                TxnOp::delete(directory, Some(options))
            }
        })
        .collect();
    let reads: Vec<_> = places(transaction)
        .into_iter()
        .map(|place| match place {
            Place::Key(key) => TxnOp::get(prefix.key(key), None),
            Place::FirstOf(scope) => {
                let directory = directory(prefix, node, scope);
                let options = GetOptions::new().with_range(end_of(&directory)).with_limit(1);
                TxnOp::get(directory, Some(options))
            }
            Place::NewestOf(scope) => {
                let directory = directory(prefix, node, scope);
                let options = GetOptions::new()
                    .with_range(end_of(&directory))
                    .with_sort(SortTarget::Mod, SortOrder::Descend)
                    .with_limit(1);
                TxnOp::get(directory, Some(options))
            }
        })
        .collect();
    Txn::new().when(compares).and_then(writes).or_else(reads)
}

/// Carries out a transaction; see [`Store::commit`](crate::Store::commit).
pub(crate) async fn commit(
    members: &Members,
    transaction: &Transaction,
    deadline: Duration,
) -> Result<Committed, StoreError> {
    let config = members.config();
    let (prefix, node) = (&config.prefix, &config.node);
    let what = subject(transaction, prefix, node);
    if members.stop().is_cancelled() {
        return Err(StoreError::Stopping { what });
    }
    if let Err(why) = check(transaction, prefix) {
        return Err(StoreError::Transaction { what, why });
    }
    let txn = build(transaction, prefix, node);
    // Whatever the first sending does, it does at a later revision than any we have heard of.
    let before = members.health.lock().revision;
    let message = members.config().limits.message;
    let outcome = members
        .ask(deadline, guards_itself(transaction), |client| {
            let txn = txn.clone();
            async move {
                let mut kv = client.kv_client().max_decoding_message_size(message);
                kv.txn(txn).await
            }
        })
        .await;
    match (outcome.result, outcome.lost) {
        (Ok(answer), None) => Ok(read_answer(&answer, transaction).0),
        (Ok(answer), Some(lost)) => {
            let (committed, now) = read_answer(&answer, transaction);
            match committed {
                Committed::Yes { .. } => Ok(committed),
                Committed::No { revision, .. } => match weigh(transaction, &now, before, revision) {
                    Weighed::Happened(revision) => Ok(Committed::Yes { revision }),
                    Weighed::DidNot => Ok(committed),
                    Weighed::Undecided => Err(StoreError::Unknown {
                        what,
                        source: lost.cause,
                    }),
                },
            }
        }
        // Refused or unreachable in the end, but an earlier sending may have happened.
        (Err(_), Some(lost)) => Err(StoreError::Unknown {
            what,
            source: lost.cause,
        }),
        (Err(failure), None) => Err(failure.into_error(what, members.user(), deadline)),
    }
}

/// The result, and the state of all [`places`] where a guard failed.
fn read_answer(answer: &TxnResponse, transaction: &Transaction) -> (Committed, Vec<Option<Entry>>) {
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    if answer.succeeded() {
        return (Committed::Yes { revision }, Vec::new());
    }
    let now: Vec<_> = answer
        .op_responses()
        .into_iter()
        .map(|response| match response {
            TxnOpResponse::Get(mut answer) => first_entry(&mut answer),
            _ => None,
        })
        .collect();
    let guarded = now.iter().take(transaction.guards.len()).cloned().collect();
    (
        Committed::No {
            revision,
            now: guarded,
        },
        now,
    )
}

fn first_entry(answer: &mut GetResponse) -> Option<Entry> {
    answer.take_kvs().into_iter().next().map(entry_of)
}

#[cfg(test)]
mod tests {
    use weft_store_schema::{NetworkName, NodeName};

    use super::*;

    fn network(name: &str) -> Key {
        Key::Network(NetworkName::new(name).unwrap())
    }

    fn create_two() -> Transaction {
        Transaction {
            guards: vec![Guard::Absent(network("a")), Guard::Absent(network("b"))],
            writes: vec![
                Write::Put(network("a"), b"1".to_vec()),
                Write::Put(network("b"), b"2".to_vec()),
            ],
        }
    }

    #[test]
    fn what_is_done_is_told_in_keys() {
        let scope = weft_core::record::Scope::Released(NetworkName::new("blue").unwrap());
        let told = |writes| {
            let transaction = Transaction {
                guards: Vec::new(),
                writes,
            };
            subject(&transaction, &Prefix::default(), &NodeName::new("host1").unwrap())
        };
        assert_eq!(
            told(vec![Write::DeleteAll(scope)]),
            "deleting all below /weft/v1/released/blue/"
        );
        assert_eq!(
            told(create_two().writes),
            "writing networks/a (and 1 more in one transaction)"
        );
    }

    #[test]
    fn transactions_etcd_would_refuse_are_named_before() {
        let prefix = Prefix::default();
        let why = |transaction| check(&transaction, &prefix).unwrap_err();
        assert!(why(Transaction::default()).contains("without guards"));
        let mut many = create_two();
        for i in 0..127 {
            many.writes
                .push(Write::Delete(Key::Peer(NodeName::new(&format!("n{i}")).unwrap())));
        }
        assert!(why(many).contains("at most 128"));
        let mut twice = create_two();
        twice.writes.push(Write::Delete(network("a")));
        assert!(why(twice).contains("twice"));
        let mut large = create_two();
        large.writes[0] = Write::Put(network("a"), vec![0; 1 << 21]);
        assert!(why(large).contains("bytes"));
    }
}
