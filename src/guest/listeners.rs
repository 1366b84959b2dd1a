//! The places that the guest serves at. What enters are the settings; what leaves are bound sockets, and the URLs that lead to them at
//! the addresses that the guest has. It accepts nobody.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::proto::Endpoints;
use crate::registry::listen::client::Surface;
use crate::registry::listen::listener::{Listener, Transport};

use super::error::Fault;
use crate::config::settings::{Settings, TlsMode};

/// Every place.
#[derive(Debug, Clone)]
pub struct Listeners {
    /// Of the registry, that of `port` first.
    registry: Vec<Place>,
    /// Of health, metrics and the CA, where they have one of their own.
    observability: Option<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// None: every address.
    address: Option<IpAddr>,
    port: NonZeroU16,
    plain: bool,
}

impl Listeners {
    /// The places that `settings` want.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let every = |port, plain| Place { address: None, port, plain };
        let further = settings.listeners.iter();
        let further = further.map(|one| Place { address: one.address, port: one.port, plain: one.plain });
        Self {
            registry: [every(settings.port, settings.tls == TlsMode::Off)].into_iter().chain(further).collect(),
            observability: settings.metrics_port.map(|port| every(port, true)),
        }
    }

    /// Listens at each of them; `transport` is what the registry speaks where it is not plain.
    ///
    /// # Errors
    /// [`Fault::Listen`] and [`Fault::ListenAt`], for the first that is not to be had.
    pub fn open(&self, transport: &Transport) -> Result<Vec<Listener>, Fault> {
        let surface = if self.observability.is_some() { Surface::Registry } else { Surface::All };
        let registry = self.registry.iter().map(|place| (place, surface));
        let all = registry.chain(self.observability.iter().map(|place| (place, Surface::Observability)));
        all.map(|(place, surface)| {
            let transport = if place.plain { Transport::Plain } else { transport.clone() };
            place.open(transport, surface)
        })
        .collect()
    }

    /// Where they are, as URLs, for a guest with `addresses`.
    #[must_use]
    pub fn endpoints(&self, addresses: &[IpAddr]) -> Endpoints {
        let urls = |places: &[Place]| places.iter().flat_map(|place| place.urls(addresses)).collect();
        let (first, further) = self.registry.split_at(1.min(self.registry.len()));
        Endpoints {
            endpoints: urls(first),
            metrics_endpoints: urls(self.observability.as_slice()),
            further_endpoints: urls(further),
        }
    }
}

impl Place {
    fn urls(self, addresses: &[IpAddr]) -> impl Iterator<Item = String> {
        let scheme = if self.plain { "http" } else { "https" };
        let here = addresses.iter().filter(move |address| self.is_on(**address));
        here.map(move |address| format!("{scheme}://{}", SocketAddr::new(*address, self.port.get())))
    }

    fn is_on(self, address: IpAddr) -> bool {
        match self.address {
            None => true,
            Some(every) if every.is_unspecified() => every.is_ipv6() || address.is_ipv4(),
            Some(own) => own == address,
        }
    }

    fn open(self, transport: Transport, surface: Surface) -> Result<Listener, Fault> {
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
    use crate::config::{Layer, Origin};

    use super::*;

    fn listeners(json: &str) -> Listeners {
        let layer = Layer::from_json(Origin::FwCfg, json.as_bytes()).unwrap();
        Listeners::of(&layer.settings(Origin::FwCfg).unwrap())
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
    fn without_tls_all_are_plain() {
        let plain = listeners(r#"{"port": 1, "tls": {"mode": "OFF"}, "listeners": [{"port": 2}]}"#);
        let Endpoints { endpoints, further_endpoints, .. } = plain.endpoints(&["10.1.0.82".parse().unwrap()]);
        assert_eq!((endpoints, further_endpoints), (vec!["http://10.1.0.82:1".into()], vec!["http://10.1.0.82:2".into()]));
    }

    #[tokio::test]
    async fn both_families_are_listened_for_and_a_port_in_use_is_refused() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let wanted = listeners(&format!(r#"{{"port": {free}}}"#));
        let opened = wanted.open(&Transport::Plain).unwrap();
        for address in ["127.0.0.1", "::1"] {
            tokio::net::TcpStream::connect((address, free)).await.unwrap();
        }
        let fault = wanted.open(&Transport::Plain).unwrap_err();
        assert_eq!(fault.chain(), format!("listen on TCP port {free}: Address already in use (os error 98)"));
        drop(opened);
    }

    #[tokio::test]
    async fn one_address_alone_and_one_that_is_not_ours() {
        let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap().port();
        let at =
            |address: &str| Place { address: Some(address.parse().unwrap()), port: NonZeroU16::new(free).unwrap(), plain: true };
        let _opened = at("127.0.0.2").open(Transport::Plain, Surface::All).unwrap();
        tokio::net::TcpStream::connect(("127.0.0.2", free)).await.unwrap();
        tokio::net::TcpStream::connect(("127.0.0.3", free)).await.unwrap_err();
        let fault = at("192.0.2.1").open(Transport::Plain, Surface::All).unwrap_err();
        let said = format!("listen on TCP port {free} of 192.0.2.1: Cannot assign requested address (os error 99)");
        assert_eq!((fault.chain(), fault.code()), (said, "NO_PORT"));
    }
}
