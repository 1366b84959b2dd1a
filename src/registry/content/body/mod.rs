//! Response bodies. A body reads at most one chunk ahead of its client, so whole blobs are never in memory.
//!
//! A body sends exactly as many bytes as the response's head announces, or it ends with an error. The error closes the connection
//! (HTTP/1.1) or resets the stream (HTTP/2), so the client never takes a truncated response for a complete one.

mod file_range;
mod payload;
mod pieces;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use payload::Part;
pub use payload::Payload;
use pieces::BodyError;
pub(crate) use pieces::{ByteSource, OpenBlob};

use super::buffers::InFlight;
use super::delivery::{BodyBytes, Delivery, Responses};
use super::file_sender::FileSender;
use crate::registry::faults::body::{BodyFault, Turn};
use crate::registry::http::range::ByteRange;
use crate::registry::limits::{CHUNK, FRAME, TURN};
use crate::registry::listen::activity::OpenRequest;

/// What keeps a connection open for a response.
#[derive(Debug)]
pub(crate) enum ConnectionGuard {
    /// Marks the connection as active until the body is dropped.
    Http1 {
        /// Only dropped.
        _open: OpenRequest,
        /// Sends ranges of files. `None` if the connection does not.
        files: Option<Arc<FileSender>>,
    },
    /// Takes over what is not written yet when the body is dropped.
    Http2(Arc<Responses>),
}

/// What a [`Body`] is built from.
#[derive(Debug)]
pub(crate) struct BodyParts {
    pub payload: Payload,
    pub in_flight: Arc<InFlight>,
    /// How long the disk may take for a read.
    pub stall: Duration,
    pub guard: ConnectionGuard,
    pub delivery: Arc<Delivery>,
    pub fault: Option<Box<BodyFault>>,
}

/// The body of a response.
#[derive(Debug)]
pub struct Body {
    parts: BodyParts,
    /// Bytes that were read and that the connection has not asked for yet.
    pending: Bytes,
    /// Bytes that the head announces and that are not read yet.
    left: u64,
    sent: u64,
    /// Bytes sent in this turn, and their most. See [`TURN`].
    turn: u64,
    turn_ends: u64,
}

impl Body {
    pub(crate) fn new(mut parts: BodyParts) -> Self {
        let (left, mut turn_ends) = (parts.payload.len(), TURN);
        match &parts.guard {
            ConnectionGuard::Http1 { files: Some(files), .. } if parts.fault.is_none() => {
                if parts.payload.send_from_file(files.at_once()) {
                    turn_ends = files.turn();
                }
            }
            ConnectionGuard::Http1 { .. } => {}
            ConnectionGuard::Http2(responses) => responses.body_began(),
        }
        Self { parts, pending: Bytes::new(), left, sent: 0, turn: 0, turn_ends }
    }

    /// Checks the bytes against the announced length. All bytes of a body pass here. If there are more than announced, the last ones are
    /// withheld; if there are fewer, it is an error.
    fn account(&mut self, part: Option<Result<Part, BodyError>>) -> Option<io::Result<Part>> {
        let accounted = match part {
            None if self.left == 0 => return None,
            None => Err(BodyError::Length),
            Some(part) => part.and_then(|part| {
                let len = part.len();
                let left = self.left.checked_sub(len).filter(|left| *left > 0 || self.parts.payload.is_at_end());
                self.left = left.ok_or(BodyError::Length)?;
                // `sent + left` is the announced length, so neither sum overflows.
                (self.sent, self.turn) = (self.sent + len, self.turn + len);
                Ok(part)
            }),
        };
        Some(accounted.map_err(|error| {
            match &error {
                BodyError::Disk(error) => self.parts.delivery.entry().disk_failed(error),
                BodyError::Length => {
                    tracing::error!(sent = self.sent, left = self.left, "a response is cut: its length is wrong")
                }
            }
            error.into()
        }))
    }

    /// The next of the pending bytes. hyper asks for more when the stream's window has room for these, so over HTTP/2 the bodies of a
    /// connection share its window by the size of these pieces: the more bodies, the smaller they are, down to one frame.
    ///
    /// A fault may allow fewer bytes, `most`.
    fn next_frame(&mut self, most: u64) -> Option<Frame<BodyBytes>> {
        let most_of_connection = match &self.parts.guard {
            ConnectionGuard::Http1 { .. } => usize::MAX,
            ConnectionGuard::Http2(responses) => (CHUNK / responses.bodies().max(1)).max(FRAME),
        };
        let len = self.pending.len().min(most_of_connection).min(usize::try_from(most).unwrap_or(usize::MAX));
        let bytes = self.pending.split_to(len);
        let bytes = if let Some(fault) = &mut self.parts.fault { fault.send(bytes) } else { bytes };
        (len > 0).then(|| Frame::data(BodyBytes::new(bytes, &self.parts.delivery)))
    }

    /// A range of the file, for the connection to send.
    fn file_frame(&self, range: ByteRange) -> io::Result<Frame<BodyBytes>> {
        let (ConnectionGuard::Http1 { files: Some(files), .. }, Some(file)) = (&self.parts.guard, self.parts.payload.file())
        else {
            return Err(BodyError::Length.into());
        };
        files.give(file, range)?;
        Ok(Frame::data(BodyBytes::file(range, files, &self.parts.delivery)))
    }
}

impl http_body::Body for Body {
    type Data = BodyBytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<BodyBytes>, io::Error>>> {
        let this = &mut *self;
        let most = match &mut this.parts.fault {
            None => u64::MAX,
            Some(fault) => {
                this.parts.delivery.progress().hold();
                match ready!(fault.poll_turn(this.parts.delivery.progress().is_settled(), context)) {
                    Turn::Send(most) => most,
                    Turn::End => return Poll::Ready(None),
                    Turn::Fail => return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
                }
            }
        };
        if let Some(frame) = this.next_frame(most) {
            return Poll::Ready(Some(Ok(frame)));
        }
        if this.turn >= this.turn_ends {
            this.turn = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let BodyParts { payload, in_flight, stall, .. } = &mut this.parts;
        let part = ready!(payload.poll_bytes(in_flight, this.left, *stall, context));
        let Some(part) = this.account(part) else { return Poll::Ready(None) };
        match part? {
            Part::Bytes(bytes) => this.pending = bytes,
            Part::File(range) => return Poll::Ready(Some(this.file_frame(range))),
        }
        Poll::Ready(this.next_frame(most).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.pending.is_empty() && self.parts.fault.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // With a fault, the head says how long the body is.
        if self.parts.fault.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.left + self.pending.len() as u64)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let ConnectionGuard::Http2(responses) = &self.parts.guard {
            responses.body_ended(&self.parts.delivery);
        }
    }
}

#[cfg(test)]
mod tests;
