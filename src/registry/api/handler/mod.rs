//! Turns the head of a request into a response. Names are resolved in the catalog and blobs are opened by digest. Nothing reads the
//! content of a request, and nothing writes.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use http::header::{HOST, RANGE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, Version};

use super::lists::{self, ListRequest};
use super::route::{self, ApiRequest, RequestTarget, Route, ServiceEndpoint};
use super::{describe, resolve};
use crate::disk::catalog::{Blob, BlobId, Catalog, RepositoryId};
use crate::oci::{Digest, Reference, Repository};
use crate::registry::auth::Auth;
use crate::registry::auth::client_certificate::Presence;
use crate::registry::auth::scope::Scope;
use crate::registry::content::blob_reader::BlobReader;
use crate::registry::content::body::{Body, BodyParts, ByteSource, ConnectionGuard, Payload};
use crate::registry::content::buffers::{ByteBudget, InFlight};
use crate::registry::content::delivery::Delivery;
use crate::registry::content::manifest_cache::CachedManifest;
use crate::registry::content::snapshot::Snapshot;
use crate::registry::content::store::Store;
use crate::registry::faults::{Faults, Port};
use crate::registry::http::condition::{self, Condition};
use crate::registry::http::error::RegistryError;
use crate::registry::http::range::{self, Ranges};
use crate::registry::http::reply::{self, Freshness, Representation};
use crate::registry::http::response_memory::{Permit, ResponseMemory};
use crate::registry::limits::{Limits, REFERRERS, RESPONSE_MEMORY, SMALL_CHUNK};
use crate::registry::listen::activity::Activity;
use crate::registry::listen::client::{self, Client};
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::health::Health;
use crate::registry::telemetry::log::{LogEntry, Telemetry};
use crate::registry::telemetry::metrics::exposition::Exposition;
use crate::registry::telemetry::metrics::{Metrics, Totals};
use crate::registry::tls::Leaves;

/// In events: content that was left out because the sources lacked it.
const MISSING: &str = "missing";

/// How a registry serves. By default every client may pull, blobs are not verified, and there is no CA certificate to download.
#[derive(Debug, Default)]
pub struct Options {
    /// The limits of the server.
    pub limits: Limits,
    /// Which clients may pull.
    pub auth: Auth,
    /// Whether TLS clients may or must show a certificate. `None` if the listener requests none.
    pub client_certificates: Option<Presence>,
    /// The CA certificate that `/ca.crt` serves, in PEM.
    pub ca_pem: Option<String>,
    /// Whether all bytes are checked against their digests.
    pub verify: bool,
    /// Whether blobs over HTTP/1.1 without TLS are sent by `sendfile(2)`. If a file is cut short meanwhile, Linux may send zeros for bytes
    /// that are on their way and that it no longer has.
    pub sendfile: bool,
    /// Signs the certificates of faults. `None`: an authority that no client knows does.
    pub leaves: Option<Arc<Leaves>>,
}

/// A registry: the content it serves at present, and how it serves it.
#[derive(Debug)]
pub struct Registry {
    /// Locked once per request, only to clone the pointer.
    snapshot: RwLock<Arc<Snapshot>>,
    reader: BlobReader,
    telemetry: Arc<Telemetry>,
    pub(crate) exposition: Exposition,
    pub(crate) health: Health,
    pub(crate) auth: Auth,
    pub(super) client_certificates: Option<Presence>,
    pub(crate) ca_pem: Option<String>,
    limits: Limits,
    pub(crate) sendfile: bool,
    pub(crate) budget: Arc<ByteBudget>,
    pub(crate) response_memory: ResponseMemory,
    faults: Arc<Faults>,
    /// The listeners, as far as they are told.
    pub(super) ports: OnceLock<Vec<Port>>,
    pub(super) leaves: Option<Arc<Leaves>>,
}

/// What the response of one request depends on.
pub(super) struct RequestContext<'a> {
    pub snapshot: &'a Snapshot,
    pub head: &'a Parts,
    pub in_flight: &'a Arc<InFlight>,
    pub entry: &'a mut LogEntry,
    pub connection: &'a Arc<Activity>,
    /// Whether the client showed a certificate of the client CA.
    pub has_certificate: bool,
}

impl Registry {
    /// Serves `store` and reports every request to `events`.
    #[must_use]
    pub fn new(store: Store, events: Events, options: Options) -> Self {
        let Options { limits, auth, client_certificates, ca_pem, verify, sendfile, leaves } = options;
        let faults = Arc::<Faults>::default();
        let metrics = Arc::<Metrics>::default();
        let exposition = Exposition::new(Arc::clone(&metrics), events.clone(), Arc::clone(&faults));
        let telemetry = Arc::new(Telemetry { events, metrics });
        Self {
            snapshot: RwLock::new(Arc::new(Snapshot::new(store, verify))),
            reader: BlobReader { telemetry: Arc::clone(&telemetry), timeout: limits.stall, verify },
            telemetry,
            exposition,
            health: Health::default(),
            auth,
            client_certificates,
            ca_pem,
            limits,
            sendfile,
            budget: Arc::default(),
            response_memory: ResponseMemory::new(RESPONSE_MEMORY, limits.response_memory_wait),
            faults,
            ports: OnceLock::new(),
            leaves,
        }
    }

    /// The limits of the server.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The content served at present.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Builds the snapshot of `store` for [`Registry::replace`]. This takes a while for a large store.
    #[must_use]
    pub fn snapshot_of(&self, store: Store) -> Snapshot {
        Snapshot::new(store, self.reader.verify)
    }

    /// Serves `snapshot` from the next request on. Requests in progress keep the snapshot they started with.
    pub fn replace(&self, snapshot: Snapshot) {
        self.faults.disks_changed(snapshot.store());
        let mut current = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::replace(&mut *current, Arc::new(snapshot));
        drop(current);
        // Dropped after the lock is released: freeing a large snapshot takes a while.
        drop(previous);
    }

    /// The plan of faults.
    #[must_use]
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    /// Requests completed and bytes sent so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.telemetry.metrics.totals()
    }

    /// All counters.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.telemetry.metrics
    }

    /// The queue of events for the launcher.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.telemetry.events
    }

    /// Responds to a request. `has_content` resolves to whether the request has content once that is known; `guard` lives as long as the
    /// response.
    ///
    /// GET and HEAD with content are rejected: content has no meaning there and may be an attempt at request smuggling (RFC 9110,
    /// section 9.3.1).
    pub(crate) async fn handle(
        &self,
        head: Parts,
        has_content: impl Future<Output = bool>,
        client: &Client,
        guard: ConnectionGuard,
        connection: Arc<Activity>,
    ) -> Response<Body> {
        let has_certificate = client.certified;
        // It replaces credentials, unless both are needed.
        let suffices = self.client_certificates == Some(Presence::Optional);
        let client = Client { certified: client.certified && suffices, ..*client };
        let mut entry = LogEntry::new(client.peer, &self.telemetry);
        entry.describe(|event| describe::head(&head, event));
        let (snapshot, in_flight) = (self.snapshot(), Arc::new(InFlight::new(Arc::clone(&self.budget))));
        // The head may be large. It is dropped here, before the rest of the request has arrived.
        let (result, method) = {
            let head = head;
            let result = match check(&head).and_then(|()| route::parse(&head.method, &head.uri)) {
                Ok(target) => {
                    entry.endpoint = target.endpoint();
                    entry.describe(|event| describe::target(&target, event));
                    let (snapshot, in_flight, connection) = (&snapshot, &in_flight, &connection);
                    let context =
                        RequestContext { snapshot, head: &head, in_flight, entry: &mut entry, connection, has_certificate };
                    self.dispatch(&target, &client, context).await
                }
                Err(error) => Err(error),
            };
            (result, head.method)
        };
        let has_content = has_content.await;
        let result = match result {
            _ if has_content && matches!(method, Method::GET | Method::HEAD) => {
                Err(RegistryError::BadRequest("GET and HEAD requests must not have content"))
            }
            result => result,
        };
        let (head, payload) = result.unwrap_or_else(|error| reply::error(&error)).into_parts();
        entry.status = head.status.as_u16();
        entry.snapshot = Some(snapshot);
        let mut payload = if method == Method::HEAD { Payload::empty() } else { payload };
        let fault = payload.fault.take();
        let delivery = Delivery::begin(entry, payload.len());
        let parts = BodyParts { payload, in_flight, stall: self.limits.stall, guard, delivery, fault };
        Response::from_parts(head, Body::new(parts))
    }

    /// Checks credentials, then serves the target.
    ///
    /// Futures of rare requests are on the heap: a future is copied there as a whole for each request, however little of it is used.
    async fn dispatch(
        &self,
        target: &RequestTarget,
        client: &Client,
        context: RequestContext<'_>,
    ) -> Result<Response<Payload>, RegistryError> {
        let has_faults = match target {
            _ if !target.is_on(client.surface) => return Err(RegistryError::PathUnknown),
            RequestTarget::Api(request) => {
                self.auth.admit(scope(&request.route), context.head, client).await?;
                true
            }
            RequestTarget::Service(endpoint) => matches!(endpoint, ServiceEndpoint::Token(_)),
        };
        match self.faults.plan().filter(|_| has_faults) {
            Some(plan) => Box::pin(self.serve_with_faults(&plan, target, client, context)).await,
            None => self.serve_target(target, client, context).await,
        }
    }

    /// Serves a target as if there were no plan of faults.
    pub(super) async fn serve_target(
        &self,
        target: &RequestTarget,
        client: &Client,
        context: RequestContext<'_>,
    ) -> Result<Response<Payload>, RegistryError> {
        match target {
            RequestTarget::Api(request) => self.serve_admitted(request, context).await,
            RequestTarget::Service(endpoint) => Box::pin(self.serve_service_endpoint(endpoint, context.head, client)).await,
        }
    }

    /// Serves a target whose credentials were checked.
    async fn serve_admitted(
        &self,
        request: &ApiRequest,
        context: RequestContext<'_>,
    ) -> Result<Response<Payload>, RegistryError> {
        let response = reply::with_namespace(self.serve_api(request, context).await?, request.namespace.as_ref());
        Ok(if self.auth.is_needed() { reply::private(response) } else { response })
    }

    /// Serves an endpoint of the distribution specification.
    async fn serve_api(&self, request: &ApiRequest, mut context: RequestContext<'_>) -> Result<Response<Payload>, RegistryError> {
        let snapshot = context.snapshot;
        let catalog = snapshot.store().catalog();
        let list = |name, page| ListRequest { name, namespace: request.namespace.as_ref(), page };
        match &request.route {
            Route::Base => Ok(reply::base()),
            Route::Catalog(page) => {
                Ok(lists::catalog(catalog, page, self.response_memory.acquire(lists::max_bytes(page)).await?))
            }
            Route::Tags(name, page) => {
                let (repository, _) = context.resolve(name, request, |_, _| Some(()))?;
                let permit = self.response_memory.acquire(lists::max_bytes(page)).await?;
                Ok(lists::tags(catalog, repository, &list(name, page), permit))
            }
            Route::Manifest(name, reference) => {
                let find = |catalog: &Catalog, id| resolve::manifest(catalog, id, reference);
                let (repository, found) = context.resolve(name, request, find)?;
                let name = catalog.repository_name(repository);
                let mut unknown = || {
                    let why = if let Reference::Digest(digest) = reference { context.left_out(repository, digest) } else { None };
                    RegistryError::ManifestUnknown(format!("no manifest {reference} in {name}{}", why.unwrap_or_default()))
                };
                let (id, freshness) = found.ok_or_else(&mut unknown)?;
                let blob = catalog.blob(id).ok_or(RegistryError::Disk)?;
                self.serve_content(id, Representation { blob, freshness }, context).await
            }
            Route::Blob(name, digest) => {
                let (repository, found) = context.resolve(name, request, |catalog, id| catalog.blob_in(id, digest))?;
                let name = catalog.repository_name(repository);
                context.entry.blob_repository = Some(repository);
                let mut unknown = || {
                    let why = context.left_out(repository, digest).unwrap_or_default();
                    RegistryError::BlobUnknown(format!("no blob {digest} in {name}{why}"))
                };
                let id = found.ok_or_else(&mut unknown)?;
                // This endpoint serves manifests, too, but as plain bytes.
                let blob = Blob { manifest: None, ..catalog.blob(id).ok_or(RegistryError::Disk)? };
                self.serve_content(id, Representation { blob, freshness: Freshness::Immutable }, context).await
            }
            Route::Referrers(name, referrers) => {
                // The list is empty if the repository does not have the digest. Only an unknown repository is a 404.
                let find = |catalog: &Catalog, id| catalog.blob_in(id, &referrers.subject);
                let (repository, _) = context.resolve(name, request, find)?;
                let permit = self.response_memory.acquire(2 * REFERRERS).await?;
                let list = list(name, &referrers.page);
                Box::pin(lists::referrers(&self.reader, snapshot, repository, &list, referrers, permit)).await
            }
        }
    }

    /// Serves a blob or manifest: all of it, the requested ranges, or 304.
    async fn serve_content(
        &self,
        id: BlobId,
        content: Representation<'_>,
        context: RequestContext<'_>,
    ) -> Result<Response<Payload>, RegistryError> {
        let RequestContext { snapshot, head, in_flight, entry, .. } = context;
        let (blob, is_get) = (content.blob, head.method == Method::GET);
        match condition::evaluate(&head.headers, || content.etag()) {
            Condition::Passed => {}
            Condition::NotModified => {
                entry.digest = Some(blob.digest);
                return Ok(reply::not_modified(&content));
            }
            Condition::Failed => return Err(RegistryError::PreconditionFailed(blob.digest)),
        }
        let ranges = match head.headers.get(RANGE).and_then(|value| value.to_str().ok()) {
            Some(header) if is_get && condition::range_applies(&head.headers, || content.etag()) => {
                range::parse(header, blob.size)
            }
            _ => Ranges::Whole,
        };
        let permit = self.range_list_permit(&ranges).await?;
        let response = match self.cached_manifest(snapshot, id, content).await? {
            Some(manifest) if ranges == Ranges::Whole => {
                reply::cached(&content, manifest.headers.clone(), manifest.content.clone())
            }
            Some(manifest) => reply::content(&content, ranges, permit, ByteSource::Memory(manifest.content.clone()))?,
            None => {
                let opened = self.reader.open(snapshot, blob).await?;
                let verify = || Box::pin(self.reader.verify(snapshot, id, blob, &ranges, &opened));
                let expected = if is_get { verify().await? } else { None };
                let mut response = reply::content(&content, ranges, permit, ByteSource::File(opened))?;
                if is_get {
                    let prefetched = response.body_mut().prefetch(expected, in_flight, self.limits.stall).await;
                    prefetched.map_err(|error| self.reader.disk_failed(snapshot, blob, &error))?;
                }
                response
            }
        };
        entry.digest = Some(blob.digest);
        Ok(response)
    }

    /// A long list of ranges counts as a generated response.
    async fn range_list_permit(&self, ranges: &Ranges) -> Result<Option<Permit>, RegistryError> {
        match ranges {
            Ranges::Many(list) if size_of_val(list.as_slice()) > SMALL_CHUNK => {
                self.response_memory.acquire(size_of_val(list.as_slice())).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The manifest from the cache. The first request for a manifest reads it into the cache, if it fits.
    async fn cached_manifest<'s>(
        &self,
        snapshot: &'s Snapshot,
        id: BlobId,
        content: Representation<'_>,
    ) -> Result<Option<&'s CachedManifest>, RegistryError> {
        let (blob, cache) = (content.blob, &snapshot.manifests);
        if blob.manifest.is_none() {
            return Ok(None);
        }
        if let Some(manifest) = cache.get(id) {
            return Ok(Some(manifest));
        }
        if !cache.accepts(&blob) {
            return Ok(None);
        }
        let (bytes, found) = Box::pin(self.reader.read_manifest(snapshot, blob)).await?;
        if found == blob.digest {
            if let Ok(headers) = content.whole_headers() {
                cache.insert(id, bytes, headers);
            }
        } else {
            // The content is sent from the disk as it is: the client checks the digest and rejects it.
            tracing::warn!(digest = %blob.digest, "a manifest on the disk has the wrong digest");
        }
        Ok(cache.get(id))
    }
}

impl RequestContext<'_> {
    /// The same context, to be used while this one is lent.
    pub(super) fn again(&mut self) -> RequestContext<'_> {
        let Self { snapshot, head, in_flight, entry, connection, has_certificate } = self;
        RequestContext { snapshot, head, in_flight, entry, connection, has_certificate: *has_certificate }
    }

    /// Resolves the repository and puts its full name into the request's event.
    fn resolve<T>(
        &mut self,
        name: &Repository,
        request: &ApiRequest,
        find: impl Fn(&Catalog, RepositoryId) -> Option<T>,
    ) -> Result<(RepositoryId, Option<T>), RegistryError> {
        let resolved = resolve::repository(self.snapshot, name, request, self.head, find)?;
        let full_name = self.snapshot.store().catalog().repository_name(resolved.0);
        self.entry.describe(|event| full_name.clone_into(&mut event.repository));
        Ok(resolved)
    }

    /// Why the repository does not have this content, if it was left out on purpose. The request's event says so too.
    fn left_out(&mut self, repository: RepositoryId, digest: &Digest) -> Option<String> {
        let left_out = self.snapshot.store().catalog().left_out(repository, digest)?;
        self.entry.describe(|event| left_out.platform.unwrap_or(MISSING).clone_into(&mut event.left_out));
        Some(match left_out.platform {
            Some(platform) => format!(": it is for {platform}, which was left out when the disk was packed"),
            None => ": it was missing when the disk was packed, and was left out".to_owned(),
        })
    }
}

/// Rejects heads that hyper accepts and RFC 9112, section 3.2, forbids.
fn check(head: &Parts) -> Result<(), RegistryError> {
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(RegistryError::BadRequest("the request has more than one Host header"));
    }
    if head.version == Version::HTTP_11 && hosts == 0 {
        return Err(RegistryError::BadRequest("the request has no Host header"));
    }
    let hosts = head.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    if !head.uri.authority().map(|authority| authority.as_str().as_bytes()).into_iter().chain(hosts).all(client::is_host) {
        return Err(RegistryError::BadRequest("the host must be a name or an address, with or without a port"));
    }
    Ok(())
}

/// The scope that a token needs for the route.
pub(super) fn scope(route: &Route) -> Scope<'_> {
    match route {
        Route::Base => Scope::Any,
        Route::Catalog(_) => Scope::Catalog,
        Route::Tags(name, _) | Route::Manifest(name, _) | Route::Blob(name, _) | Route::Referrers(name, ..) => Scope::Pull(name),
    }
}

#[cfg(test)]
mod tests;
