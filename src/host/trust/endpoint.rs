//! Where nodes reach a registry, as a person or a program writes it: `HOST:PORT`, or a URL. Text enters, a checked [`Endpoint`] leaves.

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

    /// This endpoint, with `port` where it has none.
    #[must_use]
    pub fn with_port(self, port: Option<&str>) -> Self {
        let with = port.filter(|_| self.port().is_none()).and_then(|port| format!("{}:{port}", self.host).parse().ok());
        Self { host: with.unwrap_or(self.host), tls: self.tls }
    }
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
    fn what_is_no_endpoint_is_refused() {
        for text in ["", ":5000", "a b:1", "ftp://a.test:1", "a.test:0", "a.test:70000", "fd00::1"] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Host), "{text:?}");
        }
        assert_eq!("a.test:5000/v2".parse::<Endpoint>(), Err(EndpointError::Path));
    }
}
