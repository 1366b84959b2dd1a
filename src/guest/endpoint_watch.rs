//! Watches the guest's addresses. After each change it renews the certificate and sends an `endpoints` event. Open connections
//! continue.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::proto::event;
use crate::registry::telemetry::events::Events;
use crate::registry::tls::Leaves;
use crate::text;

use super::early::console;
use super::listeners::Listeners;

/// Runs while the guest serves. PID 1 sends the `changes`.
pub async fn run(mut changes: UnboundedReceiver<Vec<IpAddr>>, listeners: Listeners, leaves: Option<Arc<Leaves>>, events: Events) {
    while let Some(addresses) = changes.recv().await {
        if let Some(Err(error)) = leaves.as_ref().map(|leaves| leaves.set_addresses(&addresses)) {
            console::warn(&events, "TLS", text::chain(&error));
        }
        let endpoints = listeners.endpoints(&addresses);
        console::log(&format!("the addresses changed; serving at {}", endpoints.endpoints.join(" ")));
        events.emit(event::Event::Endpoints(endpoints));
    }
}
