//! The number of virtual processors.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::thread::available_parallelism;

use super::accel::Accel;

/// Largest number of processors of a machine: that of an APIC without interrupt remapping.
const MOST: u32 = 255;
/// Largest number that is chosen automatically. Further ones do not serve faster.
const MOST_CHOSEN: u32 = 4;
/// Memory in MiB for each processor that is chosen automatically. A machine that has the least memory for one cuts eight pulls at once
/// with four.
const MEMORY_FOR_EACH: u32 = 64;

/// The number of virtual processors that the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cpus {
    /// One under TCG, which gets slower with more. Under KVM as many as this process may use of the host's, at most four, and at most one
    /// for each 64 MiB of memory.
    #[default]
    Auto,
    /// This number, from 1 to 255.
    Count(u32),
}

impl Cpus {
    /// The number for a machine with this accelerator and this memory in MiB.
    #[must_use]
    pub fn count(self, accel: Accel, memory_mib: u32) -> u32 {
        match (self, accel) {
            (Self::Count(count), _) => count,
            (Self::Auto, Accel::Tcg) => 1,
            (Self::Auto, Accel::Kvm) => chosen(available_parallelism().map_or(1, NonZero::get), memory_mib),
        }
    }
}

/// The number under KVM on a host with this many processors.
fn chosen(host: usize, memory_mib: u32) -> u32 {
    let host = u32::try_from(host).unwrap_or(MOST_CHOSEN);
    host.min(MOST_CHOSEN).min(memory_mib / MEMORY_FOR_EACH).max(1)
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
        count.map(Self::Count).ok_or_else(|| format!("expected auto, or a number from 1 to {MOST}"))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(count) => count.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_depends_on_the_accelerator_the_host_and_the_memory() {
        assert_eq!([1, 2, 4, 64].map(|host| chosen(host, 256)), [1, 2, 4, 4]);
        assert_eq!([48, 127, 128, 255, 1024].map(|memory| chosen(64, memory)), [1, 1, 2, 3, 4]);
        assert_eq!(Cpus::Auto.count(Accel::Tcg, 1024), 1);
        assert!((1..=4).contains(&Cpus::Auto.count(Accel::Kvm, 256)));
        for accel in [Accel::Tcg, Accel::Kvm] {
            assert_eq!(Cpus::Count(9).count(accel, 48), 9);
        }
    }

    #[test]
    fn text_is_auto_or_a_number() {
        for (text, cpus) in [("auto", Cpus::Auto), ("1", Cpus::Count(1)), ("255", Cpus::Count(255))] {
            assert_eq!(text.parse(), Ok(cpus));
            assert_eq!(cpus.to_string(), text);
        }
        for text in ["", "0", "256", "-1", "Auto", "two", "4294967297"] {
            assert_eq!(text.parse::<Cpus>(), Err("expected auto, or a number from 1 to 255".to_owned()), "{text:?}");
        }
    }
}
