//! Serves a request as a rule of the plan of faults wants it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, Version};
use rustls::ServerConfig;
use tokio::time::sleep;

use super::handler::{Registry, RequestContext, scope};
use super::resolve;
use super::route::{RequestTarget, Route};
use crate::disk::catalog::Catalog;
use crate::oci::{Digest, Reference, upstreams};
use crate::proto::FaultAction;
use crate::proto::event;
use crate::proto::fault_action::{Connection, Unauthorized};
use crate::proto::fault_cut::Kind;
use crate::registry::auth::basic::{Authorization, authorization};
use crate::registry::auth::challenge::TokenFault;
use crate::registry::content::body::Payload;
use crate::registry::content::snapshot::Snapshot;
use crate::registry::faults::Rule;
use crate::registry::faults::body::BodyFault;
use crate::registry::faults::matcher::Facts;
use crate::registry::faults::plan::Plan;
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::listen::client::Client;
use crate::registry::tls::faulty;

/// The header of warnings (RFC 7234, section 5.5).
const WARNING: HeaderName = HeaderName::from_static("warning");

/// The names in a request, as they are in events.
#[derive(Default)]
struct Names {
    repository: Option<String>,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Registry {
    /// What the plan does to a new connection. Reports it.
    pub(crate) fn connection_fault(&self, peer: SocketAddr, port: u16) -> Connection {
        let hit = self.faults().plan().and_then(|plan| plan.hit_connection(peer.ip(), port));
        let Some(hit) = hit else { return Connection::Unspecified };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string();
        self.events().emit(event::Event::Fault(crate::proto::Fault { peer, ..hit.event() }));
        hit.rule.action.connection()
    }

    /// TLS settings with the wrong certificate that a fault wants.
    pub(crate) fn faulty_tls(&self, client: &Client) -> Option<Arc<ServerConfig>> {
        let authority = self.leaves.as_ref().map(|leaves| Arc::clone(leaves.authority()));
        let made = faulty::server_config(client.fault, authority, client.local.ip().to_canonical())?;
        made.inspect_err(|error| tracing::warn!(%error, "cannot make the certificate of a fault")).ok()
    }

    /// Serves an admitted request, with the fault that is due.
    pub(super) async fn serve_with_faults(
        &self,
        plan: &Plan,
        target: &RequestTarget,
        client: &Client,
        context: RequestContext<'_>,
    ) -> Result<Response<Payload>, RegistryError> {
        let head = context.head;
        let names = Names::of(target, context.snapshot, head);
        let user = match authorization(&head.headers) {
            Authorization::Basic(credentials) => Some(credentials.user),
            _ => None,
        };
        let range = head.headers.get(RANGE).map(|value| value.to_str().unwrap_or_default());
        let upstream = names.repository.as_deref().and_then(|name| name.split_once('/')).map(|(host, _)| host);
        let facts = Facts {
            endpoint: target.endpoint(),
            repository: names.repository.as_deref(),
            tag: names.tag.as_deref(),
            digest: names.digest,
            upstream: upstream.filter(|host| context.snapshot.store().has_upstream(upstreams::canonical(host))),
            method: &head.method,
            peer: client.peer.ip().to_canonical(),
            port: client.local.port(),
            user: user.as_deref(),
            has_certificate: context.has_certificate,
            user_agent: head.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default(),
            has_range: range.is_some(),
            first_byte: range.map_or(0, first_byte),
            version: head.version,
        };
        let Some(hit) = plan.hit(&facts) else { return self.serve_target(target, client, context).await };
        context.entry.fault = Some(hit.clone());
        let (rule, connection) = (hit.rule, Arc::clone(context.connection));
        let action = &rule.action;
        if action.delay_seconds > 0.0 {
            sleep(Duration::from_secs_f64(action.delay_seconds)).await;
        }
        let is_http2 = head.version == Version::HTTP_2;
        let mut response = match self.answer(action, target, client, head) {
            Some(response) => response,
            None if action.ignore_range => {
                let mut whole = head.clone();
                whole.headers.remove(RANGE);
                let context = RequestContext { head: &whole, ..context };
                self.serve_target(target, client, context).await.unwrap_or_else(|error| reply::error(&error))
            }
            None => self.serve_target(target, client, context).await.unwrap_or_else(|error| reply::error(&error)),
        };
        change_head(&mut response, &rule, is_http2);
        let goes_away = action.cut.as_ref().is_some_and(|cut| cut.kind() == Kind::Goaway && cut.after_bytes == 0);
        if action.close || action.http_1_0 || goes_away {
            connection.end.go_away();
        }
        if rule.changes_body() {
            response.body_mut().fault = Some(Box::new(BodyFault::new(rule, connection, is_http2)));
        }
        Ok(response)
    }

    /// The response in place of the content.
    fn answer(&self, action: &FaultAction, target: &RequestTarget, client: &Client, head: &Parts) -> Option<Response<Payload>> {
        let fault = match action.unauthorized() {
            Unauthorized::Unspecified => None,
            Unauthorized::Challenge => Some(None),
            Unauthorized::Expired => Some(Some(TokenFault::Invalid)),
            Unauthorized::Refused => Some(Some(TokenFault::Scope)),
        };
        if let Some(fault) = fault {
            let scope = if let RequestTarget::Api(request) = target { Some(scope(&request.route)) } else { None };
            return Some(reply::error(&RegistryError::Unauthorized(self.auth.challenge(scope, fault, head, client))));
        }
        if action.redirect_loop || !action.redirect.is_empty() {
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
            let location = if action.redirect_loop {
                client.url(head, path)
            } else {
                format!("{}{path}", action.redirect.trim_end_matches('/'))
            };
            let mut response = reply::empty(StatusCode::TEMPORARY_REDIRECT);
            response.headers_mut().insert(LOCATION, HeaderValue::try_from(location).ok()?);
            return Some(response);
        }
        let status = StatusCode::from_u16(u16::try_from(action.status).ok()?).ok().filter(|_| action.status > 0)?;
        let code = if action.code.is_empty() { "UNKNOWN" } else { &action.code };
        let message = if action.message.is_empty() { "a fault on purpose" } else { &action.message };
        let mut response = reply::error_document(status, code, message);
        if let Some(seconds) = action.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        Some(response)
    }
}

/// Changes status line and headers.
fn change_head(response: &mut Response<Payload>, rule: &Rule, is_http2: bool) {
    let action = &rule.action;
    let body = response.body().len();
    let headers = response.headers_mut();
    if let Some(short) = action.short_body.filter(|short| *short < body) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(short));
    }
    for (name, value) in &rule.headers {
        match value {
            Some(value) => drop(headers.insert(name.clone(), value.clone())),
            None => drop(headers.remove(name)),
        }
    }
    if !action.warning.is_empty()
        && let Ok(warning) = HeaderValue::try_from(format!("299 - \"{}\"", action.warning))
    {
        headers.insert(WARNING, warning);
    }
    if (action.close || action.http_1_0) && !is_http2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if action.http_1_0 && !is_http2 {
        *response.version_mut() = Version::HTTP_10;
    }
}

/// The first byte that a Range header asks for. The end of the content, which is unknown here, counts as the last byte there can be.
fn first_byte(range: &str) -> u64 {
    let start = range.trim().strip_prefix("bytes=").and_then(|ranges| ranges.split(['-', ',']).next()).unwrap_or_default();
    if start.is_empty() { u64::MAX } else { start.trim().parse().unwrap_or(0) }
}

impl Names {
    fn of(target: &RequestTarget, snapshot: &Snapshot, head: &Parts) -> Self {
        let RequestTarget::Api(request) = target else { return Self::default() };
        let catalog = snapshot.store().catalog();
        let (name, tag, digest) = match &request.route {
            Route::Base | Route::Catalog(_) => return Self::default(),
            Route::Tags(name, _) => (name, None, None),
            Route::Manifest(name, Reference::Tag(tag)) => (name, Some(tag), None),
            Route::Manifest(name, Reference::Digest(digest)) | Route::Blob(name, digest) => (name, None, Some(*digest)),
            Route::Referrers(name, referrers) => (name, None, Some(referrers.subject)),
        };
        let found = resolve::repository(snapshot, name, request, head, |catalog: &Catalog, id| match (&tag, &digest) {
            (Some(tag), _) => resolve::manifest(catalog, id, &Reference::Tag((*tag).clone())).map(|(blob, _)| blob),
            (None, Some(digest)) => catalog.blob_in(id, digest),
            (None, None) => None,
        })
        .ok();
        let (repository, found) = match found {
            Some((id, blob)) => (catalog.repository_name(id).to_owned(), blob),
            None => (request.namespace.as_ref().map_or_else(|| name.to_string(), |host| format!("{host}/{name}")), None),
        };
        let digest = digest.or_else(|| Some(catalog.blob(found?)?.digest));
        Self { repository: Some(repository), tag: tag.map(ToString::to_string), digest }
    }
}
