//! Where nodes reach a registry, as a person or a program writes it: `HOST:PORT`, or a URL. Text enters, a checked [`Endpoint`] leaves.

use std::net::IpAddr;
use std::str::FromStr;

use crate::oci::Host;

/// A registry's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port.
    pub host: Host,
    /// Whether it is TLS that is spoken there, where the text says so.
    pub tls: Option<bool>,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not a host.
    #[error("expected HOST:PORT or a URL of one: 10.1.0.82:5000, [fd00::1]:5000, https://registry.test:5000")]
    Host,
    /// More than a host.
    #[error("a registry is a host and a port; a path is not expected")]
    Path,
}

impl Endpoint {
    /// The port in digits, where one is written.
    #[must_use]
    pub fn port(&self) -> Option<&str> {
        self.host.as_str().strip_prefix(self.host.name())?.strip_prefix(':')
    }

    /// Whether it is where a server listens on every address: no client reaches it there.
    fn is_unspecified(&self) -> bool {
        self.host.name().trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_unspecified())
    }

    /// This endpoint, with `port` where it has none.
    #[must_use]
    pub fn with_port(self, port: Option<&str>) -> Self {
        let with = port.filter(|_| self.port().is_none()).and_then(|port| format!("{}:{port}", self.host).parse().ok());
        Self { host: with.unwrap_or(self.host), tls: self.tls }
    }
}

/// Where nodes reach a registry that is at `places`, each once: at `hosts`, or if there are none at `places`; and by each of `names`. A
/// host without a port, and a name, is reached on each port of `places`, the first one's first. `places` with another protocol than the
/// first are left out, and so are names that no image's name can have before it, such as those of wildcards.
pub(crate) fn reached(places: &[Endpoint], hosts: &[Endpoint], names: &[String]) -> Vec<Host> {
    let tls = places.first().and_then(|place| place.tls);
    let places: Vec<&Endpoint> = places.iter().filter(|place| place.tls == tls).collect();
    let mut ports = distinct(places.iter().map(|place| place.port()));
    if ports.is_empty() {
        ports.push(None);
    }
    let named = names.iter().filter_map(|name| {
        let host = if name.contains(':') { format!("[{name}]").parse() } else { name.parse() };
        Some(Endpoint { host: host.ok()?, tls })
    });
    let named: Vec<Endpoint> = named.collect();
    let on_each_port = |endpoint: &Endpoint| ports.iter().map(|port| endpoint.clone().with_port(*port).host).collect::<Vec<_>>();
    let own = places.iter().filter(|place| hosts.is_empty() && !place.is_unspecified()).map(|place| place.host.clone());
    distinct(hosts.iter().flat_map(on_each_port).chain(own).chain(named.iter().flat_map(on_each_port)))
}

/// Each of `items` once, in their order.
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
    fn endpoints_are_read() {
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
    fn every_name_is_reached_on_every_port() {
        let endpoints = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Endpoint>>();
        let all = |places: &[&str], hosts: &[&str], names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            reached(&endpoints(places), &endpoints(hosts), &names).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let two = ["https://127.0.0.1:35155", "https://10.1.0.82:5000", "http://10.1.0.82:80"];
        assert_eq!(all(&two, &[], &[]), ["127.0.0.1:35155", "10.1.0.82:5000"], "what speaks another protocol is left out");
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
    fn what_is_no_endpoint_is_refused() {
        for text in ["", ":5000", "a b:1", "ftp://a.test:1", "a.test:0", "a.test:70000", "fd00::1"] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Host), "{text:?}");
        }
        assert_eq!("a.test:5000/v2".parse::<Endpoint>(), Err(EndpointError::Path));
    }
}
