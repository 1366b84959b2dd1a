//! The other end of a connection: where it is, how it is connected, and what it may ask for there. Pure.

use std::net::{Ipv6Addr, SocketAddr};

use http::header::HOST;
use http::request::Parts;

use crate::oci::Host;

/// What a listener answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Surface {
    /// The registry, and beside it health, metrics and the CA.
    #[default]
    All,
    /// The registry alone: the rest has a listener of its own.
    Registry,
    /// Health, metrics and the CA alone, for anybody.
    Observability,
}

/// A client.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Its address.
    pub peer: SocketAddr,
    /// The address here that it connected to.
    pub local: SocketAddr,
    /// Whether it speaks TLS.
    pub encrypted: bool,
    /// Whether it has shown a certificate of the client CA; to what decides who may pull, whether that stands in for credentials.
    pub certified: bool,
    /// What it is answered.
    pub surface: Surface,
}

impl Client {
    /// The URL of `path` here, by the name that the client uses for this registry.
    #[must_use]
    pub fn url(&self, head: &Parts, path: &str) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        match host(head) {
            Some(host) => format!("{scheme}://{host}{path}"),
            None => format!("{scheme}://{}{path}", SocketAddr::new(self.local.ip().to_canonical(), self.local.port())),
        }
    }
}

/// The host that the client says it speaks to.
#[must_use]
pub fn host(head: &Parts) -> Option<Host> {
    let authority = head.uri.authority().map(http::uri::Authority::as_str).or_else(|| head.headers.get(HOST)?.to_str().ok());
    authority.and_then(|host| host.parse().ok())
}

/// Whether a `Host` header or an `:authority` can be one: a name, an IPv4 address or an IPv6 address in brackets, and a port or none
/// (RFC 3986, sections 3.2.2 and 3.2.3). A client without a host to name sends an empty one (RFC 9112, section 3.2). Names with characters
/// that URIs allow and domain names do not, such as the comma between two hosts, are refused.
#[must_use]
pub fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (name, port) = match text.rsplit_once(':') {
        // The colon is one of an address.
        Some((_, rest)) if rest.ends_with(']') => (text, ""),
        Some((name, port)) => (name, port),
        None => (text, ""),
    };
    let is_port = port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_name = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
    };
    is_port && is_name && (!name.is_empty() || text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_cannot_be_are_told_from_those_that_can() {
        for host in ["", "a", "a:", "a:0", "A.b-c_d~1.:65535", "10.1.0.7:5000", "[::1]", "[::1]:", "[::1]:5000", "xn--4ca.test"] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            " ",
            "a b/c?",
            "a@b",
            "a:xx",
            "a:+1",
            "a:65536",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[a]",
            "[]",
            "[fe80::1%25eth0]",
            "a,b",
            "a, b",
            ":5000",
            "a:1:2",
            "a/b",
            "a%2db",
            "a?b",
            "a#b",
            "a\"b",
            "a\tb",
            "\u{e4}",
            "http://a",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
        assert!(!is_host(b"\xff"));
    }

    fn url(encrypted: bool, uri: &str, host: Option<&str>) -> String {
        let address = |text: &str| text.parse().unwrap();
        let (peer, local) = (address("10.1.0.7:40112"), address("10.1.0.82:5000"));
        let client = Client { peer, local, encrypted, certified: false, surface: Surface::All };
        let mut request = http::Request::get(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        client.url(&request.body(()).unwrap().into_parts().0, "/token")
    }

    #[test]
    fn a_url_as_the_client_knows_it() {
        assert_eq!(url(true, "/v2/", Some("Registry.test:5000")), "https://registry.test:5000/token");
        assert_eq!(url(false, "/v2/", Some("[::1]:5000")), "http://[::1]:5000/token");
        assert_eq!(url(true, "https://docker.io/v2/", None), "https://docker.io/token", "HTTP/2");
        for unusable in [None, Some("a\"b"), Some(""), Some("a b")] {
            assert_eq!(url(true, "/v2/", unusable), "https://10.1.0.82:5000/token", "{unusable:?}");
        }
    }
}
