//! Parses the host address of a forwarded port, `[ADDR:]PORT`.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

/// A host address, `[ADDR:]PORT`. The default of ADDR is 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish(pub SocketAddrV4);

/// Why the text is not a host address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Bad address.
    #[error("ADDR is an IPv4 address of this machine, such as 127.0.0.1 or 0.0.0.0")]
    Address,
    /// QEMU's user network does not forward from IPv6.
    #[error("QEMU's user network forwards from IPv4 addresses only: give one, such as 127.0.0.1")]
    Version6,
    /// Bad port.
    #[error("PORT is a number from 0 to 65535")]
    Port,
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let (address, port) = match text.rsplit_once(':') {
            Some((address, port)) => (Some(address), port),
            None => (None, text),
        };
        let address = match address {
            None => Ipv4Addr::LOCALHOST,
            Some(address) => match address.trim_start_matches('[').trim_end_matches(']').parse() {
                Ok(IpAddr::V4(address)) => address,
                Ok(IpAddr::V6(_)) => return Err(PublishError::Version6),
                Err(_) => return Err(PublishError::Address),
            },
        };
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits).ok_or(PublishError::Port)?;
        Ok(Self(SocketAddrV4::new(address, port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_addresses_are_parsed() {
        for (text, address) in [
            ("0", "127.0.0.1:0"),
            ("5000", "127.0.0.1:5000"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:65535", "0.0.0.0:65535"),
            ("10.1.0.82:443", "10.1.0.82:443"),
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().0.to_string(), address);
        }
    }

    #[test]
    fn bad_host_addresses_are_refused() {
        for (text, error) in [
            ("", PublishError::Port),
            ("+5", PublishError::Port),
            ("65536", PublishError::Port),
            ("-1", PublishError::Port),
            ("127.0.0.1", PublishError::Port),
            ("127.0.0.1:", PublishError::Port),
            (":5000", PublishError::Address),
            ("localhost:5000", PublishError::Address),
            ("127.0.0.1:5000:5000", PublishError::Address),
            ("[::1]:5000", PublishError::Version6),
            (":::5000", PublishError::Version6),
        ] {
            assert_eq!(text.parse::<Publish>(), Err(error), "{text:?}");
        }
    }
}
