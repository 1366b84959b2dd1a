//! The boards that an appliance can run on.

/// A board that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Board {
    /// A PC with PCI Express; disks and network cards can be hot-plugged
    #[default]
    Q35,
    /// A minimal x86 machine without PCI: boots fastest, has no hotplug
    Microvm,
    /// 64-bit ARM
    Virt,
}

impl Board {
    /// Its name, as in QEMU and `--machine`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
            Self::Virt => "virt",
        }
    }
}
