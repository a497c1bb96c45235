//! What something is for each of many addresses, in little memory: an address of either family takes the bytes that it has,
//! and not those of the longer one, which is most of such a map of a hundred thousand.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A map from addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressMap<V> {
    v4: HashMap<Ipv4Addr, V>,
    v6: HashMap<Ipv6Addr, V>,
}

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self {
            v4: HashMap::new(),
            v6: HashMap::new(),
        }
    }
}

impl<V> AddressMap<V> {
    /// What is there for an address.
    pub fn get(&self, address: &IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get(address),
            IpAddr::V6(address) => self.v6.get(address),
        }
    }

    /// Whether there is something for an address.
    pub fn contains_key(&self, address: &IpAddr) -> bool {
        self.get(address).is_some()
    }

    /// Puts something in, and returns what was there for the address before.
    pub fn insert(&mut self, address: IpAddr, value: V) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.v4.insert(address, value),
            IpAddr::V6(address) => self.v6.insert(address, value),
        }
    }

    /// Takes out what is there for an address.
    pub fn remove(&mut self, address: &IpAddr) -> Option<V> {
        match address {
            IpAddr::V4(address) => self.v4.remove(address),
            IpAddr::V6(address) => self.v6.remove(address),
        }
    }

    /// Leaves only what a test says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(IpAddr, &V) -> bool) {
        self.v4.retain(|address, value| keep((*address).into(), value));
        self.v6.retain(|address, value| keep((*address).into(), value));
    }

    /// Empties it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Everything in it, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(address, value)| ((*address).into(), value));
        v4.chain(self.v6.iter().map(|(address, value)| ((*address).into(), value)))
    }

    /// The addresses in it, in no order.
    pub fn keys(&self) -> impl Iterator<Item = IpAddr> + use<'_, V> {
        self.iter().map(|(address, _)| address)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V> FromIterator<(IpAddr, V)> for AddressMap<V> {
    fn from_iter<I: IntoIterator<Item = (IpAddr, V)>>(all: I) -> Self {
        let mut map = Self::default();
        for (address, value) in all {
            map.insert(address, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_is_a_map_of_both_families() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        // One of them is the other's number.
        let all = [("10.1.0.1", 1), ("::a01:1", 2), ("fd00::1", 3)].map(|(a, n)| (address(a), n));
        let mut map = AddressMap::from_iter(all);
        let plain = |map: &AddressMap<i32>| map.iter().map(|(a, n)| (a, *n)).collect::<BTreeMap<_, _>>();
        assert_eq!(plain(&map), BTreeMap::from(all));
        assert_eq!((map.len(), map.get(&address("::a01:1"))), (3, Some(&2)));
        assert_eq!(map.insert(address("10.1.0.1"), 4), Some(1));
        assert_eq!(map.remove(&address("::a01:1")), Some(2));
        map.retain(|address, _| address.is_ipv4());
        assert_eq!(map.keys().collect::<Vec<_>>(), [address("10.1.0.1")]);
        map.clear();
        assert!(map.is_empty() && !map.contains_key(&address("10.1.0.1")));
    }
}
