//! References to manifests: a tag or a digest, and the full names of images.

use std::fmt;
use std::str::FromStr;

use super::{Digest, NameError, Repository, Tag};

/// A reference to a manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By tag.
    Tag(Tag),
    /// By digest.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// The name of an image, as users write it: `repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// The repository, with the upstream's host if the name has one.
    pub repository: Repository,
    /// The tag, if the name has one.
    pub tag: Option<Tag>,
    /// The digest, if the name has one.
    pub digest: Option<Digest>,
}

impl ImageName {
    /// `repository:tag`, or `repository@digest` without a tag.
    #[must_use]
    pub fn new(repository: Repository, tag: Option<Tag>, digest: Digest) -> Self {
        let digest = tag.is_none().then_some(digest);
        Self { repository, tag, digest }
    }

    /// Whether `text` is the ID of an image: a digest, or the 64 digits of one. podman writes it where a name is expected. No client takes
    /// the digits for a name (distribution's `reference`, `ParseNormalizedNamed`).
    #[must_use]
    pub fn is_image_id(text: &str) -> bool {
        text.parse::<Digest>().is_ok() || format!("sha256:{text}").parse::<Digest>().is_ok()
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the host's port.
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag.parse()?)),
            _ => (name, None),
        };
        Ok(Self { repository: repository.parse()?, tag, digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_parsed_and_printed() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in ["a", "a:b", "localhost:5000/a", "localhost:5000/a:b", &format!("a:b@{digest}"), &format!("a@{digest}")] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), *text);
        }
        for bad in ["a@sha256:1", "a:b:c", "a@b", ":b", "@"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn image_ids_are_no_names() {
        let (short, long) = ("0f".repeat(32), "0f".repeat(64));
        for id in [short.clone(), format!("sha256:{short}"), format!("sha512:{long}")] {
            assert!(ImageName::is_image_id(&id), "{id}");
        }
        for name in [format!("a/{short}"), format!("{short}0"), format!("a:{short}"), "sha256:1".to_owned(), "0f".repeat(31)] {
            assert!(!ImageName::is_image_id(&name), "{name}");
        }
    }
}
