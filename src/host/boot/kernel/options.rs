//! The kernel options that the guest needs, and which of them a kernel lacks. A kernel's options come from its config file, or from
//! the copy in the kernel itself (CONFIG_IKCONFIG).

use std::collections::BTreeSet;
use std::fmt;

use crate::host::boot::board::Board;
use crate::host::boot::decompress::Compression;
use crate::host::boot::modules::Need;

/// A kernel option of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedOption {
    /// The option's name, without `CONFIG_`.
    pub name: &'static str,
    /// Whether the guest needs it.
    pub need: Need,
    /// What it is for.
    pub why: &'static str,
    /// The only board that needs it. `None`: every board.
    board: Option<Board>,
}

/// The table, in the order in which a boot needs the options.
const OPTIONS: [WantedOption; 42] = [
    required("BLK_DEV_INITRD", "the initramfs"),
    required("BINFMT_ELF", "PID 1"),
    required("PRINTK", "the console"),
    required("TTY", "the console"),
    required("DEVTMPFS", "the devices"),
    required("PROC_FS", "information about the machine"),
    required("SYSFS", "information about the machine"),
    required("TMPFS", "PID 1's own files"),
    required("EPOLL", "the server"),
    required("EVENTFD", "the server"),
    required("FUTEX", "the server"),
    required("UNIX", "signals, and the server's messages"),
    required("SECCOMP_FILTER", "confining the server"),
    required("NET", "the network"),
    required("INET", "the network"),
    required("PACKET", "DHCP before there is an address"),
    required("VIRTIO_BLK", "the disk of images"),
    required("VIRTIO_NET", "the network"),
    required("VIRTIO_CONSOLE", "the ports for events and control"),
    required("FW_CFG_SYSFS", "the config from the launcher"),
    required("EROFS_FS", "the disk's file system"),
    on(Board::Q35, required("SERIAL_8250_CONSOLE", "the console")),
    on(Board::Q35, required("ACPI", "finding the devices, and power off")),
    on(Board::Q35, required("VIRTIO_PCI", "the virtio devices on PCI")),
    on(Board::Microvm, required("SERIAL_8250_CONSOLE", "the console")),
    on(Board::Microvm, required("ACPI", "finding the devices, and power off")),
    on(Board::Microvm, required("VIRTIO_MMIO", "the virtio devices of a microvm")),
    on(Board::Virt, required("SERIAL_AMBA_PL011_CONSOLE", "the console")),
    on(Board::Virt, required("VIRTIO_PCI", "the virtio devices on PCI")),
    optional("SECURITY_LANDLOCK", "confining the server to the disks"),
    optional("SQUASHFS", "disks made by other tools"),
    optional("EXT4_FS", "disks made by other tools"),
    optional("IPV6", "IPv6 addresses"),
    optional("VLAN_8021Q", "VLAN tags"),
    optional("HW_RANDOM_VIRTIO", "entropy from the host"),
    optional("RTC_HCTOSYS", "the clock at boot"),
    optional("PVPANIC", "reporting a kernel panic to QEMU"),
    optional("ACPI_BUTTON", "the power button"),
    optional("INPUT_EVDEV", "the power button"),
    on(Board::Q35, optional("HOTPLUG_PCI_ACPI", "hot-plugged disks and network cards")),
    on(Board::Microvm, optional("SERIAL_8250_PNP", "messages of PID 1 on the console")),
    optional("SMP", "more than one processor"),
];

const fn required(name: &'static str, why: &'static str) -> WantedOption {
    WantedOption { name, need: Need::Required, why, board: None }
}

const fn optional(name: &'static str, why: &'static str) -> WantedOption {
    WantedOption { name, need: Need::Optional, why, board: None }
}

const fn on(board: Board, wanted: WantedOption) -> WantedOption {
    WantedOption { board: Some(board), ..wanted }
}

impl fmt::Display for WantedOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONFIG_{} ({})", self.name, self.why)
    }
}

/// The kernel options that are enabled, built in or as modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelOptions(BTreeSet<String>);

impl KernelOptions {
    /// Parses a kernel's config (`.config`, `/boot/config-RELEASE`). `None` if the text is not a kernel config: it lacks
    /// CONFIG_64BIT, which every config mentions.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().filter_map(|line| line.trim_end().strip_prefix("CONFIG_")?.split_once('='));
        let set: BTreeSet<String> =
            lines.filter(|(_, value)| matches!(*value, "y" | "m")).map(|(name, _)| name.to_owned()).collect();
        text.contains("CONFIG_64BIT").then_some(Self(set))
    }

    /// Finds and parses the config in an uncompressed kernel ELF.
    #[must_use]
    pub fn embedded(kernel: &[u8]) -> Option<Self> {
        let start = find(kernel, b"IKCFG_ST")? + 8;
        let rest = kernel.get(start..)?;
        let packed = rest.get(..find(rest, b"IKCFG_ED")?)?;
        let text = Compression::Gzip.decompress(packed, LARGEST_CONFIG).ok()?;
        Self::parse(&String::from_utf8_lossy(&text))
    }

    /// The options of the table for `board` that the kernel lacks.
    #[must_use]
    pub fn missing(&self, board: Board) -> Vec<WantedOption> {
        let here = OPTIONS.into_iter().filter(|wanted| wanted.board.is_none_or(|only| only == board));
        here.filter(|wanted| !self.0.contains(wanted.name)).collect()
    }
}

/// The largest config accepted, in bytes. A distribution's has 300 kB.
pub const LARGEST_CONFIG: usize = 8 << 20;

/// The offset of `needle` in `bytes`.
fn find(bytes: &[u8], needle: &[u8; 8]) -> Option<usize> {
    // The first byte is rare in a kernel's code, so most of the search looks for one byte.
    let mut from = 0;
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| *byte == needle[0])?;
        if bytes.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::boot::decompress::tests::compress;

    /// A config with all options of the table except `without`.
    fn config(without: &[&str]) -> String {
        let mut text = "# Linux/x86 6.1.9 Kernel Configuration\nCONFIG_64BIT=y\n".to_owned();
        for (wanted, value) in OPTIONS.iter().zip(["y", "m"].into_iter().cycle()) {
            let name = wanted.name;
            let unset = without.contains(&name);
            text += &if unset { format!("# CONFIG_{name} is not set\n") } else { format!("CONFIG_{name}={value}\n") };
        }
        text
    }

    fn missing(text: &str, board: Board) -> Vec<String> {
        KernelOptions::parse(text).unwrap().missing(board).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn missing_options_are_reported_with_their_use() {
        for board in [Board::Q35, Board::Microvm, Board::Virt] {
            assert_eq!(missing(&config(&[]), board), Vec::<String>::new());
        }
        assert_eq!(
            missing(&config(&["EROFS_FS", "IPV6", "VIRTIO_MMIO"]), Board::Q35),
            ["CONFIG_EROFS_FS (the disk's file system)", "CONFIG_IPV6 (IPv6 addresses)"]
        );
        assert_eq!(
            missing(&config(&["VIRTIO_PCI", "VIRTIO_MMIO"]), Board::Microvm),
            ["CONFIG_VIRTIO_MMIO (the virtio devices of a microvm)"]
        );
        let strings = "CONFIG_64BIT=y\nCONFIG_EROFS_FS=\"y\"\nCONFIG_PROC_FS=yes\nCONFIG_TMPFS=n\nCONFIG_SYSFS=y\r\n";
        let missing = missing(strings, Board::Q35);
        assert!(
            ["EROFS_FS", "PROC_FS", "TMPFS"].iter().all(|name| missing.iter().any(|m| m.starts_with(&format!("CONFIG_{name} "))))
        );
        assert!(!missing.iter().any(|m| m.starts_with("CONFIG_SYSFS")));
    }

    #[test]
    fn text_that_is_not_a_kernel_config_is_rejected() {
        for text in ["", "[section]\nkey = value\n", "CONFIG_=y\n"] {
            assert_eq!(KernelOptions::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn finds_a_config_in_a_kernel() {
        let text = config(&["SMP"]);
        let packed = compress(Compression::Gzip, text.as_bytes());
        let kernel = [b"code IKCFG IIKCFG_ST".as_slice(), &packed, b"IKCFG_ED code"].concat();
        assert_eq!(KernelOptions::embedded(&kernel), KernelOptions::parse(&text));
        for broken in [&kernel[..kernel.len() - 10], b"IKCFG_STIKCFG_ED", b"IKCFG_S", b""] {
            assert_eq!(KernelOptions::embedded(broken), None);
        }
    }

    #[test]
    fn our_own_kernel_has_every_option() {
        let own = include_str!("../../../../image/kernel.config");
        for board in [Board::Q35, Board::Microvm] {
            assert_eq!(missing(own, board), Vec::<String>::new());
        }
    }
}
