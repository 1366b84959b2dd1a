//! The queue between whoever has something to tell the launcher and the one thread that writes it out. It is bounded: a slow or
//! absent reader costs events, which are counted, and never time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::{Event, Warning, event};

/// Events that may wait for the reader. A request event is under 1 KiB, so the queue stays under 4 MiB.
pub const QUEUE: usize = 4096;

/// The sending end of the queue.
#[derive(Debug, Clone)]
pub struct Events {
    /// None where nobody listens, and nobody misses anything.
    queue: Option<SyncSender<Event>>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// A queue for [`QUEUE`] events and its receiving end.
    #[must_use]
    pub fn queue() -> (Self, Receiver<Event>) {
        let (queue, receiver) = sync_channel(QUEUE);
        (Self { queue: Some(queue), dropped: Arc::default() }, receiver)
    }

    /// Events that nobody listens to.
    #[must_use]
    pub fn unheard() -> Self {
        Self { queue: None, dropped: Arc::default() }
    }

    /// Whether somebody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues `event`, stamped with the present time; where the queue is full it is counted as dropped.
    pub fn emit(&self, event: event::Event) {
        let Some(queue) = &self.queue else { return };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        if queue.try_send(Event { time, event: Some(event) }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues a warning with this stable code.
    pub fn warn(&self, code: &str, message: String) {
        self.emit(event::Event::Warning(Warning { code: code.to_owned(), message, ..Warning::default() }));
    }

    /// How many events found the queue full or its reader gone.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
