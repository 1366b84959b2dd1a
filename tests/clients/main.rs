//! Clients, runtimes, tools and registries of other projects, and tests that need private mounts. Needs root and Debian packages
//! (`tests/run`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod archives;
mod ca;
mod charts;
mod ci;
mod credentials;
mod deploy;
mod deploy_objects;
mod every_disk;
mod fault_profiles;
mod file_systems;
mod go_client;
mod http_clients;
mod image_tools;
mod inspect;
mod inspect_faults;
mod pack_cache;
mod pack_failures;
mod platforms;
mod programs;
mod pull;
mod pull_logins;
mod python_client;
mod release;
mod runtimes;
mod served_calls;
mod system_calls;
mod tls_refusals;
mod trust;
