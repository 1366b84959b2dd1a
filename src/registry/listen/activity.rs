//! Counts the open requests of a connection, so that one without any is known to be idle, and drops HTTP/2 streams that stall.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use crate::registry::content::delivery::{Delivery, least};
use crate::registry::limits::Limits;

/// Runs the streams of an HTTP/2 connection. A stream whose client reads less than the minimum rate over the time of a stall is
/// dropped, which resets it. The other streams go on. The bytes that were written to the socket count.
#[derive(Debug, Clone)]
pub(crate) struct StreamExecutor {
    pub limits: Limits,
    pub activity: Arc<Activity>,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    // Most responses are ready at the first poll. They need no task and no timer, and the connection writes the responses of all
    // streams that arrived together in one go.
    fn execute(&self, stream: F) {
        let mut stream = TrackedStream { stream: Box::pin(stream), delivery: None };
        let open = Activity::begin_request(&self.activity);
        if stream.poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            let (limits, window) = (self.limits, Box::pin(sleep(self.limits.stall)));
            tokio::spawn(StreamTask { stream, limits, window, written_before: 0, _open: open });
        }
    }
}

/// A stream, and the delivery of its response once that has begun.
struct TrackedStream<F> {
    stream: Pin<Box<F>>,
    delivery: Option<Weak<Delivery>>,
}

impl<F: Future> TrackedStream<F> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        drop(Delivery::take_last_begun());
        let polled = self.stream.as_mut().poll(context);
        let begun = Delivery::take_last_begun();
        if begun.strong_count() > 0 {
            self.delivery = Some(begun);
        }
        polled
    }

    /// Whether a fault holds the response up.
    fn is_held(&self) -> bool {
        self.delivery.as_ref().and_then(Weak::upgrade).is_some_and(|delivery| delivery.progress().is_held())
    }

    /// The bytes written so far, and whether these are all that the connection was given. `None` before the response begins.
    fn progress(&self) -> Option<(u64, bool)> {
        let delivery = self.delivery.as_ref()?.upgrade();
        Some(delivery.map_or((0, true), |delivery| (delivery.progress().written(), delivery.progress().is_settled())))
    }
}

struct StreamTask<F> {
    stream: TrackedStream<F>,
    limits: Limits,
    /// The end of the period in which the client's rate is measured, and the bytes written before its start.
    window: Pin<Box<Sleep>>,
    written_before: u64,
    _open: OpenRequest,
}

impl<F: Future> StreamTask<F> {
    /// Whether the client read too little in the window that has just ended. While the response waits for the disk and has nothing to send,
    /// the client is not to blame; but a response that sends nothing in a whole window ends as well. Before the response begins, all that
    /// it waits for has limits of its own.
    fn is_stalled(&self) -> bool {
        let Some((written, is_settled)) = self.stream.progress() else { return false };
        let written = written.saturating_sub(self.written_before);
        if self.stream.is_held() {
            return false;
        }
        if is_settled { written == 0 } else { (written as f64) < least(self.limits.minimum_rate, self.limits.stall) }
    }

    fn start_window(&mut self, context: &mut Context<'_>) {
        self.written_before = self.stream.progress().map_or(0, |(written, _)| written);
        self.window.as_mut().reset(Instant::now() + self.limits.stall);
        // A timer is armed only once it is polled after the reset.
        let _ = self.window.as_mut().poll(context);
    }
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let before = self.stream.progress();
        // The stream goes first: what it waits for, such as the disk, may have its limit at the same time.
        if self.stream.poll(context).is_ready() {
            return Poll::Ready(());
        }
        let window_ended = self.window.as_mut().poll(context).is_ready();
        let has_waited = before.is_none_or(|(_, is_settled)| is_settled);
        let goes_on = matches!((before, self.stream.progress()), (None, Some(_)) | (Some((_, true)), Some((_, false))));
        if window_ended && !goes_on && self.is_stalled() {
            return Poll::Ready(());
        }
        if window_ended || has_waited {
            self.start_window(context);
        }
        Poll::Pending
    }
}

/// The number of open requests of a connection, and when it last changed.
#[derive(Debug)]
pub(crate) struct Activity {
    state: Mutex<(usize, Instant)>,
    /// Whether a fault ends the connection.
    pub end: ConnectionEnd,
}

impl Default for Activity {
    fn default() -> Self {
        Self { state: Mutex::new((0, Instant::now())), end: ConnectionEnd::default() }
    }
}

/// How far a fault ends a connection, in ascending order: not at all, gracefully, at once, at once by a reset.
const GRACEFULLY: u8 = 1;
const AT_ONCE: u8 = 2;
const BY_RESET: u8 = 3;

/// The end of a connection that a fault asks for.
#[derive(Debug, Default)]
pub(crate) struct ConnectionEnd {
    how: AtomicU8,
    changed: Notify,
}

impl ConnectionEnd {
    /// The connection ends after the responses under way. Over HTTP/2 the client gets GOAWAY.
    pub fn go_away(&self) {
        self.set(GRACEFULLY);
    }

    /// The connection ends at once.
    pub fn cut(&self, by_reset: bool) {
        self.set(if by_reset { BY_RESET } else { AT_ONCE });
    }

    fn set(&self, how: u8) {
        self.how.fetch_max(how, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Whether the connection ends by a reset.
    pub fn is_reset(&self) -> bool {
        self.how.load(Ordering::Relaxed) == BY_RESET
    }

    /// Waits until the connection is to end gracefully.
    pub async fn gone_away(&self) {
        self.reached(GRACEFULLY).await;
    }

    /// Waits until the connection is to end at once.
    pub async fn was_cut(&self) {
        self.reached(AT_ONCE).await;
    }

    async fn reached(&self, how: u8) {
        loop {
            let changed = self.changed.notified();
            if self.how.load(Ordering::Relaxed) >= how {
                return;
            }
            changed.await;
        }
    }
}

impl Activity {
    /// Counts an HTTP/2 stream or an HTTP/1.1 request until the returned guard is dropped.
    pub fn begin_request(activity: &Arc<Self>) -> OpenRequest {
        activity.state().0 += 1;
        OpenRequest(Arc::clone(activity))
    }

    /// Restarts the idle time: the time that the TLS handshake took does not count.
    pub fn restart(&self) {
        self.state().1 = Instant::now();
    }

    /// Whether no request is open.
    pub fn is_idle(&self) -> bool {
        self.state().0 == 0
    }

    /// Completes once no request has been open for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let (open, since) = *self.state();
            let left = if open > 0 { limit } else { limit.saturating_sub(since.elapsed()) };
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts as an open request until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.0.state();
        *state = (state.0 - 1, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::telemetry::events::Events;
    use crate::registry::telemetry::log::{LogEntry, Telemetry};
    use std::future::{pending, ready};
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_secs(600);

    fn executor(stall: Duration) -> StreamExecutor {
        StreamExecutor { limits: Limits { stall, ..Limits::default() }, activity: Arc::default() }
    }

    /// The delivery of a response that has begun, and of which nothing is sent.
    fn response() -> Arc<Delivery> {
        let telemetry = Arc::new(Telemetry { events: Events::disabled(), metrics: Arc::default() });
        Delivery::begin(LogEntry::new(([127, 0, 0, 1], 40_112).into(), &telemetry), 7)
    }

    #[tokio::test]
    async fn streams_run_to_completion_whether_or_not_they_wait() {
        let streams = executor(LONG);
        streams.execute(ready(()));
        assert_eq!(streams.activity.state().0, 0, "completed at the first poll");
        let (go, start) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        streams.execute(async move {
            start.await.unwrap();
            done.send(7).unwrap();
        });
        assert_eq!(streams.activity.state().0, 1);
        go.send(()).unwrap();
        assert_eq!(ended.await, Ok(7));
        while streams.activity.state().0 > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn stalled_stream_is_dropped_and_leaves_the_connection_idle() {
        let streams = executor(Duration::from_millis(5));
        streams.execute(async {
            let _body = response();
            pending::<()>().await;
        });
        streams.activity.idle(Duration::from_millis(1)).await;
        assert_eq!(streams.activity.state().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_may_wait_for_its_response_longer_than_for_its_client() {
        let streams = executor(Duration::from_secs(30));
        let (done, ended) = oneshot::channel();
        streams.execute(async move {
            sleep(LONG).await;
            let body = response();
            // A disk that answers just in time.
            sleep(Duration::from_secs(30)).await;
            done.send(body).unwrap();
        });
        assert!(ended.await.is_ok());
    }

    #[tokio::test]
    async fn panicking_stream_is_no_longer_counted() {
        let streams = executor(LONG);
        let panicking = std::panic::AssertUnwindSafe(|| streams.execute(async { panic!("on purpose") }));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(streams.activity.state().0, 0);
    }
}
