//! Where the registry is, and what follows when that changes. What enters are the guest's addresses; what leaves are endpoints, a
//! certificate that names them, and the event that says so. Connections that are open go on.

use crate::proto::event;
use crate::registry::telemetry::events::Events;
use crate::text;

use super::early::console;
use super::listeners::Listeners;
use super::net::Network;
use super::tls::Renewal;

/// Takes every change of the addresses to the certificate and the launcher, as long as the guest serves.
pub async fn follow(mut network: Network, listeners: Listeners, renewal: Option<Renewal>, events: Events) {
    loop {
        let addresses = network.changed().await;
        if let Some(Err(error)) = renewal.as_ref().map(|renewal| renewal.renew(addresses)) {
            console::warn(&events, "TLS", text::chain(&error));
        }
        let now = listeners.endpoints(addresses);
        console::say(&format!("the addresses changed: now at {}", now.endpoints.join(" ")));
        events.emit(event::Event::Endpoints(now));
    }
}
