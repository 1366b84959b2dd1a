//! Names: repositories, tags and references, by the grammar of the OCI distribution specification ("Pulling manifests"), and the
//! host of an upstream registry that may stand before a repository.

use std::fmt;
use std::str::FromStr;

use super::{Digest, DigestError};

/// Longest repository name with its host, in bytes: what the specification says clients may rely on.
pub const MAX_REPOSITORY: usize = 255;
/// Longest tag in bytes.
pub const MAX_TAG: usize = 128;

/// Why a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error("a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /")]
    Repository,
    /// A repository name over [`MAX_REPOSITORY`] bytes.
    #[error("a repository name has at most {MAX_REPOSITORY} bytes")]
    TooLong,
    /// Not a tag.
    #[error("a tag has at most {MAX_TAG} letters, digits and _ . -, and starts with none of . -")]
    Tag,
    /// Not the host of a registry.
    #[error("a registry's host is a DNS name or an address, with an optional port")]
    Host,
    /// A digest that cannot be parsed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// Host of a registry, with its port where one is given, in lower case: `docker.io`, `localhost:5000`, `[::1]:5000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text without the port.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &self.0,
        }
    }

    /// Whether the first component of an image name means a host: it has a dot or a port, or is `localhost` (the rule that
    /// every client took from Docker).
    fn is_shaped(component: &str) -> bool {
        component == "localhost" || component.contains(['.', ':'])
    }
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, port) = match text.rfind(':') {
            Some(at) if !text.ends_with(']') => (text.get(..at), text.get(at + 1..)),
            _ => (Some(text), None),
        };
        let name = name.ok_or(NameError::Host)?;
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let name_ok = match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !name.is_empty()
                    && name.split('.').all(|label| {
                        !label.is_empty()
                            && !label.starts_with('-')
                            && !label.ends_with('-')
                            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    })
            }
        };
        let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if name_ok && port_ok && text.len() <= MAX_REPOSITORY {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(NameError::Host)
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository, under an upstream's host or in the default namespace: `docker.io/library/busybox`, `test/hello`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    full: String,
    /// Length of the host, 0 in the default namespace.
    host: usize,
}

impl Repository {
    /// `path` under `host`.
    ///
    /// # Errors
    /// When `path` is not by the grammar, or both together are longer than [`MAX_REPOSITORY`].
    pub fn under(host: &Host, path: &str) -> Result<Self, NameError> {
        check_path(path)?;
        let full = format!("{host}/{path}");
        if full.len() > MAX_REPOSITORY {
            return Err(NameError::TooLong);
        }
        Ok(Self { full, host: host.0.len() })
    }

    /// The whole name, with the host if there is one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The upstream's host.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.full.get(..self.host).filter(|host| !host.is_empty())
    }

    /// The name below the host.
    #[must_use]
    pub fn path(&self) -> &str {
        let start = if self.host == 0 { 0 } else { self.host + 1 };
        self.full.get(start..).unwrap_or_default()
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((first, rest)) if Host::is_shaped(first) => Self::under(&first.parse()?, rest),
            _ if text.len() > MAX_REPOSITORY => Err(NameError::TooLong),
            _ => check_path(text).map(|()| Self { full: text.to_owned(), host: 0 }),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

fn check_path(path: &str) -> Result<(), NameError> {
    if path.split('/').all(is_component) { Ok(()) } else { Err(NameError::Repository) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(|b| alphanumeric(*b)) && bytes.last().is_some_and(|b| alphanumeric(*b));
    ends && component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

/// What cosign appends to a digest to name a signature, an attestation, a bill of materials.
const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest in a tag of the form `sha256-<hex>`, by which an index of referrers may be stored (distribution specification,
    /// "Referrers Tag Schema").
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        self.0.replacen('-', ":", 1).parse().ok()
    }

    /// The digest of the content that what it names goes along with, if the tag is made of one: an index of referrers, or what cosign
    /// files beside an image.
    #[must_use]
    pub fn accompanied(&self) -> Option<Digest> {
        let digest = COSIGN_SUFFIXES.iter().find_map(|suffix| self.0.strip_suffix(suffix)).unwrap_or(&self.0);
        digest.replacen('-', ":", 1).parse().ok()
    }

    /// Whether what it names goes along with other content.
    #[must_use]
    pub fn accompanies(&self) -> bool {
        self.accompanied().is_some()
    }

    /// The tag that clients assume where none is given.
    #[must_use]
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let first = text.bytes().next().is_some_and(word);
        let rest = text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if first && rest && text.len() <= MAX_TAG { Ok(Self(text.to_owned())) } else { Err(NameError::Tag) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names a manifest within a repository.
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

/// The name of an image as people write it: `repository[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// Where it is.
    pub repository: Repository,
    /// Its tag, where one is written.
    pub tag: Option<Tag>,
    /// Its digest, where one is written.
    pub digest: Option<Digest>,
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
    fn repositories_by_the_grammar() {
        for good in ["a", "test/hello", "x/a.b_c__d-e---f/0", "library/busybox", &"a".repeat(255)] {
            let repository: Repository = good.parse().unwrap();
            assert_eq!((repository.host(), repository.path()), (None, good));
        }
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "a._b", "a___b", "-a", "a-", "a b", "..", "a/../b", "é", "a:b"] {
            assert!(bad.parse::<Repository>().is_err(), "{bad:?}");
        }
        assert_eq!("a".repeat(256).parse::<Repository>(), Err(NameError::TooLong));
    }

    #[test]
    fn a_host_shaped_first_component_is_the_upstream() {
        for (text, host, path) in [
            ("docker.io/library/busybox", "docker.io", "library/busybox"),
            ("localhost/x", "localhost", "x"),
            ("localhost:5000/x", "localhost:5000", "x"),
            ("[::1]:5000/x", "[::1]:5000", "x"),
            ("Registry.K8s.io/pause", "registry.k8s.io", "pause"),
        ] {
            let repository: Repository = text.parse().unwrap();
            assert_eq!((repository.host(), repository.path()), (Some(host), path), "{text}");
        }
        for bad in ["docker.io/", "docker..io/x", ":5000/x", "a.b:99999/x", "a.b:/x", "[::z]:1/x", "-a.b/x"] {
            assert!(bad.parse::<Repository>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tags_by_the_grammar() {
        for good in ["latest", "_", "1.36", "v1-rc.1_2", &"a".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good:?}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a:b", "é", &"a".repeat(129)] {
            assert_eq!(bad.parse::<Tag>(), Err(NameError::Tag), "{bad:?}");
        }
    }

    #[test]
    fn tags_of_what_goes_along() {
        let digest = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (suffix, expected) in [("", true), (".sig", true), (".att", true), (".sbom", true), (".other", false), ("0", false)] {
            assert_eq!(format!("{digest}{suffix}").parse::<Tag>().unwrap().accompanies(), expected, "{suffix}");
        }
        assert!(!Tag::latest().accompanies());
    }

    #[test]
    fn image_names_with_tag_and_digest() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in ["a", "a:b", "localhost:5000/a", "localhost:5000/a:b", &format!("a:b@{digest}"), &format!("a@{digest}")] {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), *text);
        }
        for bad in ["a@sha256:1", "a:b:c", "a@b", ":b", "@"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }
}
