//! The server, used by both programs.
//!
//! ```text
//! listener ─ serve ─▶ connection ─ tls ─▶ answer ─ route ─▶ catalog ─▶ store ─ reply ─▶ body ─ flight ─ log ─▶ events
//! ```

pub mod answer;
pub mod body;
pub mod catalog;
mod connection;
pub mod error;
pub mod events;
pub mod flight;
mod guard;
pub mod layout;
pub mod limits;
pub mod lists;
pub mod log;
pub mod range;
pub mod reply;
pub mod route;
pub mod serve;
pub mod store;
pub mod tls;
