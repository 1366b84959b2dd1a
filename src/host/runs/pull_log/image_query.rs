//! Matches an image name, as a person or a pod's spec has it, with the repository names in a log.

use std::str::FromStr;
use std::{fmt, iter};

use super::Pull;
use crate::oci::upstreams::LOCALHOST;
use crate::oci::{Digest, Host, ImageName, NameError, Repository, Tag};

/// An image to look for in a log.
///
/// Names mean what they mean to clients. The default tag is `latest`; a digest overrides the tag. A name without a host means the
/// registry's own images, those of Docker Hub (`busybox` is also `docker.io/library/busybox`), and those that podman calls
/// `localhost/NAME`. A host that is an address or has a port means the registry itself, which looks for the name in the same places, or
/// an upstream of that name. `localhost` is podman's host for images without a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageQuery {
    /// The name as given, with the default tag if it had no reference.
    text: String,
    /// Whether the name has a tag or a digest.
    has_reference: bool,
    /// The repository without its host.
    path: String,
    /// The names that the repository may have in a log.
    repositories: Vec<String>,
    reference: Reference,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// The text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an image's name, such as test/hello:1, docker.io/library/busybox or 10.1.0.82:5000/test/hello@sha256:…: {0}")]
pub struct ImageQueryError(NameError);

impl FromStr for ImageQuery {
    type Err = ImageQueryError;

    fn from_str(text: &str) -> Result<Self, ImageQueryError> {
        let ImageName { repository, tag, digest } = text.parse().map_err(ImageQueryError)?;
        let has_reference = tag.is_some() || digest.is_some();
        let reference = match digest {
            Some(digest) => Reference::Digest(digest),
            None => Reference::Tag(tag.unwrap_or_else(Tag::latest)),
        };
        let text = if has_reference { text.to_owned() } else { format!("{text}:{}", Tag::latest()) };
        let path = repository.path().to_owned();
        Ok(Self { text, has_reference, path, repositories: repositories(&repository), reference })
    }
}

/// The names that a repository may have in a log.
fn repositories(repository: &Repository) -> Vec<String> {
    let (host, path) = (repository.host(), repository.path());
    // The places where the registry looks for a name without an upstream.
    let own = || {
        let hub = Repository::under(&Host::docker_hub(), path).ok();
        let familiar = hub.as_ref().and_then(Repository::familiar).map(str::to_owned);
        // REGISTRY/docker.io/busybox is docker.io/library/busybox.
        let requested = Repository::requested(path).ok();
        let spelled = requested.as_ref().and_then(Repository::with_spelled_host);
        let named = [requested, spelled, hub].into_iter().flatten().map(|name| name.to_string());
        named.chain([format!("{LOCALHOST}/{path}")]).chain(familiar).collect::<Vec<_>>()
    };
    match host {
        None => own(),
        Some(LOCALHOST) => vec![repository.to_string(), path.to_owned()],
        Some(host) if is_own(host) => iter::once(repository.to_string()).chain(own()).collect(),
        Some(_) => iter::once(repository.to_string()).chain(repository.familiar().map(str::to_owned)).collect(),
    }
}

/// Whether a host is the address of this registry rather than the name of an upstream.
fn is_own(host: &str) -> bool {
    let is_bare = host.parse::<Host>().is_ok_and(|parsed| parsed.name() == host);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    !is_bare || address.parse::<std::net::IpAddr>().is_ok()
}

impl ImageQuery {
    /// Whether the name has a tag or a digest. If not, the tag is `latest`.
    #[must_use]
    pub fn has_reference(&self) -> bool {
        self.has_reference
    }

    /// How much the name of a pull differs: the edit distance of the repositories, at most 1 if only the hosts differ, then that of the
    /// tags.
    #[must_use]
    pub fn distance(&self, pull: &Pull) -> (usize, usize) {
        let same_path = pull.repository.parse::<Repository>().is_ok_and(|other| other.path() == self.path);
        let distances = self.repositories.iter().map(|name| strsim::levenshtein(name, &pull.repository));
        let repository = distances.min().unwrap_or_default().min(if same_path { 1 } else { usize::MAX });
        let tag = match &self.reference {
            Reference::Tag(tag) => strsim::levenshtein(tag.as_str(), pull.tag.as_deref().unwrap_or_default()),
            Reference::Digest(_) => 0,
        };
        (repository, tag)
    }

    /// Whether `pull` is of this image.
    #[must_use]
    pub fn matches(&self, pull: &Pull) -> bool {
        self.repositories.contains(&pull.repository)
            && match &self.reference {
                Reference::Tag(tag) => pull.tag.as_deref() == Some(tag.as_str()),
                Reference::Digest(digest) => pull.digest == digest.to_string(),
            }
    }
}

impl fmt::Display for ImageQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn pull(repository: &str, tag: &str) -> Pull {
        Pull {
            time: 0.0,
            by: None,
            repository: repository.into(),
            tag: Some(tag.into()),
            digest: DIGEST.into(),
            status: 200,
            bytes: 1,
            complete: true,
            left_out: String::new(),
        }
    }

    #[test]
    fn image_names_match_as_clients_resolve_them() {
        for (text, repository, tag, matches) in [
            ("test/hello:1", "test/hello", "1", true),
            ("test/hello", "test/hello", "latest", true),
            ("test/hello", "test/hello", "1", false),
            ("10.1.0.82:5000/test/hello:1", "test/hello", "1", true),
            ("10.1.0.82/test/hello:1", "test/hello", "1", true),
            ("[fd00::1]:5000/test/hello:1", "test/hello", "1", true),
            ("localhost/test/hello:1", "test/hello", "1", true),
            ("localhost/test/hello:1", "localhost/test/hello", "1", true),
            ("test/hello:1", "localhost/test/hello", "1", true),
            ("10.1.0.82:5000/test/hello:1", "localhost/test/hello", "1", true),
            ("10.1.0.82:5000/test/hello:1", "docker.io/test/hello", "1", true),
            ("quay.io/test/hello:1", "localhost/test/hello", "1", false),
            ("localhost/test/hello:1", "docker.io/test/hello", "1", false),
            ("10.1.0.82:5000/docker.io/library/busybox:1", "docker.io/library/busybox", "1", true),
            ("quay.io/test/hello:1", "test/hello", "1", false),
            ("quay.io/test/hello:1", "quay.io/test/hello", "1", true),
            ("busybox", "docker.io/library/busybox", "latest", true),
            ("docker.io/busybox", "docker.io/library/busybox", "latest", true),
            ("index.docker.io/library/busybox", "docker.io/library/busybox", "latest", true),
            ("registry-1.docker.io/busybox", "docker.io/library/busybox", "latest", true),
            ("10.1.0.82:5000/index.docker.io/busybox:1", "docker.io/library/busybox", "1", true),
            ("10.1.0.82:5000/busybox:1", "docker.io/library/busybox", "1", true),
            ("10.1.0.82:5000/a.test_5000/x:1", "a.test:5000/x", "1", true),
            ("10.1.0.82:5000/localhost_5000/x:1", "localhost:5000/x", "1", true),
            ("10.1.0.82:5000/a.test_5000/x:1", "a.test:5001/x", "1", false),
            // The disk has the name as docker save wrote it.
            ("docker.io/library/busybox", "busybox", "latest", true),
            ("library/busybox", "busybox", "latest", true),
            ("docker.io/test/hello:1", "test/hello", "1", true),
            ("docker.io/test/hello:1", "localhost/test/hello", "1", false),
            ("quay.io/library/busybox", "busybox", "latest", false),
            ("quay.io/busybox", "docker.io/library/busybox", "latest", false),
            ("test/hello:2@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "test/hello", "1", true),
        ] {
            assert_eq!(text.parse::<ImageQuery>().unwrap().matches(&pull(repository, tag)), matches, "{text} {repository}:{tag}");
        }
        let other = format!("test/hello@{}", DIGEST.replace('e', "f"));
        assert!(!other.parse::<ImageQuery>().unwrap().matches(&pull("test/hello", "1")));
    }

    #[test]
    fn bad_image_names_are_refused() {
        for text in ["", "Upper/case", "a:b:c", "a@sha256:1"] {
            let error = text.parse::<ImageQuery>().unwrap_err().to_string();
            assert!(error.starts_with("expected an image's name, such as test/hello:1, "), "{error}");
        }
    }
}
