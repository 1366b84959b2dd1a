//! PID 1's duties, one file each. [`boot`] holds the order of boot in one place; everything else is a step of it.
//!
//! ```text
//! console ─ mounts ─ modules ─ events ─ settings ─ disk ─ clock ─ network ─ catalog ─ entropy ─ tls ─ listen ─▶ serve ─▶ power off
//! ```
//!
//! Parsers and decisions are pure functions; what touches the machine is a thin shell around them. Every step that can fail has
//! an error of its own, and [`Fault`](error::Fault) gives each a stable code.

// Lengths and offsets come from disks, networks and the host: a sum of them is checked or saturates, and never wraps.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod access;
pub mod boot;
pub mod control;
pub mod disk;
pub mod early;
pub mod endpoint_watch;
pub mod error;
pub mod listeners;
pub mod net;
pub mod power;
pub mod report;
pub mod tls;
