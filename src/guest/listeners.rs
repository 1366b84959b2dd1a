//! Binds the guest's listening sockets and lists their URLs.

use std::net::{IpAddr, SocketAddr};

use crate::proto::Endpoints;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport};

use super::error::Fault;
use crate::config::settings::{ListenAddress, Settings, TlsMode};

/// All listening addresses.
#[derive(Debug, Clone)]
pub struct Listeners {
    /// The registry's addresses. The one of `port` is the first.
    registry: Vec<ListenAddress>,
    /// The address of health, metrics and the CA, if they have their own port.
    observability: Option<ListenAddress>,
}

impl Listeners {
    /// The addresses in `settings`.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let wildcard = |port, plain| ListenAddress { address: None, port, plain };
        let first = wildcard(settings.port, settings.tls == TlsMode::Off);
        Self {
            registry: [first].into_iter().chain(settings.listeners.iter().copied()).collect(),
            observability: settings.metrics_port.map(|port| wildcard(port, true)),
        }
    }

    /// Listens on all addresses. `transport` is the registry's protocol unless an address is plain.
    ///
    /// # Errors
    /// Fails with [`Fault::Listen`] or [`Fault::ListenAt`] for the first port that cannot be used.
    pub fn listen(&self, transport: &Transport) -> Result<Vec<Listener>, Fault> {
        let surface = if self.observability.is_some() { Surface::Registry } else { Surface::All };
        let registry = self.registry.iter().map(|address| (address, surface));
        let all = registry.chain(self.observability.iter().map(|address| (address, Surface::Observability)));
        all.map(|(address, surface)| {
            let transport = if address.plain { Transport::Plain } else { transport.clone() };
            address.listen(transport, surface)
        })
        .collect()
    }

    /// The URLs of all listeners for a guest with `addresses`.
    #[must_use]
    pub fn endpoints(&self, addresses: &[IpAddr]) -> Endpoints {
        let urls = |listeners: &[ListenAddress]| listeners.iter().flat_map(|listener| listener.urls(addresses)).collect();
        let (first, further) = self.registry.split_at(1.min(self.registry.len()));
        Endpoints {
            endpoints: urls(first),
            metrics_endpoints: urls(self.observability.as_slice()),
            further_endpoints: urls(further),
        }
    }
}

impl ListenAddress {
    fn urls(self, addresses: &[IpAddr]) -> impl Iterator<Item = String> {
        let scheme = if self.plain { "http" } else { "https" };
        let here = addresses.iter().filter(move |address| self.is_on(**address));
        here.map(move |address| format!("{scheme}://{}", SocketAddr::new(*address, self.port.get())))
    }

    fn is_on(self, address: IpAddr) -> bool {
        match self.address {
            None => true,
            Some(wildcard) if wildcard.is_unspecified() => wildcard.is_ipv6() || address.is_ipv4(),
            Some(own) => own == address,
        }
    }

    fn listen(self, transport: Transport, surface: Surface) -> Result<Listener, Fault> {
        let Self { address, port, .. } = self;
        match address {
            None => Listener::bind_everywhere(port.get(), transport, surface).map_err(|source| Fault::Listen { port, source }),
            Some(address) => Listener::bind(SocketAddr::new(address, port.get()), transport, surface)
                .map_err(|source| Fault::ListenAt { address, port, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use crate::config::{Origin, PartialConfig};

    use super::*;

    fn listeners(json: &str) -> Listeners {
        let partial = PartialConfig::from_json(Origin::FwCfg, json.as_bytes()).unwrap();
        Listeners::of(&partial.settings(Origin::FwCfg).unwrap())
    }

    #[test]
    fn endpoints_are_urls_of_every_address() {
        let addresses = ["10.1.0.82".parse().unwrap(), "fd00::82".parse().unwrap()];
        let one = listeners(r#"{"port": 1, "metricsPort": 9090}"#).endpoints(&addresses);
        assert_eq!(one.endpoints, ["https://10.1.0.82:1", "https://[fd00::82]:1"]);
        assert_eq!(one.metrics_endpoints, ["http://10.1.0.82:9090", "http://[fd00::82]:9090"]);
        assert_eq!(one.further_endpoints, Vec::<String>::new());

        let many = r#"{"port": 1, "listeners": [{"port": 2, "transport": "PLAIN"}, {"port": 3, "address": "fd00::82"},
            {"port": 4, "address": "0.0.0.0"}, {"port": 5, "address": "10.9.9.9"}]}"#;
        let many = listeners(many).endpoints(&addresses);
        assert_eq!((many.endpoints.len(), many.metrics_endpoints.len()), (2, 0));
        let further = ["http://10.1.0.82:2", "http://[fd00::82]:2", "https://[fd00::82]:3", "https://10.1.0.82:4"];
        assert_eq!(many.further_endpoints, further);
    }

    #[test]
    fn all_endpoints_are_http_without_tls() {
        let plain = listeners(r#"{"port": 1, "tls": {"mode": "OFF"}, "listeners": [{"port": 2}]}"#);
        let Endpoints { endpoints, further_endpoints, .. } = plain.endpoints(&["10.1.0.82".parse().unwrap()]);
        assert_eq!((endpoints, further_endpoints), (vec!["http://10.1.0.82:1".into()], vec!["http://10.1.0.82:2".into()]));
    }

    #[tokio::test]
    async fn both_families_are_served_and_a_port_in_use_is_an_error() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listeners = listeners(&format!(r#"{{"port": {free}}}"#));
        let opened = listeners.listen(&Transport::Plain).unwrap();
        for address in ["127.0.0.1", "::1"] {
            tokio::net::TcpStream::connect((address, free)).await.unwrap();
        }
        let fault = listeners.listen(&Transport::Plain).unwrap_err();
        assert_eq!(fault.chain(), format!("cannot listen on TCP port {free}: Address already in use (os error 98)"));
        drop(opened);
    }

    #[tokio::test]
    async fn listener_on_one_address_serves_no_other() {
        let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
        let at = |address: &str| ListenAddress {
            address: Some(address.parse().unwrap()),
            port: NonZeroU16::new(free).unwrap(),
            plain: true,
        };
        let _opened = at("127.0.0.2").listen(Transport::Plain, Surface::All).unwrap();
        tokio::net::TcpStream::connect(("127.0.0.2", free)).await.unwrap();
        tokio::net::TcpStream::connect(("127.0.0.3", free)).await.unwrap_err();
        let fault = at("192.0.2.1").listen(Transport::Plain, Surface::All).unwrap_err();
        let message = format!("cannot listen on TCP port {free} of 192.0.2.1: Cannot assign requested address (os error 99)");
        assert_eq!((fault.chain(), fault.code()), (message, "NO_PORT"));
    }
}
