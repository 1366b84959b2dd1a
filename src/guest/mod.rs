//! PID 1 of the appliance. [`boot`] runs the steps of boot in order; each other module implements one step or one duty.
//!
//! ```text
//! console ─ mounts ─ modules ─ events ─ config ─ disk ─ config on the disk ─ clock ─ network ─ catalog ─ entropy ─ auth ─ tls ─ listen
//!     ─▶ ready ─▶ serve ─▶ power off
//! ```
//!
//! Parsers and decisions are pure functions, with thin code around them that touches the machine. Each step that can fail has its
//! own error type, and [`Fault`](error::Fault) gives each error a stable code.

// Lengths and offsets come from disks, networks and the host, so every sum is checked or saturates.
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
