//! Chooses the accelerator of a VM: KVM if it can work on this machine, otherwise TCG, QEMU's emulation.
//!
//! The probe starts no guest. A KVM device that opens but does not run guests is caught by the boot timeout of [`super::launch`].

use std::fs::{self, OpenOptions};
use std::io;

const KVM_DEVICE: &str = "/dev/kvm";
const CPUINFO: &str = "/proc/cpuinfo";

/// The accelerator that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AccelChoice {
    /// KVM if it can work, otherwise TCG
    #[default]
    Auto,
    /// KVM, or an error if it cannot work
    Kvm,
    /// QEMU's emulation, which works everywhere
    Tcg,
}

/// The accelerator that QEMU uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualization.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// The name that QEMU's `-accel` takes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Why KVM cannot work.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened.
    #[error("cannot open {KVM_DEVICE} for reading and writing")]
    Device(#[source] io::Error),
    /// The processor's features cannot be read.
    #[error("cannot read {CPUINFO}")]
    Cpuinfo(#[source] io::Error),
    /// The device opens, but the processor has no virtualization extension: every guest would hang.
    #[error("{KVM_DEVICE} opens, but {CPUINFO} lists neither vmx nor svm")]
    Flags,
}

/// Selects the accelerator for this machine. If automatic choice falls back to TCG, returns the reason, too.
///
/// # Errors
/// Fails if KVM is required and cannot work.
pub fn select(choice: AccelChoice) -> Result<(Accel, Option<KvmError>), KvmError> {
    choose(choice, if choice == AccelChoice::Tcg { Ok(()) } else { probe() })
}

fn choose(choice: AccelChoice, kvm: Result<(), KvmError>) -> Result<(Accel, Option<KvmError>), KvmError> {
    match (choice, kvm) {
        (AccelChoice::Tcg, _) => Ok((Accel::Tcg, None)),
        (AccelChoice::Auto | AccelChoice::Kvm, Ok(())) => Ok((Accel::Kvm, None)),
        (AccelChoice::Auto, Err(why)) => Ok((Accel::Tcg, Some(why))),
        (AccelChoice::Kvm, Err(why)) => Err(why),
    }
}

/// Checks whether KVM can work on this machine, without starting a guest.
///
/// # Errors
/// Fails if the device cannot be opened or the processor has no virtualization extension.
pub fn probe() -> Result<(), KvmError> {
    OpenOptions::new().read(true).write(true).open(KVM_DEVICE).map_err(KvmError::Device)?;
    let cpuinfo = fs::read_to_string(CPUINFO).map_err(KvmError::Cpuinfo)?;
    if virtualizes(&cpuinfo) { Ok(()) } else { Err(KvmError::Flags) }
}

/// Whether `cpuinfo` lists the flag `vmx` (Intel) or `svm` (AMD).
fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_detected_by_whole_cpu_flags_only() {
        assert!(virtualizes("processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n"));
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu vme tsc\nvmx flags\t: vnmi\n"));
        assert!(!virtualizes("flags\t\t: fpu svm_lock vmxx\n"));
        assert!(!virtualizes("model name\t: svm vmx\n"));
        assert!(!virtualizes(""));
    }

    #[test]
    fn auto_falls_back_to_tcg_and_returns_why() {
        assert_eq!(choose(AccelChoice::Auto, Ok(())).unwrap().0, Accel::Kvm);
        let (accel, why) = choose(AccelChoice::Auto, Err(KvmError::Flags)).unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert_eq!(why.unwrap().to_string(), "/dev/kvm opens, but /proc/cpuinfo lists neither vmx nor svm");
    }

    #[test]
    fn required_kvm_is_never_replaced() {
        assert_eq!(choose(AccelChoice::Kvm, Ok(())).unwrap().0, Accel::Kvm);
        assert!(matches!(choose(AccelChoice::Kvm, Err(KvmError::Flags)), Err(KvmError::Flags)));
        assert_eq!(choose(AccelChoice::Tcg, Ok(())).unwrap().0, Accel::Tcg);
        assert!(choose(AccelChoice::Tcg, Err(KvmError::Flags)).unwrap().1.is_none());
    }
}
