//! Names of repositories and tags (distribution specification, "Pulling manifests"), and the upstream's host in front of a repository.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::upstreams::{self, DOCKER_HUB, LIBRARY};
use super::{Digest, DigestError};
use crate::address::is_dns_label;

/// Length in bytes of the longest repository name, host included. The specification lets clients rely on this much.
pub const MAX_REPOSITORY: usize = 255;
/// Length in bytes of the longest tag.
pub const MAX_TAG: usize = 128;

/// Why text is not a name.
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
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The digest of other content than that which has the name.
    #[error("the digest in it is not that of the image's manifest")]
    OtherDigest,
}

/// The domain under which Windows spells an IPv6 address as a DNS name: `fd00--1.ipv6-literal.net` is `fd00::1`. It is reserved for that.
const IPV6_LITERAL: &str = ".ipv6-literal.net";

/// Host of a registry in lower case, with an optional port: `docker.io`, `localhost:5000`, `[::1]:5000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    /// Docker Hub, which clients mean by a name without a host.
    #[must_use]
    pub fn docker_hub() -> Self {
        Self(DOCKER_HUB.to_owned())
    }

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

    /// Whether it is an IPv6 address. Most clients take none in an image name: Docker's grammar of references has them since 2023, and
    /// the grammar of podman, skopeo, buildah and CRI-O does not (containers/image, `docker/reference`).
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.0.starts_with('[')
    }

    /// The host as a component of a repository name, in which no colon and no bracket may stand. The port follows `_`, as in the folders
    /// of containerd's `certs.d` (`host_5000_`, but no component ends with `_`), and an IPv6 address is spelled as in
    /// `.ipv6-literal.net`: `registry.test_5000`, `fd00--1.ipv6-literal.net_5000`.
    #[must_use]
    pub fn component(&self) -> String {
        let name = self.name();
        let port = self.0.strip_prefix(name).unwrap_or_default().replace(':', "_");
        let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
            return format!("{name}{port}");
        };
        let digits = |end: bool| if end { "0" } else { "" };
        let (start, end) = (digits(address.starts_with(':')), digits(address.ends_with(':')));
        format!("{start}{}{end}{IPV6_LITERAL}{port}", address.replace(':', "-"))
    }

    /// The host that [`Host::component`] or containerd's `certs.d` spells like this. `None` for a host that is spelled as it is.
    fn of_component(text: &str) -> Option<Self> {
        let (name, port) = match text.strip_suffix('_').unwrap_or(text).rsplit_once('_') {
            Some((name, port)) => (name, format!(":{port}")),
            None => (text, String::new()),
        };
        match name.strip_suffix(IPV6_LITERAL) {
            Some(address) => format!("[{}]{port}", address.replace('-', ":")).parse().ok(),
            None if port.is_empty() => None,
            None => format!("{name}{port}").parse().ok(),
        }
    }

    /// Whether the first component of an image name is a host. As in Docker, a host has a dot or a port, or is `localhost`.
    fn is_host(component: &str) -> bool {
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
        let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if !port_ok || text.len() > MAX_REPOSITORY {
            return Err(NameError::Host);
        }
        match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // An address has several forms. The one that is printed makes them equal.
            Some(address) => {
                let address: Ipv6Addr = address.parse().map_err(|_| NameError::Host)?;
                Ok(Self(port.map_or_else(|| format!("[{address}]"), |port| format!("[{address}]:{port}"))))
            }
            None if name.split('.').all(is_dns_label) => Ok(Self(text.to_ascii_lowercase())),
            None => Err(NameError::Host),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository: `docker.io/library/busybox` under an upstream's host, or `test/hello` without a host.
///
/// Docker Hub's repositories have one name each, whichever of its names a text has: `index.docker.io/busybox` is parsed as
/// `docker.io/library/busybox`. A name without a host stays as it is, because it may be this registry's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    full: String,
    /// Length of the host in bytes; 0 without a host.
    host_len: usize,
}

impl Repository {
    /// The repository `path` under `host`, by Docker Hub's one name if it is Docker Hub's.
    ///
    /// # Errors
    /// Fails if `path` is not a repository name, or the whole is longer than [`MAX_REPOSITORY`].
    pub fn under(host: &Host, path: &str) -> Result<Self, NameError> {
        check_path(path)?;
        let host = upstreams::canonical(host.as_str());
        let is_official = host == DOCKER_HUB && !path.contains('/');
        let full = if is_official { format!("{host}/{LIBRARY}/{path}") } else { format!("{host}/{path}") };
        if full.len() > MAX_REPOSITORY {
            return Err(NameError::TooLong);
        }
        Ok(Self { full, host_len: host.len() })
    }

    /// Parses the name in the path of a request: a first component with a dot may be a spelling of [`Host::component`].
    ///
    /// # Errors
    /// Fails if `text` is not a repository name.
    pub fn requested(text: &str) -> Result<Self, NameError> {
        // With a dot it is a host, and of these spellings only IPv6 addresses without a port could be a host as they are.
        let spelled = text.split_once('/').filter(|(first, _)| first.contains('.'));
        match spelled.and_then(|(first, rest)| Some((Host::of_component(first)?, rest))) {
            Some((host, rest)) => Self::under(&host, rest),
            None => text.parse(),
        }
    }

    /// The other meaning of a name without a host whose first component spells one: `registry_5000/a` may be `registry:5000/a`.
    #[must_use]
    pub fn with_spelled_host(&self) -> Option<Self> {
        let (first, rest) = self.full.split_once('/').filter(|_| self.host_len == 0)?;
        Self::under(&Host::of_component(first)?, rest).ok()
    }

    /// The name as a path under another host, where the upstream's host is a component ([`Host::component`]).
    #[must_use]
    pub fn to_path(&self) -> String {
        let host = self.host().and_then(|host| host.parse::<Host>().ok());
        host.map_or_else(|| self.full.clone(), |host| format!("{}/{}", host.component(), self.path()))
    }

    /// The name as `docker` shows it: without Docker Hub's host and namespace. `None` if it is another registry's.
    #[must_use]
    pub fn familiar(&self) -> Option<&str> {
        let path = self.host().filter(|host| *host == DOCKER_HUB).map(|_| self.path())?;
        let official = path.strip_prefix(LIBRARY).and_then(|rest| rest.strip_prefix('/'));
        Some(official.filter(|name| !name.contains('/')).unwrap_or(path))
    }

    /// The full name, host included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The upstream's host.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.full.get(..self.host_len).filter(|host| !host.is_empty())
    }

    /// The name without the host.
    #[must_use]
    pub fn path(&self) -> &str {
        let start = if self.host_len == 0 { 0 } else { self.host_len + 1 };
        self.full.get(start..).unwrap_or_default()
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((first, rest)) if Host::is_host(first) => Self::under(&first.parse()?, rest),
            _ if text.len() > MAX_REPOSITORY => Err(NameError::TooLong),
            _ => check_path(text).map(|()| Self { full: text.to_owned(), host_len: 0 }),
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

/// Suffixes of cosign's tags for the signature, the attestation and the SBOM of an image, after `sha256-HEX`.
pub const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The subject's digest in a tag of the referrers tag schema, `sha256-HEX` (distribution specification, "Referrers Tag Schema").
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        self.0.replacen('-', ":", 1).parse().ok()
    }

    /// The digest of the image that the tagged manifest is attached to, by the referrers tag schema or cosign's tags.
    #[must_use]
    pub fn attached_to(&self) -> Option<Digest> {
        let digest = COSIGN_SUFFIXES.iter().find_map(|suffix| self.0.strip_suffix(suffix)).unwrap_or(&self.0);
        digest.replacen('-', ":", 1).parse().ok()
    }

    /// cosign's tag for what is attached to `image`, which ends with one of [`COSIGN_SUFFIXES`]. `None` for a digest that no tag has room
    /// for.
    #[must_use]
    pub fn attachment(image: &Digest, suffix: &str) -> Option<Self> {
        format!("{}-{}{suffix}", image.algorithm().name(), image.hex()).parse().ok()
    }

    /// Whether the tagged manifest is attached to an image.
    #[must_use]
    pub fn is_attachment(&self) -> bool {
        self.attached_to().is_some()
    }

    /// `latest`, the tag that clients use by default.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_follow_the_grammar() {
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
    fn first_component_with_dot_or_port_is_the_upstream_host() {
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
    fn hosts_are_spelled_as_components() {
        for (host, component) in [
            ("quay.io", "quay.io"),
            ("registry.test:5000", "registry.test_5000"),
            ("localhost:5000", "localhost_5000"),
            ("10.1.0.82:443", "10.1.0.82_443"),
            ("[fd00::1]:5000", "fd00--1.ipv6-literal.net_5000"),
            ("[fd00::1]", "fd00--1.ipv6-literal.net"),
            ("[::1]:5000", "0--1.ipv6-literal.net_5000"),
            ("[FD00:0:0::]:5000", "fd00--0.ipv6-literal.net_5000"),
            ("[::]:5000", "0--0.ipv6-literal.net_5000"),
            ("[::ffff:10.1.0.82]:5000", "0--ffff-10.1.0.82.ipv6-literal.net_5000"),
        ] {
            let parsed: Host = host.parse().unwrap();
            assert_eq!(parsed.component(), component, "{host}");
            assert!(is_component(component), "a component of every registry's names: {component}");
            let name = format!("{component}/team/app");
            let full = Repository::under(&parsed, "team/app").unwrap();
            let requested = Repository::requested(&name).unwrap();
            let found = if component.contains('.') { requested } else { requested.with_spelled_host().unwrap() };
            assert_eq!((&found, full.to_path()), (&full, name), "{host}");
        }
        // As containerd's folders are named.
        assert_eq!(Repository::requested("registry.test_5000_/a"), "registry.test:5000/a".parse());
        let other =
            |text: &str| Repository::requested(text).ok().map(|name| name.with_spelled_host().map(|name| name.to_string()));
        assert_eq!(other("reg_5000/a"), Some(Some("reg:5000/a".to_owned())), "it may be either");
        for plain in ["team_a/app", "team_70000/app", "team/app_5000", "app_5000", "a/registry.test_5000/b"] {
            assert_eq!(other(plain), Some(None), "{plain}");
        }
        for bad in ["a_b.test/x", "registry.test_0/x", "x.ipv6-literal.net/a", "registry.test_5000/"] {
            assert!(bad == "x.ipv6-literal.net/a" || Repository::requested(bad).is_err(), "{bad}");
        }
        assert_eq!("[fd00:0::1]:5000".parse::<Host>(), "[fd00::1]:5000".parse());
    }

    #[test]
    fn docker_hub_has_one_name() {
        for (text, full, familiar) in [
            ("docker.io/hello", "docker.io/library/hello", Some("hello")),
            ("index.docker.io/hello", "docker.io/library/hello", Some("hello")),
            ("registry-1.docker.io/library/hello", "docker.io/library/hello", Some("hello")),
            ("Index.Docker.IO/team/app", "docker.io/team/app", Some("team/app")),
            ("docker.io/library/a/b", "docker.io/library/a/b", Some("library/a/b")),
            ("docker.io:443/hello", "docker.io:443/hello", None),
            ("quay.io/hello", "quay.io/hello", None),
            ("hello", "hello", None),
        ] {
            let repository: Repository = text.parse().unwrap();
            assert_eq!((repository.as_str(), repository.familiar()), (full, familiar), "{text}");
            let parts = [repository.host(), Some(repository.path())].into_iter().flatten().collect::<Vec<_>>();
            assert_eq!(parts.join("/"), full);
        }
        assert_eq!(format!("docker.io/{}", "a".repeat(240)).parse::<Repository>(), Err(NameError::TooLong));
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "_", "1.36", "v1-rc.1_2", &"a".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good:?}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a:b", "é", &"a".repeat(129)] {
            assert_eq!(bad.parse::<Tag>(), Err(NameError::Tag), "{bad:?}");
        }
    }

    #[test]
    fn referrers_and_cosign_tags_are_attachments() {
        let digest = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (suffix, expected) in [("", true), (".sig", true), (".att", true), (".sbom", true), (".other", false), ("0", false)] {
            assert_eq!(format!("{digest}{suffix}").parse::<Tag>().unwrap().is_attachment(), expected, "{suffix}");
        }
        assert!(!Tag::latest().is_attachment());
    }
}
