//! From a listening socket to HTTP requests: accepting, TLS, connection slots, HTTP/1.1 and HTTP/2, timeouts, shutdown.

pub(crate) mod acceptor;
pub(crate) mod activity;
pub(crate) mod admission;
pub mod client;
pub(crate) mod connection;
pub mod listener;
pub mod refusals;
pub(crate) mod write_timeout;
