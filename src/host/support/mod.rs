//! Helpers for the commands: files, the cache, external programs, system calls, progress and results.

pub mod cache;
pub mod files;
pub mod interrupt;
pub mod parent_watch;
pub(crate) mod prototext;
pub(crate) mod quote;
pub mod report;
pub(crate) mod sys;
pub mod tools;
pub mod workers;
