//! The launcher's tools, one module for each subcommand of `localregistry`.

mod atomic;
pub mod cli;
pub mod pack;
pub mod report;
pub mod serve;
mod tools;
