//! Where the registry is, and what follows when that changes. What enters are the guest's addresses; what leaves are endpoints, a
//! certificate that names them, and the event that says so. Connections that are open go on.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::causes;
use crate::proto::{Endpoints, Warning, event};
use crate::registry::events::Events;

use super::console;
use super::net::Network;
use super::tls::Renewal;

/// How the guest is reached at each of its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// `https` or `http`.
    pub scheme: &'static str,
    /// Port of the registry.
    pub port: NonZeroU16,
    /// Port of health, metrics and the CA, where they have one of their own.
    pub metrics_port: Option<NonZeroU16>,
}

impl Place {
    /// Where the registry is, and where health, metrics and the CA are, as URLs.
    #[must_use]
    pub fn endpoints(&self, addresses: &[IpAddr]) -> Endpoints {
        let urls = |scheme: &str, port: NonZeroU16| {
            addresses.iter().map(|address| format!("{scheme}://{}", SocketAddr::new(*address, port.get()))).collect()
        };
        Endpoints {
            endpoints: urls(self.scheme, self.port),
            metrics_endpoints: self.metrics_port.map_or_else(Vec::new, |port| urls("http", port)),
        }
    }
}

/// Takes every change of the addresses to the certificate and the launcher, as long as the guest serves.
pub async fn follow(mut network: Network, place: Place, renewal: Option<Renewal>, events: Events) {
    loop {
        let addresses = network.changed().await;
        if let Some(Err(error)) = renewal.as_ref().map(|renewal| renewal.renew(addresses)) {
            let message = causes::chain(&error);
            console::say(&format!("warning TLS {message}"));
            events.emit(event::Event::Warning(Warning { code: "TLS".to_owned(), message }));
        }
        let now = place.endpoints(addresses);
        console::say(&format!("the addresses changed: now at {}", now.endpoints.join(" ")));
        events.emit(event::Event::Endpoints(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_of_every_address() {
        let addresses = ["10.1.0.82".parse().unwrap(), "fd00::82".parse().unwrap()];
        let place = |metrics_port| Place { scheme: "https", port: NonZeroU16::MIN, metrics_port };
        let both = place(NonZeroU16::new(9090)).endpoints(&addresses);
        assert_eq!(both.endpoints, ["https://10.1.0.82:1", "https://[fd00::82]:1"]);
        assert_eq!(both.metrics_endpoints, ["http://10.1.0.82:9090", "http://[fd00::82]:9090"]);
        assert_eq!(place(None).endpoints(&addresses).metrics_endpoints, Vec::<String>::new());
    }
}
