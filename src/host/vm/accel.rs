//! Which accelerator a VM gets: KVM only where it can work, else TCG, QEMU's emulation. A choice and the machine's facts enter, an
//! accelerator and the reason leave. It never starts a VM: the boot deadline of [`super::launch`] catches what looks usable and is
//! not.

use std::fs::{self, OpenOptions};
use std::io;

/// The device that KVM is used through.
const DEVICE: &str = "/dev/kvm";
/// Where the kernel lists what the processor can do.
const CPUINFO: &str = "/proc/cpuinfo";

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Choice {
    /// KVM where it can work, else TCG
    #[default]
    Auto,
    /// KVM, or an error where it cannot work
    Kvm,
    /// QEMU's emulation, which works everywhere
    Tcg,
}

/// What QEMU runs the guest's instructions with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accel {
    /// QEMU's name of it.
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
pub enum NoKvm {
    /// The device does not open.
    #[error("cannot open {DEVICE} for reading and writing")]
    Device(#[source] io::Error),
    /// The processor's list cannot be read.
    #[error("cannot read {CPUINFO}")]
    Cpuinfo(#[source] io::Error),
    /// The device opens, and every guest would hang: the processor does not virtualize.
    #[error("{DEVICE} opens, but {CPUINFO} lists neither vmx nor svm")]
    Flags,
}

/// The accelerator for `choice` where KVM is as `kvm` says. With it comes what made automatic choice fall to TCG, if anything did.
///
/// # Errors
/// KVM is asked for and cannot work.
pub fn choose(choice: Choice, kvm: Result<(), NoKvm>) -> Result<(Accel, Option<NoKvm>), NoKvm> {
    match (choice, kvm) {
        (Choice::Tcg, _) => Ok((Accel::Tcg, None)),
        (Choice::Auto | Choice::Kvm, Ok(())) => Ok((Accel::Kvm, None)),
        (Choice::Auto, Err(why)) => Ok((Accel::Tcg, Some(why))),
        (Choice::Kvm, Err(why)) => Err(why),
    }
}

/// Whether KVM can work on this machine, as far as can be told without starting a guest.
///
/// # Errors
/// The reason why it cannot.
pub fn probe() -> Result<(), NoKvm> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(NoKvm::Device)?;
    let cpuinfo = fs::read_to_string(CPUINFO).map_err(NoKvm::Cpuinfo)?;
    if virtualizes(&cpuinfo) { Ok(()) } else { Err(NoKvm::Flags) }
}

/// Whether `cpuinfo` has one of the flags `vmx` (Intel) and `svm` (AMD).
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
    fn only_whole_words_of_the_flags_line_count() {
        assert!(virtualizes("processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n"));
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu vme tsc\nvmx flags\t: vnmi\n"));
        assert!(!virtualizes("flags\t\t: fpu svm_lock vmxx\n"));
        assert!(!virtualizes("model name\t: svm vmx\n"));
        assert!(!virtualizes(""));
    }

    #[test]
    fn automatic_choice_falls_to_tcg_and_says_why() {
        assert_eq!(choose(Choice::Auto, Ok(())).unwrap().0, Accel::Kvm);
        let (accel, why) = choose(Choice::Auto, Err(NoKvm::Flags)).unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert_eq!(why.unwrap().to_string(), "/dev/kvm opens, but /proc/cpuinfo lists neither vmx nor svm");
    }

    #[test]
    fn an_asked_for_kvm_is_never_replaced() {
        assert_eq!(choose(Choice::Kvm, Ok(())).unwrap().0, Accel::Kvm);
        assert!(matches!(choose(Choice::Kvm, Err(NoKvm::Flags)), Err(NoKvm::Flags)));
        assert_eq!(choose(Choice::Tcg, Ok(())).unwrap().0, Accel::Tcg);
        assert!(choose(Choice::Tcg, Err(NoKvm::Flags)).unwrap().1.is_none());
    }
}
