//! The counters of a server. All of them are atomics that exist from the start: counting takes no lock and allocates nothing, and clients
//! cannot create series. [`exposition`] writes them as text.

pub mod exposition;
mod handshake;
mod histogram;
mod repositories;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use handshake::HandshakeFailure;
pub use repositories::{RepositoryRef, RepositorySlots};

use crate::registry::api::route::Endpoint;
use crate::registry::content::disk_errors::DiskErrors;
use crate::registry::http::error;
use crate::registry::listen::tls_refusals::TlsRefusals;
use histogram::Histogram;
use repositories::RepositoryCounters;

/// The statuses of responses that are not errors. 0 stands for a request that ended before its response started.
const SUCCESS_STATUSES: [u16; 4] = [0, 200, 206, 304];
/// The label of all statuses that [`statuses`] lacks.
const OTHER_STATUS: &str = "other";
/// TLS versions in the order of [`Metrics::handshakes`].
const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// All statuses that this server sends. Each has a series of its own.
fn statuses() -> impl Iterator<Item = u16> {
    SUCCESS_STATUSES.into_iter().chain(error::STATUSES)
}

/// All counters of one server.
#[derive(Debug, Default)]
pub struct Metrics {
    traffic: [Traffic; Endpoint::COUNT],
    in_flight: Gauge,
    connections: Gauge,
    accepted: AtomicU64,
    handshakes: [AtomicU64; TLS_VERSIONS.len()],
    handshake_failures: [AtomicU64; HandshakeFailure::ALL.len()],
    panics: AtomicU64,
    pub(crate) disk_errors: DiskErrors,
    /// Clients that rejected the certificate.
    pub(crate) refusals: TlsRefusals,
    repositories: RepositoryCounters,
}

/// The requests to one endpoint. Aligned to cache lines: cores that serve different endpoints do not contend.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Traffic {
    /// In the order of [`statuses`]. The last one counts all others.
    statuses: [AtomicU64; SUCCESS_STATUSES.len() + error::STATUSES.len() + 1],
    bytes: AtomicU64,
    duration: Histogram,
}

/// A current number of something.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Gauge(AtomicU64);

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Metrics>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct CompletedRequest<'a> {
    /// The requested endpoint.
    pub endpoint: Endpoint,
    /// The HTTP status. 0 if the request ended before its response started.
    pub status: u16,
    /// Bytes of the body that were written to the connection.
    pub bytes: u64,
    /// From the request's head to the end of its response.
    pub duration: Duration,
    /// The repository, if the body was a blob.
    pub repository: Option<RepositoryRef<'a>>,
}

/// The number of completed requests and of bytes in their responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Totals {
    pub requests: u64,
    pub bytes: u64,
}

impl Metrics {
    /// Counts a request as in progress until [`Metrics::request_completed`].
    pub fn request_started(&self) {
        self.in_flight.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as accepted, and as open until the result is dropped.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> OpenConnection {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.connections.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// Counts a request that has ended.
    pub fn request_completed(&self, request: CompletedRequest<'_>) {
        self.in_flight.0.fetch_sub(1, Ordering::Relaxed);
        if let Some(traffic) = self.traffic.get(request.endpoint as usize) {
            traffic.bytes.fetch_add(request.bytes, Ordering::Relaxed);
            traffic.duration.observe(request.duration);
            let known = statuses().zip(&traffic.statuses).find(|(status, _)| *status == request.status);
            known.map(|(_, counter)| counter).or(traffic.statuses.last()).into_iter().for_each(count);
        }
        if let Some(repository) = request.repository {
            self.repositories.add(repository, request.bytes);
        }
    }

    /// Counts a completed TLS handshake.
    pub fn handshake(&self, version: Option<rustls::ProtocolVersion>) {
        let index = usize::from(version == Some(rustls::ProtocolVersion::TLSv1_3));
        self.handshakes.get(index).into_iter().for_each(count);
    }

    /// Counts a failed TLS handshake.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.handshake_failures.get(failure as usize).into_iter().for_each(count);
    }

    /// Counts a panic that ended a request.
    pub fn request_panicked(&self) {
        count(&self.panics);
    }

    /// Panics so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        load(&self.panics)
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        load(&self.connections.0)
    }

    /// Requests in progress.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        load(&self.in_flight.0)
    }

    /// Requests completed and bytes sent so far, of all endpoints.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let requests = self.traffic.iter().flat_map(|traffic| &traffic.statuses).map(load).sum();
        Totals { requests, bytes: self.traffic.iter().map(|traffic| load(&traffic.bytes)).sum() }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(endpoint: Endpoint, status: u16, bytes: u64) -> CompletedRequest<'static> {
        CompletedRequest { endpoint, status, bytes, duration: Duration::from_millis(1), repository: None }
    }

    #[test]
    fn requests_are_counted_and_summed() {
        let metrics = Arc::new(Metrics::default());
        (0..2).for_each(|_| metrics.request_started());
        metrics.request_completed(completed(Endpoint::Blob, 200, 10));
        metrics.request_completed(completed(Endpoint::Other, 418, 5));
        assert_eq!(metrics.totals(), Totals { requests: 2, bytes: 15 });
        for (index, endpoint) in Endpoint::all().enumerate() {
            assert_eq!(endpoint as usize, index, "{}", endpoint.name());
        }
        for (index, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index, "{}", failure.name());
        }
    }

    #[test]
    fn each_status_of_the_server_has_a_series_and_others_share_one() {
        let metrics = Metrics::default();
        for status in statuses().chain([418]) {
            metrics.request_started();
            metrics.request_completed(completed(Endpoint::Blob, status, 0));
        }
        let counts = &metrics.traffic[Endpoint::Blob as usize].statuses;
        assert!(counts.iter().all(|counter| load(counter) == 1), "{counts:?}");
    }

    #[test]
    fn connections_are_counted_while_they_are_open() {
        let metrics = Arc::new(Metrics::default());
        let (one, two) = (metrics.connection(), metrics.connection());
        assert_eq!(load(&metrics.connections.0), 2);
        drop((one, two));
        assert_eq!((load(&metrics.connections.0), load(&metrics.accepted)), (0, 2));
    }
}
