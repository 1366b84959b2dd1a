//! The registry itself: one request's head becomes one response. It looks names up in the catalog and opens files by digest; it
//! never reads a request's body and has no way to write.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use http::header::{HOST, IF_NONE_MATCH, IF_RANGE, RANGE, TRANSFER_ENCODING, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Method, Response, Version};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::auth::Auth;
use super::auth::client_certificate::{ClientCa, Presence};
use super::auth::scope::Scope;
use super::body::Body;
use super::catalog::{Blob, BlobId, RepositoryId};
use super::client::{self, Client};
use super::error::RegistryError;
use super::events::Events;
use super::flight::Budget;
use super::health::Health;
use super::limits::{DESCRIPTOR_PAUSE, Limits};
use super::log::{Entry, Totals};
use super::metrics::Metrics;
use super::metrics::exposition::Exposition;
use super::reply::{self, Content, Freshness};
use super::route::{self, Asked, Endpoint, Route, Target};
use super::store::Store;
use super::{lists, range};
use crate::oci::{Host, Reference, Repository};
use crate::proto;

mod beside;

/// A store being served.
#[derive(Debug)]
pub struct Registry {
    store: Arc<Store>,
    events: Events,
    metrics: Arc<Metrics>,
    exposition: Exposition,
    health: Health,
    auth: Auth,
    /// Whether a client's certificate stands in for credentials.
    certificates_admit: bool,
    /// The CA that nodes have to trust, PEM.
    ca_pem: Option<String>,
    /// Upstream hosts that repositories of the store are filed under.
    upstreams: HashSet<String>,
    limits: Limits,
    in_flight: Arc<Budget>,
}

impl Registry {
    /// Serves `store` within `limits`; tells `events` of every request.
    #[must_use]
    pub fn new(store: Store, events: Events, limits: Limits) -> Self {
        let catalog = store.catalog();
        let names = catalog.repositories().filter_map(|id| catalog.repository_name(id).parse::<Repository>().ok());
        let upstreams = names.filter_map(|name| name.host().map(str::to_owned)).collect();
        let metrics = Arc::new(Metrics::new(catalog));
        let store = Arc::new(store);
        let exposition = Exposition::new(Arc::clone(&metrics), Arc::clone(&store), events.clone());
        Self {
            store,
            events,
            metrics,
            exposition,
            health: Health::default(),
            auth: Auth::default(),
            certificates_admit: false,
            ca_pem: None,
            upstreams,
            limits,
            in_flight: Arc::default(),
        }
    }

    /// The same, for those whom `auth` lets in; and for those with a certificate of `clients`, where that is optional.
    #[must_use]
    pub fn with_auth(self, auth: Auth, clients: Option<&ClientCa>) -> Self {
        let certificates_admit = clients.is_some_and(|clients| clients.presence() == Presence::Optional);
        Self { auth, certificates_admit, ..self }
    }

    /// The same, handing out this CA certificate (PEM).
    #[must_use]
    pub fn with_ca(self, ca_pem: impl Into<String>) -> Self {
        Self { ca_pem: Some(ca_pem.into()), ..self }
    }

    /// Within which limits it serves.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it serves.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The upstream hosts that repositories are filed under, and the other names by which clients reach those.
    pub fn upstreams(&self) -> impl Iterator<Item = String> {
        let aliases =
            route::aliases().filter(|(_, upstream)| self.upstreams.contains(*upstream)).map(|(alias, _)| alias.to_owned());
        self.upstreams.iter().cloned().chain(aliases)
    }

    /// Requests answered and bytes sent so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.metrics.totals()
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The queue that tells the launcher what happens.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Answers a request of `client` by its head.
    pub async fn answer(&self, head: &Parts, client: &Client) -> Response<Body> {
        let client = Client { certified: client.certified && self.certificates_admit, ..*client };
        let mut entry = Entry::new(request_event(head, client.peer), self.events.clone(), Arc::clone(&self.metrics));
        let answered = match check(head).and_then(|()| route::parse(&head.method, &head.uri)) {
            Ok(asked) => {
                describe(&asked, &mut entry);
                self.asked(&asked, head, &client, &mut entry).await
            }
            Err(error) => Err(error),
        };
        let response = answered.unwrap_or_else(|error| reply::error(&error));
        let (parts, body) = response.into_parts();
        entry.request.status = parts.status.as_u16().into();
        if let Some(digest) = parts.headers.get(reply::CONTENT_DIGEST) {
            entry.request.digest = lossy(digest.as_bytes());
        }
        let body = if head.method == Method::HEAD { body.without_content() } else { body };
        Response::from_parts(parts, body.logged(entry, self.limits, Arc::clone(&self.in_flight)))
    }

    /// Lets the request pass, or not, and answers it.
    async fn asked(
        &self,
        asked: &Asked,
        head: &Parts,
        client: &Client,
        entry: &mut Entry,
    ) -> Result<Response<Body>, RegistryError> {
        match asked {
            _ if !asked.is_on(client.surface) => Err(RegistryError::PathUnknown),
            Asked::Beside(asked) => self.beside(asked, head, client).await,
            Asked::Registry(target) => {
                self.auth.admit(scope(&target.route), head, client).await?;
                let response = reply::namespaced(self.route(target, head, entry).await?, target.namespace.as_ref());
                Ok(if self.auth.is_needed() { reply::private(response) } else { response })
            }
        }
    }

    /// Answers, and notes in `entry` under which name the store has the repository that was meant.
    async fn route(&self, target: &Target, head: &Parts, entry: &mut Entry) -> Result<Response<Body>, RegistryError> {
        let catalog = self.store.catalog();
        let said = &mut entry.request.repository;
        let mut repository = |name: &Repository| {
            let found = self.repository(name, target, head)?;
            catalog.repository_name(found).clone_into(said);
            Ok::<_, RegistryError>(found)
        };
        match &target.route {
            Route::Base => Ok(reply::base()),
            Route::Catalog(page) => Ok(lists::catalog(catalog, page)),
            Route::Tags(name, page) => Ok(lists::tags(catalog, repository(name)?, name, target.namespace.as_ref(), page)),
            Route::Manifest(name, reference) => {
                let (manifest, freshness) = self.manifest(repository(name)?, reference)?;
                self.content(manifest, freshness, head).await
            }
            Route::Blob(name, digest) => {
                let holder = repository(name)?;
                let found = catalog.blob_in(holder, digest);
                let unknown = || RegistryError::BlobUnknown(format!("no blob {digest} in {name}"));
                let blob = found.and_then(|id| catalog.blob(id)).ok_or_else(unknown)?;
                entry.blob_of = Some(holder);
                self.content(Blob { manifest: None, ..blob }, Freshness::Immutable, head).await
            }
            Route::Referrers(name, digest, artifact_type) => {
                // A registry must answer 200 with an empty list for a digest that it does not know; only an unknown repository is a 404.
                lists::referrers(&self.store, repository(name)?, digest, artifact_type.as_deref()).await
            }
        }
    }

    fn manifest(&self, repository: RepositoryId, reference: &Reference) -> Result<(Blob<'_>, Freshness), RegistryError> {
        let catalog = self.store.catalog();
        let (found, freshness): (Option<BlobId>, _) = match reference {
            Reference::Tag(tag) => {
                (catalog.tag(repository, tag.as_str()).or_else(|| catalog.every_tag(repository)), Freshness::Tag)
            }
            Reference::Digest(digest) => (catalog.blob_in(repository, digest), Freshness::Immutable),
        };
        let blob = found.and_then(|id| catalog.blob(id)).filter(|blob| blob.manifest.is_some());
        let name = catalog.repository_name(repository);
        blob.map(|blob| (blob, freshness))
            .ok_or_else(|| RegistryError::ManifestUnknown(format!("no manifest {reference} in {name}")))
    }

    /// The repository that a request means. Its upstream is, in order: the `ns` parameter, a host-shaped first component of the
    /// name, the `Host` header where the store knows that host, else none: then it is in the default namespace, or of docker.io,
    /// whose mirrors dockerd asks without a word of that.
    fn repository(&self, name: &Repository, target: &Target, head: &Parts) -> Result<RepositoryId, RegistryError> {
        let host = client::host(head);
        let upstream = match (&target.namespace, name.host()) {
            // A client may say in `ns` what it connected to: then it means no upstream, but this registry.
            (Some(namespace), _) => {
                Some(namespace.as_str()).filter(|namespace| host.as_ref().is_none_or(|own| own.as_str() != *namespace))
            }
            (None, Some(_)) => None,
            (None, None) => host.as_ref().map(Host::name).filter(|host| self.upstreams.contains(route::upstream(host))),
        };
        let full = match upstream {
            Some(upstream) => format!("{}/{name}", route::upstream(upstream)),
            None => name.to_string(),
        };
        let catalog = self.store.catalog();
        let unsaid = target.namespace.is_none() && upstream.is_none() && name.host().is_none();
        let mirrored = || catalog.repository(&format!("{}/{full}", route::MIRRORED)).filter(|_| unsaid);
        catalog.repository(&full).or_else(mirrored).ok_or(RegistryError::NameUnknown(full))
    }

    /// Sends a blob or manifest, or the part of it that was asked for, or nothing new.
    async fn content(&self, blob: Blob<'_>, freshness: Freshness, head: &Parts) -> Result<Response<Body>, RegistryError> {
        let content = Content { blob, freshness };
        if matches_etag(&head.headers, &content.etag()) {
            return Ok(reply::not_modified(&content));
        }
        let wanted = match head.headers.get(RANGE).and_then(|value| value.to_str().ok()) {
            Some(header) if head.method == Method::GET && range_applies(&head.headers, &content.etag()) => {
                range::parse(header, blob.size)
            }
            _ => range::Ranges::Whole,
        };
        let file = self.open(blob).await?;
        reply::content(&content, wanted, file)
    }

    async fn open(&self, blob: Blob<'_>) -> Result<File, RegistryError> {
        let deadline = Instant::now() + self.limits.stall;
        let mut opened = self.try_open(blob).await;
        // Every descriptor is in use: others end and give theirs back, and a pull under way is worth a wait.
        while opened.as_ref().is_err_and(no_descriptor) && Instant::now() < deadline {
            sleep(DESCRIPTOR_PAUSE).await;
            opened = self.try_open(blob).await;
        }
        opened.map_err(|error| {
            let message = format!("{}: {error}", blob.digest);
            tracing::warn!(digest = %blob.digest, %error, "a blob cannot be opened");
            self.events.emit(proto::event::Event::Warning(proto::Warning { code: "READ_ERROR".into(), message }));
            RegistryError::Disk
        })
    }

    async fn try_open(&self, blob: Blob<'_>) -> io::Result<File> {
        match self.store.open_cached(blob) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported) => {
                let store = Arc::clone(&self.store);
                let (digest, size) = (blob.digest, blob.size);
                let opened = tokio::task::spawn_blocking(move || store.open_blob(Blob { digest, size, manifest: None })).await;
                opened.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
            }
            opened => opened,
        }
    }
}

fn no_descriptor(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Holds a request's head against what HTTP asks of it where hyper does not (RFC 9112, sections 3.2 and 6.3).
fn check(head: &Parts) -> Result<(), RegistryError> {
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(RegistryError::BadRequest("one Host header is expected, and there are several"));
    }
    if head.version == Version::HTTP_11 && hosts == 0 {
        return Err(RegistryError::BadRequest("a Host header is expected"));
    }
    if head.headers.contains_key(TRANSFER_ENCODING) && matches!(head.method, Method::GET | Method::HEAD) {
        return Err(RegistryError::BadRequest("a request without a body is expected"));
    }
    Ok(())
}

/// What a token has to be good for.
fn scope(route: &Route) -> Scope<'_> {
    match route {
        Route::Base => Scope::Any,
        Route::Catalog(_) => Scope::Catalog,
        Route::Tags(name, _) | Route::Manifest(name, _) | Route::Blob(name, _) | Route::Referrers(name, ..) => Scope::Pull(name),
    }
}

/// Whether `If-None-Match` names the content (RFC 9110, section 13.1.2; weak comparison).
fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    let lists = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// Whether `If-Range` lets the range stand (RFC 9110, section 13.1.5; strong comparison; no dates are kept here).
fn range_applies(headers: &HeaderMap, etag: &str) -> bool {
    headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag.as_bytes())
}

fn request_event(head: &Parts, peer: std::net::SocketAddr) -> proto::Request {
    let header = |name| head.headers.get(name).map(|value: &http::HeaderValue| lossy(value.as_bytes())).unwrap_or_default();
    proto::Request {
        // On a socket of both families, an IPv4 client has an IPv6 address that holds its own.
        peer: std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string(),
        method: clipped(head.method.as_str(), 32),
        endpoint: Endpoint::Other.name().into(),
        range: clipped(&header(RANGE), 256),
        user_agent: clipped(&header(USER_AGENT), 256),
        protocol: if head.version == Version::HTTP_2 { "HTTP/2".into() } else { "HTTP/1.1".into() },
        ..Default::default()
    }
}

fn describe(asked: &Asked, entry: &mut Entry) {
    entry.endpoint = asked.endpoint();
    entry.request.endpoint = entry.endpoint.name().into();
    let Asked::Registry(target) = asked else { return };
    let (repository, reference) = match &target.route {
        Route::Base | Route::Catalog(_) => (None, None),
        Route::Tags(name, _) => (Some(name), None),
        Route::Manifest(name, reference) => (Some(name), Some(reference.to_string())),
        Route::Blob(name, digest) | Route::Referrers(name, digest, _) => (Some(name), Some(digest.to_string())),
    };
    entry.request.reference = reference.unwrap_or_default();
    entry.request.repository = match (&target.namespace, repository) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_string(),
        (_, None) => String::new(),
    };
}

/// Text of a header, whatever its bytes; control characters (of both ranges: a terminal obeys U+009B as it obeys ESC [) are written
/// as escapes.
fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if !text.contains(char::is_control) {
        return text.into_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// At most `limit` bytes of a text that a client chose the length of.
fn clipped(text: &str, limit: usize) -> String {
    text.get(..text.floor_char_boundary(limit)).unwrap_or_default().to_owned()
}
