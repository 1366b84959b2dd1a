//! What the registry reports: request events, warnings, metrics and health.

pub mod events;
pub(crate) mod health;
pub mod log;
pub mod metrics;
