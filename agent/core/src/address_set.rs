//! Sets of addresses as compressed bitmaps: memory by what is in them, not by the size of the subnet, and the
//! n-th address that is *not* in them in microseconds.
//!
//! Both families alike: an address is a number of 128 bits, its low half of 32 a place in a bitmap, the rest says
//! in which. Addresses of both families may be mixed: no IPv6 address of a subnet has the number of an IPv4 one,
//! for `::/96` is no subnet.

use std::{collections::BTreeMap, net::IpAddr};

use roaring::RoaringBitmap;
use weft_store_schema::Family;

/// A set of addresses.
#[derive(Debug, Clone, Default)]
pub struct AddressSet {
    bitmaps: BTreeMap<u128, RoaringBitmap>,
}

/// The numbers from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The lowest.
    pub first: u128,
    /// The highest, not below it.
    pub last: u128,
}

impl Span {
    /// How many numbers; one less than the truth for all of 128 bits, which no subnet has.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// What is left of it without others, in order.
    pub(crate) fn without(self, mut others: Vec<Self>) -> Vec<Self> {
        others.sort_unstable_by_key(|other| other.first);
        let mut left = Vec::new();
        let mut next = Some(self.first);
        for other in others {
            let Some(first) = next else { break };
            if other.last < first || other.first > self.last {
                continue;
            }
            if other.first > first {
                left.push(Self {
                    first,
                    last: other.first - 1,
                });
            }
            next = other.last.checked_add(1).filter(|n| *n <= self.last);
        }
        left.extend(next.map(|first| Self {
            first,
            last: self.last,
        }));
        left
    }
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// A number as an address. One that came from an address of the family fits.
pub(crate) fn address(number: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

impl AddressSet {
    /// Puts an address in.
    pub fn insert(&mut self, address: IpAddr) {
        let number = number(address);
        self.bitmaps
            .entry(number >> 32)
            .or_default()
            .insert(number as u32);
    }

    pub(crate) fn remove(&mut self, address: IpAddr) {
        let number = number(address);
        if let Some(bitmap) = self.bitmaps.get_mut(&(number >> 32)) {
            bitmap.remove(number as u32);
            if bitmap.is_empty() {
                self.bitmaps.remove(&(number >> 32));
            }
        }
    }

    /// Whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        let number = number(address);
        self.bitmaps
            .get(&(number >> 32))
            .is_some_and(|bitmap| bitmap.contains(number as u32))
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.bitmaps.values().map(RoaringBitmap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bitmaps.is_empty()
    }

    /// How many of them lie in a span.
    pub fn count(&self, span: Span) -> u128 {
        let (low, high) = (span.first >> 32, span.last >> 32);
        self.bitmaps
            .range(low..=high)
            .map(|(at, bitmap)| {
                let first = if *at == low { span.first as u32 } else { 0 };
                let last = if *at == high { span.last as u32 } else { u32::MAX };
                u128::from(bitmap.range_cardinality(first..=last))
            })
            .sum()
    }

    /// The `n`-th number of a span, from 0, that is not in the set; none if there are not so many.
    pub fn nth_free(&self, span: Span, n: u128) -> Option<u128> {
        // As many are free up to a number as it has before it, less those that are in the set: found by halving.
        let free = |last| {
            let part = Span {
                first: span.first,
                last,
            };
            part.len() - self.count(part)
        };
        let taken = self.count(span);
        if span.len() - taken <= n {
            return None;
        }
        let mut low = span.first + n;
        let mut high = low.saturating_add(taken).min(span.last);
        while low < high {
            let middle = low + (high - low) / 2;
            if free(middle) > n {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(numbers: impl IntoIterator<Item = u128>) -> AddressSet {
        let mut set = AddressSet::default();
        for n in numbers {
            set.insert(address(n, Family::V6));
        }
        set
    }

    proptest! {
        #[test]
        fn it_counts_and_finds_as_a_plain_set_does(
            base in prop_oneof![Just(0_u128), Just((1 << 32) - 50), Just(0xfd00 << 112)],
            members in proptest::collection::btree_set(0_u128..100, 0..100),
            gone in proptest::collection::btree_set(0_u128..100, 0..30),
            first in 0_u128..100,
            length in 0_u128..100,
            n in 0_u128..100,
        ) {
            let mut set = set(members.iter().map(|m| base + m));
            for m in &gone {
                set.remove(address(base + m, Family::V6));
            }
            let plain: BTreeSet<u128> = members.difference(&gone).map(|m| base + m).collect();
            prop_assert_eq!(set.len(), plain.len() as u64);
            let span = Span { first: base + first, last: base + first + length };
            prop_assert_eq!(set.count(span), plain.range(span.first..=span.last).count() as u128);
            let free = (span.first..=span.last).filter(|m| !plain.contains(m)).nth(n as usize);
            prop_assert_eq!(set.nth_free(span, n), free);
        }

        #[test]
        fn a_span_without_others_is_what_they_leave(
            first in 0_u128..50,
            length in 0_u128..50,
            others in proptest::collection::vec((0_u128..110, 0_u128..20), 0..6),
        ) {
            let span = Span { first, last: first + length };
            let others: Vec<Span> = others.iter().map(|(f, l)| Span { first: *f, last: f + l }).collect();
            let left: Vec<u128> = span
                .without(others.clone())
                .into_iter()
                .flat_map(|s| s.first..=s.last)
                .collect();
            let plain: Vec<u128> = (span.first..=span.last)
                .filter(|n| !others.iter().any(|o| (o.first..=o.last).contains(n)))
                .collect();
            prop_assert_eq!(left, plain);
        }
    }

    #[test]
    fn the_whole_of_a_large_subnet_is_searched() {
        let first = 0xfd00_u128 << 112;
        let span = Span {
            first,
            last: first + u128::from(u64::MAX),
        };
        let set = set([first, first + 1, span.last]);
        assert_eq!(set.nth_free(span, 0), Some(first + 2));
        assert_eq!(set.nth_free(span, u128::from(u64::MAX) - 3), Some(span.last - 1));
        assert_eq!(set.nth_free(span, u128::from(u64::MAX) - 2), None);
    }
}
