//! The registry itself: one request's head becomes one response. It looks names up in the catalog and opens files by digest; it
//! never reads a request's body and has no way to write.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use http::header::{HOST, RANGE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, Version};
use rustix::io::Errno;
use tokio::time::{Instant, sleep};

use super::lists;
use super::route::{self, Asked, Endpoint, Route, Target};
use crate::disk::catalog::{Blob, BlobId, Catalog};
use crate::oci::Digest;
use crate::oci::manifest::MAX_MANIFEST;
use crate::registry::auth::Auth;
use crate::registry::auth::client_certificate::{ClientCa, Presence};
use crate::registry::auth::scope::Scope;
use crate::registry::content::body::{Body, Opened};
use crate::registry::content::buffers::Budget;
use crate::registry::content::disk_errors::wrong_digest;
use crate::registry::content::manifest_cache;
use crate::registry::content::snapshot::Holdings;
use crate::registry::content::store::{Disk, Store};
use crate::registry::http::condition::{self, Condition};
use crate::registry::http::error::RegistryError;
use crate::registry::http::range::{self, Ranges};
use crate::registry::http::reply::{self, Content, Freshness, Source};
use crate::registry::http::response_memory::{Documents, Room};
use crate::registry::limits::{DESCRIPTOR_PAUSE, Limits, REFERRERS, SMALL_CHUNK};
use crate::registry::listen::client::{self, Client};
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::health::Health;
use crate::registry::telemetry::log::{Books, Entry};
use crate::registry::telemetry::metrics::exposition::Exposition;
use crate::registry::telemetry::metrics::{Metrics, Totals};

/// A registry: what it serves at present, and how.
#[derive(Debug)]
pub struct Registry {
    /// Taken once for each request, and for no longer than that takes.
    pub(crate) holdings: RwLock<Arc<Holdings>>,
    /// Whether bytes are held against their digests.
    pub(crate) verify: bool,
    pub(crate) books: Arc<Books>,
    pub(crate) exposition: Exposition,
    pub(crate) health: Health,
    pub(crate) auth: Auth,
    /// Whether a client's certificate stands in for credentials.
    certificates_admit: bool,
    /// The CA that nodes have to trust, PEM.
    pub(crate) ca_pem: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) in_flight: Arc<Budget>,
    pub(crate) documents: Documents,
}

impl Registry {
    /// Serves `store` within `limits`; tells `events` of every request.
    #[must_use]
    pub fn new(store: Store, events: Events, limits: Limits) -> Self {
        let metrics = Arc::<Metrics>::default();
        let exposition = Exposition::new(Arc::clone(&metrics), events.clone());
        Self {
            holdings: RwLock::new(Arc::new(Holdings::new(store, false))),
            verify: false,
            books: Arc::new(Books { events, metrics }),
            exposition,
            health: Health::default(),
            auth: Auth::default(),
            certificates_admit: false,
            ca_pem: None,
            limits,
            in_flight: Arc::default(),
            documents: Documents::default(),
        }
    }

    /// The same, holding every byte that it sends against the digest of its blob.
    #[must_use]
    pub fn verifying(self) -> Self {
        let holdings = Holdings::new(self.holdings().store().clone(), true);
        Self { holdings: RwLock::new(Arc::new(holdings)), verify: true, ..self }
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

    /// What it serves at present.
    #[must_use]
    pub fn holdings(&self) -> Arc<Holdings> {
        Arc::clone(&self.holdings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What follows from `store` for this registry: it takes a while where that is large, and changes nothing.
    #[must_use]
    pub fn holdings_of(&self, store: Store) -> Holdings {
        Holdings::new(store, self.verify)
    }

    /// Serves `holdings` from the next request on. Those under way end with what they began with.
    pub fn replace(&self, holdings: Holdings) {
        let mut place = self.holdings.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *place, Arc::new(holdings));
        drop(place);
        // Freed, where nobody has it any more, while nobody waits for the place.
        drop(before);
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

    /// Answers a request of `client` by its head, once it is known whether it has content. GET and HEAD with content are refused, whatever the
    /// protocol: it has no meaning there, and may be somebody's attempt to smuggle in a request (RFC 9110, section 9.3.1).
    pub async fn answer(&self, head: Parts, has_content: impl Future<Output = bool>, client: &Client) -> Response<Body> {
        let client = Client { certified: client.certified && self.certificates_admit, ..*client };
        let mut entry = Entry::new(client.peer, &self.books);
        entry.note(|request| super::describe::head(&head, request));
        let holdings = self.holdings();
        let asking = async {
            // It may be large: nothing of it is kept while the rest of the request is waited for.
            let head = head;
            let answered = match check(&head).and_then(|()| route::parse(&head.method, &head.uri)) {
                Ok(asked) => {
                    entry.endpoint = asked.endpoint();
                    entry.note(|request| super::describe::asked(&asked, request));
                    self.asked(&asked, &holdings, &head, &client, &mut entry).await
                }
                Err(error) => Err(error),
            };
            (answered, head.method)
        };
        let ((answered, method), has_content) = tokio::join!(asking, has_content);
        let answered = match answered {
            _ if has_content && matches!(method, Method::GET | Method::HEAD) => {
                Err(RegistryError::BadRequest("a request without content is expected"))
            }
            answered => answered,
        };
        let response = answered.unwrap_or_else(|error| reply::error(&error));
        let (parts, body) = response.into_parts();
        entry.status = parts.status.as_u16();
        entry.holdings = Some(holdings);
        let body = if method == Method::HEAD { body.without_content() } else { body };
        Response::from_parts(parts, body.logged(entry, &self.limits, &self.in_flight))
    }

    /// Lets the request pass, or not, and answers it.
    async fn asked(
        &self,
        asked: &Asked,
        holdings: &Holdings,
        head: &Parts,
        client: &Client,
        entry: &mut Entry,
    ) -> Result<Response<Body>, RegistryError> {
        match asked {
            _ if !asked.is_on(client.surface) => Err(RegistryError::PathUnknown),
            Asked::Beside(asked) => self.beside(asked, head, client).await,
            Asked::Registry(target) => {
                self.auth.admit(scope(&target.route), head, client).await?;
                let response = reply::namespaced(self.route(target, holdings, head, entry).await?, target.namespace.as_ref());
                Ok(if self.auth.is_needed() { reply::private(response) } else { response })
            }
        }
    }

    /// Answers, and notes in `entry` under which name the store has the repository that was meant.
    async fn route(
        &self,
        target: &Target,
        holdings: &Holdings,
        head: &Parts,
        entry: &mut Entry,
    ) -> Result<Response<Body>, RegistryError> {
        let catalog = holdings.store().catalog();
        let note = |entry: &mut Entry, holder| {
            entry.note(|request| catalog.repository_name(holder).clone_into(&mut request.repository));
        };
        match &target.route {
            Route::Base => Ok(reply::base()),
            Route::Catalog(page) => Ok(lists::catalog(catalog, page, self.documents.room(lists::longest(page)).await?)),
            Route::Tags(name, page) => {
                let (holder, _) = super::resolve::repository(holdings, name, target, head, |_, _| Some(()))?;
                note(entry, holder);
                let list = lists::Of { name, namespace: target.namespace.as_ref(), page };
                Ok(lists::tags(catalog, holder, &list, self.documents.room(lists::longest(page)).await?))
            }
            Route::Manifest(name, reference) => {
                let look = |catalog: &Catalog, id| super::resolve::manifest(catalog, id, reference);
                let (holder, found) = super::resolve::repository(holdings, name, target, head, look)?;
                note(entry, holder);
                let name = catalog.repository_name(holder);
                let unknown = || RegistryError::ManifestUnknown(format!("no manifest {reference} in {name}"));
                let (id, freshness) = found.ok_or_else(unknown)?;
                self.content(holdings, id, freshness, head, entry).await
            }
            Route::Blob(name, digest) => {
                let look = |catalog: &Catalog, id| catalog.blob_in(id, digest);
                let (holder, found) = super::resolve::repository(holdings, name, target, head, look)?;
                note(entry, holder);
                let unknown = || RegistryError::BlobUnknown(format!("no blob {digest} in {name}"));
                entry.blob_of = Some(holder);
                self.content(holdings, found.ok_or_else(unknown)?, Freshness::Immutable, head, entry).await
            }
            Route::Referrers(name, asked) => {
                // A registry must answer 200 with an empty list for a digest that it does not know; only an unknown repository is a 404.
                let look = |catalog: &Catalog, id| catalog.blob_in(id, &asked.subject);
                let (holder, _) = super::resolve::repository(holdings, name, target, head, look)?;
                note(entry, holder);
                let list = lists::Of { name, namespace: target.namespace.as_ref(), page: &asked.page };
                let room = self.documents.room(2 * REFERRERS).await?;
                lists::referrers(self, holdings, holder, &list, asked, room).await
            }
        }
    }

    /// Sends a blob or manifest, or the part of it that was asked for, or nothing new. The blob endpoint sends manifests, too, as plain
    /// bytes.
    async fn content(
        &self,
        holdings: &Holdings,
        id: BlobId,
        freshness: Freshness,
        head: &Parts,
        entry: &mut Entry,
    ) -> Result<Response<Body>, RegistryError> {
        let mut blob = holdings.store().catalog().blob(id).ok_or(RegistryError::Disk)?;
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
        let mut proof = None;
        let source = match self.kept(holdings, id, blob).await? {
            Some(manifest) => Source::Kept(manifest),
            None => {
                let opened = self.open(holdings, blob).await?;
                if self.verify && head.method == Method::GET {
                    proof = self.prove(holdings, id, blob, &wanted, &opened).await?;
                }
                Source::File(opened)
            }
        };
        let mut response = reply::content(&content, wanted, room, source)?;
        if head.method == Method::GET {
            proof.into_iter().for_each(|digest| response.body_mut().verify(digest));
            let begun = response.body_mut().begin(&self.limits, &self.in_flight).await;
            begun.map_err(|error| self.unreadable(holdings, blob, &error))?;
        }
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
    async fn kept<'h>(
        &self,
        holdings: &'h Holdings,
        id: BlobId,
        blob: Blob<'_>,
    ) -> Result<Option<&'h manifest_cache::Manifest>, RegistryError> {
        if blob.manifest.is_none() {
            return Ok(None);
        }
        if let Some(manifest) = holdings.kept.get(id) {
            return Ok(Some(manifest));
        }
        if !holdings.kept.takes(&blob) {
            return Ok(None);
        }
        let (content, found) = self.read(holdings, blob).await?;
        if found == blob.digest {
            holdings.kept.keep(id, content, reply::ready_head(&Content { blob, freshness: Freshness::Tag }));
        } else {
            // Sent as it is, for the client to refuse.
            tracing::warn!(digest = %blob.digest, "a manifest on the disk has another digest");
        }
        Ok(holdings.kept.get(id))
    }

    /// The content of a manifest.
    ///
    /// # Errors
    /// 500, where the disk does not give it.
    pub(crate) async fn read_manifest(&self, holdings: &Holdings, blob: Blob<'_>) -> Result<Vec<u8>, RegistryError> {
        self.read(holdings, blob).await.map(|(content, _)| content)
    }

    /// The content of a manifest, and its digest, which is the right one where somebody looks.
    async fn read(&self, holdings: &Holdings, blob: Blob<'_>) -> Result<(Vec<u8>, Digest), RegistryError> {
        let Opened { file, disk } = self.open(holdings, blob).await?;
        let (digest, size) = (blob.digest, blob.size.min(MAX_MANIFEST));
        let read = disk.ask(self.limits.stall, move || manifest_cache::read(&file, digest, size)).await;
        match read {
            Ok((_, found)) if self.verify && found != digest => Err(self.unreadable(holdings, blob, &wrong_digest(&found))),
            read => read.map_err(|error| self.unreadable(holdings, blob, &error)),
        }
    }

    async fn open(&self, holdings: &Holdings, blob: Blob<'_>) -> Result<Opened, RegistryError> {
        let disk = holdings.disk_of(&blob.digest).ok_or(RegistryError::Disk)?;
        let deadline = Instant::now() + self.limits.stall;
        let mut opened = self.try_open(disk, blob).await;
        // Every descriptor is in use: others end and give theirs back, and a pull under way is worth a wait.
        while opened.as_ref().is_err_and(no_descriptor) && Instant::now() < deadline {
            sleep(DESCRIPTOR_PAUSE).await;
            opened = self.try_open(disk, blob).await;
        }
        let file = opened.map_err(|error| self.unreadable(holdings, blob, &error))?;
        Ok(Opened { file: Arc::new(file), disk: Arc::clone(disk) })
    }

    /// What a client is told of a blob that its disk does not give; the launcher is told more.
    pub(crate) fn unreadable(&self, holdings: &Holdings, blob: Blob<'_>, error: &io::Error) -> RegistryError {
        self.books.disk_failed(holdings, &blob.digest, error);
        RegistryError::Disk
    }

    async fn try_open(&self, disk: &Arc<Disk>, blob: Blob<'_>) -> io::Result<File> {
        let (digest, size) = (blob.digest, blob.size);
        match disk.open_cached(&digest, size) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported) => {
                let opening = Arc::clone(disk);
                disk.ask(self.limits.stall, move || opening.open_blob(&digest, size)).await
            }
            opened => opened,
        }
    }
}

fn no_descriptor(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Checks a request's head for what hyper does not check (RFC 9112, section 3.2).
fn check(head: &Parts) -> Result<(), RegistryError> {
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(RegistryError::BadRequest("one Host header is expected, and there are several"));
    }
    if head.version == Version::HTTP_11 && hosts == 0 {
        return Err(RegistryError::BadRequest("a Host header is expected"));
    }
    let hosts = head.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    if !head.uri.authority().map(|authority| authority.as_str().as_bytes()).into_iter().chain(hosts).all(client::is_host) {
        return Err(RegistryError::BadRequest("the host is expected to be a name or an address, and a port"));
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
