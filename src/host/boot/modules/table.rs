//! The kernel modules that the guest loads, in load order. Each loads after the modules it depends on.

/// A kernel module of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedModule {
    /// The module's name, with `_` for `-`: the kernel treats them as the same.
    pub name: &'static str,
    /// Whether the guest needs it.
    pub need: Need,
    /// What it is for.
    pub why: &'static str,
}

/// Whether the guest needs a module or a kernel option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The guest does not work without it.
    Required,
    /// The guest works without it, with fewer features.
    Optional,
}

use Need::{Optional, Required};

/// The table. The panic devices come first, so that the launcher learns of a panic in any later module.
pub const MODULES: [WantedModule; 18] = [
    wanted("pvpanic", Optional, "reports a kernel panic to QEMU"),
    wanted("pvpanic_pci", Optional, "reports a kernel panic to QEMU, on a machine with PCI"),
    wanted("pvpanic_mmio", Optional, "reports a kernel panic to QEMU, on a microvm"),
    wanted("virtio_pci", Required, "finds the virtio devices on PCI"),
    wanted("virtio_mmio", Optional, "finds the virtio devices of a microvm"),
    wanted("virtio_console", Required, "the ports for events and control"),
    wanted("virtio_rng", Optional, "entropy from the host, for processors without RDRAND"),
    wanted("qemu_fw_cfg", Required, "the config from the launcher"),
    wanted("virtio_blk", Required, "the disk of images"),
    wanted("virtio_net", Required, "the network"),
    wanted("af_packet", Required, "DHCP before there is an address, and detection of address conflicts"),
    wanted("8021q", Optional, "VLANs, loaded if the config has one"),
    // erofs and ext4 request it by the crypto API's name, which modules.dep does not list and a guest without modprobe cannot
    // resolve. Many kernels have it built in, or as a plain library.
    wanted("crc32c_generic", Optional, "checksums of erofs and ext4"),
    wanted("erofs", Required, "the disk's file system"),
    wanted("squashfs", Optional, "disks made by other tools"),
    wanted("ext4", Optional, "disks made by other tools"),
    wanted("button", Optional, "the power button, for a graceful shutdown"),
    wanted("evdev", Optional, "passes the power button's events to PID 1"),
];

const fn wanted(name: &'static str, need: Need, why: &'static str) -> WantedModule {
    WantedModule { name, need, why }
}
