//! The queue of events for the launcher. One thread writes them out. The queue is bounded: if the reader is slow, events are dropped and
//! counted, and nothing waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::{Done, Event, Warning, event};

/// Maximum number of queued events. A request event has less than 1 KiB, so the queue needs less than 4 MiB.
pub const QUEUE: usize = 4096;

/// The sending end of the queue.
#[derive(Debug, Clone)]
pub struct Events {
    /// `None` if events are disabled.
    queue: Option<SyncSender<Event>>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// Creates a queue for [`QUEUE`] events. Returns both ends.
    #[must_use]
    pub fn queue() -> (Self, Receiver<Event>) {
        let (queue, receiver) = sync_channel(QUEUE);
        (Self { queue: Some(queue), dropped: Arc::default() }, receiver)
    }

    /// Discards all events without counting them.
    #[must_use]
    pub fn disabled() -> Self {
        Self { queue: None, dropped: Arc::default() }
    }

    /// Whether there is a queue.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues `event` with the current time. If the queue is full, the event is dropped and counted.
    pub fn emit(&self, event: event::Event) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Event { time: now(), event: Some(event) }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues the last event, with the number of dropped ones. Waits while the queue is full, so its reader must not be this thread.
    pub fn finish(&self, done: Done) {
        let Some(queue) = &self.queue else { return };
        let done = Done { dropped_events: self.dropped(), ..done };
        // It fails if the reader is gone.
        let _ = queue.send(Event { time: now(), event: Some(event::Event::Done(done)) });
    }

    /// Queues a warning with this stable code.
    pub fn warn(&self, code: &str, message: String) {
        self.emit(event::Event::Warning(Warning { code: code.to_owned(), message, ..Warning::default() }));
    }

    /// The number of events dropped because the queue was full or its reader was gone.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The time in seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
