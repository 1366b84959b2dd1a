//! One `request` event for each request, when its response has ended.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::catalog::RepositoryId;
use super::events::Events;
use super::metrics::{Answered, Metrics, Present};
use super::route::Endpoint;
use crate::proto::{self, event};

/// A request under way. When it is dropped, the request is over, one way or another.
#[derive(Debug)]
pub struct Entry {
    /// What is known of it so far.
    pub request: proto::Request,
    /// What it is for.
    pub endpoint: Endpoint,
    /// The repository, where a blob is sent.
    pub blob_of: Option<RepositoryId>,
    started: Instant,
    events: Events,
    metrics: Arc<Metrics>,
    _in_flight: Present,
}

impl Entry {
    /// Starts the entry of a request whose head has just arrived.
    pub fn new(request: proto::Request, events: Events, metrics: Arc<Metrics>) -> Self {
        let (endpoint, in_flight) = (Endpoint::Other, metrics.request());
        Self { request, endpoint, blob_of: None, started: Instant::now(), events, metrics, _in_flight: in_flight }
    }

    /// Says on the log why the body could not be sent whole.
    pub fn failed(&self, error: &io::Error) {
        tracing::warn!(
            peer = self.request.peer,
            repository = self.request.repository,
            digest = self.request.digest,
            %error,
            "the response was cut"
        );
        if error.kind() != io::ErrorKind::TimedOut {
            let message = format!("{}: {error}", self.request.digest);
            self.events.emit(event::Event::Warning(proto::Warning { code: "READ_ERROR".into(), message }));
        }
    }

    /// Ends the entry: `sent` bytes of the body were handed to the connection, all of it or not.
    pub fn finish(mut self, sent: u64, complete: bool) {
        self.request.bytes = sent;
        self.request.complete = complete;
    }
}

impl Drop for Entry {
    /// A request that never got as far as a body (its client left, or it panicked) is counted and told of like any other.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.metrics.panicked();
        }
        let duration = self.started.elapsed();
        let mut request = std::mem::take(&mut self.request);
        request.duration = duration.as_secs_f64();
        self.metrics.answered(Answered {
            endpoint: self.endpoint,
            status: u16::try_from(request.status).unwrap_or(u16::MAX),
            bytes: request.bytes,
            duration,
            repository: self.blob_of,
        });
        self.events.emit(event::Event::Request(request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::metrics::Totals;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn entry() -> (Entry, Arc<Metrics>, std::sync::mpsc::Receiver<proto::Event>) {
        let metrics = Arc::new(Metrics::new(&crate::registry::catalog::Builder::default().finish()));
        let (events, queue) = Events::queue();
        (Entry::new(proto::Request::default(), events, Arc::clone(&metrics)), metrics, queue)
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
