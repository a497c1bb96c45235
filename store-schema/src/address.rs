//! Addresses within a subnet: ranges, and what is kept out of them.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

/// An inclusive range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first address.
    pub first: IpAddr,
    /// The last address, not below the first.
    pub last: IpAddr,
}

impl AddressRange {
    /// A range, if both ends are of one family and in order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// All addresses of a network, its own and the broadcast address included.
    pub fn of(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        // IpAddr orders IPv4 before IPv6, so the family has to be asked for.
        self.first.is_ipv4() == address.is_ipv4() && self.first <= address && address <= self.last
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

/// Parses one entry of `reserved`: an address, a range `first-last`, or a CIDR.
///
/// # Errors
/// A text that says what is allowed.
pub fn parse_reserved(text: &str) -> Result<AddressRange, String> {
    let allowed = || {
        format!(
            "{:?} is neither an address (10.1.0.9), a range (10.1.0.9-10.1.0.20) nor a CIDR (10.1.0.0/28)",
            text.chars().take(80).collect::<String>()
        )
    };
    if let Some((first, last)) = text.split_once('-') {
        let first: IpAddr = first.trim().parse().map_err(|_| allowed())?;
        let last: IpAddr = last.trim().parse().map_err(|_| allowed())?;
        if first.is_ipv4() != last.is_ipv4() {
            return Err(format!("{first}-{last} mixes IPv4 and IPv6"));
        }
        AddressRange::new(first, last)
            .ok_or_else(|| format!("{first}-{last}: the first address lies behind the last"))
    } else if text.contains('/') {
        let net: IpNet = text.parse().map_err(|_| allowed())?;
        // Who writes 10.1.0.9/16 may well mean one address: that is no reason to take away 65536.
        if net != net.trunc() {
            let address = net.addr();
            return Err(format!(
                "{net} has host bits set; did you mean {}, or {address}?",
                net.trunc()
            ));
        }
        Ok(AddressRange::of(net))
    } else {
        let address = text.parse().map_err(|_| allowed())?;
        Ok(AddressRange {
            first: address,
            last: address,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_reserved() {
        let range = |text: &str| parse_reserved(text).map(|r| r.to_string());
        assert_eq!(range("10.1.0.9").unwrap(), "10.1.0.9");
        assert_eq!(range("10.1.0.9 - 10.1.0.20").unwrap(), "10.1.0.9-10.1.0.20");
        assert_eq!(range("fd00::/126").unwrap(), "fd00::-fd00::3");
        for bad in [
            "",
            "x",
            "10.1.0.9-",
            "10.1.0.20-10.1.0.9",
            "10.1.0.9-fd00::1",
            "10.0.0.0/33",
        ] {
            assert!(range(bad).is_err(), "{bad}");
        }
        assert_eq!(
            range("10.1.0.9/16").unwrap_err(),
            "10.1.0.9/16 has host bits set; did you mean 10.1.0.0/16, or 10.1.0.9?"
        );
        assert_eq!(
            range("10.1.0.9-fd00::1").unwrap_err(),
            "10.1.0.9-fd00::1 mixes IPv4 and IPv6"
        );
        let padded = format!("10.1.0.20{}-10.1.0.9", " ".repeat(100_000));
        assert_eq!(
            range(&padded).unwrap_err(),
            "10.1.0.20-10.1.0.9: the first address lies behind the last"
        );
    }

    #[test]
    fn a_range_holds_its_own_family_only() {
        let range = parse_reserved("0.0.0.0-255.255.255.255").unwrap();
        assert!(!range.contains("::1".parse().unwrap()));
    }
}
