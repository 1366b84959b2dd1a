//! Counts the bytes of a response that its connection has written, and ends the request once the last of them is written or dropped.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use super::file_sender::{FileSender, placeholder};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::Limits;
use crate::registry::telemetry::log::LogEntry;

/// The progress of one response body, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Given to the connection.
    given: AtomicU64,
    /// Written to the connection's socket.
    written: AtomicU64,
    /// Whether a fault holds the body up, so that the client is not to blame.
    held: AtomicBool,
}

thread_local! {
    /// The last delivery that began on this thread.
    static LAST_BEGUN: Cell<Weak<Delivery>> = Cell::default();
}

impl Progress {
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// A fault holds the body up.
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Whether a fault holds the body up.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the connection has written everything it was given.
    pub fn is_settled(&self) -> bool {
        self.given.load(Ordering::Relaxed) == self.written()
    }
}

/// The bytes that a client must read within `elapsed`.
pub(crate) fn least(minimum_rate: u64, elapsed: Duration) -> f64 {
    minimum_rate as f64 * elapsed.as_secs_f64()
}

/// A period in which a client's rate is measured: its start, and the bytes counted before it.
#[derive(Debug)]
pub(crate) struct RateWindow {
    started: Instant,
    before: u64,
}

impl RateWindow {
    pub fn start(bytes: u64) -> Self {
        Self { started: Instant::now(), before: bytes }
    }

    /// Whether the client took less than the minimum rate over at least `stall`. If it took enough, the next period starts.
    pub fn is_too_slow(&mut self, bytes: u64, minimum_rate: u64, stall: Duration) -> bool {
        let elapsed = self.started.elapsed();
        if elapsed < stall {
            return false;
        }
        let is_too_slow = (bytes.saturating_sub(self.before) as f64) < least(minimum_rate, elapsed);
        if !is_too_slow {
            *self = Self::start(bytes);
        }
        is_too_slow
    }
}

/// A response whose body is being sent. The body and each of its [`BodyBytes`] share it. Dropping the last of them ends the request and
/// writes its log entry.
#[derive(Debug)]
pub(crate) struct Delivery {
    entry: LogEntry,
    len: u64,
    progress: Progress,
}

impl Delivery {
    /// The delivery of a body of `len` bytes begins.
    pub fn begin(entry: LogEntry, len: u64) -> Arc<Self> {
        let delivery = Arc::new(Self { entry, len, progress: Progress::default() });
        LAST_BEGUN.set(Arc::downgrade(&delivery));
        delivery
    }

    /// The last delivery that has begun on this thread since the last call. A stream learns by it which delivery is its own.
    pub fn take_last_begun() -> Weak<Self> {
        LAST_BEGUN.take()
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    pub fn entry(&self) -> &LogEntry {
        &self.entry
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let written = self.progress.written();
        self.entry.set_sent(written, written == self.len);
    }
}

/// Bytes of a body on their way to the socket. hyper advances them as it writes them.
#[derive(Debug)]
pub struct BodyBytes {
    data: BodyData,
    delivery: Arc<Delivery>,
}

#[derive(Debug)]
enum BodyData {
    Memory(Bytes),
    /// A range of the file that the sender was given last.
    File(ByteRange, Arc<FileSender>),
}

impl BodyBytes {
    pub(crate) fn new(bytes: Bytes, delivery: &Arc<Delivery>) -> Self {
        Self::with(BodyData::Memory(bytes), delivery)
    }

    /// Bytes of a file. `range` was given to `sender` before.
    pub(crate) fn file(range: ByteRange, sender: &Arc<FileSender>, delivery: &Arc<Delivery>) -> Self {
        Self::with(BodyData::File(range, Arc::clone(sender)), delivery)
    }

    fn with(data: BodyData, delivery: &Arc<Delivery>) -> Self {
        let this = Self { data, delivery: Arc::clone(delivery) };
        delivery.progress.given.fetch_add(this.remaining() as u64, Ordering::Relaxed);
        this
    }
}

impl Buf for BodyBytes {
    fn remaining(&self) -> usize {
        match &self.data {
            BodyData::Memory(bytes) => bytes.len(),
            BodyData::File(range, _) => usize::try_from(range.len()).unwrap_or(usize::MAX),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            BodyData::Memory(bytes) => bytes,
            BodyData::File(range, _) => placeholder(range),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.data {
            BodyData::Memory(bytes) => bytes.advance(count),
            BodyData::File(range, sender) => {
                sender.confirm(count as u64);
                *range = range.after(count as u64);
            }
        }
        self.delivery.progress.written.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl Drop for BodyBytes {
    /// Reports why the file could not be sent, if it could not: hyper learns only that the connection failed.
    fn drop(&mut self) {
        if let BodyData::File(_, sender) = &self.data
            && let Some(error) = sender.take_failure()
        {
            self.delivery.entry.disk_failed(&error);
        }
    }
}

/// The responses of one HTTP/2 connection.
#[derive(Debug, Default)]
pub(crate) struct Responses {
    /// Bodies that have not ended.
    bodies: AtomicUsize,
    /// Responses whose body has ended before all of it was written. hyper keeps the rest until the peer opens the stream's flow-control
    /// window, and has no timeout for it.
    draining: Mutex<Vec<DrainingResponse>>,
}

#[derive(Debug)]
struct DrainingResponse {
    delivery: Weak<Delivery>,
    window: RateWindow,
}

impl Responses {
    /// The number of bodies that have not ended.
    pub fn bodies(&self) -> usize {
        self.bodies.load(Ordering::Relaxed)
    }

    /// A body begins. [`Responses::body_ended`] must follow.
    pub fn body_began(&self) {
        self.bodies.fetch_add(1, Ordering::Relaxed);
    }

    /// A body has ended. Its response is draining, unless all of it is written.
    pub fn body_ended(&self, delivery: &Arc<Delivery>) {
        self.bodies.fetch_sub(1, Ordering::Relaxed);
        if delivery.progress.is_settled() {
            return;
        }
        let mut draining = self.draining();
        if draining.len() == draining.capacity() {
            draining.retain(|response| response.delivery.strong_count() > 0);
        }
        let window = RateWindow::start(delivery.progress.written());
        draining.push(DrainingResponse { delivery: Arc::downgrade(delivery), window });
    }

    /// Completes when the client of a draining response reads less than the minimum rate.
    pub async fn overdue(&self, limits: &Limits) {
        while self.count(limits).await.0 == 0 {}
    }

    /// Completes when this is so for all draining responses that are left.
    pub async fn all_overdue(&self, limits: &Limits) {
        loop {
            let (overdue, left) = self.count(limits).await;
            if overdue == left {
                return;
            }
        }
    }

    /// After a pause, the number of draining responses that are overdue, and of all that are left.
    async fn count(&self, limits: &Limits) -> (usize, usize) {
        tokio::time::sleep(limits.stall).await;
        let (mut draining, mut overdue) = (self.draining(), 0);
        draining.retain_mut(|response| {
            let Some(delivery) = response.delivery.upgrade() else { return false };
            let written = delivery.progress.written();
            overdue += usize::from(response.window.is_too_slow(written, limits.minimum_rate, limits.stall));
            true
        });
        (overdue, draining.len())
    }

    fn draining(&self) -> MutexGuard<'_, Vec<DrainingResponse>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::telemetry::events::Events;
    use crate::registry::telemetry::log::Telemetry;

    fn delivery(len: u64) -> Arc<Delivery> {
        let telemetry = Arc::new(Telemetry { events: Events::disabled(), metrics: Arc::default() });
        Delivery::begin(LogEntry::new(([127, 0, 0, 1], 40_112).into(), &telemetry), len)
    }

    #[test]
    fn bytes_count_as_written_when_they_are_advanced() {
        let delivery = delivery(7);
        let mut bytes = BodyBytes::new(Bytes::from_static(b"1234567"), &delivery);
        assert!(!delivery.progress.is_settled());
        bytes.advance(3);
        assert_eq!((delivery.progress.written(), bytes.chunk()), (3, &b"4567"[..]));
        bytes.advance(4);
        assert!(delivery.progress.is_settled() && !bytes.has_remaining());
    }

    #[tokio::test]
    async fn draining_response_is_overdue_if_it_makes_too_little_progress() {
        let limits = Limits { stall: Duration::from_millis(200), minimum_rate: 10, ..Limits::default() };
        let (responses, delivery) = (Responses::default(), delivery(100));
        responses.body_began();
        let mut bytes = BodyBytes::new(Bytes::from_static(&[7; 100]), &delivery);
        responses.body_ended(&delivery);
        drop(delivery);
        for _ in 0..4 {
            bytes.advance(10);
            assert_eq!(responses.count(&limits).await, (0, 1));
        }
        bytes.advance(1);
        assert_eq!(responses.count(&limits).await, (1, 1));
        drop(bytes);
        assert_eq!(responses.count(&limits).await, (0, 0));
    }

    #[test]
    fn draining_forgets_responses_that_are_written() {
        let responses = Responses::default();
        for _ in 0..10_000 {
            let delivery = delivery(1);
            let _bytes = BodyBytes::new(Bytes::from_static(b"x"), &delivery);
            responses.body_began();
            responses.body_ended(&delivery);
        }
        assert!(responses.draining().capacity() <= 8);
    }
}
