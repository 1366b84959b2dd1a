//! Helpers that all tests share: layouts, servers, clients, disks and virtual machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod agent;
pub mod boards;
pub mod certificates;
pub mod child;
pub mod cri;
pub mod deployed;
pub mod disks;
pub mod docker;
pub mod elf;
pub mod environment;
pub mod erofs;
pub mod h2;
pub mod http;
pub mod internet;
pub mod layout;
pub mod named;
pub mod openmetrics;
pub mod pack;
pub mod pages;
pub mod podman;
pub mod private;
pub mod process;
pub mod qmp;
pub mod refused;
pub mod registries;
pub mod segment;
pub mod serve;
pub mod server;
pub mod target;
pub mod tls;
pub mod upstream;
pub mod vm;
pub mod wait;

pub use environment::program;
