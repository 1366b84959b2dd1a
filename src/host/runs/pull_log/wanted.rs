//! An image as a person or a pod's spec names it, held against the names in a log. Text enters; whether a pull is meant leaves.

use std::fmt;
use std::str::FromStr;

use super::Pull;
use crate::oci::{Digest, Host, ImageName, NameError, Repository, Tag};
use crate::registry::content::upstreams::{DOCKER_HUB, LOCALHOST, canonical};

/// Docker Hub's namespace for names without one.
const LIBRARY: &str = "library";

/// An image that pulls are looked for of.
///
/// Names mean what they mean to clients: without tag and digest `latest`; with a digest that alone. Without a host the registry's
/// own images are meant, Docker Hub's (`busybox` is `docker.io/library/busybox` too) and those that podman named `localhost/NAME`. A
/// host that is an address or has a port is the registry itself, which looks for a name in the same places, or an upstream of that
/// name. `localhost` is podman's word for no registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// As it was given, with the tag where none was.
    text: String,
    /// Whether the tag was given, or a digest.
    complete: bool,
    /// The repository's name without a host.
    path: String,
    /// The names that a log may have for the repository.
    repositories: Vec<String>,
    by: Reference,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an image's name, such as test/hello:1, docker.io/library/busybox or 10.1.0.82:5000/test/hello@sha256:…: {0}")]
pub struct WantedError(NameError);

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(text: &str) -> Result<Self, WantedError> {
        let ImageName { repository, tag, digest } = text.parse().map_err(WantedError)?;
        let complete = tag.is_some() || digest.is_some();
        let by = match digest {
            Some(digest) => Reference::Digest(digest),
            None => Reference::Tag(tag.unwrap_or_else(Tag::latest)),
        };
        let text = if complete { text.to_owned() } else { format!("{text}:{}", Tag::latest()) };
        let path = repository.path().to_owned();
        Ok(Self { text, complete, path, repositories: repositories(&repository), by })
    }
}

/// The names that a log may have for it.
fn repositories(repository: &Repository) -> Vec<String> {
    let (host, path) = (repository.host(), repository.path());
    // Where the registry looks for a name without an upstream.
    let own = || [path.to_owned(), format!("{DOCKER_HUB}/{path}"), format!("{LOCALHOST}/{path}")];
    let mut names = match host {
        None => own().to_vec(),
        Some(LOCALHOST) => vec![format!("{LOCALHOST}/{path}"), path.to_owned()],
        Some(host) if is_own(host) => [format!("{host}/{path}")].into_iter().chain(own()).collect(),
        Some(host) => vec![format!("{}/{path}", canonical(host))],
    };
    let hub = host.is_none_or(|host| canonical(host) == DOCKER_HUB);
    if hub && !path.contains('/') {
        names.push(format!("{DOCKER_HUB}/{LIBRARY}/{path}"));
    }
    names
}

/// Whether a host is how a node reaches a registry of a test, rather than an upstream's name.
fn is_own(host: &str) -> bool {
    let is_bare = host.parse::<Host>().is_ok_and(|parsed| parsed.name() == host);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    !is_bare || address.parse::<std::net::IpAddr>().is_ok()
}

impl Wanted {
    /// Whether a tag or a digest was given. If not, the tag is the one that clients take.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// How far the name of what was pulled is from this one, to sort by: the edit distance of the repositories, at most 1 where only
    /// the hosts differ, then that of the tags.
    #[must_use]
    pub fn distance(&self, pull: &Pull) -> (usize, usize) {
        let same_path = pull.repository.parse::<Repository>().is_ok_and(|other| other.path() == self.path);
        let distances = self.repositories.iter().map(|name| strsim::levenshtein(name, &pull.repository));
        let repository = distances.min().unwrap_or_default().min(if same_path { 1 } else { usize::MAX });
        let tag = match &self.by {
            Reference::Tag(tag) => strsim::levenshtein(tag.as_str(), pull.tag.as_deref().unwrap_or_default()),
            Reference::Digest(_) => 0,
        };
        (repository, tag)
    }

    /// Whether `pull` is of this image.
    #[must_use]
    pub fn is(&self, pull: &Pull) -> bool {
        self.repositories.contains(&pull.repository)
            && match &self.by {
                Reference::Tag(tag) => pull.tag.as_deref() == Some(tag.as_str()),
                Reference::Digest(digest) => pull.digest == digest.to_string(),
            }
    }
}

impl fmt::Display for Wanted {
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
        }
    }

    #[test]
    fn names_mean_what_they_mean_to_clients() {
        for (text, repository, tag, is) in [
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
            ("quay.io/busybox", "docker.io/library/busybox", "latest", false),
            ("test/hello:2@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "test/hello", "1", true),
        ] {
            assert_eq!(text.parse::<Wanted>().unwrap().is(&pull(repository, tag)), is, "{text} {repository}:{tag}");
        }
        let other = format!("test/hello@{}", DIGEST.replace('e', "f"));
        assert!(!other.parse::<Wanted>().unwrap().is(&pull("test/hello", "1")));
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in ["", "Upper/case", "a:b:c", "a@sha256:1"] {
            let error = text.parse::<Wanted>().unwrap_err().to_string();
            assert!(error.starts_with("expected an image's name, such as test/hello:1, "), "{error}");
        }
    }
}
