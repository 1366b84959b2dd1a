//! Helpers of all commands: files, caches, external programs, system calls, progress.

pub mod cache;
pub mod files;
pub mod interrupt;
pub mod report;
pub mod signals;
pub(crate) mod sys;
pub mod tools;
pub mod workers;
