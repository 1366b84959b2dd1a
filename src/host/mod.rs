//! The launcher's tools, one module for each subcommand of `localregistry`.

pub mod cli;
pub mod report;
