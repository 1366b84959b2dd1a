//! The boards that an appliance can run on.

use super::elf::Processor;

/// A board that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Board {
    /// A PC with PCI Express; disks and network cards can be hot-plugged
    Q35,
    /// A minimal x86 machine without PCI: boots fastest, has no hotplug
    Microvm,
    /// 64-bit ARM
    Virt,
}

/// The board with hotplug of this program's processor.
impl Default for Board {
    fn default() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Virt } else { Self::Q35 }
    }
}

impl Board {
    /// Its processor.
    #[must_use]
    pub const fn processor(self) -> Processor {
        match self {
            Self::Q35 | Self::Microvm => Processor::X86,
            Self::Virt => Processor::Arm,
        }
    }

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
