//! Fails writes whose peer does not read in time, or too slowly: they would hold their connection without end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::activity::{Activity, OpenRequest};
use super::file_socket::FileSocket;
use crate::registry::content::delivery::least;
use crate::registry::limits::Limits;

/// `stream`, whose writes may each wait for the time of a stall at most, and must make the minimum rate over all the time that they wait.
/// Only that time counts: while there is nothing to write, as when the disk is read, the peer is not to blame.
#[derive(Debug)]
pub(crate) struct WriteTimeout<S> {
    stream: S,
    stall: Duration,
    /// In bytes a second.
    minimum_rate: u64,
    activity: Arc<Activity>,
    /// Set while a write waits, with the time since when. The connection counts as active then: its peer is still reading the last response.
    waiting: Option<(Instant, OpenRequest)>,
    /// Wakes up a write that waits. It is set once in the time of a stall, not for each write.
    timer: Option<Pin<Box<Sleep>>>,
    /// The time that writes have waited, and the bytes that they wrote, since the rate was looked at.
    waited: Duration,
    written: u64,
}

impl<S> WriteTimeout<S> {
    pub fn new(stream: S, limits: &Limits, activity: Arc<Activity>) -> Self {
        let Limits { stall, minimum_rate, .. } = *limits;
        Self { stream, stall, minimum_rate, activity, waiting: None, timer: None, waited: Duration::ZERO, written: 0 }
    }

    /// Attempts a write, and fails if it has waited for too long, or if those before were too slow. `len` is that of what it returns, in bytes.
    fn poll_bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        attempt: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
        len: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>>
    where
        S: Unpin,
    {
        if self.is_too_slow() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads too slowly")));
        }
        let attempted = attempt(Pin::new(&mut self.stream), context);
        if let Poll::Ready(result) = attempted {
            if let Some((since, _)) = self.waiting.take() {
                self.waited += since.elapsed();
            }
            self.written += result.as_ref().map_or(0, len) as u64;
            return Poll::Ready(result);
        }
        let activity = &self.activity;
        let (since, _) = self.waiting.get_or_insert_with(|| (Instant::now(), Activity::begin_request(activity)));
        let deadline = *since + self.stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.stall)));
        while timer.as_mut().poll(context).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Whether the peer took less than the minimum rate over at least the time of a stall. If it took enough, the count starts over.
    fn is_too_slow(&mut self) -> bool {
        let Some((since, _)) = &self.waiting else { return false };
        let waited = self.waited + since.elapsed();
        if waited < self.stall {
            return false;
        }
        let is_too_slow = (self.written as f64) < least(self.minimum_rate, waited);
        // The write that still waits counts from its start.
        (self.waited, self.written) = (Duration::ZERO, 0);
        is_too_slow
    }
}

impl WriteTimeout<FileSocket> {
    /// Completes when the socket has room.
    pub fn poll_writable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_bounded(context, |stream, context| stream.poll_writable(context), |()| 0)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_bounded(context, |stream, context| stream.poll_write(context, bytes), |written| *written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_bounded(context, |stream, context| stream.poll_write_vectored(context, slices), |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_bounded(context, |stream, context| stream.poll_shutdown(context), |()| 0)
    }
}
