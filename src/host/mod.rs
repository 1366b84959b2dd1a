//! The launcher's tools, one module for each subcommand of `localregistry`.

mod atomic;
pub mod cli;
pub mod report;
pub mod serve;
