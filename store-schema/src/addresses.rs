//! A few addresses in little memory.

use std::{fmt, net::IpAddr, ops::Deref, slice};

/// Some addresses in their order: nearly always one, which takes no memory of its own then.
#[derive(Clone, PartialEq, Eq)]
pub struct Addresses(Few);

/// Exactly one is always `One`, so that equal addresses are equal values.
#[derive(Clone, PartialEq, Eq)]
enum Few {
    One(IpAddr),
    Others(Box<[IpAddr]>),
}

impl Default for Addresses {
    fn default() -> Self {
        Self(Few::Others(Box::default()))
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            Few::One(one) => slice::from_ref(one),
            Few::Others(others) => others,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self(match addresses[..] {
            [one] => Few::One(one),
            _ => Few::Others(addresses.into()),
        })
    }
}

impl<'a> IntoIterator for &'a Addresses {
    type Item = &'a IpAddr;
    type IntoIter = slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_they_were_made_of() {
        let all: Vec<IpAddr> = ["10.1.0.2", "fd00::2", "10.1.0.3"]
            .map(|a| a.parse().unwrap())
            .into();
        for count in 0..=3 {
            let addresses = Addresses::from(all[..count].to_vec());
            assert_eq!(*addresses, all[..count]);
            assert_eq!(addresses.is_empty(), addresses == Addresses::default());
        }
    }
}
