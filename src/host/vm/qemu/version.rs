//! QEMU's version, and the versions that features need.

use std::fmt;

/// A version, as far as features depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

/// The oldest supported QEMU: every boot needs `-action panic=exit-failure` (QAPI, `PanicAction`, "since 7.1").
pub const OLDEST: Version = Version { major: 7, minor: 1 };
/// The first with `-netdev stream` and `-netdev dgram` (QAPI, `NetdevStreamOptions`, "since 7.2").
pub(crate) const STREAM: Version = Version { major: 7, minor: 2 };
/// The first in which a stream reconnects (the same, `reconnect`, "since 8.0").
pub(crate) const RECONNECT: Version = Version { major: 8, minor: 0 };
/// The first that takes the interval in milliseconds (the same, `reconnect-ms`, "since 9.2"). Later ones do not take seconds.
pub(crate) const RECONNECT_MS: Version = Version { major: 9, minor: 2 };

/// How to get a newer QEMU than the distribution's, given its `package`.
#[must_use]
pub fn newer(package: &str) -> String {
    format!("on Debian: apt-get install -t bookworm-backports {package}")
}

/// QEMU is too old for a feature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs QEMU {needed} or later, and this is {found}")]
pub struct VersionError {
    /// The feature.
    pub what: &'static str,
    /// The version that the feature needs.
    pub needed: Version,
    /// The version of this QEMU.
    pub found: Version,
}

impl Version {
    /// Parses the output of `qemu-system-… --version`: "QEMU emulator version 7.2.22 (Debian …)".
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let (_, rest) = output.lines().next()?.split_once("QEMU emulator version ")?;
        let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }

    /// Checks that it is at least `needed`, which the feature `what` needs.
    ///
    /// # Errors
    /// Fails if it is older.
    pub fn require(self, what: &'static str, needed: Self) -> Result<(), VersionError> {
        if self < needed { Err(VersionError { what, needed, found: self }) } else { Ok(()) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(&format!("QEMU emulator version {text}")).unwrap()
    }

    #[test]
    fn version_is_parsed() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 Fabrice Bellard\n";
        assert_eq!(Version::parse(debian), Some(Version { major: 7, minor: 2 }));
        assert_eq!(version("10.0.0-rc1").to_string(), "10.0");
        assert!(version("10.0") > version("9.2"), "by number");
        for other in ["", "ls (GNU coreutils) 9.1", "QEMU emulator version", "QEMU emulator version seven"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }
}
