//! QEMU's version, and what came with which. What `--version` printed enters, a version leaves, and whether it has what is asked for.

use std::fmt;

use super::network::{Backend, Network};

/// A version, as far as features hang on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

/// The oldest QEMU that does what every boot needs: `-action panic=exit-failure` (QAPI, `PanicAction`, "since 7.1").
pub const OLDEST: Version = Version { major: 7, minor: 1 };
/// Since when there are `-netdev stream` and `-netdev dgram` (QAPI, `NetdevStreamOptions`, "since 7.2").
const STREAM: Version = Version { major: 7, minor: 2 };
/// Since when a stream connects again (the same, `reconnect`, "since 8.0").
const RECONNECT: Version = Version { major: 8, minor: 0 };
/// Since when it is told in milliseconds (the same, `reconnect-ms`, "since 9.2"); the seconds are gone later.
pub(crate) const RECONNECT_MS: Version = Version { major: 9, minor: 2 };

/// Where there is a newer QEMU than that of the distribution, whose `package` has it.
#[must_use]
pub fn newer(package: &str) -> String {
    format!("on Debian: apt-get install -t bookworm-backports {package}")
}

/// What a QEMU is too old for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} needs QEMU {needed} or later, and this is {found}")]
pub struct Lacks {
    /// What needs a newer one.
    pub what: &'static str,
    /// How new.
    pub needed: Version,
    /// The one there is.
    pub found: Version,
}

impl Version {
    /// The version in `said`, what `qemu-system-… --version` prints: "QEMU emulator version 7.2.22 (Debian …)".
    #[must_use]
    pub fn parse(said: &str) -> Option<Self> {
        let (_, rest) = said.lines().next()?.split_once("QEMU emulator version ")?;
        let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }

    /// Whether this QEMU can boot an appliance on `networks`.
    ///
    /// # Errors
    /// The first thing that it lacks.
    pub fn suffices(self, networks: &[Network]) -> Result<(), Lacks> {
        let of_networks = networks.iter().filter_map(|network| match &network.backend {
            Backend::Stream { reconnect: Some(_), .. } => Some(("stream=…,reconnect=…", RECONNECT)),
            Backend::Stream { .. } => Some(("the network stream=…", STREAM)),
            Backend::Dgram(_) => Some(("the network dgram=…", STREAM)),
            _ => None,
        });
        let mut needs = [("this program", OLDEST)].into_iter().chain(of_networks);
        let lacking = needs.find(|(_, needed)| self < *needed);
        lacking.map_or(Ok(()), |(what, needed)| Err(Lacks { what, needed, found: self }))
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
    use crate::address::Mac;
    use crate::host::vm::net::Datagrams;

    fn version(text: &str) -> Version {
        Version::parse(&format!("QEMU emulator version {text}")).unwrap()
    }

    #[test]
    fn a_version_is_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 Fabrice Bellard\n";
        assert_eq!(Version::parse(debian), Some(Version { major: 7, minor: 2 }));
        assert_eq!(version("10.0.0-rc1").to_string(), "10.0");
        assert!(version("10.0") > version("9.2"), "by number");
        for other in ["", "ls (GNU coreutils) 9.1", "QEMU emulator version", "QEMU emulator version seven"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_version_lacks_is_named() {
        let on = |backend| [Network { backend, mac: Mac([2, 0, 0, 0, 0, 1]) }];
        let stream = |reconnect| on(Backend::Stream { path: "/s".into(), reconnect, version: OLDEST });
        let dgram = on(Backend::Dgram(Datagrams::Unix { local: "/a".into(), remote: "/b".into() }));
        let lacks = |version: Version, networks: &[Network]| version.suffices(networks).map_err(|lacks| lacks.to_string());
        assert_eq!(lacks(version("7.0.0"), &[]).unwrap_err(), "this program needs QEMU 7.1 or later, and this is 7.0");
        assert_eq!(lacks(version("7.1.0"), &[]), Ok(()));
        let said = lacks(version("7.1.0"), &stream(None)).unwrap_err();
        assert_eq!(said, "the network stream=… needs QEMU 7.2 or later, and this is 7.1");
        let said = lacks(version("7.1.0"), &dgram).unwrap_err();
        assert_eq!(said, "the network dgram=… needs QEMU 7.2 or later, and this is 7.1");
        assert_eq!(lacks(version("7.2.0"), &stream(None)), Ok(()));
        let said = lacks(version("7.2.22"), &stream(Some(1))).unwrap_err();
        assert_eq!(said, "stream=…,reconnect=… needs QEMU 8.0 or later, and this is 7.2");
        assert_eq!(lacks(version("8.0.0"), &stream(Some(1))), Ok(()));
    }
}
