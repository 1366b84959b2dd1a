//! The command line without a virtual machine. Needs no root and no network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod docs;
mod faults;
mod initramfs;
mod kernel;
mod module_order;
mod pages;
mod pull_log;
mod run_usage;
mod signals;
mod standard_streams;
mod trust;
mod unsafe_code;
