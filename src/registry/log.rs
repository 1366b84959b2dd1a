//! One `request` event for each request, when its response has ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::events::Events;
use crate::proto::{self, event};

/// What the registry has answered since it started.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Requests answered and bytes sent in their bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

impl Counters {
    /// The present totals.
    pub fn totals(&self) -> Totals {
        Totals { requests: self.requests.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Entry {
    /// What is known of it so far.
    pub request: proto::Request,
    started: Instant,
    events: Events,
    counters: Arc<Counters>,
}

impl Entry {
    /// Starts the entry of a request whose head has just arrived.
    pub fn new(request: proto::Request, events: Events, counters: Arc<Counters>) -> Self {
        Self { request, started: Instant::now(), events, counters }
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
        self.request.duration = self.started.elapsed().as_secs_f64();
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(sent, Ordering::Relaxed);
        self.events.emit(event::Event::Request(self.request));
    }
}
