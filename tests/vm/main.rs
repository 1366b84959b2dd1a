//! Virtual machines that boot in QEMU, and the launchers that boot them. Needs root and Debian packages (`tests/run`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod access;
mod boot;
mod cluster;
mod confinement;
mod dhcp;
mod dhcp_client;
mod disk_faults;
mod disks;
mod doctor;
mod examples;
mod fault_plans;
mod faults;
mod formats;
mod frozen;
mod json;
mod kernels;
mod launch;
mod launchers;
mod many_connections;
mod network;
mod networks;
mod own_kernel;
mod passt;
mod run_errors;
mod run_networks;
mod run_outcomes;
mod run_programs;
mod shutdown;
mod unread_events;
