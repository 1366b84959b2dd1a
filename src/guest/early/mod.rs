//! Prepares the machine before the network: mounts, modules, console, clock, entropy, virtio-serial ports.

pub mod clock;
pub mod console;
pub mod entropy;
pub mod frozen;
pub mod machine;
pub mod modules;
pub mod mount;
pub mod virtio_serial;
