//! The log entry of a request: counts the request and emits its `request` event when its response has ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::events::Events;
use super::metrics::{CompletedRequest, Metrics, RepositoryRef};
use crate::disk::catalog::RepositoryId;
use crate::oci::Digest;
use crate::proto::{self, event};
use crate::registry::api::route::Endpoint;
use crate::registry::content::snapshot::Snapshot;
use crate::registry::faults::plan::Hit;

/// Where a server reports to.
#[derive(Debug)]
pub struct Telemetry {
    /// The queue of events for the launcher.
    pub events: Events,
    /// All counters.
    pub metrics: Arc<Metrics>,
}

impl Telemetry {
    /// Counts and reports that a disk failed to return a blob.
    pub fn disk_failed(&self, snapshot: &Snapshot, digest: &Digest, error: &io::Error) {
        let disk = snapshot.store().disk_of(digest).map(|disk| disk.name()).unwrap_or_default();
        self.metrics.disk_errors.record(&self.events, digest, disk, error);
    }
}

/// The log entry of a request in progress. Dropping it ends the request, whatever the reason. The server only writes to it; no decision
/// depends on it.
#[derive(Debug)]
pub struct LogEntry {
    /// The HTTP status. 0 until the response starts.
    pub status: u16,
    /// Digest of the content.
    pub digest: Option<Digest>,
    /// The requested endpoint.
    pub endpoint: Endpoint,
    /// The repository, if the request is for a blob.
    pub blob_repository: Option<RepositoryId>,
    /// The content served when the request arrived.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The fault that acted on the request.
    pub(crate) fault: Option<Hit>,
    peer: SocketAddr,
    /// `None` if events are disabled.
    event: Option<Box<proto::Request>>,
    sent: u64,
    is_complete: bool,
    started: Instant,
    telemetry: Arc<Telemetry>,
}

impl LogEntry {
    /// Starts the entry of a request whose head has just arrived.
    #[must_use]
    pub fn new(peer: SocketAddr, telemetry: &Arc<Telemetry>) -> Self {
        telemetry.metrics.request_started();
        Self {
            status: 0,
            digest: None,
            endpoint: Endpoint::Other,
            blob_repository: None,
            snapshot: None,
            fault: None,
            peer,
            event: telemetry.events.is_enabled().then(Box::default),
            sent: 0,
            is_complete: false,
            started: Instant::now(),
            telemetry: Arc::clone(telemetry),
        }
    }

    /// Fills fields of the event. Does nothing if events are disabled.
    pub fn describe(&mut self, describe: impl FnOnce(&mut proto::Request)) {
        if let Some(event) = self.event.as_deref_mut() {
            describe(event);
        }
    }

    /// Counts and reports that a disk failed to return the content.
    pub fn disk_failed(&self, error: &io::Error) {
        let (Some(digest), Some(snapshot)) = (&self.digest, &self.snapshot) else { return };
        self.telemetry.disk_failed(snapshot, digest, error);
    }

    /// Records how many bytes of the body were written to the connection, and whether that is all of them.
    pub fn set_sent(&mut self, bytes: u64, is_complete: bool) {
        (self.sent, self.is_complete) = (bytes, is_complete);
    }
}

impl Drop for LogEntry {
    /// Also runs for a request that never got a body, because its client left or its handler panicked.
    fn drop(&mut self) {
        let Self { endpoint, status, sent: bytes, .. } = *self;
        if std::thread::panicking() {
            self.telemetry.metrics.request_panicked();
        }
        let duration = self.started.elapsed();
        let repository = self.snapshot.as_deref().zip(self.blob_repository).map(|(snapshot, id)| RepositoryRef {
            slots: &snapshot.repository_slots,
            id,
            name: snapshot.store().catalog().repository_name(id),
        });
        self.telemetry.metrics.request_completed(CompletedRequest { endpoint, status, bytes, duration, repository });
        let Some(mut event) = self.event.take() else { return };
        // A dual-stack socket reports an IPv4 peer as an IPv4-mapped IPv6 address.
        event.peer = SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port()).to_string();
        event.endpoint = endpoint.name().into();
        event.digest = self.digest.map(|digest| digest.to_string()).unwrap_or_default();
        (event.status, event.bytes, event.complete) = (status.into(), bytes, self.is_complete);
        event.duration = duration.as_secs_f64();
        if let Some(hit) = self.fault.take() {
            event.complete &= !hit.action.spoils_content();
            hit.rule.id().clone_into(&mut event.fault);
            let fault = proto::Fault {
                peer: event.peer.clone(),
                bytes,
                endpoint: event.endpoint.clone(),
                repository: event.repository.clone(),
                reference: event.reference.clone(),
                ..hit.event()
            };
            self.telemetry.events.emit(event::Event::Fault(fault));
        }
        self.telemetry.events.emit(event::Event::Request(*event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::telemetry::metrics::Totals;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn entry() -> (LogEntry, Arc<Metrics>, std::sync::mpsc::Receiver<proto::Event>) {
        let metrics = Arc::new(Metrics::default());
        let (events, queue) = Events::queue();
        let telemetry = Arc::new(Telemetry { events, metrics: Arc::clone(&metrics) });
        (LogEntry::new(([10, 1, 0, 7], 40_112).into(), &telemetry), metrics, queue)
    }

    #[test]
    fn each_request_is_logged_once_complete_or_not() {
        let (mut complete, metrics, queue) = entry();
        complete.set_sent(7, true);
        drop(complete);
        assert_eq!(metrics.totals(), Totals { requests: 1, bytes: 7 });
        let (aborted, metrics_of_aborted, queue_of_aborted) = entry();
        drop(aborted);
        assert_eq!(metrics_of_aborted.totals(), Totals { requests: 1, bytes: 0 });
        for (queue, expected) in [(queue, (7, true)), (queue_of_aborted, (0, false))] {
            let events: Vec<_> = queue.try_iter().collect();
            let [proto::Event { event: Some(event::Event::Request(request)), .. }] = events.as_slice() else {
                panic!("{events:?}")
            };
            assert_eq!((request.bytes, request.complete), expected);
        }
    }

    #[test]
    fn requests_are_counted_but_not_described_if_events_are_disabled() {
        let telemetry = Arc::new(Telemetry { events: Events::disabled(), metrics: Arc::default() });
        let mut entry = LogEntry::new(([10, 1, 0, 7], 40_112).into(), &telemetry);
        entry.describe(|_| panic!("there is no event to fill"));
        entry.set_sent(7, true);
        drop(entry);
        assert_eq!((telemetry.metrics.totals(), telemetry.events.dropped()), (Totals { requests: 1, bytes: 7 }, 0));
    }

    #[test]
    fn panic_in_a_request_is_counted() {
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
