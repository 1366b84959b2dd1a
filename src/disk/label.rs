//! Labels of file systems.

use std::str::FromStr;

/// The label of a file system: 1 to 16 printable ASCII characters. EROFS and ext4 store 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self(text.to_owned())).ok_or("expected 1 to 16 printable ASCII characters")
    }
}
