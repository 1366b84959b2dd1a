//! Where the registry is, and what follows when that changes. What enters are the guest's addresses; what leaves are endpoints, a
//! certificate that names them, and the event that says so. Connections that are open go on.

use std::sync::Arc;

use crate::proto::event;
use crate::registry::telemetry::events::Events;
use crate::registry::tls::Leaves;
use crate::text;

use super::early::console;
use super::listeners::Listeners;
use super::net::Network;

/// Takes every change of the addresses to the certificate and the launcher, as long as the guest serves.
pub async fn follow(mut network: Network, listeners: Listeners, leaves: Option<Arc<Leaves>>, events: Events) {
    loop {
        let addresses = network.changed().await;
        if let Some(Err(error)) = leaves.as_ref().map(|leaves| leaves.set_addresses(addresses)) {
            console::warn(&events, "TLS", text::chain(&error));
        }
        let now = listeners.endpoints(addresses);
        console::say(&format!("the addresses changed: now at {}", now.endpoints.join(" ")));
        events.emit(event::Event::Endpoints(now));
    }
}
