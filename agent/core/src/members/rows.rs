//! How much is kept in little memory: rows with numbers, and indexes that hold nothing but numbers.
//!
//! A map from keys to what they lead to would hold every key once more. An index here holds a hash and the number of a row,
//! eight bytes; whether the row has the key, the row tells. Nothing here knows what rows are.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    marker::PhantomData,
};

use hashbrown::HashTable;

/// A row's number, given again to another one when it is gone.
pub(super) type Number = u32;

/// What leads from a key to the rows that may have it.
#[derive(Debug, Clone)]
pub(super) struct Index<K> {
    table: HashTable<(u32, Number)>,
    /// Not to be foreseen: keys come from records, which anybody may have written.
    state: RandomState,
    of: PhantomData<fn(&K)>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self {
            table: HashTable::new(),
            state: RandomState::new(),
            of: PhantomData,
        }
    }
}

impl<K: Hash> Index<K> {
    fn hash(&self, key: &K) -> u32 {
        self.state.hash_one(key) as u32
    }

    /// Notes that a row has a key. To be noted once.
    pub(super) fn insert(&mut self, key: &K, row: Number) {
        let hash = self.hash(key);
        self.table
            .insert_unique(spread(hash), (hash, row), |(hash, _)| spread(*hash));
    }

    /// Takes back that a row has a key.
    pub(super) fn remove(&mut self, key: &K, row: Number) {
        let hash = self.hash(key);
        let place = self.table.find_entry(spread(hash), |entry| *entry == (hash, row));
        if let Ok(place) = place {
            place.remove();
        }
    }

    /// The rows that may have a key, and all that have it, in no order.
    pub(super) fn get(&self, key: &K) -> impl Iterator<Item = Number> + use<'_, K> {
        let hash = self.hash(key);
        let found = self.table.iter_hash(spread(hash));
        found.filter(move |(of, _)| *of == hash).map(|(_, row)| *row)
    }
}

/// The table chooses a place by the low bits and tells its neighbours apart by the highest.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_leads_to_all_that_have_a_key(
            deeds in proptest::collection::vec((any::<bool>(), 0_u8..6, 0_u32..6), 0..80),
        ) {
            let (mut index, mut plain) = (Index::default(), BTreeSet::new());
            for (put, key, row) in deeds {
                if !put {
                    index.remove(&key, row);
                    plain.remove(&(key, row));
                } else if plain.insert((key, row)) {
                    index.insert(&key, row);
                }
            }
            for key in 0..6 {
                let mut rows: Vec<Number> = index.get(&key).collect();
                rows.sort_unstable();
                let wanted: Vec<Number> =
                    plain.iter().filter(|(k, _)| *k == key).map(|(_, row)| *row).collect();
                // No two of so few keys have the same hash but once in a billion runs.
                prop_assert_eq!(rows, wanted);
            }
        }
    }
}
