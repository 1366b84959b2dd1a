//! The virtual machine: QEMU's arguments and networks, and the process that boots and ends it.

pub mod accel;
pub mod launch;
pub mod net;
pub mod qemu;
