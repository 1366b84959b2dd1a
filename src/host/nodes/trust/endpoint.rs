//! Parses where nodes reach a registry: `HOST:PORT` or a URL.

use std::net::IpAddr;
use std::str::FromStr;

use crate::oci::Host;

/// Where a registry is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and optional port.
    pub host: Host,
    /// Whether it serves TLS, if the text says so.
    pub tls: Option<bool>,
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is not a host.
    #[error("expected HOST:PORT or a URL of one: 10.1.0.82:5000, [fd00::1]:5000, https://registry.test:5000")]
    Host,
    /// It has a path.
    #[error("expected only a host and a port of a registry, without a path")]
    Path,
}

impl Endpoint {
    /// The port, if there is one.
    #[must_use]
    pub fn port(&self) -> Option<&str> {
        self.host.as_str().strip_prefix(self.host.name())?.strip_prefix(':')
    }

    /// Whether the address is unspecified (all addresses): clients cannot connect to it.
    fn is_unspecified(&self) -> bool {
        self.host.name().trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_unspecified())
    }

    /// This endpoint, with `port` if it has none.
    #[must_use]
    pub fn with_port(self, port: Option<&str>) -> Self {
        let with = port.filter(|_| self.port().is_none()).and_then(|port| format!("{}:{port}", self.host).parse().ok());
        Self { host: with.unwrap_or(self.host), tls: self.tls }
    }
}

/// The hosts by which nodes reach a registry, without duplicates: `hosts` (or its `own` endpoints if there are none), and `names`.
/// A host without a port, and every name, is combined with each port of `own`, in order. Endpoints with another protocol than the
/// first are left out, and so are names that cannot be part of an image name, such as wildcards.
pub(crate) fn reachable(own: &[Endpoint], hosts: &[Endpoint], names: &[String]) -> Vec<Host> {
    let tls = own.first().and_then(|endpoint| endpoint.tls);
    let own: Vec<&Endpoint> = own.iter().filter(|endpoint| endpoint.tls == tls).collect();
    let mut ports = distinct(own.iter().map(|endpoint| endpoint.port()));
    if ports.is_empty() {
        ports.push(None);
    }
    let named = names.iter().filter_map(|name| {
        let host = if name.contains(':') { format!("[{name}]").parse() } else { name.parse() };
        Some(Endpoint { host: host.ok()?, tls })
    });
    let named: Vec<Endpoint> = named.collect();
    let on_each_port = |endpoint: &Endpoint| ports.iter().map(|port| endpoint.clone().with_port(*port).host).collect::<Vec<_>>();
    let own = own.iter().filter(|endpoint| hosts.is_empty() && !endpoint.is_unspecified()).map(|endpoint| endpoint.host.clone());
    distinct(hosts.iter().flat_map(on_each_port).chain(own).chain(named.iter().flat_map(on_each_port)))
}

/// `items` without duplicates, in their order.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut seen, item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
        seen
    })
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (tls, host) = match text.split_once("://") {
            Some(("https", host)) => (Some(true), host),
            Some(("http", host)) => (Some(false), host),
            Some(_) => return Err(EndpointError::Host),
            None => (None, text),
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        if host.contains('/') {
            return Err(EndpointError::Path);
        }
        Ok(Self { host: host.parse().map_err(|_| EndpointError::Host)?, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        for (text, host, port, tls) in [
            ("10.1.0.82:5000", "10.1.0.82:5000", Some("5000"), None),
            ("https://[fd00::1]:5000/", "[fd00::1]:5000", Some("5000"), Some(true)),
            ("http://registry.test", "registry.test", None, Some(false)),
            ("[fd00::1]", "[fd00::1]", None, None),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port(), endpoint.tls), (host, port, tls), "{text}");
        }
        let with = |text: &str| text.parse::<Endpoint>().unwrap().with_port(Some("5000")).host.to_string();
        assert_eq!((with("[fd00::1]"), with("a.test:1")), ("[fd00::1]:5000".to_owned(), "a.test:1".to_owned()));
    }

    #[test]
    fn every_name_is_combined_with_every_port() {
        let endpoints = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Endpoint>>();
        let all = |own: &[&str], hosts: &[&str], names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            reachable(&endpoints(own), &endpoints(hosts), &names).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let two = ["https://127.0.0.1:35155", "https://10.1.0.82:5000", "http://10.1.0.82:80"];
        assert_eq!(all(&two, &[], &[]), ["127.0.0.1:35155", "10.1.0.82:5000"], "other protocols are left out");
        assert_eq!(
            all(&two, &[], &["registry.test", "10.1.0.82", "fd00::1", "*.example.test"]),
            [
                "127.0.0.1:35155",
                "10.1.0.82:5000",
                "registry.test:35155",
                "registry.test:5000",
                "10.1.0.82:35155",
                "[fd00::1]:35155",
                "[fd00::1]:5000"
            ]
        );
        assert_eq!(all(&two, &["a.test", "b.test:443"], &[]), ["a.test:35155", "a.test:5000", "b.test:443"]);
        assert_eq!(all(&[], &["a.test", "b.test:443"], &[]), ["a.test", "b.test:443"]);
        assert_eq!(all(&["https://0.0.0.0:5000", "https://[::]:5000"], &[], &["a.test"]), ["a.test:5000"]);
        assert_eq!(all(&["https://0.0.0.0:5000"], &[], &[]), [""; 0]);
    }

    #[test]
    fn invalid_endpoints_are_rejected() {
        for text in ["", ":5000", "a b:1", "ftp://a.test:1", "a.test:0", "a.test:70000", "fd00::1"] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Host), "{text:?}");
        }
        assert_eq!("a.test:5000/v2".parse::<Endpoint>(), Err(EndpointError::Path));
    }
}
