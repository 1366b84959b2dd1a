//! Reports to the launcher: events, the boot timeline, heartbeats.

pub mod boot_timeline;
pub mod events;
pub mod heartbeat;
