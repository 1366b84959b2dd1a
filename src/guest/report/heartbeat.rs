//! The heartbeat. What enters is the registry's counts; what leaves, as often as the config says, is an event with them. It is a task
//! among those that serve: where these no longer run, it does not either.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::proto::{Heartbeat, event};
use crate::registry::api::handler::Registry;
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::metrics::Totals;

use crate::guest::early::machine;

/// Beats as long as the guest serves, first after `every`.
pub async fn beat(every: Duration, registry: Arc<Registry>, events: Events) {
    let mut ticks = interval_at(Instant::now() + every, every);
    // Beats that were missed are not made up for.
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
