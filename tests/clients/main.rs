//! Other projects' clients, runtimes, tools and registries. Needs root and Debian packages (`tests/run`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod credentials;
mod deploy;
mod every_disk;
mod file_systems;
mod http_clients;
mod image_tools;
mod programs;
mod release;
mod runtimes;
mod trust;
