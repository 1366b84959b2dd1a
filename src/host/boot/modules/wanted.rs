//! The modules that the guest uses, and what for. They load in this order, each after what it depends on.

/// A module of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its name, with `_` for `-`: the two are one in module names.
    pub name: &'static str,
    /// Whether the guest can do without.
    pub need: Need,
    /// What it is for.
    pub why: &'static str,
}

/// Whether the guest can do without a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The guest does not work without it.
    Required,
    /// Something less is possible without it.
    Optional,
}

use Need::{Optional, Required};

/// The table. The panic device first, so that the launcher learns of a panic in any of the others.
pub const WANTED: [Wanted; 18] = [
    wanted("pvpanic", Optional, "tells QEMU of a kernel panic"),
    wanted("pvpanic_pci", Optional, "tells QEMU of a kernel panic, on a machine with PCI"),
    wanted("pvpanic_mmio", Optional, "tells QEMU of a kernel panic, on a microvm"),
    wanted("virtio_pci", Required, "finds the virtio devices on PCI"),
    wanted("virtio_mmio", Optional, "finds the virtio devices of a microvm"),
    wanted("virtio_console", Required, "the ports for events and control"),
    wanted("virtio_rng", Optional, "entropy from the host, where the processor gives none"),
    wanted("qemu_fw_cfg", Required, "the config that the launcher hands over"),
    wanted("virtio_blk", Required, "the disk of images"),
    wanted("virtio_net", Required, "the network"),
    wanted("af_packet", Required, "DHCP, before there is an address, and asking who else has one"),
    wanted("8021q", Optional, "VLANs, loaded where the config has one"),
    // erofs and ext4 ask for it by the crypto API's name, which modules.dep does not know and a guest without modprobe cannot
    // follow. Built in, or a plain library, in many kernels.
    wanted("crc32c_generic", Optional, "checksums of erofs and ext4"),
    wanted("erofs", Required, "the disk's file system"),
    wanted("squashfs", Optional, "disks that other tools made"),
    wanted("ext4", Optional, "disks that other tools made"),
    wanted("button", Optional, "the power button, for an orderly end"),
    wanted("evdev", Optional, "hands the power button's events to PID 1"),
];

const fn wanted(name: &'static str, need: Need, why: &'static str) -> Wanted {
    Wanted { name, need, why }
}
