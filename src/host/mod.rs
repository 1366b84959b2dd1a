//! The commands of `localregistry`, and the library API for launchers in [`vm::launch`].

// A macro that prints panics if it cannot. `support::report` prints.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod boot;
pub mod cli;
pub mod deploy;
pub mod docs;
pub mod doctor;
pub mod exit;
pub mod faults;
mod hint;
pub mod images;
pub mod inspect;
pub mod nodes;
pub mod runs;
pub mod serve;
pub mod support;
pub mod vm;
