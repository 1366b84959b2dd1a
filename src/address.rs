//! Parses MAC addresses, addresses with a prefix length, and DNS names. Both programs check configs with it: the launcher before it starts
//! a guest, and the guest itself.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest DNS name, in bytes (RFC 1035, section 2.3.4, without the root's dot and the length byte).
const NAME_MAX: usize = 253;
/// Valid MTUs in bytes: from the minimum for IPv6 (RFC 8200, section 5) to the largest IPv4 packet.
pub const MTU: std::ops::RangeInclusive<u32> = 1280..=65535;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// An address with the prefix length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// The prefix length in bits.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `other` is in the same network.
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
    /// Whether an interface can have this address: it is neither a multicast address nor all zeros.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

/// Whether a certificate can have this subject alternative name: a DNS name, a wildcard or an IP address.
#[must_use]
pub fn is_san(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_dns_name(text) || is_wildcard(text)
}

/// Checks a subject alternative name given on the command line.
///
/// # Errors
/// Fails with the expected form if [`is_san`] does not hold.
pub fn san(text: &str) -> Result<String, &'static str> {
    match (is_san(text), text.contains('*')) {
        (true, _) => Ok(text.to_owned()),
        (false, true) => Err("expected * as the whole first label, before two labels or more, such as *.example.test"),
        (false, false) => Err("expected a DNS name or an IP address"),
    }
}

/// Whether this is a wildcard name (RFC 9525, section 6.3): its first label is `*`, and two or more labels follow. Clients match no wildcard
/// directly below a top-level domain.
#[must_use]
pub fn is_wildcard(text: &str) -> bool {
    let parent = text.strip_prefix("*.").filter(|parent| parent.contains('.') && is_dns_name(parent));
    parent.is_some() && text.len() <= NAME_MAX
}

/// A label of a DNS name: 1 to 63 letters, digits and hyphens, no hyphen at the ends (RFC 1123, section 2.1).
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether this is a DNS name of letters, digits and hyphens (RFC 1123, section 2.1) whose last label is not a number.
#[must_use]
pub fn is_dns_name(text: &str) -> bool {
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= NAME_MAX && text.split('.').all(is_dns_label) && !last_is_number
}

/// The text is not a MAC address, or not an address with a prefix length.
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
    fn network_contains_its_addresses_only() {
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
    fn wildcard_must_be_the_whole_first_label() {
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
    fn multicast_interface_address_is_rejected() {
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
