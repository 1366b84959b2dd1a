//! Parses the image references of `--pull`, with docker's defaults for host, namespace and tag.

use std::fmt;
use std::str::FromStr;

use crate::oci::upstreams::DOCKER_HUB;
use crate::oci::{Digest, Host, ImageName, NameError, Repository, Tag};

/// Host that serves Docker Hub, the registry of names without a host.
const HUB_ENDPOINT: &str = "registry-1.docker.io";

/// An image in an upstream registry: its host, its repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageReference {
    /// The registry as image names have it: `docker.io`.
    pub host: Host,
    /// The repository, including the host.
    pub repository: Repository,
    /// The tag. `latest` if neither tag nor digest is given.
    pub tag: Option<Tag>,
    /// Digest of the manifest, if given. The tag is then not resolved.
    pub digest: Option<Digest>,
}

impl ImageReference {
    /// Host and port that serve the registry.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        if self.host.as_str() == DOCKER_HUB { HUB_ENDPOINT } else { self.host.as_str() }
    }

    /// The reference of the manifest to request: the digest if given, or else the tag.
    #[must_use]
    pub fn manifest(&self) -> crate::oci::Reference {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => crate::oci::Reference::Digest(*digest),
            (None, Some(tag)) => crate::oci::Reference::Tag(tag.clone()),
            (None, None) => crate::oci::Reference::Tag(Tag::latest()),
        }
    }
}

impl FromStr for ImageReference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let ImageName { repository, tag, digest } = text.parse()?;
        let host = repository.host().map_or_else(|| Ok(Host::docker_hub()), str::parse)?;
        let repository = Repository::under(&host, repository.path())?;
        let tag = tag.or_else(|| digest.is_none().then(Tag::latest));
        Ok(Self { host, repository, tag, digest })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ImageName { repository: self.repository.clone(), tag: self.tag.clone(), digest: self.digest };
        name.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_docker() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, full, endpoint) in [
            ("busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "registry-1.docker.io"),
            ("a/b", "docker.io/a/b:latest", "registry-1.docker.io"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "registry-1.docker.io"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1", "registry-1.docker.io"),
            ("docker.io/library/busybox:1.36", "docker.io/library/busybox:1.36", "registry-1.docker.io"),
            ("host:5000/a/b", "host:5000/a/b:latest", "host:5000"),
            ("Quay.io/a/b:1", "quay.io/a/b:1", "quay.io"),
            ("localhost/a", "localhost/a:latest", "localhost"),
            (&format!("host:5000/a/b@{digest}"), &format!("host:5000/a/b@{digest}"), "host:5000"),
            (&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox:1@{digest}"), "registry-1.docker.io"),
        ] {
            let reference: ImageReference = text.parse().unwrap();
            assert_eq!((reference.to_string().as_str(), reference.endpoint()), (full, endpoint), "{text}");
        }
    }

    #[test]
    fn digest_takes_precedence_over_a_tag() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let asked = |text: &str| text.parse::<ImageReference>().unwrap().manifest().to_string();
        assert_eq!(asked("a"), "latest");
        assert_eq!(asked("a:b"), "b");
        assert_eq!(asked(&format!("a:b@{digest}")), digest);
    }

    #[test]
    fn invalid_names_are_rejected() {
        for (text, expected) in [
            ("", NameError::Repository),
            ("https://quay.io/a", NameError::Host),
            ("A", NameError::Repository),
            ("a:", NameError::Tag),
        ] {
            assert_eq!(text.parse::<ImageReference>().unwrap_err(), expected, "{text:?}");
        }
    }
}
