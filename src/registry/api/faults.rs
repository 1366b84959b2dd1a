//! Serves a request as a rule of the plan of faults wants it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, Version};
use rustls::ServerConfig;
use tokio::time::sleep;

use super::handler::{Registry, RequestContext, scope};
use super::resolve;
use super::route::{RequestTarget, Route};
use crate::disk::catalog::Catalog;
use crate::oci::{Digest, Reference, upstreams};
use crate::proto::event;
use crate::proto::fault_action::{Connection, Unauthorized};
use crate::proto::fault_cut::Kind;
use crate::proto::{FaultAction, FaultCommand, FaultCut, FaultPlan, FaultReply};
use crate::registry::auth::Auth;
use crate::registry::auth::basic::{Authorization, authorization};
use crate::registry::auth::challenge::TokenFault;
use crate::registry::content::body::Payload;
use crate::registry::content::snapshot::Snapshot;
use crate::registry::faults::action::{Action, Original};
use crate::registry::faults::body::BodyFault;
use crate::registry::faults::matcher::Facts;
use crate::registry::faults::plan::Plan;
use crate::registry::faults::{Port, Surroundings};
use crate::registry::http::error::RegistryError;
use crate::registry::http::reply;
use crate::registry::listen::activity::Activity;
use crate::registry::listen::client::{Client, Surface};
use crate::registry::listen::listener::{Listener, Transport};
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
    /// Takes one message of a command for the plan of faults, and returns the reply after the last one. It may read manifests, so it blocks.
    #[must_use]
    pub fn receive_faults(&self, message: FaultCommand) -> Option<FaultReply> {
        self.faults().receive(message, &self.surroundings(&self.snapshot()), self.events())
    }

    /// Puts a plan of faults in force. Returns a warning for each rule that can never match.
    ///
    /// # Errors
    /// Fails if a rule is invalid.
    pub fn start_faults(&self, plan: FaultPlan) -> Result<Vec<String>, String> {
        self.faults().start(plan, &self.surroundings(&self.snapshot()), self.events())
    }

    /// Tells where the registry is served. Rules of a plan of faults that no listener can meet are warned of then.
    pub fn set_listeners(&self, listeners: &[Listener]) {
        let of_registry = listeners.iter().filter(|listener| listener.surface != Surface::Observability);
        let port = |listener: &Listener| {
            let is_encrypted = matches!(listener.transport, Transport::Tls(_));
            Some(Port { address: listener.socket.local_addr().ok()?, is_encrypted })
        };
        self.ports.get_or_init(|| of_registry.filter_map(port).collect());
    }

    fn surroundings<'a>(&'a self, snapshot: &'a Snapshot) -> Surroundings<'a> {
        Surroundings {
            store: snapshot.store(),
            ports: self.ports.get().map(Vec::as_slice).unwrap_or_default(),
            has_tokens: matches!(self.auth, Auth::Token(_)),
            certificates: self.client_certificates,
        }
    }

    /// Which of these `things` the plan does to a connection. Reports it. Those who observe the registry on a listener of their own meet
    /// no faults.
    pub(crate) fn connection_fault(&self, client: &Client, things: &[Connection]) -> Connection {
        let plan = self.faults().plan().filter(|_| client.surface != Surface::Observability);
        let peer = SocketAddr::new(client.peer.ip().to_canonical(), client.peer.port());
        let hit = plan.and_then(|plan| plan.hit_connection(peer.ip(), client.local.port(), things));
        let Some(hit) = hit else { return Connection::Unspecified };
        self.faults().record(hit.rule.id());
        self.events().emit(event::Event::Fault(crate::proto::Fault { peer: peer.to_string(), ..hit.event() }));
        hit.action.message.connection()
    }

    /// TLS settings with the wrong certificate that a fault wants.
    pub(crate) fn faulty_tls(&self, fault: Connection, client: &Client) -> Option<Arc<ServerConfig>> {
        let authority = self.leaves.as_ref().map(|leaves| Arc::clone(leaves.authority()));
        let made = faulty::server_config(fault, authority, client.local.ip().to_canonical())?;
        made.inspect_err(|error| tracing::warn!(%error, "cannot make the certificate of a fault")).ok()
    }

    /// Serves an admitted request, with the fault that is due.
    pub(super) async fn serve_with_faults(
        &self,
        plan: &Plan,
        target: &RequestTarget,
        client: &Client,
        mut context: RequestContext<'_>,
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
        let is_http2 = head.version == Version::HTTP_2;
        // Some actions change only certain responses. A rule does not count a request that it does nothing to.
        let mut served = None;
        for rule in plan.matching(&facts) {
            if !rule.action.is_certain(is_http2) {
                let response = match served.take() {
                    Some(response) => response,
                    None => self.serve_response(target, client, context.again()).await,
                };
                if rule.action.on(&original(served.insert(response), head)).is_none() {
                    continue;
                }
            }
            if let Some(hit) = plan.count(rule) {
                self.faults().record(hit.rule.id());
                context.entry.fault = Some(hit.clone());
                return Ok(self.act(hit.action, served, target, client, context).await);
            }
        }
        match served {
            Some(response) => Ok(response),
            None => self.serve_target(target, client, context).await,
        }
    }

    /// Serves a target. Errors become responses.
    async fn serve_response(&self, target: &RequestTarget, client: &Client, context: RequestContext<'_>) -> Response<Payload> {
        self.serve_target(target, client, context).await.unwrap_or_else(|error| reply::error(&error))
    }

    /// The response to a request that a rule acts on. `served` is the response without the rule, if there is one already.
    async fn act(
        &self,
        action: Action,
        served: Option<Response<Payload>>,
        target: &RequestTarget,
        client: &Client,
        mut context: RequestContext<'_>,
    ) -> Response<Payload> {
        let head = context.head;
        if action.message.delay_seconds > 0.0 {
            sleep(Duration::from_secs_f64(action.message.delay_seconds)).await;
        }
        let mut response = match (self.answer(&action.message, target, client, head), served) {
            (Some(answer), _) => {
                (context.entry.digest, context.entry.blob_repository) = (None, None);
                answer
            }
            (None, Some(served)) => served,
            (None, None) => self.serve_response(target, client, context.again()).await,
        };
        let mut done = action.on(&original(&response, head)).unwrap_or_default();
        if done.message.ignore_range {
            let mut whole = head.clone();
            whole.headers.remove(RANGE);
            response = self.serve_response(target, client, RequestContext { head: &whole, ..context.again() }).await;
            done = action.on(&original(&response, head)).unwrap_or_default();
            done.message.ignore_range = true;
        }
        if let Some(hit) = &mut context.entry.fault {
            hit.action = done.clone();
        }
        change_response(&mut response, done, head, context.connection);
        response
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

/// What an action finds before it changes a response.
fn original<'a>(response: &'a Response<Payload>, head: &Parts) -> Original<'a> {
    Original {
        status: response.status(),
        headers: response.headers(),
        length: response.body().len(),
        is_head: head.method == Method::HEAD,
        is_http2: head.version == Version::HTTP_2,
    }
}

/// Changes status line, headers and body.
fn change_response(response: &mut Response<Payload>, mut action: Action, head: &Parts, connection: &Arc<Activity>) {
    let is_http2 = head.version == Version::HTTP_2;
    let message = &mut action.message;
    let length = message.short_body.unwrap_or_else(|| response.body().len());
    let headers = response.headers_mut();
    if message.short_body.is_some() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in &action.headers {
        match value {
            Some(value) => drop(headers.insert(name.clone(), value.clone())),
            None => drop(headers.remove(name)),
        }
    }
    if !message.warning.is_empty()
        && let Ok(warning) = HeaderValue::try_from(format!("299 - \"{}\"", message.warning))
    {
        headers.insert(WARNING, warning);
    }
    if (message.close || message.http_1_0) && !is_http2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if message.http_1_0 {
        *response.version_mut() = Version::HTTP_10;
    }
    let is_goodbye = |cut: &FaultCut| cut.kind() == Kind::Goaway;
    if message.close || message.http_1_0 || message.cut.as_ref().is_some_and(|cut| is_goodbye(cut) && cut.after_bytes == 0) {
        connection.end.go_away();
    }
    if !is_http2 && announced.is_some_and(|announced| announced > length) && message.cut.as_ref().is_none_or(is_goodbye) {
        // hyper would drop what it has not written yet.
        message.cut = Some(FaultCut { after_bytes: length, kind: Kind::Fin.into() });
    }
    if action.changes_body() {
        response.body_mut().fault = Some(Box::new(BodyFault::new(action, Arc::clone(connection), is_http2)));
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
