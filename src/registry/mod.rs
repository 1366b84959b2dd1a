//! The server, used by both programs.
//!
//! ```text
//! listener ─ serve ─▶ door ─▶ connection ─ tls ─▶ admission ─▶ streams ─▶ answer ─ route ─▶ holdings (catalog, kept, store) ─ reply ─▶ body ─ flight ─ log ─▶ events
//! ```

mod admission;
pub mod answer;
pub mod auth;
pub mod body;
pub mod catalog;
pub mod client;
mod condition;
mod connection;
mod documents;
mod door;
pub mod error;
pub mod events;
pub mod faults;
pub mod flight;
mod guard;
mod health;
pub mod holdings;
mod kept;
pub mod layout;
pub mod limits;
pub mod lists;
pub mod log;
pub mod metrics;
mod multipart;
pub mod range;
pub mod refusals;
pub mod reply;
pub mod route;
pub mod serve;
pub mod store;
mod streams;
pub mod tls;
