//! The launcher's tools, one module for each subcommand of `localregistry`.

pub mod boot;
pub mod cli;
pub mod deploy;
pub mod docs;
pub mod doctor;
mod hint;
pub mod images;
pub mod inspect;
pub mod nodes;
pub mod runs;
pub mod serve;
pub mod support;
pub mod vm;
