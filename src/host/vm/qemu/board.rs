//! The boards that QEMU makes, and in what their devices differ. A board enters, words of QEMU's command line and of the kernel's
//! leave.

/// A board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Board {
    /// A PC with PCI Express: disks and network cards can be plugged in
    #[default]
    Q35,
    /// The least x86 machine, without PCI: boots fastest, nothing can be plugged in
    Microvm,
    /// 64-bit ARM
    Virt,
}

impl Board {
    /// Its name, as QEMU and `--machine` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Microvm => "microvm",
            Self::Virt => "virt",
        }
    }

    /// The QEMU that makes it, looked up in `PATH`.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "qemu-system-x86_64",
            Self::Virt => "qemu-system-aarch64",
        }
    }

    /// The Debian package that has that QEMU.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "qemu-system-x86",
            Self::Virt => "qemu-system-arm",
        }
    }

    /// What `-machine` is given.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            // ACPI: the devices are found, the power button works, the power can be cut. Without the RTC the guest boots in 1970.
            Self::Microvm => "microvm,acpi=on,rtc=on",
            // The newest interrupt controller that the accelerator has.
            Self::Virt => "virt,gic-version=max",
        }
    }

    /// The model of a virtio device: `virtio-KIND-BUS`.
    pub(crate) fn virtio(self, kind: &str) -> String {
        let bus = match self {
            Self::Q35 | Self::Virt => "pci",
            Self::Microvm => "device",
        };
        format!("virtio-{kind}-{bus}")
    }

    /// The device by which the guest's kernel tells QEMU of its panic.
    pub(crate) const fn panic_device(self) -> &'static str {
        match self {
            Self::Q35 | Self::Virt => "pvpanic-pci",
            Self::Microvm => "pvpanic",
        }
    }

    /// What the kernel is told on this board alone.
    ///
    /// - `no_timer_check`: at its start an x86 kernel counts the timer's interrupts for some milliseconds, and panics ("IO-APIC + timer
    ///   doesn't work!") where it sees too few. On a busy host an emulated machine may well not run for that long: eight boots at once
    ///   on two processors are enough. Under KVM the kernel leaves the check out by itself.
    pub(crate) const fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => " no_timer_check",
            Self::Virt => "",
        }
    }

    /// The serial port that is the console, as Linux calls it.
    pub(crate) const fn console(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "ttyS0",
            Self::Virt => "ttyAMA0",
        }
    }
}
