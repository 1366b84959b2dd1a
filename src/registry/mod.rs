//! The server, used by both programs.
//!
//! ```text
//! listener ─ serve ─▶ door ─▶ connection ─ tls ─▶ admission ─▶ streams ─▶ answer ─ route ─▶ holdings (catalog, kept, store) ─ reply ─▶ body ─ flight ─ log ─▶ events
//! ```

pub mod api;
pub mod auth;
pub mod content;
pub mod http;
pub mod limits;
pub mod listen;
pub mod telemetry;
pub mod tls;
