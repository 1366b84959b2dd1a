//! What QEMU boots: a kernel, its modules and the initramfs with the init program.

pub mod board;
pub mod decompress;
pub mod elf;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod program;
