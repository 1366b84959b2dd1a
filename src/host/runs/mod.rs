//! Runs of the appliance, from the command line: start, list, stop, and what was pulled from them.

pub mod dir;
pub mod ps;
pub mod pull_log;
pub mod run;
pub(crate) mod state;
pub mod stop;
