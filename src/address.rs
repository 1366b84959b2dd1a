//! Addresses and names of machines on a network, parsed. Texts enter, addresses leave, and whether a text is a name. Both programs
//! hold configs against it: the guest what it is told, the launcher what it is about to tell.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest DNS name, in bytes (RFC 1035, section 2.3.4, without the root's dot and the length byte).
const NAME_MAX: usize = 253;
/// Range of an MTU in bytes: what IPv6 needs (RFC 8200, section 5), and what an IPv4 packet can have.
pub const MTU: std::ops::RangeInclusive<u32> = 1280..=65535;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `other` is in the network of this address.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        let network = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)).checked_shr(32 - u32::from(self.prefix.min(32))),
            IpAddr::V6(address) => u128::from(address).checked_shr(128 - u32::from(self.prefix.min(128))),
        };
        self.address.is_ipv4() == other.is_ipv4() && network(self.address) == network(other)
    }
}

impl Mac {
    /// Whether one interface can have it: it is neither a group's nor all zeros.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// A name that a certificate can be for.
#[must_use]
pub fn is_san(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_dns_name(text) || is_wildcard(text)
}

/// The same, for a command line.
///
/// # Errors
/// What is expected of the text.
pub fn san(text: &str) -> Result<String, &'static str> {
    match (is_san(text), text.contains('*')) {
        (true, _) => Ok(text.to_owned()),
        (false, true) => Err("expected * as the whole first label, before two labels or more, such as *.example.test"),
        (false, false) => Err("expected a DNS name or an IP address"),
    }
}

/// A name whose `*` stands for any one label (RFC 9525, section 6.3): the first label as a whole. Two labels or more follow, since
/// clients match no wildcard of all that is below a top-level domain.
#[must_use]
pub fn is_wildcard(text: &str) -> bool {
    let below = text.strip_prefix("*.").filter(|below| below.contains('.') && is_dns_name(below));
    below.is_some() && text.len() <= NAME_MAX
}

/// A DNS name of letters, digits and hyphens (RFC 1123, section 2.1), whose last label is no number.
#[must_use]
pub fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= NAME_MAX && text.split('.').all(is_label) && !last_is_number
}

/// A text that is no MAC address or no address with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnAddress;

impl FromStr for Mac {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let byte = |part: &str| {
            let good = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            good.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<_>> = text.split(':').map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(NotAnAddress)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Cidr {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let (address, prefix) = text.split_once('/').ok_or(NotAnAddress)?;
        let address: IpAddr = address.parse().map_err(|_| NotAnAddress)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let plain = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = Some(prefix).filter(|_| plain).and_then(|prefix| prefix.parse().ok()).filter(|prefix| *prefix <= longest);
        let usable = !address.is_unspecified() && !address.is_multicast();
        prefix.filter(|_| usable).map(|prefix| Self { address, prefix }).ok_or(NotAnAddress)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_only() {
        for (own, other, holds) in [
            ("10.1.0.82/16", "10.1.255.1", true),
            ("10.1.0.82/16", "10.2.0.1", false),
            ("10.1.0.82/32", "10.1.0.82", true),
            ("10.1.0.82/32", "10.1.0.83", false),
            ("10.1.0.82/0", "192.0.2.1", true),
            ("10.1.0.82/0", "::1", false),
            ("2001:db8::1/64", "2001:db8::ffff:1", true),
            ("2001:db8::1/64", "2001:db8:1::1", false),
            ("2001:db8::1/0", "fe80::1", true),
        ] {
            assert_eq!(own.parse::<Cidr>().unwrap().contains(other.parse().unwrap()), holds, "{own} {other}");
        }
    }

    #[test]
    fn a_wildcard_is_the_first_label_as_a_whole() {
        for good in ["*.example.test", "*.a.b.c", "*.EXAMPLE.test"] {
            assert_eq!(san(good).as_deref(), Ok(good));
        }
        let long = format!("*.{}test", "a.".repeat(124));
        for bad in
            ["*", "*.", "*.test", "*..test", "a.*.b", "f*o.b", "*a.b.c", "*.*.b", "**.b.c", "*.1.2", "a.b.*", "*.a_b.test", &long]
        {
            let expected = "expected * as the whole first label, before two labels or more, such as *.example.test";
            assert_eq!(san(bad), Err(expected), "{bad}");
        }
        for bad in ["", "a b", "1.2.3", "-a.test"] {
            assert_eq!(san(bad), Err("expected a DNS name or an IP address"), "{bad}");
        }
    }

    #[test]
    fn a_group_s_address_is_no_interface_s() {
        for (mac, usable) in [
            ("52:54:00:12:34:56", true),
            ("01:00:5e:00:00:01", false),
            ("ff:ff:ff:ff:ff:ff", false),
            ("00:00:00:00:00:00", false),
        ] {
            assert_eq!(mac.parse::<Mac>().unwrap().is_usable(), usable, "{mac}");
        }
    }
}
