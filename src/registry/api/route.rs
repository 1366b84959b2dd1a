//! What a request asks for: method and target become a [`Route`]. Pure, anchored, and nothing but names by the grammar leaves.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::oci::{Digest, Host, NameError, Reference, Repository};
use crate::registry::http::error::RegistryError;
use crate::registry::listen::client::Surface;

/// An endpoint with its operands. `Repository` here is as the client wrote it; which upstream it means is decided by [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: the API is here.
    Base,
    /// `/v2/_catalog`.
    Catalog(Page),
    /// `/v2/<name>/tags/list`.
    Tags(Repository, Page),
    /// `/v2/<name>/manifests/<reference>`.
    Manifest(Repository, Reference),
    /// `/v2/<name>/blobs/<digest>`.
    Blob(Repository, Digest),
    /// `/v2/<name>/referrers/<digest>`.
    Referrers(Repository, Referrers),
}

/// Whose referrers are asked for, and which of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrers {
    /// What they refer to.
    pub subject: Digest,
    /// The type that they are to have.
    pub artifact_type: Option<String>,
    /// How many, and after which.
    pub page: Page,
}

/// An endpoint of this registry's own, beside those of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    /// `/token`, and the scopes that a token is wanted for.
    Token(Vec<String>),
    /// `/healthz`.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/ca.crt`.
    Ca,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Something of the distribution specification.
    Registry(Target),
    /// Something beside it.
    Beside(Beside),
}

/// An endpoint without its operands, as logs and metrics name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Endpoint {
    Base,
    Catalog,
    Tags,
    Manifest,
    Blob,
    Referrers,
    Token,
    Health,
    Metrics,
    Ca,
    /// No endpoint's target, or a request that was refused before it was looked at.
    Other,
}

impl Endpoint {
    /// Every one, in the order of their declaration.
    pub const ALL: [Self; 11] = [
        Self::Base,
        Self::Catalog,
        Self::Tags,
        Self::Manifest,
        Self::Blob,
        Self::Referrers,
        Self::Token,
        Self::Health,
        Self::Metrics,
        Self::Ca,
        Self::Other,
    ];

    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Tags => "tags",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Referrers => "referrers",
            Self::Token => "token",
            Self::Health => "health",
            Self::Metrics => "metrics",
            Self::Ca => "ca",
            Self::Other => "other",
        }
    }
}

impl Asked {
    /// The endpoint alone.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Registry(target) => match target.route {
                Route::Base => Endpoint::Base,
                Route::Catalog(_) => Endpoint::Catalog,
                Route::Tags(..) => Endpoint::Tags,
                Route::Manifest(..) => Endpoint::Manifest,
                Route::Blob(..) => Endpoint::Blob,
                Route::Referrers(..) => Endpoint::Referrers,
            },
            Self::Beside(Beside::Token(_)) => Endpoint::Token,
            Self::Beside(Beside::Health) => Endpoint::Health,
            Self::Beside(Beside::Metrics) => Endpoint::Metrics,
            Self::Beside(Beside::Ca) => Endpoint::Ca,
        }
    }

    /// Whether it is answered on `surface`.
    #[must_use]
    pub fn is_on(&self, surface: Surface) -> bool {
        let observes = matches!(self, Self::Beside(Beside::Health | Beside::Metrics | Beside::Ca));
        match surface {
            Surface::All => true,
            Surface::Registry => !observes,
            Surface::Observability => observes,
        }
    }
}

/// Paging of a list (distribution specification, "Listing Tags").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Most entries wanted.
    pub n: Option<usize>,
    /// The entry before the first one wanted.
    pub last: Option<String>,
}

/// A parsed request target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The endpoint.
    pub route: Route,
    /// The upstream that the client says it means (`ns=`).
    pub namespace: Option<Host>,
}

/// Parses the method and the target of a request.
///
/// # Errors
/// 405 for a method that is not GET or HEAD, 400 or 404 for a target that is no endpoint's.
pub fn parse(method: &Method, uri: &Uri) -> Result<Asked, RegistryError> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(RegistryError::MethodNotAllowed);
    }
    if let Some(beside) = beside(uri) {
        return Ok(Asked::Beside(beside));
    }
    let segments = uri.path().strip_prefix("/v2").ok_or(RegistryError::PathUnknown)?;
    let segments = match segments {
        "" | "/" => Vec::new(),
        rest => rest.strip_prefix('/').ok_or(RegistryError::PathUnknown)?.split('/').map(decode).collect::<Result<_, _>>()?,
    };
    let query = uri.query().unwrap_or_default();
    let namespace = match value(query, "ns") {
        Some(ns) => Some(ns.parse().map_err(|error: NameError| RegistryError::NameInvalid(format!("ns: {error}")))?),
        None => None,
    };
    Ok(Asked::Registry(Target { route: route(&segments, query)?, namespace }))
}

fn beside(uri: &Uri) -> Option<Beside> {
    match uri.path() {
        "/token" => Some(Beside::Token(values(uri.query().unwrap_or_default(), "scope"))),
        "/healthz" => Some(Beside::Health),
        "/metrics" => Some(Beside::Metrics),
        "/ca.crt" => Some(Beside::Ca),
        _ => None,
    }
}

fn route(segments: &[Cow<'_, str>], query: &str) -> Result<Route, RegistryError> {
    let text: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
    match text.as_slice() {
        [] => Ok(Route::Base),
        ["_catalog"] => Ok(Route::Catalog(page(query)?)),
        [name @ .., "tags", "list"] => Ok(Route::Tags(repository(name)?, page(query)?)),
        [name @ .., "manifests", reference] => Ok(Route::Manifest(repository(name)?, manifest_reference(reference)?)),
        [name @ .., "blobs", digest] => Ok(Route::Blob(repository(name)?, parse_digest(digest)?)),
        [name @ .., "referrers", digest] => {
            let (name, subject) = (repository(name)?, parse_digest(digest)?);
            let artifact_type = value(query, "artifactType").map(Cow::into_owned);
            let page = page(query)?;
            // They are in order of their digests, and so the last one of a page is named by its own.
            page.last.as_deref().map(parse_digest).transpose()?;
            Ok(Route::Referrers(name, Referrers { subject, artifact_type, page }))
        }
        _ => Err(RegistryError::PathUnknown),
    }
}

fn repository(segments: &[&str]) -> Result<Repository, RegistryError> {
    segments.join("/").parse().map_err(|error: NameError| RegistryError::NameInvalid(error.to_string()))
}

fn parse_digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|error: crate::oci::DigestError| RegistryError::DigestInvalid(error.to_string()))
}

/// A digest that cannot be parsed is a bad request; a tag that cannot exist is only unknown.
fn manifest_reference(text: &str) -> Result<Reference, RegistryError> {
    match text.parse::<Reference>() {
        Ok(reference) => Ok(reference),
        Err(NameError::Digest(error)) => Err(RegistryError::DigestInvalid(error.to_string())),
        Err(error) => Err(RegistryError::ManifestUnknown(error.to_string())),
    }
}

fn page(query: &str) -> Result<Page, RegistryError> {
    let n = match value(query, "n") {
        // More digits than a number holds are just a large number, and large numbers are clamped where the page is made.
        Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => Some(n.parse().unwrap_or(usize::MAX)),
        Some(_) => return Err(RegistryError::PaginationInvalid("n is expected to be a number from 0 up".into())),
        None => None,
    };
    Ok(Page { n, last: value(query, "last").map(Cow::into_owned) })
}

/// The first value of a query parameter.
fn value<'a>(query: &'a str, key: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == key).map(|(_, value)| value)
}

/// Every value of a query parameter.
fn values(query: &str, key: &str) -> Vec<String> {
    form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == key).map(|(_, value)| value.into_owned()).collect()
}

fn decode(segment: &str) -> Result<Cow<'_, str>, RegistryError> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded.map_err(|_| RegistryError::NameInvalid("the path is expected to be UTF-8".into()))
}

/// Hosts that stand for another: where a client that was told `docker.io` really connects.
const ALIASES: [(&str, &str); 2] = [("registry-1.docker.io", MIRRORED), ("index.docker.io", MIRRORED)];

/// The upstream of dockerd's `registry-mirrors`, which are asked without naming it.
pub const MIRRORED: &str = "docker.io";

/// The host that podman and buildah put before a name that has no registry: an image built as `app` is named `localhost/app`. It is
/// also how this machine reaches a registry of its own, so a `Host` header with it names no upstream.
pub const LOCAL: &str = "localhost";

/// Every alias with the upstream that it means.
pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALIASES.into_iter()
}

/// The upstream that a host name means.
#[must_use]
pub fn upstream(host: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == host).map_or(host, |(_, upstream)| upstream)
}
