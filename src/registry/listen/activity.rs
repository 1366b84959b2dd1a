//! Counts the open requests of a connection, so that one without any is known to be idle, and drops HTTP/2 streams that stall.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

/// Runs the streams of an HTTP/2 connection. A stream that makes no progress for `stall` (its peer opens no window) is dropped, which
/// resets it. The other streams go on.
#[derive(Debug, Clone)]
pub(crate) struct StreamExecutor {
    pub stall: Duration,
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
        let (mut stream, open) = (Box::pin(stream), Activity::begin_request(&self.activity));
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            let stalled = Box::pin(sleep(self.stall));
            tokio::spawn(StreamTask { stream, stall: self.stall, stalled, _open: open });
        }
    }
}

struct StreamTask<F> {
    stream: Pin<Box<F>>,
    stall: Duration,
    stalled: Pin<Box<Sleep>>,
    _open: OpenRequest,
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.stalled.as_mut().poll(context).is_ready() || self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let deadline = tokio::time::Instant::now() + self.stall;
        self.stalled.as_mut().reset(deadline);
        // A timer is armed only once it is polled after the reset.
        let _ = self.stalled.as_mut().poll(context);
        Poll::Pending
    }
}

/// The number of open requests of a connection, and when it last changed.
#[derive(Debug)]
pub(crate) struct Activity(Mutex<(usize, Instant)>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new((0, Instant::now())))
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::future::{pending, ready};
    use tokio::sync::oneshot;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn streams_run_to_completion_whether_or_not_they_wait() {
        let streams = StreamExecutor { stall: LONG, activity: Arc::default() };
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
        let streams = StreamExecutor { stall: Duration::from_millis(5), activity: Arc::default() };
        streams.execute(pending::<()>());
        streams.activity.idle(Duration::from_millis(1)).await;
        assert_eq!(streams.activity.state().0, 0);
    }

    #[tokio::test]
    async fn panicking_stream_is_no_longer_counted() {
        let streams = StreamExecutor { stall: LONG, activity: Arc::default() };
        let panicking = std::panic::AssertUnwindSafe(|| streams.execute(async { panic!("on purpose") }));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(streams.activity.state().0, 0);
    }
}
