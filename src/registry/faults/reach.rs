//! Which rules no request or connection can reach: what their conditions need of an endpoint, a listener, a disk, and of each other.

use std::collections::HashMap;
use std::net::SocketAddr;

use http::{HeaderMap, Method, StatusCode, Version};

use super::action::Original;
use super::matcher::{ENDPOINTS, Matcher};
use super::rule::Rule;
use super::{NAMED, plan::Plan};
use crate::disk::catalog::{BlobId, RepositoryId};
use crate::proto::FaultMatch;
use crate::proto::fault_action::Connection;
use crate::registry::api::route::Endpoint;
use crate::registry::auth::client_certificate::Presence;
use crate::registry::content::store::Store;

/// The registry around a plan of faults.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// What it serves.
    pub store: &'a Store,
    /// Where it serves. Empty: that is not known.
    pub ports: &'a [Port],
    /// Whether clients need tokens.
    pub has_tokens: bool,
    /// Whether clients of TLS may or must show a certificate.
    pub certificates: Option<Presence>,
}

/// A listener of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Port {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_encrypted: bool,
}

/// What a request to an endpoint has: a repository, a tag, a digest.
const fn names(endpoint: Endpoint) -> [bool; 3] {
    match endpoint {
        Endpoint::Manifest => [true, true, true],
        Endpoint::Blob | Endpoint::Referrers => [true, false, true],
        Endpoint::Tags => [true, false, false],
        _ => [false; 3],
    }
}

/// The first rules from number `start` on that can never act, and why.
pub(super) fn warnings(plan: &Plan, start: usize, around: &Surroundings<'_>) -> Vec<String> {
    let names =
        around.store.catalog().repositories().map(|id| (id, around.store.catalog().repository_name(id))).collect::<Vec<_>>();
    let mut all: HashMap<Vec<u8>, &str> = HashMap::new();
    let mut warnings = plan.rules.iter().enumerate().filter_map(|(number, rule)| {
        let before = hidden_by(rule, &mut all);
        let before = || before.map(|other| format!("the rule {other} acts on all of that before"));
        let why = || {
            circle(rule, plan).or_else(|| contradiction(rule, around)).or_else(|| absent(rule, around, &names)).or_else(before)
        };
        if number < start { None } else { Some(format!("rule {} can never match: {}", rule.id(), why()?)) }
    });
    let named: Vec<String> = warnings.by_ref().take(NAMED).collect();
    let others = warnings.count();
    named.into_iter().chain((others > 0).then(|| format!("{others} more rules can never match"))).collect()
}

/// Why a rule is never due that waits for hits of another one: that waits as well, for one which waits for it.
fn circle(rule: &Rule, plan: &Plan) -> Option<String> {
    let first = rule.follows()?;
    let mut chain = std::iter::successors(plan.rule(first), |other| plan.rule(other.follows()?));
    chain.nth(plan.rules.len()).map(|_| format!("it waits for a hit of {first}, which waits for others without an end"))
}

/// The rule that acts on every request for which `rule` is meant. `all` has such rules by their conditions.
fn hidden_by<'a>(rule: &'a Rule, all: &mut HashMap<Vec<u8>, &'a str>) -> Option<&'a str> {
    if rule.is_for_connections() {
        return None;
    }
    let encoded = |conditions: &FaultMatch| prost::Message::encode_to_vec(conditions);
    let key = rule.message.r#match.as_ref().map_or_else(Vec::new, encoded);
    let found = all.get(&key).or_else(|| all.get(&Vec::new())).copied();
    if found.is_none() && rule.is_always() && rule.action.is_certain(true) {
        all.insert(key, rule.id());
    }
    found
}

/// Conditions that exclude each other, on any disk.
fn contradiction(rule: &Rule, around: &Surroundings<'_>) -> Option<String> {
    let matcher = &rule.matcher;
    let Matcher { endpoint, range, from_byte, .. } = matcher;
    type Has = fn(Endpoint) -> bool;
    let needed: [(&str, bool, Has); 4] = [
        ("repository", matcher.repository.is_some() || matcher.upstream.is_some(), |endpoint| names(endpoint)[0]),
        ("tag", matcher.tag.is_some(), |endpoint| names(endpoint)[1]),
        ("digest", matcher.digest.is_some(), |endpoint| names(endpoint)[2]),
        ("user, as clients have tokens", matcher.user.is_some() && around.has_tokens, |endpoint| endpoint == Endpoint::Token),
    ];
    let needed: Vec<_> = needed.into_iter().filter(|(_, is_needed, _)| *is_needed).collect();
    if let Some(endpoint) = endpoint
        && let Some((what, ..)) = needed.iter().find(|(_, _, has)| !has(*endpoint))
    {
        return Some(format!("a request to the endpoint {} has no {what}", endpoint.name()));
    }
    if !ENDPOINTS.into_iter().any(|endpoint| needed.iter().all(|(_, _, has)| has(endpoint))) {
        let all: Vec<&str> = needed.iter().map(|(what, ..)| *what).collect();
        return Some(format!("no request has a {}", all.join(" and a ")));
    }
    if *range == Some(false) && *from_byte > 0 {
        return Some("a request without Range begins at byte 0".to_owned());
    }
    port(rule, around).or_else(|| without_effect(rule, around))
}

/// Why no listener takes such clients.
fn port(rule: &Rule, around: &Surroundings<'_>) -> Option<String> {
    let Matcher { port, peer, certificate, .. } = &rule.matcher;
    let is_tls =
        !matches!(rule.action.message.connection(), Connection::Unspecified | Connection::Refuse | Connection::TitleCaseHeaders);
    let asks = |port: &Port| port.is_encrypted && around.certificates.is_some();
    let must = |port: &Port| port.is_encrypted && around.certificates == Some(Presence::Required);
    type Takes<'a> = Box<dyn Fn(&Port) -> bool + 'a>;
    let conditions: [(String, Takes<'_>); 5] = [
        (
            format!("no listener has the port {}", port.unwrap_or_default()),
            Box::new(|one| port.is_none_or(|port| port == one.address.port())),
        ),
        (
            "that listener takes no clients of that address family".to_owned(),
            Box::new(|one| peer.is_none_or(|peer| takes(one, peer.address.is_ipv4()))),
        ),
        ("no listener there asks for certificates".to_owned(), Box::new(move |one| *certificate != Some(true) || asks(one))),
        ("every client there shows a certificate".to_owned(), Box::new(move |one| *certificate != Some(false) || !must(one))),
        ("no listener there speaks TLS".to_owned(), Box::new(|one| !is_tls || one.is_encrypted)),
    ];
    let mut left = around.ports.to_vec();
    conditions.into_iter().find_map(|(why, takes)| {
        left.retain(takes);
        (left.is_empty() && !around.ports.is_empty()).then_some(why)
    })
}

/// Whether a listener has clients with addresses of IPv4, or of IPv6.
fn takes(port: &Port, is_ipv4: bool) -> bool {
    let address = port.address.ip();
    // The unspecified address of IPv6 takes both.
    (port.address.is_ipv6() && address.is_unspecified()) || address.to_canonical().is_ipv4() == is_ipv4
}

/// Whether the rule changes no response to the requests that it matches.
fn without_effect(rule: &Rule, around: &Surroundings<'_>) -> Option<String> {
    let Matcher { method, range, version, digest, .. } = &rule.matcher;
    let (is_head, is_http2) = (*method == Some(Method::HEAD), *version == Some(Version::HTTP_2));
    let is_sure = rule.is_for_connections() || !rule.action.headers.is_empty();
    let catalog = around.store.catalog();
    let length = digest.and_then(|digest| Some(catalog.find(&digest)?.size));
    let status = if *range == Some(false) || is_head { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    let best = Original { status, headers: &HeaderMap::new(), length: length.unwrap_or(u64::MAX), is_head, is_http2 };
    let changes = is_sure || rule.action.is_certain(is_http2) || rule.action.on(&best).is_some();
    (!changes).then(|| "what it does changes no such response".to_owned())
}

/// What the rule names and the disks lack.
fn absent(rule: &Rule, around: &Surroundings<'_>, names: &[(RepositoryId, &str)]) -> Option<String> {
    let Matcher { endpoint, repository, tag, digest, upstream, .. } = &rule.matcher;
    let (store, catalog) = (around.store, around.store.catalog());
    let image = rule.message.r#match.as_ref().map(|one| one.largest_layer_of.as_str()).unwrap_or_default();
    if !image.is_empty() && digest.is_none() {
        return Some(format!("no disk has the image {image}, or it has no layer"));
    }
    if let Some(upstream) = upstream.as_ref().filter(|upstream| !store.has_upstream(upstream.as_str())) {
        return Some(format!("no disk has an image of {upstream}"));
    }
    if digest.is_some_and(|digest| catalog.number(&digest).is_none()) {
        return Some("no disk has content of that digest".to_owned());
    }
    if repository.is_none() && tag.is_none() && upstream.is_none() && *endpoint != Some(Endpoint::Manifest) {
        return None;
    }
    let is_named = |name: &str| repository.as_ref().is_none_or(|glob| glob.matches(name));
    let is_of =
        |name: &str| upstream.as_ref().is_none_or(|host| name.split_once('/').is_some_and(|(found, _)| found == host.as_str()));
    let mut named: Vec<RepositoryId> = match repository.as_ref().and_then(|glob| glob.exact()) {
        Some(name) => catalog.repository(name).into_iter().collect(),
        None => names.iter().filter(|(_, name)| is_named(name)).map(|(id, _)| *id).collect(),
    };
    if named.is_empty() && repository.is_some() {
        return Some("no disk has a repository of that name".to_owned());
    }
    named.retain(|id| is_of(catalog.repository_name(*id)));
    if named.is_empty() && upstream.is_some() {
        return Some("no repository of that name is of that upstream".to_owned());
    }
    let is_digest =
        |manifest: BlobId| digest.is_none_or(|digest| catalog.blob(manifest).is_some_and(|blob| blob.digest == digest));
    if let Some(tag) = tag {
        let mut tags = named.iter().flat_map(|id| {
            let every = catalog.every_tag(*id).into_iter();
            every.chain(catalog.tags_after(*id, None).filter(|(name, _)| tag.matches(name)).map(|(_, manifest)| manifest))
        });
        let first = tags.next();
        return match first {
            None => Some("no disk has such a tag".to_owned()),
            Some(first) if is_digest(first) || tags.any(is_digest) => None,
            Some(_) => Some("no such tag names that digest".to_owned()),
        };
    }
    let digest = digest.as_ref()?;
    let has = |id: &RepositoryId| catalog.blob_in(*id, digest).and_then(|blob| catalog.blob(blob));
    match named.iter().find_map(has) {
        None => Some("no such repository has that digest".to_owned()),
        Some(blob) if *endpoint == Some(Endpoint::Manifest) && blob.manifest.is_none() => {
            Some("that digest is of no manifest".to_owned())
        }
        Some(_) => None,
    }
}
