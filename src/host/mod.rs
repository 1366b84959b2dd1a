//! The launcher's tools, one module for each subcommand of `localregistry`.

pub mod accel;
pub mod cli;
pub mod launch;
pub mod qemu;
pub mod report;
mod sys;
