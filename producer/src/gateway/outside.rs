//! Where webhooks may go: the public Internet, and addresses with ports that whoever runs the gateway has named. A tenant chooses
//! the name, so it must not lead into the cluster.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use vecmill_signer::cidr::Cidr;

/// A range of addresses and one port of theirs: `10.0.0.0/8:443`, `[fd00::]/8:8443`. What else listens at those addresses, a
/// database, a cloud's own interface, is nobody's to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    range: Cidr,
    port: u16,
}

/// Not an allowed place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a range of addresses with a port, for example 10.0.0.0/8:443 or [fd00::]/8:8443, once for each port: a range alone \
     would open everything that listens there"
)]
pub(super) struct AllowedError;

impl FromStr for Allowed {
    type Err = AllowedError;

    fn from_str(text: &str) -> Result<Self, AllowedError> {
        // An IPv6 address has colons of its own.
        let (range, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or(AllowedError)?;
                let (prefix, port) = rest.rsplit_once(':').ok_or(AllowedError)?;
                (format!("{address}{prefix}"), port)
            }
            None => {
                let (range, port) = text.split_once(':').ok_or(AllowedError)?;
                (range.to_owned(), port)
            }
        };
        // `u16` would also read "+443".
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0).ok_or(AllowedError)?;
        Ok(Self { range: range.parse().map_err(|_| AllowedError)?, port })
    }
}

/// Whether an address was allowed by name.
pub(super) fn is_listed(address: IpAddr, port: u16, allowed: &[Allowed]) -> bool {
    allowed.iter().any(|allowed| allowed.port == port && allowed.range.contains(address))
}

/// Whether an address is of the public Internet, or was allowed by name.
pub(super) fn may_be_asked(address: IpAddr, port: u16, allowed: &[Allowed]) -> bool {
    is_listed(address, port, allowed) || is_public(address)
}

/// The ports that are named, each once.
pub(super) fn ports(allowed: &[Allowed]) -> Vec<u16> {
    let mut ports: Vec<u16> = allowed.iter().map(|allowed| allowed.port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Resolves names for connections to one port, to addresses that may be asked there. Asked at each connection, so that a name
/// that was public when it was given is of no use later.
pub(super) struct Outside {
    pub(super) allowed: Arc<[Allowed]>,
    pub(super) port: u16,
}

impl Resolve for Outside {
    fn resolve(&self, name: Name) -> Resolving {
        let (allowed, port) = (Arc::clone(&self.allowed), self.port);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let good: Vec<SocketAddr> = found.filter(|address| may_be_asked(address.ip(), port, &allowed)).collect();
            if good.is_empty() {
                return Err("the name leads to no public address".into());
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// Not one of IANA's special-purpose registries (RFC 6890 and its successors), as far as anything could listen there.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                // Carriers' (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
                || a == 100 && (64..128).contains(&b)
                || [a, b, c] == [192, 0, 0]
                || a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            // An IPv4 address in another dress, in any of the ways that stacks take.
            let embedded = v6.to_ipv4().or_else(|| {
                let bytes = v6.octets();
                match segments {
                    [0x64, 0xff9b, ..] => Some([bytes[12], bytes[13], bytes[14], bytes[15]].into()),
                    [0x2002, ..] => Some([bytes[2], bytes[3], bytes[4], bytes[5]].into()),
                    _ => None,
                }
            });
            // Global unicast is 2000::/3 (RFC 4291); documentation and Teredo lie in it.
            let global = segments[0] & 0xe000 == 0x2000 && !matches!(segments, [0x2001, 0 | 0xdb8, ..]);
            match embedded {
                Some(v4) => is_public(IpAddr::V4(v4)),
                None => global,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_allowed_at_one_port() {
        for (text, inside, outside) in [
            ("10.0.0.0/8:443", "10.1.2.3", "192.168.0.1"),
            ("127.0.0.1:8080", "127.0.0.1", "127.0.0.2"),
            ("[fd00::]/8:8443", "fd12::1", "fe80::1"),
            ("[::1]:80", "::1", "::2"),
        ] {
            let allowed = [text.parse::<Allowed>().expect(text)];
            let port = ports(&allowed)[0];
            let [inside, outside] = [inside, outside].map(|address| address.parse().expect("an address"));
            assert!(may_be_asked(inside, port, &allowed) && !may_be_asked(outside, port, &allowed), "{text}");
            assert!(!may_be_asked(inside, port + 1, &allowed), "{text}: no other port");
        }
        for bad in [
            "",
            "10.0.0.0/8",
            "fd00::/8",
            "[fd00::]/8",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:+1",
            "a:1",
            "10.0.0.0/8:99999",
            "10.0.0.1/8:443",
        ] {
            assert_eq!(bad.parse::<Allowed>(), Err(AllowedError), "{bad}");
        }
    }

    #[test]
    fn only_the_public_internet_is_asked() {
        for public in ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "2001:0:1::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
    }
}
