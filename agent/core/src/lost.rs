//! Transactions whose answer was lost, and of which the store's client cannot say whether they happened: which key tells,
//! and what it tells.

use weft_store_schema::Key;

use crate::record::{Entry, Guard, Transaction, Write};

/// What the store says of a transaction whose answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It did not happen, or nothing tells of it any more.
    Not,
    /// What it was for is so.
    Somewhen,
    /// It happened at this revision.
    At(i64),
}

/// The key that tells.
#[derive(Debug)]
pub struct Telling<'a> {
    /// The key.
    pub key: &'a Key,
    sign: Sign<'a>,
}

#[derive(Debug)]
enum Sign<'a> {
    /// It lies under this lease, under which nobody else puts anything.
    Lease(i64),
    /// It has this value: nobody else writes this endpoint; a network that says so is what was wanted, whoever wrote it.
    Value(&'a [u8]),
    /// It is gone, or has been made again, since this revision.
    Gone(i64),
}

impl<'a> Telling<'a> {
    /// What tells of a transaction; none if nothing of it is its own.
    pub fn of(transaction: &'a Transaction) -> Option<Self> {
        let put = transaction.writes.iter().find_map(|write| match write {
            Write::PutLeased(key, _, lease) => Some((key, Sign::Lease(*lease))),
            Write::Put(key @ (Key::Endpoint(_) | Key::Network(_)), value) => Some((key, Sign::Value(value))),
            _ => None,
        });
        let deleted = || {
            transaction.writes.iter().find_map(|write| match write {
                Write::Delete(key) => {
                    let mut guards = transaction.guards.iter();
                    let at = guards.find_map(|guard| match guard {
                        Guard::Unchanged(guarded, at) if guarded == key => Some(*at),
                        _ => None,
                    });
                    Some((key, Sign::Gone(at?)))
                }
                _ => None,
            })
        };
        put.or_else(deleted).map(|(key, sign)| Self { key, sign })
    }

    /// What it tells: the key's state, and the lease that it lies under.
    pub fn judge(&self, entry: Option<&Entry>, lease: i64) -> Found {
        match (&self.sign, entry) {
            (Sign::Lease(ours), Some(entry)) if *ours == lease => Found::At(entry.mod_revision),
            (Sign::Value(value), Some(entry)) if entry.value == *value => Found::Somewhen,
            (Sign::Gone(_), None) => Found::Somewhen,
            (Sign::Gone(at), Some(entry)) if entry.create_revision > *at => Found::Somewhen,
            _ => Found::Not,
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_store_schema::NetworkName;

    use super::*;

    fn network() -> NetworkName {
        "blue".parse().unwrap()
    }

    fn address() -> Key {
        Key::Address(network(), "10.1.0.2".parse().unwrap())
    }

    fn trace() -> Key {
        Key::Released(network(), "10.1.0.2".parse().unwrap())
    }

    fn entry(value: &str, create_revision: i64, mod_revision: i64) -> Entry {
        Entry {
            key: vec![],
            value: value.into(),
            create_revision,
            mod_revision,
        }
    }

    fn one(guard: Guard, writes: Vec<Write>) -> Transaction {
        Transaction {
            guards: vec![guard],
            writes,
        }
    }

    #[test]
    fn a_reservation_is_told_by_its_lease() {
        let writes = vec![
            Write::Delete(trace()),
            Write::PutLeased(address(), b"r".to_vec(), 7),
        ];
        let transaction = one(Guard::Absent(address()), writes);
        let telling = Telling::of(&transaction).unwrap();
        assert_eq!(*telling.key, address());
        assert_eq!(telling.judge(Some(&entry("r", 5, 9)), 7), Found::At(9));
        assert_eq!(
            telling.judge(Some(&entry("r", 5, 5)), 6),
            Found::Not,
            "an earlier one of the same name"
        );
        assert_eq!(telling.judge(None, 0), Found::Not);
    }

    #[test]
    fn a_change_of_a_network_is_told_by_its_record() {
        let key = Key::Network(network());
        let writes = vec![Write::Put(key.clone(), b"new".to_vec())];
        let transaction = one(Guard::Unchanged(key, 5), writes);
        let telling = Telling::of(&transaction).unwrap();
        assert_eq!(telling.judge(Some(&entry("new", 1, 9)), 0), Found::Somewhen);
        assert_eq!(telling.judge(Some(&entry("old", 1, 5)), 0), Found::Not);
    }

    #[test]
    fn a_release_is_told_by_the_claim_not_by_the_trace() {
        let writes = vec![Write::Delete(address()), Write::Put(trace(), b"{}".to_vec())];
        let transaction = one(Guard::Unchanged(address(), 5), writes);
        let telling = Telling::of(&transaction).unwrap();
        assert_eq!(*telling.key, address());
        assert_eq!(telling.judge(None, 0), Found::Somewhen);
        assert_eq!(telling.judge(Some(&entry("r", 5, 5)), 0), Found::Not);
        assert_eq!(
            telling.judge(Some(&entry("another", 8, 8)), 0),
            Found::Somewhen,
            "the next holder"
        );
    }

    #[test]
    fn what_is_nobodys_own_tells_nothing() {
        let writes = vec![Write::Delete(trace())];
        assert!(Telling::of(&one(Guard::Absent(address()), writes)).is_none());
    }
}
