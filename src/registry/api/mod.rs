//! The registry API: parses request targets and builds the response of each endpoint.

pub(crate) mod describe;
mod faults;
pub mod handler;
pub mod lists;
pub(crate) mod resolve;
pub mod route;
pub(crate) mod service_endpoints;
