//! The launcher's tools, one module for each subcommand of `localregistry`.

pub mod cache;
pub mod cli;
pub mod decompress;
pub mod elf;
pub mod files;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod pack;
pub mod report;
pub mod sample;
pub mod serve;
pub mod tools;
