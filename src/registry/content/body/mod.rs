//! Response bodies. A body reads at most one chunk ahead of its client, so whole blobs are never in memory.
//!
//! A body sends exactly as many bytes as the response's head announces, or it ends with an error. The error closes the connection
//! (HTTP/1.1) or resets the stream (HTTP/2), so the client never takes a truncated response for a complete one.

mod payload;
mod pieces;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

pub use payload::Payload;
use pieces::BodyError;
pub(crate) use pieces::{ByteSource, OpenBlob};

use super::buffers::{Draining, InFlight};
use crate::registry::limits::TURN;
use crate::registry::listen::activity::OpenRequest;
use crate::registry::telemetry::log::LogEntry;

/// What keeps a connection open for a response.
#[derive(Debug)]
pub(crate) enum ConnectionGuard {
    /// Marks the connection as active until the body is dropped.
    Http1 {
        /// Only dropped.
        _open: OpenRequest,
    },
    /// Takes over the chunks that are in flight when the body is dropped.
    Http2(Arc<Draining>),
}

/// What a [`Body`] is built from.
#[derive(Debug)]
pub(crate) struct BodyParts {
    pub payload: Payload,
    pub in_flight: Arc<InFlight>,
    /// How long the disk may take for a read, and the period over which the client's rate is measured.
    pub stall: Duration,
    /// The slowest client that is served, in bytes a second.
    pub minimum_rate: u64,
    pub guard: ConnectionGuard,
    pub entry: Box<LogEntry>,
}

/// The body of a response. Dropping it ends the request and writes its log entry.
#[derive(Debug)]
pub struct Body {
    parts: BodyParts,
    /// Bytes that the head announces and that are not sent yet.
    left: u64,
    sent: u64,
    /// Bytes sent in this turn. See [`TURN`].
    turn: u64,
    /// The period in which the client's rate is measured. `None` before the first bytes are sent.
    rate_window: Option<RateWindow>,
}

/// Its start, and the bytes sent before it.
#[derive(Debug)]
struct RateWindow {
    started: Instant,
    sent_before: u64,
}

impl Body {
    pub(crate) fn new(parts: BodyParts) -> Self {
        let left = parts.payload.len();
        Self { parts, left, sent: 0, turn: 0, rate_window: None }
    }

    /// Checks the bytes against the announced length. All bytes of a body pass here. If there are more than announced, the last ones are
    /// withheld; if there are fewer, it is an error.
    fn account(&mut self, bytes: Option<Result<Bytes, BodyError>>) -> Option<io::Result<Bytes>> {
        let accounted = match bytes {
            None if self.left == 0 => return None,
            None => Err(BodyError::Length),
            Some(bytes) => bytes.and_then(|bytes| {
                let len = bytes.len() as u64;
                let left = self.left.checked_sub(len).filter(|left| *left > 0 || self.parts.payload.is_at_end());
                self.left = left.ok_or(BodyError::Length)?;
                // `sent + left` is the announced length, so neither sum overflows.
                (self.sent, self.turn) = (self.sent + len, self.turn + len);
                Ok(bytes)
            }),
        };
        Some(accounted.map_err(|error| {
            match &error {
                BodyError::Disk(error) => self.parts.entry.disk_failed(error),
                BodyError::Length => {
                    tracing::error!(sent = self.sent, left = self.left, "a response is cut: its length is wrong")
                }
            }
            error.into()
        }))
    }

    /// Fails if the client read less than the minimum rate over the last window.
    fn check_rate(&mut self) -> io::Result<()> {
        let Some(RateWindow { started, sent_before }) = &self.rate_window else { return Ok(()) };
        let (elapsed, sent) = (started.elapsed(), self.sent.saturating_sub(*sent_before));
        if elapsed < self.parts.stall {
            return Ok(());
        }
        self.rate_window = Some(RateWindow { started: Instant::now(), sent_before: self.sent });
        if (sent as f64) < self.parts.minimum_rate as f64 * elapsed.as_secs_f64() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"));
        }
        Ok(())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        // The client is not to blame while the disk is read.
        if !this.parts.payload.is_reading() {
            this.check_rate()?;
        }
        if this.turn >= TURN {
            this.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let BodyParts { payload, in_flight, stall, .. } = &mut this.parts;
        let bytes = ready!(payload.poll_bytes(in_flight, this.left, *stall, context));
        let waited = payload.take_disk_time();
        this.rate_window.iter_mut().for_each(|window| window.started += waited);
        let Some(bytes) = this.account(bytes) else { return Poll::Ready(None) };
        if this.left > 0 && this.rate_window.is_none() {
            this.rate_window = Some(RateWindow { started: Instant::now(), sent_before: this.sent });
        }
        Poll::Ready(Some(bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let ConnectionGuard::Http2(draining) = &self.parts.guard {
            draining.add(&self.parts.in_flight);
        }
        self.parts.entry.set_sent(self.sent, self.left == 0);
    }
}

#[cfg(test)]
mod tests;
