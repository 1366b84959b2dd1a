//! The streams of one HTTP/2 connection: each is run, watched while it waits for its peer, and counted (as are the requests of
//! HTTP/1.1), so that a connection without any is known to be idle. What enters are futures that hyper makes; nothing of what they send is looked at.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::Executor;
use tokio::time::{Sleep, sleep};

/// Runs the streams of a connection. A stream that nothing happens on for `stall` (its peer gives it no window) is dropped, which
/// resets it; the others go on.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    pub stall: Duration,
    pub activity: Arc<Activity>,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    /// Most answers are ready at once: then they need no task of their own and no timer, and the connection writes those of all streams
    /// that came together in one go.
    fn execute(&self, stream: F) {
        let (mut stream, open) = (Box::pin(stream), Activity::open(&self.activity));
        if stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            let stalled = Box::pin(sleep(self.stall));
            tokio::spawn(Watched { stream, patience: self.stall, stalled, _open: open });
        }
    }
}

struct Watched<F> {
    stream: Pin<Box<F>>,
    patience: Duration,
    stalled: Pin<Box<Sleep>>,
    _open: Open,
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.stalled.as_mut().poll(context).is_ready() || self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let deadline = tokio::time::Instant::now() + self.patience;
        self.stalled.as_mut().reset(deadline);
        // A reset timer must be polled to be armed.
        let _ = self.stalled.as_mut().poll(context);
        Poll::Pending
    }
}

/// How many streams are open, and since when there is none. One timer watches over a connection, however many they are.
#[derive(Debug)]
pub(crate) struct Activity(Mutex<(usize, Instant)>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }
}

impl Activity {
    /// Counts a stream, or a request of HTTP/1.1, as long as what is returned lives.
    pub fn open(activity: &Arc<Self>) -> Open {
        activity.state().0 += 1;
        Open(Arc::clone(activity))
    }

    /// Counts from now on: what a handshake took is nothing to whoever comes after it.
    pub fn begin(&self) {
        self.state().1 = Instant::now();
    }

    /// Ends when there has been no stream for `patience`.
    pub async fn idle(&self, patience: Duration) {
        loop {
            let (open, since) = *self.state();
            let left = if open > 0 { patience } else { patience.saturating_sub(since.elapsed()) };
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

/// A stream, as long as it is open.
#[derive(Debug)]
pub(crate) struct Open(Arc<Activity>);

impl Drop for Open {
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
    async fn streams_run_to_their_end_wherever_they_wait() {
        let streams = Streams { stall: LONG, activity: Arc::default() };
        streams.execute(ready(()));
        assert_eq!(streams.activity.state().0, 0, "done at once");
        let (go, told) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        streams.execute(async move {
            told.await.unwrap();
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
    async fn a_stream_that_stalls_is_dropped_and_then_the_connection_is_idle() {
        let streams = Streams { stall: Duration::from_millis(5), activity: Arc::default() };
        streams.execute(pending::<()>());
        streams.activity.idle(Duration::from_millis(1)).await;
        assert_eq!(streams.activity.state().0, 0);
    }

    #[tokio::test]
    async fn a_panic_counts_as_an_end() {
        let streams = Streams { stall: LONG, activity: Arc::default() };
        let panicking = std::panic::AssertUnwindSafe(|| streams.execute(async { panic!("on purpose") }));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(streams.activity.state().0, 0);
    }
}
