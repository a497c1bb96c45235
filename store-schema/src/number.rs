//! Numbers with a range of their own: VNI, MTU, MAC, address family.

use std::{fmt, net::IpAddr, str::FromStr};

use thiserror::Error;

/// A VXLAN network identifier, 1 to 16 777 215 (RFC 7348 gives it 24 bits; 0 is left to the kernel's
/// "external" mode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The smallest VNI.
    pub const MIN: u32 = 1;
    /// The largest VNI.
    pub const MAX: u32 = (1 << 24) - 1;

    /// A VNI, if the number is in range.
    pub fn new(number: u64) -> Option<Self> {
        u32::try_from(number)
            .ok()
            .filter(|n| (Self::MIN..=Self::MAX).contains(n))
            .map(Self)
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A link's maximum transmission unit in bytes of layer-3 payload, 576 to 65 535.
///
/// The lower bound is what every IPv4 host must accept (RFC 791); a network that carries IPv6 needs
/// 1280 (RFC 8200), which is checked where the families are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// The smallest MTU accepted.
    pub const MIN: u16 = 576;
    /// The smallest MTU that may carry IPv6.
    pub const MIN_IPV6: u16 = 1280;
    /// Ethernet's usual MTU.
    pub const ETHERNET: Self = Self(1500);

    /// An MTU, if the number is in range.
    pub fn new(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|n| *n >= Self::MIN).map(Self)
    }

    /// The number of bytes.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An address family of the overlay or of the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes that a frame grows by when it is put into VXLAN over this family: outer IP header, UDP 8,
    /// VXLAN 8, and the inner Ethernet header 14 that the inner MTU does not count (RFC 7348 section 5).
    pub fn vxlan_overhead(self) -> u16 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }

    /// Bits of an address of this family.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is not an endpoint's MAC address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseMacError {
    /// Not six pairs of hexadecimal digits.
    #[error("{0:?} is not a MAC address such as 02:42:0a:01:00:02")]
    Form(String),
    /// The group bit is set, or all bytes are zero.
    #[error(
        "{0} is not a unicast address: the lowest bit of its first byte must be 0, and not all may be zero"
    )]
    NotUnicast(String),
}

impl Mac {
    /// A MAC from its bytes; none if it is multicast, broadcast or all zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The bytes, in transmission order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The default MAC of an endpoint: `02:42:` (locally administered) and the low 32 bits of its first
    /// address, so that one IPv4 address has one MAC everywhere and a move changes nothing.
    pub fn from_address(address: IpAddr) -> Self {
        let low = match address {
            IpAddr::V4(a) => a.octets(),
            IpAddr::V6(a) => {
                let o = a.octets();
                [o[12], o[13], o[14], o[15]]
            }
        };
        Self([0x02, 0x42, low[0], low[1], low[2], low[3]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let form = || ParseMacError::Form(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(form)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        Self::new(bytes).ok_or_else(|| ParseMacError::NotUnicast(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(Vni::new(0), None);
        assert_eq!(Vni::new(1).unwrap().get(), 1);
        assert_eq!(Vni::new(16_777_215).unwrap().get(), 16_777_215);
        assert_eq!(Vni::new(16_777_216), None);
        assert_eq!(Mtu::new(575), None);
        assert_eq!(Mtu::new(65_536), None);
        assert_eq!(Mtu::new(9000).unwrap().get(), 9000);
    }

    #[test]
    fn mac_text() {
        let mac: Mac = "02:42:0A:01:00:02".parse().unwrap();
        assert_eq!(mac.to_string(), "02:42:0a:01:00:02");
        assert_eq!(mac, Mac::from_address("10.1.0.2".parse().unwrap()));
        assert_eq!(
            Mac::from_address("fd00::1:2".parse().unwrap()).to_string(),
            "02:42:00:01:00:02"
        );
        for bad in [
            "",
            "02:42:0a:01:00",
            "02:42:0a:01:00:02:03",
            "2:42:a:1:0:2",
            "+2:42:0a:01:00:02",
            "zz:42:0a:01:00:02",
        ] {
            assert!(matches!(bad.parse::<Mac>(), Err(ParseMacError::Form(_))), "{bad}");
        }
        for bad in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(
                matches!(bad.parse::<Mac>(), Err(ParseMacError::NotUnicast(_))),
                "{bad}"
            );
        }
    }
}
