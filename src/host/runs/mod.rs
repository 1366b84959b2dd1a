//! Runs of the appliance, from the command line: start, list and stop them, and evaluate what was pulled from them.

pub mod dir;
pub mod folder;
pub mod freeze;
pub mod ps;
pub mod pull_log;
pub mod run;
pub mod state;
pub mod stop;
