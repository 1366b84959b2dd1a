//! What the registry tells its operator: request events, the log, metrics and health.

pub mod events;
pub(crate) mod health;
pub mod log;
pub mod metrics;
