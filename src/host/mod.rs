//! The launcher's tools, one module for each subcommand of `localregistry`.

pub mod accel;
pub mod access;
pub mod cache;
pub mod cli;
pub mod config;
pub mod decompress;
pub mod doctor;
pub mod elf;
pub mod files;
pub mod initramfs;
pub mod kernel;
pub mod launch;
pub mod modules;
pub mod net;
pub mod pack;
pub mod qemu;
pub mod report;
pub mod run;
pub mod runs;
pub mod sample;
pub mod serve;
mod sys;
pub mod tools;
