//! The peer of a connection: its address, its transport, and the endpoints that its listener serves.

use std::net::{Ipv6Addr, SocketAddr};

use http::header::HOST;
use http::request::Parts;

use crate::oci::Host;

/// Which endpoints a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Surface {
    /// The registry, health, metrics and the CA.
    #[default]
    All,
    /// The registry alone: the other endpoints have a listener of their own.
    Registry,
    /// Health, metrics and the CA alone, without authentication.
    Observability,
}

/// A connected client.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The client's address.
    pub peer: SocketAddr,
    /// The address of this machine that it connected to.
    pub local: SocketAddr,
    /// Whether the connection uses TLS.
    pub encrypted: bool,
    /// From the TLS layer: the client has a certificate of the client CA. In [`Auth`](crate::registry::auth::Auth): that certificate
    /// replaces credentials.
    pub certified: bool,
    /// The endpoints that its listener serves.
    pub surface: Surface,
}

impl Client {
    /// The URL of `path` on this registry, with the host name that the client uses.
    #[must_use]
    pub fn url(&self, head: &Parts, path: &str) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        match host(head) {
            Some(host) => format!("{scheme}://{host}{path}"),
            None => format!("{scheme}://{}{path}", SocketAddr::new(self.local.ip().to_canonical(), self.local.port())),
        }
    }
}

/// The host that a request is addressed to: its `:authority` or `Host`.
#[must_use]
pub fn host(head: &Parts) -> Option<Host> {
    let authority = head.uri.authority().map(http::uri::Authority::as_str).or_else(|| head.headers.get(HOST)?.to_str().ok());
    authority.and_then(|host| host.parse().ok())
}

/// Whether a `Host` header or an `:authority` is well-formed: a name, an IPv4 address or an IPv6 address in brackets, and an optional port
/// (RFC 3986, sections 3.2.2 and 3.2.3). An empty host is allowed (RFC 9112, section 3.2). Characters that URIs allow and domain names do
/// not, such as a comma, are not.
#[must_use]
pub fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (name, port) = match text.rsplit_once(':') {
        // The last colon is part of an IPv6 address.
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
    fn only_well_formed_hosts_are_accepted() {
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
    fn url_has_the_host_that_the_client_sent() {
        assert_eq!(url(true, "/v2/", Some("Registry.test:5000")), "https://registry.test:5000/token");
        assert_eq!(url(false, "/v2/", Some("[::1]:5000")), "http://[::1]:5000/token");
        assert_eq!(url(true, "https://docker.io/v2/", None), "https://docker.io/token", "HTTP/2");
        for unusable in [None, Some("a\"b"), Some(""), Some("a b")] {
            assert_eq!(url(true, "/v2/", unusable), "https://10.1.0.82:5000/token", "{unusable:?}");
        }
    }
}
