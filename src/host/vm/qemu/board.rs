//! How QEMU's and the kernel's command lines differ between the boards.

use crate::host::boot::board::Board;
use crate::host::vm::accel::Accel;

impl Board {
    /// The QEMU program for it.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "qemu-system-x86_64",
            Self::Virt => "qemu-system-aarch64",
        }
    }

    /// The Debian package with [`Board::program`].
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "qemu-system-x86",
            Self::Virt => "qemu-system-arm",
        }
    }

    /// The value of `-machine`.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            // The kernel needs ACPI to find the devices, for the power button and to power off. Without the RTC the guest boots in 1970.
            Self::Microvm => "microvm,acpi=on,rtc=on",
            // The newest interrupt controller that the accelerator supports.
            Self::Virt => "virt,gic-version=max",
        }
    }

    /// The value of `-cpu`: all features of the accelerator. Under TCG this includes RDRAND, so that the guest has entropy at once.
    ///
    /// A processor with ERMS and FSRM makes the kernel copy by `rep movsb`, which TCG emulates byte by byte.
    pub(crate) const fn cpu(self, accel: Accel) -> &'static str {
        match (self, accel) {
            (Self::Q35 | Self::Microvm, Accel::Tcg) => "max,erms=off,fsrm=off",
            _ => "max",
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

    /// The device through which the guest's kernel reports a panic to QEMU.
    pub(crate) const fn panic_device(self) -> &'static str {
        match self {
            Self::Q35 | Self::Virt => "pvpanic-pci",
            Self::Microvm => "pvpanic",
        }
    }

    /// Kernel arguments for this board only.
    ///
    /// - `no_timer_check`: at its start an x86 kernel counts the timer's interrupts for some milliseconds, and panics ("IO-APIC + timer
    ///   doesn't work!") if it sees too few. On a busy host an emulated machine may not be scheduled for that long: eight concurrent
    ///   boots on two processors are enough. Under KVM the kernel skips the check by itself.
    /// - `noreplace-smp`: on one processor an x86 kernel overwrites its own lock prefixes, and an emulator translates what it overwrites
    ///   again. It has no use for it, as it knows the number of processors.
    pub(crate) const fn kernel_arguments(self, accel: Accel) -> &'static str {
        match (self, accel) {
            (Self::Q35 | Self::Microvm, Accel::Tcg) => " noreplace-smp no_timer_check",
            (Self::Q35 | Self::Microvm, Accel::Kvm) => " no_timer_check",
            (Self::Virt, _) => "",
        }
    }

    /// Linux's name of the serial port that is the console.
    pub(crate) const fn console(self) -> &'static str {
        match self {
            Self::Q35 | Self::Microvm => "ttyS0",
            Self::Virt => "ttyAMA0",
        }
    }
}
