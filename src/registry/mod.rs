//! The read-only OCI registry server that both programs use.
//!
//! ```text
//! listen:   server ─▶ acceptor ─▶ connection ─ tls ─▶ write_timeout ─▶ admission ─▶ activity
//!                                                                                      │
//! api:                                    route ─▶ auth ─▶ handler ─▶ resolve ◀────────┘
//!                                                     │
//! content:                     snapshot (catalog, manifest_cache, store) ─▶ body ─▶ buffers
//!                                                                             │
//! telemetry:                                                   log ─▶ events, metrics
//! ```

pub mod api;
pub mod auth;
pub mod content;
pub mod faults;
pub mod http;
pub mod limits;
pub mod listen;
#[cfg(test)]
mod simulation;
pub mod telemetry;
pub mod tls;
