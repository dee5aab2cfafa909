//! Source addresses: a range of IP addresses in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Not a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a source is an address or a range such as 192.0.2.0/24 or 2001:db8::/32, with no bit set below the prefix")]
pub struct CidrError;

/// A range of addresses. IPv4 is kept as IPv4-mapped IPv6, so that `192.0.2.1` and `::ffff:192.0.2.1` are one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    bits: u128,
    /// Of the 128 bits; 96 more than what is written for IPv4.
    prefix: u8,
}

impl Cidr {
    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        mapped(address) & mask(self.prefix) == self.bits
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let (length, offset) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix = match prefix {
            // `u8` would also read "+8".
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| CidrError)?,
            Some(_) => return Err(CidrError),
            None => length,
        };
        if prefix > length {
            return Err(CidrError);
        }
        let (bits, prefix) = (mapped(address), prefix + offset);
        if bits & !mask(prefix) == 0 { Ok(Self { bits, prefix }) } else { Err(CidrError) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.bits);
        match address.to_ipv4_mapped() {
            Some(v4) if self.prefix >= 96 => write!(f, "{v4}/{}", self.prefix - 96),
            _ => write!(f, "{address}/{}", self.prefix),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_at_their_edges() {
        let inside = |range: &str, address: &str| {
            range.parse::<Cidr>().expect("a range").contains(address.parse().expect("an address"))
        };
        assert!(inside("192.0.2.0/24", "192.0.2.0") && inside("192.0.2.0/24", "192.0.2.255"));
        assert!(!inside("192.0.2.0/24", "192.0.1.255") && !inside("192.0.2.0/24", "192.0.3.0"));
        assert!(inside("192.0.2.7", "192.0.2.7") && !inside("192.0.2.7", "192.0.2.8"));
        assert!(inside("192.0.2.0/24", "::ffff:192.0.2.9"), "the same address as an IPv6 socket sees it");
        assert!(inside("0.0.0.0/0", "203.0.113.1") && !inside("0.0.0.0/0", "2001:db8::1"));
        assert!(inside("::/0", "2001:db8::1") && inside("2001:db8::/32", "2001:db8:ffff::"));
    }

    #[test]
    fn a_range_reads_back_as_written() {
        for text in ["192.0.2.0/24", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"] {
            assert_eq!(text.parse::<Cidr>().expect("a range").to_string(), text);
        }
        for bad in ["", "192.0.2.1/24", "192.0.2.0/33", "2001:db8::/129", "10.0.0.0/", "10.0.0.0/+8", "a/8", "10/8"] {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError), "{bad}");
        }
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_range_or_refused(text in prop_oneof![".{0,40}", "[0-9a-f:./+]{0,40}", "[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,3}"]) {
            crate::fuzz::cidr(text.as_bytes());
        }

        #[test]
        fn a_range_holds_what_shares_its_beginning(address: u32, other: u32, prefix in 0_u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let range = format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(address & mask));
            let range = range.parse::<Cidr>().expect("a range");
            let inside = range.contains(std::net::Ipv4Addr::from_bits(other).into());
            prop_assert_eq!(inside, other & mask == address & mask);
        }
    }
}
