//! The registry itself: one request's head becomes one response. It looks names up in the catalog and opens files by digest; it
//! never reads a request's body and has no way to write.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;

use http::header::{HOST, RANGE, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Response, Version};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::auth::Auth;
use super::auth::client_certificate::{ClientCa, Presence};
use super::auth::scope::Scope;
use super::body::Body;
use super::catalog::{Blob, BlobId, RepositoryId};
use super::client::{self, Client};
use super::condition::{self, Condition};
use super::documents::{Documents, Room};
use super::error::RegistryError;
use super::events::Events;
use super::flight::Budget;
use super::health::Health;
use super::kept::{self, Kept};
use super::limits::{DESCRIPTOR_PAUSE, Limits, REFERRERS, SMALL_CHUNK};
use super::log::{Books, Entry};
use super::metrics::exposition::Exposition;
use super::metrics::{Metrics, Totals};
use super::range::Ranges;
use super::reply::{self, Content, Freshness, Source};
use super::route::{self, Asked, Endpoint, Route, Target};
use super::store::Store;
use super::{lists, range};
use crate::oci::{Host, Reference, Repository};
use crate::proto;

mod beside;
mod describe;

/// A store being served.
#[derive(Debug)]
pub struct Registry {
    store: Arc<Store>,
    books: Arc<Books>,
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
    documents: Documents,
    kept: Kept,
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
            books: Arc::new(Books { events, metrics }),
            exposition,
            health: Health::default(),
            auth: Auth::default(),
            certificates_admit: false,
            ca_pem: None,
            upstreams,
            limits,
            in_flight: Arc::default(),
            documents: Documents::default(),
            kept: Kept::default(),
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
        self.books.metrics.totals()
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.books.metrics
    }

    /// The queue that tells the launcher what happens.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.books.events
    }

    /// Answers a request of `client` by its head.
    pub async fn answer(&self, head: &Parts, client: &Client) -> Response<Body> {
        let client = Client { certified: client.certified && self.certificates_admit, ..*client };
        let mut entry = Entry::new(client.peer, &self.books);
        entry.note(|request| describe::head(head, request));
        let answered = match check(head).and_then(|()| route::parse(&head.method, &head.uri)) {
            Ok(asked) => {
                entry.endpoint = asked.endpoint();
                entry.note(|request| describe::asked(&asked, request));
                self.asked(&asked, head, &client, &mut entry).await
            }
            Err(error) => Err(error),
        };
        let response = answered.unwrap_or_else(|error| reply::error(&error));
        let (parts, body) = response.into_parts();
        entry.status = parts.status.as_u16();
        let body = if head.method == Method::HEAD { body.without_content() } else { body };
        Response::from_parts(parts, body.logged(entry, &self.limits, &self.in_flight))
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
        let mut repository = |name: &Repository| {
            let found = self.repository(name, target, head)?;
            entry.note(|request| catalog.repository_name(found).clone_into(&mut request.repository));
            Ok::<_, RegistryError>(found)
        };
        match &target.route {
            Route::Base => Ok(reply::base()),
            Route::Catalog(page) => Ok(lists::catalog(catalog, page, self.documents.room(lists::longest(page)).await?)),
            Route::Tags(name, page) => {
                let (holder, list) = (repository(name)?, lists::Of { name, namespace: target.namespace.as_ref(), page });
                Ok(lists::tags(catalog, holder, &list, self.documents.room(lists::longest(page)).await?))
            }
            Route::Manifest(name, reference) => {
                let (id, freshness) = self.manifest(repository(name)?, reference)?;
                self.content(id, freshness, head, entry).await
            }
            Route::Blob(name, digest) => {
                let holder = repository(name)?;
                let found = catalog.blob_in(holder, digest);
                let unknown = || RegistryError::BlobUnknown(format!("no blob {digest} in {name}"));
                entry.blob_of = Some(holder);
                self.content(found.ok_or_else(unknown)?, Freshness::Immutable, head, entry).await
            }
            Route::Referrers(name, asked) => {
                // A registry must answer 200 with an empty list for a digest that it does not know; only an unknown repository is a 404.
                let (holder, list) =
                    (repository(name)?, lists::Of { name, namespace: target.namespace.as_ref(), page: &asked.page });
                lists::referrers(&self.store, holder, &list, asked, self.documents.room(2 * REFERRERS).await?).await
            }
        }
    }

    fn manifest(&self, repository: RepositoryId, reference: &Reference) -> Result<(BlobId, Freshness), RegistryError> {
        let catalog = self.store.catalog();
        let (found, freshness): (Option<BlobId>, _) = match reference {
            Reference::Tag(tag) => {
                (catalog.tag(repository, tag.as_str()).or_else(|| catalog.every_tag(repository)), Freshness::Tag)
            }
            Reference::Digest(digest) => (catalog.blob_in(repository, digest), Freshness::Immutable),
        };
        let is_manifest = |id: &BlobId| catalog.blob(*id).is_some_and(|blob| blob.manifest.is_some());
        let name = catalog.repository_name(repository);
        let unknown = || RegistryError::ManifestUnknown(format!("no manifest {reference} in {name}"));
        found.filter(is_manifest).map(|id| (id, freshness)).ok_or_else(unknown)
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

    /// Sends a blob or manifest, or the part of it that was asked for, or nothing new. The blob endpoint sends manifests, too, as plain
    /// bytes.
    async fn content(
        &self,
        id: BlobId,
        freshness: Freshness,
        head: &Parts,
        entry: &mut Entry,
    ) -> Result<Response<Body>, RegistryError> {
        let mut blob = self.store.catalog().blob(id).ok_or(RegistryError::Disk)?;
        if entry.endpoint == Endpoint::Blob {
            blob.manifest = None;
        }
        let content = Content { blob, freshness };
        match condition::of(&head.headers, || content.etag()) {
            Condition::Holds => {}
            Condition::NotModified => {
                entry.digest = Some(blob.digest);
                return Ok(reply::not_modified(&content));
            }
            Condition::Failed => return Err(RegistryError::PreconditionFailed(blob.digest)),
        }
        let wanted = match head.headers.get(RANGE).and_then(|value| value.to_str().ok()) {
            Some(header) if head.method == Method::GET && condition::range_applies(&head.headers, || content.etag()) => {
                range::parse(header, blob.size)
            }
            _ => Ranges::Whole,
        };
        let room = self.room_for(&wanted).await?;
        let source = match self.kept(id, blob).await? {
            Some(manifest) => Source::Kept(manifest),
            None => Source::File(self.open(blob).await?),
        };
        let response = reply::content(&content, wanted, room, source)?;
        entry.digest = Some(blob.digest);
        Ok(response)
    }

    /// A list of many ranges is counted among the documents.
    async fn room_for(&self, ranges: &Ranges) -> Result<Option<Room>, RegistryError> {
        match ranges {
            Ranges::Many(list) if size_of_val(list.as_slice()) > SMALL_CHUNK => {
                self.documents.room(size_of_val(list.as_slice())).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The manifest in memory, where it is kept there: it is read when it is first asked for.
    async fn kept(&self, id: BlobId, blob: Blob<'_>) -> Result<Option<&kept::Manifest>, RegistryError> {
        if blob.manifest.is_none() {
            return Ok(None);
        }
        if let Some(manifest) = self.kept.get(id) {
            return Ok(Some(manifest));
        }
        if !self.kept.takes(&blob) {
            return Ok(None);
        }
        let file = self.open(blob).await?;
        let (digest, size) = (blob.digest, blob.size);
        let read = tokio::task::spawn_blocking(move || kept::read(&file, digest, size)).await;
        match read.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
            Ok(Some(content)) => self.kept.keep(id, content, reply::ready_head(&Content { blob, freshness: Freshness::Tag })),
            // Sent as it is, for the client to refuse.
            Ok(None) => tracing::warn!(%digest, "a manifest on the disk has another digest"),
            Err(error) => return Err(self.unreadable(blob, &error)),
        }
        Ok(self.kept.get(id))
    }

    async fn open(&self, blob: Blob<'_>) -> Result<File, RegistryError> {
        let deadline = Instant::now() + self.limits.stall;
        let mut opened = self.try_open(blob).await;
        // Every descriptor is in use: others end and give theirs back, and a pull under way is worth a wait.
        while opened.as_ref().is_err_and(no_descriptor) && Instant::now() < deadline {
            sleep(DESCRIPTOR_PAUSE).await;
            opened = self.try_open(blob).await;
        }
        opened.map_err(|error| self.unreadable(blob, &error))
    }

    fn unreadable(&self, blob: Blob<'_>, error: &io::Error) -> RegistryError {
        let message = format!("{}: {error}", blob.digest);
        tracing::warn!(digest = %blob.digest, %error, "a blob cannot be read");
        self.books.events.emit(proto::event::Event::Warning(proto::Warning { code: "READ_ERROR".into(), message }));
        RegistryError::Disk
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

#[cfg(test)]
mod tests;
