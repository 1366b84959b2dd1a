//! What the server counts. Everything is an atomic in its place from the start: counting takes no lock and allocates nothing, and no
//! name of a series comes from a client. [`exposition`] turns it to text.

pub mod exposition;
mod handshake;
mod histogram;
mod repositories;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use handshake::HandshakeFailure;
pub use repositories::Places;

use crate::disk::catalog::RepositoryId;
use crate::registry::api::route::Endpoint;
use crate::registry::content::disk_errors::Faults;
use crate::registry::content::snapshot::Holdings;
use crate::registry::listen::refusals::Refusals;
use histogram::Histogram;
use repositories::Repositories;

/// Statuses with a series of their own: every one that this server sends. 0 stands for a request whose client left, or which was
/// dropped, before there was a status.
const STATUSES: [u16; 12] = [0, 200, 206, 304, 400, 401, 404, 405, 416, 429, 500, 503];
/// The name of all others.
const OTHER_STATUS: &str = "other";
/// TLS versions by their place in [`Metrics::handshakes`].
const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// All counts of one server.
#[derive(Debug, Default)]
pub struct Metrics {
    traffic: [Traffic; Endpoint::ALL.len()],
    in_flight: Gauge,
    connections: Gauge,
    accepted: AtomicU64,
    handshakes: [AtomicU64; TLS_VERSIONS.len()],
    handshake_failures: [AtomicU64; HandshakeFailure::ALL.len()],
    panics: AtomicU64,
    /// What disks did not give.
    pub(crate) faults: Faults,
    /// Clients that refused the certificate.
    pub(crate) refusals: Refusals,
    repositories: Repositories,
}

/// Requests to one endpoint. On cache lines of its own: connections on different cores count different endpoints.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Traffic {
    /// By place in [`STATUSES`], the last one for all others.
    statuses: [AtomicU64; STATUSES.len() + 1],
    bytes: AtomicU64,
    duration: Histogram,
}

/// How many there are of something at present.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Gauge(AtomicU64);

/// An open connection, counted as long as it lives.
#[derive(Debug)]
pub struct Present(Arc<Metrics>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.connections.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that is over.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// What it was for.
    pub endpoint: Endpoint,
    /// HTTP status, 0 for none.
    pub status: u16,
    /// Bytes of the body that were handed to the connection.
    pub bytes: u64,
    /// From its head to the end of its response.
    pub duration: Duration,
    /// The repository, where the body was a blob.
    pub repository: Option<(&'a Holdings, RepositoryId)>,
}

/// Requests answered and bytes sent in their bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

impl Metrics {
    /// Counts a request as under way, until [`Metrics::answered`].
    pub fn request_begun(&self) {
        self.in_flight.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection as open.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> Present {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.connections.0.fetch_add(1, Ordering::Relaxed);
        Present(Arc::clone(self))
    }

    /// Counts a request that is over.
    pub fn answered(&self, request: Answered<'_>) {
        self.in_flight.0.fetch_sub(1, Ordering::Relaxed);
        let place = STATUSES.iter().position(|status| *status == request.status).unwrap_or(STATUSES.len());
        if let Some(traffic) = self.traffic.get(request.endpoint as usize) {
            traffic.bytes.fetch_add(request.bytes, Ordering::Relaxed);
            traffic.duration.observe(request.duration);
            traffic.statuses.get(place).into_iter().for_each(count);
        }
        if let Some((holdings, repository)) = request.repository {
            let name = || holdings.store().catalog().repository_name(repository);
            self.repositories.add(&holdings.places, repository, name, request.bytes);
        }
    }

    /// Counts a TLS handshake that came to its end.
    pub fn handshake(&self, version: Option<rustls::ProtocolVersion>) {
        let place = usize::from(version == Some(rustls::ProtocolVersion::TLSv1_3));
        self.handshakes.get(place).into_iter().for_each(count);
    }

    /// Counts a TLS handshake that did not.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.handshake_failures.get(failure as usize).into_iter().for_each(count);
    }

    /// Counts a panic that ended a request.
    pub fn panicked(&self) {
        count(&self.panics);
    }

    /// Panics so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        load(&self.panics)
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> u64 {
        load(&self.connections.0)
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        load(&self.in_flight.0)
    }

    /// Requests answered and bytes sent so far, of all endpoints.
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

    #[test]
    fn requests_are_counted_and_summed() {
        let metrics = Arc::new(Metrics::default());
        let answered =
            |endpoint, status, bytes| Answered { endpoint, status, bytes, duration: Duration::from_millis(1), repository: None };
        (0..2).for_each(|_| metrics.request_begun());
        metrics.answered(answered(Endpoint::Blob, 200, 10));
        metrics.answered(answered(Endpoint::Other, 418, 5));
        assert_eq!(metrics.totals(), Totals { requests: 2, bytes: 15 });
        for (at, endpoint) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!(endpoint as usize, at, "{}", endpoint.name());
        }
        for (at, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, at, "{}", failure.name());
        }
    }

    #[test]
    fn what_is_present_is_counted_while_it_lives() {
        let metrics = Arc::new(Metrics::default());
        let (one, two) = (metrics.connection(), metrics.connection());
        assert_eq!(load(&metrics.connections.0), 2);
        drop((one, two));
        assert_eq!((load(&metrics.connections.0), load(&metrics.accepted)), (0, 2));
    }
}
