//! Platforms, and their text form `os/architecture[/variant]` (as in docker and containerd).

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The platform of an image (image specification, "Image Index").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, `windows`, …
    pub os: String,
    /// `v7`, `v8`, …
    #[serde(default)]
    pub variant: Option<String>,
}

/// Text is not a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a platform has the form os/architecture or os/architecture/variant, in lower case: linux/amd64, linux/arm/v7")]
pub struct PlatformError;

/// The variant that a platform without one means, by architecture (as in containerd).
const DEFAULT_VARIANTS: [(&str, &str); 3] = [("amd64", "v1"), ("arm", "v7"), ("arm64", "v8")];

impl Platform {
    /// Whether an image for `other` runs on this platform.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.same_architecture(other) && self.effective_variant() == other.effective_variant()
    }

    /// Whether both are equal except for the variant.
    #[must_use]
    pub fn same_architecture(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }

    /// The variant, or the default one of the architecture.
    fn effective_variant(&self) -> Option<&str> {
        let default = || DEFAULT_VARIANTS.iter().find(|(name, _)| *name == self.architecture).map(|(_, variant)| *variant);
        self.variant.as_deref().filter(|variant| !variant.is_empty()).or_else(default)
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
        let parts = [&self.os, &self.architecture].into_iter().chain(&self.variant).filter(|part| !part.is_empty());
        f.write_str(&parts.map(String::as_str).collect::<Vec<_>>().join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_parsed_and_printed() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "Linux/amd64", "linux /amd64"] {
            assert_eq!(bad.parse::<Platform>(), Err(PlatformError), "{bad:?}");
        }
    }

    #[test]
    fn missing_parts_are_not_printed() {
        for (os, architecture, printed) in [("", "", ""), ("linux", "", "linux"), ("", "amd64", "amd64")] {
            let platform = Platform { architecture: architecture.into(), os: os.into(), variant: Some(String::new()) };
            assert_eq!(platform.to_string(), printed);
        }
    }

    #[test]
    fn platforms_match_by_the_rules_of_containerd() {
        for (wanted, offered, expected) in [
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
            assert_eq!(platform(wanted).matches(&platform(offered)), expected, "{wanted} {offered}");
        }
    }
}
