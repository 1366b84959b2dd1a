//! Sends heartbeat events with the registry's counters. It runs as a task on the server's runtime, so that a stuck runtime stops
//! the heartbeat.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::proto::{Heartbeat, event};
use crate::registry::api::handler::Registry;
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::metrics::Totals;

use crate::guest::early::machine;

/// Sends a heartbeat every `interval`, the first one after `interval`.
pub async fn run(interval: Duration, registry: Arc<Registry>, events: Events) {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    // Missed heartbeats are not made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let metrics = registry.metrics();
        let Totals { requests, bytes } = registry.totals();
        events.emit(event::Event::Heartbeat(Heartbeat {
            uptime: machine::uptime(),
            requests,
            bytes,
            connections: metrics.connections(),
            in_flight: metrics.in_flight(),
            memory_used: machine::memory().used,
        }));
    }
}
