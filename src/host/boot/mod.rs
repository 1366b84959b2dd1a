//! The files that QEMU boots: a kernel, its modules, and the initramfs with the init.

pub mod board;
pub mod decompress;
pub mod elf;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod static_program;
