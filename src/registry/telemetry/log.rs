//! One `request` event for each request, when its response has ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::events::Events;
use super::metrics::{Answered, Metrics};
use crate::disk::catalog::RepositoryId;
use crate::oci::Digest;
use crate::proto::{self, event};
use crate::registry::api::route::Endpoint;
use crate::registry::content::snapshot::Holdings;

/// Where requests are told of and counted.
#[derive(Debug)]
pub struct Books {
    /// The queue that tells the launcher what happens.
    pub events: Events,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Books {
    /// Counts and tells of a disk that did not give a blob.
    pub fn disk_failed(&self, holdings: &Holdings, digest: &Digest, error: &io::Error) {
        let disk = holdings.disk_of(digest).map(|disk| disk.name()).unwrap_or_default();
        self.metrics.faults.happened(&self.events, digest, disk, error);
    }
}

/// A request under way. When it is dropped, the request is over, one way or another.
#[derive(Debug)]
pub struct Entry {
    /// HTTP status, 0 before there is one.
    pub status: u16,
    /// Digest of the content.
    pub digest: Option<Digest>,
    /// What it is for.
    pub endpoint: Endpoint,
    /// The repository, where a blob is sent.
    pub blob_of: Option<RepositoryId>,
    /// What was served when it arrived.
    pub holdings: Option<Arc<Holdings>>,
    peer: SocketAddr,
    /// What is told of it, where somebody listens.
    told: Option<Box<proto::Request>>,
    sent: (u64, bool),
    started: Instant,
    books: Arc<Books>,
}

impl Entry {
    /// Starts the entry of a request of `peer` whose head has just arrived.
    #[must_use]
    pub fn new(peer: SocketAddr, books: &Arc<Books>) -> Self {
        books.metrics.request_begun();
        Self {
            status: 0,
            digest: None,
            endpoint: Endpoint::Other,
            blob_of: None,
            holdings: None,
            peer,
            told: books.events.is_heard().then(Box::default),
            sent: (0, false),
            started: Instant::now(),
            books: Arc::clone(books),
        }
    }

    /// Notes what only the event has. Nothing is made of it where nobody listens.
    pub fn note(&mut self, note: impl FnOnce(&mut proto::Request)) {
        if let Some(request) = self.told.as_deref_mut() {
            note(request);
        }
    }

    /// Counts and tells of a disk that did not give what was to be sent.
    pub fn failed(&self, error: &io::Error) {
        let (Some(digest), Some(holdings)) = (&self.digest, &self.holdings) else { return };
        self.books.disk_failed(holdings, digest, error);
    }

    /// Ends the entry: `sent` bytes of the body were handed to the connection, all of it or not.
    pub fn finish(mut self, sent: u64, complete: bool) {
        self.sent = (sent, complete);
    }
}

impl Drop for Entry {
    /// A request that never got as far as a body (its client left, or it panicked) is counted and told of like any other.
    fn drop(&mut self) {
        let Self { endpoint, status, sent: (bytes, complete), .. } = *self;
        if std::thread::panicking() {
            self.books.metrics.panicked();
        }
        let duration = self.started.elapsed();
        let repository = self.holdings.as_deref().zip(self.blob_of);
        self.books.metrics.answered(Answered { endpoint, status, bytes, duration, repository });
        let Some(mut request) = self.told.take() else { return };
        // On a socket of both families, an IPv4 client has an IPv6 address that holds its own.
        request.peer = SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port()).to_string();
        request.endpoint = endpoint.name().into();
        request.digest = self.digest.map(|digest| digest.to_string()).unwrap_or_default();
        (request.status, request.bytes, request.complete) = (status.into(), bytes, complete);
        request.duration = duration.as_secs_f64();
        self.books.events.emit(event::Event::Request(*request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::telemetry::metrics::Totals;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn entry() -> (Entry, Arc<Metrics>, std::sync::mpsc::Receiver<proto::Event>) {
        let metrics = Arc::new(Metrics::default());
        let (events, queue) = Events::queue();
        let books = Arc::new(Books { events, metrics: Arc::clone(&metrics) });
        (Entry::new(([10, 1, 0, 7], 40_112).into(), &books), metrics, queue)
    }

    #[test]
    fn a_request_is_told_of_once_however_it_ends() {
        let (finished, metrics, queue) = entry();
        finished.finish(7, true);
        assert_eq!(metrics.totals(), Totals { requests: 1, bytes: 7 });
        let (left, metrics_of_left, queue_of_left) = entry();
        drop(left);
        assert_eq!(metrics_of_left.totals(), Totals { requests: 1, bytes: 0 });
        for (queue, expected) in [(queue, (7, true)), (queue_of_left, (0, false))] {
            let events: Vec<_> = queue.try_iter().collect();
            let [proto::Event { event: Some(event::Event::Request(request)), .. }] = events.as_slice() else {
                panic!("{events:?}")
            };
            assert_eq!((request.bytes, request.complete), expected);
        }
    }

    #[test]
    fn where_nobody_listens_it_is_counted_alone() {
        let metrics = Arc::new(Metrics::default());
        let books = Arc::new(Books { events: Events::unheard(), metrics: Arc::clone(&metrics) });
        let mut entry = Entry::new(([10, 1, 0, 7], 40_112).into(), &books);
        entry.note(|_| panic!("nothing is made of it"));
        entry.finish(7, true);
        assert_eq!((metrics.totals(), books.events.dropped()), (Totals { requests: 1, bytes: 7 }, 0));
    }

    #[test]
    fn a_panic_in_a_request_is_counted() {
        let (entry, metrics, queue) = entry();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _entry = entry;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!((metrics.panics(), metrics.totals().requests), (1, 1));
        assert_eq!(queue.try_iter().count(), 1);
    }
}
