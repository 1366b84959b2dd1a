//! The virtual machine: QEMU's command line, its networks, and the process that boots and ends it.

pub mod accel;
pub mod cpus;
pub mod launch;
pub mod net;
pub mod qemu;
