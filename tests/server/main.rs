//! The server, over the loopback interface. Needs no root, no network and no program except the compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod auth;
mod client_expectations;
mod corpus;
mod distribution;
mod fault_replay;
mod faults;
mod h2_streams;
mod hostile_h2;
mod hostile_http1;
mod hostile_load;
mod hostile_memory;
mod hostile_streams;
mod lists;
mod manifest_cache;
mod observability;
mod ranges_property;
mod refused_certificates;
mod sent_files;
mod several_disks;
mod slow_clients;
mod transport;
mod verify;
