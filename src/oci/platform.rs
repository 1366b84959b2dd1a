//! Platforms as people write them: `os/architecture[/variant]` (as docker and containerd have it). Pure.

use std::fmt;
use std::str::FromStr;

use super::manifest::Platform;

/// Why a text is not a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a platform has the form os/architecture or os/architecture/variant, in lower case: linux/amd64, linux/arm/v7")]
pub struct PlatformError;

/// The variant that an architecture has where none is said, as containerd has it.
const VARIANTS: [(&str, &str); 3] = [("amd64", "v1"), ("arm", "v7"), ("arm64", "v8")];

impl Platform {
    /// Whether an image for `other` is meant.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.is_alike(other) && self.level() == other.level()
    }

    /// Whether it is `other` but for the variant.
    #[must_use]
    pub fn is_alike(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }

    /// The variant, said or not.
    fn level(&self) -> Option<&str> {
        let silent = || VARIANTS.iter().find(|(name, _)| *name == self.architecture).map(|(_, variant)| *variant);
        self.variant.as_deref().filter(|variant| !variant.is_empty()).or_else(silent)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return Err(PlatformError);
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
            _ => return Err(PlatformError),
        };
        Ok(Self { architecture: (*architecture).to_owned(), os: (*os).to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().filter(|variant| !variant.is_empty()).try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_as_people_write_them() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "Linux/amd64", "linux /amd64"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformError), "{bad:?}");
        }
    }

    #[test]
    fn a_platform_matches_as_runtimes_match() {
        for (wanted, there, expected) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm", "linux/arm/v6", false),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64/v9", "linux/arm64", false),
        ] {
            let platform = |text: &str| text.parse::<Platform>().unwrap();
            assert_eq!(platform(wanted).matches(&platform(there)), expected, "{wanted} {there}");
        }
    }
}
