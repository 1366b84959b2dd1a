//! From listening sockets to HTTP requests: accepting, connection slots, TLS, HTTP/1.1 and HTTP/2, timeouts, shutdown.
//!
//! ```text
//! server ─▶ acceptor ─▶ connection ─▶ file_socket ─▶ write_timeout ─▶ (tls_socket) ─▶ admission ─▶ activity ─▶ api::handler
//! ```

pub(crate) mod acceptor;
pub(crate) mod activity;
pub(crate) mod admission;
pub mod client;
pub(crate) mod connection;
pub(crate) mod file_socket;
pub mod listener;
pub mod server;
pub(crate) mod shutdown;
pub mod tls_refusals;
pub(crate) mod tls_socket;
pub(crate) mod write_timeout;
