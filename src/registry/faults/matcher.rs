//! The conditions of a rule, and what they are compared with.

use std::net::{IpAddr, SocketAddr};

use http::{Method, Version};

use super::glob::Glob;
use super::rule::RuleError;
use crate::address::Cidr;
use crate::oci::{Digest, Host};
use crate::proto::{FaultMatch, Request};
use crate::registry::api::route::Endpoint;

/// The endpoints that rules may match. Those that observe the registry always work.
pub(super) const ENDPOINTS: [Endpoint; 7] =
    [Endpoint::Base, Endpoint::Manifest, Endpoint::Blob, Endpoint::Tags, Endpoint::Catalog, Endpoint::Referrers, Endpoint::Token];

/// What is known of a request.
#[derive(Debug, Clone)]
pub(crate) struct Facts<'a> {
    pub endpoint: Endpoint,
    /// The full name, as in events.
    pub repository: Option<&'a str>,
    pub tag: Option<&'a str>,
    /// The digest in the request, or of the manifest that its tag names.
    pub digest: Option<Digest>,
    pub upstream: Option<&'a str>,
    pub method: &'a Method,
    pub peer: IpAddr,
    pub port: u16,
    pub user: Option<&'a str>,
    pub has_certificate: bool,
    pub user_agent: &'a str,
    pub has_range: bool,
    pub first_byte: u64,
    pub version: Version,
}

/// The exact values among the conditions. Rules are found by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Key<'a> {
    pub endpoint: Option<&'static str>,
    pub repository: Option<&'a str>,
    pub tag: Option<&'a str>,
    pub digest: Option<Digest>,
    pub peer: Option<IpAddr>,
    pub user: Option<&'a str>,
}

impl Key<'_> {
    /// One bit for each value that there is.
    pub fn mask(&self) -> u8 {
        let present = [
            self.endpoint.is_some(),
            self.repository.is_some(),
            self.tag.is_some(),
            self.digest.is_some(),
            self.peer.is_some(),
            self.user.is_some(),
        ];
        present.into_iter().enumerate().map(|(bit, present)| u8::from(present) << bit).sum()
    }

    /// Only the values in `mask`.
    pub fn masked(self, mask: u8) -> Self {
        let has = |bit: u8| mask & (1 << bit) != 0;
        Self {
            endpoint: self.endpoint.filter(|_| has(0)),
            repository: self.repository.filter(|_| has(1)),
            tag: self.tag.filter(|_| has(2)),
            digest: self.digest.filter(|_| has(3)),
            peer: self.peer.filter(|_| has(4)),
            user: self.user.filter(|_| has(5)),
        }
    }
}

impl<'a> Facts<'a> {
    pub(super) fn key(&self) -> Key<'a> {
        Key {
            endpoint: Some(self.endpoint.name()),
            repository: self.repository,
            tag: self.tag,
            digest: self.digest,
            peer: Some(self.peer),
            user: self.user,
        }
    }
}

/// Validated conditions.
#[derive(Debug)]
pub(crate) struct Matcher {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) repository: Option<Glob>,
    pub(super) tag: Option<Glob>,
    pub(super) digest: Option<Digest>,
    pub(super) upstream: Option<Host>,
    pub(super) method: Option<Method>,
    pub(super) peer: Option<Cidr>,
    pub(super) port: Option<u16>,
    pub(super) user: Option<String>,
    pub(super) certificate: Option<bool>,
    user_agent: Option<Glob>,
    pub(super) range: Option<bool>,
    pub(super) version: Option<Version>,
    pub(super) from_byte: u64,
}

/// `text`, unless it is empty.
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl Matcher {
    /// Checks the conditions. `largest_layer` is the digest for `largest_layer_of`, if the image is known.
    pub(super) fn new(message: &FaultMatch, largest_layer: Option<Digest>) -> Result<Self, RuleError> {
        let bad = |field: &'static str| move |problem: String| RuleError::new(field, problem);
        let endpoint = some(&message.endpoint).map(|name| {
            let known = ENDPOINTS.into_iter().find(|endpoint| endpoint.name() == name);
            let names = ENDPOINTS.map(Endpoint::name).join(", ");
            known.ok_or_else(|| bad("match.endpoint")(format!("{name:?} is not an endpoint; expected one of {names}")))
        });
        let in_name = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '.' | '_' | '-' | '/' | ':');
        let in_tag = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
        let repository =
            some(&message.repository).map(|text| Glob::new(text, in_name, "repository").map_err(bad("match.repository")));
        let tag = some(&message.tag).map(|text| Glob::new(text, in_tag, "tag").map_err(bad("match.tag")));
        let digest = some(&message.digest).map(|text| {
            text.parse::<Digest>().map_err(|error| bad("match.digest")(format!("{text:?} is not a digest: {error}")))
        });
        let digest = digest.transpose()?;
        if digest.is_some() && !message.largest_layer_of.is_empty() {
            return Err(bad("match.largest_layer_of")("it contradicts digest; one of them is expected".to_owned()));
        }
        let upstream = some(&message.upstream)
            .map(|text| text.parse::<Host>().map_err(|error| bad("match.upstream")(format!("{text:?} is not a host: {error}"))));
        let method = some(&message.method).map(|text| match text {
            "GET" => Ok(Method::GET),
            "HEAD" => Ok(Method::HEAD),
            _ => Err(bad("match.method")(format!("{text:?} is not a method that the registry serves; expected GET or HEAD"))),
        });
        let peer = some(&message.peer).map(|text| {
            let expected =
                || format!("{text:?} is not an address; expected one such as 10.1.0.7, or a prefix such as 10.1.0.0/16");
            network(text).ok_or_else(|| bad("match.peer")(expected()))
        });
        let port = match message.port {
            0 => None,
            port => Some(u16::try_from(port).map_err(|_| bad("match.port")(format!("{port} is not a TCP port")))?),
        };
        let version = some(&message.http).map(|text| match text {
            "1.0" => Ok(Version::HTTP_10),
            "1.1" => Ok(Version::HTTP_11),
            "2" => Ok(Version::HTTP_2),
            _ => Err(bad("match.http")(format!("{text:?} is not a version of HTTP; expected 1.0, 1.1 or 2"))),
        });
        Ok(Self {
            endpoint: endpoint.transpose()?,
            repository: repository.transpose()?,
            tag: tag.transpose()?,
            digest: digest.or(largest_layer),
            upstream: upstream.transpose()?,
            method: method.transpose()?,
            peer: peer.transpose()?,
            port,
            user: some(&message.user).map(str::to_owned),
            certificate: message.certificate,
            user_agent: some(&message.user_agent)
                .map(|text| Glob::new(text, |_| true, "User-Agent"))
                .transpose()
                .map_err(bad("match.user_agent"))?,
            range: message.range,
            version: version.transpose()?,
            from_byte: message.from_byte,
        })
    }

    pub(super) fn key(&self) -> Key<'_> {
        let is_host = |peer: &Cidr| peer.prefix == if peer.address.is_ipv4() { 32 } else { 128 };
        Key {
            endpoint: self.endpoint.map(Endpoint::name),
            repository: self.repository.as_ref().and_then(Glob::exact),
            tag: self.tag.as_ref().and_then(Glob::exact),
            digest: self.digest,
            peer: self.peer.filter(is_host).map(|peer| peer.address),
            user: self.user.as_deref(),
        }
    }

    /// Whether the rule may act on a request.
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        let glob = |glob: &Option<Glob>, text: Option<&str>| {
            glob.as_ref().is_none_or(|glob| text.is_some_and(|text| glob.matches(text)))
        };
        self.matches_connection(facts.peer, facts.port)
            && self.endpoint.is_none_or(|endpoint| endpoint == facts.endpoint)
            && self.method.as_ref().is_none_or(|method| method == facts.method)
            && self.digest.is_none_or(|digest| facts.digest == Some(digest))
            && self.range.is_none_or(|range| range == facts.has_range)
            && self.version.is_none_or(|version| version == facts.version)
            && self.certificate.is_none_or(|certificate| certificate == facts.has_certificate)
            && self.from_byte <= facts.first_byte
            && self.user.as_deref().is_none_or(|user| facts.user == Some(user))
            && self.upstream.as_ref().is_none_or(|upstream| facts.upstream == Some(upstream.as_str()))
            && glob(&self.tag, facts.tag)
            && glob(&self.repository, facts.repository)
            && glob(&self.user_agent, Some(facts.user_agent))
    }

    /// Whether a request that was logged may have matched. Not all of it is in the log.
    pub(crate) fn may_have_matched(&self, request: &Request, is_for_connections: bool) -> bool {
        let peer = request.peer.parse::<SocketAddr>().map(|peer| peer.ip());
        let is_peer = self.peer.is_none_or(|network| peer.is_ok_and(|peer| network.contains(peer)));
        // The full name of a repository that there is not may be another one here.
        let is_repository = |glob: &Glob| request.status == 404 || glob.matches(&request.repository);
        let is_tag = |glob: &Glob| glob.matches(&request.reference);
        let is_request = ENDPOINTS.iter().any(|endpoint| endpoint.name() == request.endpoint)
            && self.endpoint.is_none_or(|endpoint| endpoint.name() == request.endpoint)
            && self.method.as_ref().is_none_or(|method| method.as_str() == request.method)
            && self.tag.as_ref().is_none_or(is_tag)
            && self.repository.as_ref().is_none_or(is_repository);
        is_peer && (is_for_connections || is_request)
    }

    /// Whether the rule may act on a connection.
    pub(super) fn matches_connection(&self, peer: IpAddr, port: u16) -> bool {
        self.peer.is_none_or(|network| network.contains(peer)) && self.port.is_none_or(|own| own == port)
    }

    /// Whether a condition is unknown when a connection is accepted.
    pub(super) fn needs_request(&self) -> bool {
        let Self { endpoint, repository, tag, digest, upstream, method, user, certificate, user_agent, range, version, .. } =
            self;
        endpoint.is_some()
            || repository.is_some()
            || tag.is_some()
            || digest.is_some()
            || upstream.is_some()
            || method.is_some()
            || user.is_some()
            || certificate.is_some()
            || user_agent.is_some()
            || range.is_some()
            || version.is_some()
            || self.from_byte > 0
    }
}

/// Clients: one address, or those with a prefix. IPv4 clients have IPv4 addresses, even if a socket for IPv6 accepts them.
fn network(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let longest: u8 = if address.is_ipv4() { 32 } else { 128 };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = prefix.map_or(Some(longest), |text| Some(text).filter(|text| is_number(text))?.parse().ok())?;
    if prefix > longest {
        return None;
    }
    let canonical = address.to_canonical();
    // Less than the 96 bits that mapped addresses begin with is a network of IPv6, which no IPv4 client is in.
    let prefix = if canonical == address { prefix } else { prefix.checked_sub(96)? };
    let is_peer = prefix == 0 || !canonical.is_unspecified() && !canonical.is_multicast();
    is_peer.then_some(Cidr { address: canonical, prefix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_and_prefixes_of_clients() {
        for (text, peer, holds) in [
            ("10.1.0.7", "10.1.0.7", true),
            ("::ffff:10.1.0.7", "10.1.0.7", true),
            ("::ffff:10.1.0.0/112", "10.1.255.1", true),
            ("::ffff:10.1.0.0/112", "10.2.0.1", false),
            ("::ffff:0.0.0.0/96", "10.2.0.1", true),
            ("0.0.0.0/0", "10.2.0.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "fd00::1", true),
            ("::/0", "10.2.0.1", false),
            ("fd00::/8", "fd12::1", true),
        ] {
            assert_eq!(network(text).unwrap().contains(peer.parse().unwrap()), holds, "{text} {peer}");
        }
        for text in [
            "",
            "/",
            "10.1.0.0/",
            "10.1.0.0/33",
            "10.1.0.0/+8",
            "::/129",
            "::ffff:10.1.0.0/129",
            "::ffff:10.1.0.0/95",
            "0.0.0.0",
            "::",
            "0.0.0.0/8",
            "224.0.0.1",
            "ff02::1",
            "10.1.0.0/16/16",
            "fe80::1%eth0",
            "10.1.0.0/99999999999",
        ] {
            assert_eq!(network(text), None, "{text}");
        }
    }
}
