//! PID 1 of the appliance. [`boot`] runs the steps of boot in order; each other module implements one step or one duty.
//!
//! ```text
//! PID 1   console ─ mounts ─ modules ─ events ─ config ─ disk ─ config on the disk ─ clock ─ entropy ┬ network ─────┬──────────────┬─▶ power off
//! server                                              config ─ auth ─ CA ─ give up every privilege ─ catalog ─ tls ─ listen ─▶ ready ─ serve
//! ```
//!
//! Two processes run this program. PID 1 has every privilege and does what needs one: disks, network, clock, power. The [`server`] has none;
//! it alone has the keys and talks to clients.
//!
//! Parsers and decisions are pure functions, with thin code around them that touches the machine. Each step that can fail has its
//! own error type, and [`Fault`](error::Fault) gives each error a stable code.

// Lengths and offsets come from disks, networks and the host, so every sum is checked or saturates.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod access;
pub mod boot;
pub mod confine;
pub mod control;
pub mod disk;
pub mod early;
pub mod endpoint_watch;
pub mod error;
pub mod listeners;
pub mod messages;
pub mod net;
pub mod power;
pub mod report;
pub mod server;
pub mod supervisor;
pub mod tls;
