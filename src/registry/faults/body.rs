//! Faults of a body: how many of its bytes may be sent now, and which are wrong.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep};

use super::action::Action;
use crate::proto::fault_cut::Kind;
use crate::registry::listen::activity::Activity;

/// A stall without an end ends after this time.
const LONGEST_STALL: Duration = Duration::from_secs(3600);
/// Time between two looks at bytes that the connection has not written yet.
const SETTLING: Duration = Duration::from_millis(5);
/// A body with a rate may send this part of a second's bytes at once.
const BURSTS: u64 = 20;

/// A body with a rate sends at least this many bytes at once, or those of a second.
const SMALL: u64 = 1024;

/// Bytes that a body with this rate sends at once. Not less: clients close HTTP/2 connections that send many small frames.
pub(super) fn at_once(rate: u64) -> u64 {
    (rate / BURSTS).max(rate.min(SMALL))
}

/// What a body may do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Send at most this many bytes.
    Send(u64),
    /// End as if it were complete.
    End,
    /// Fail, which resets an HTTP/2 stream.
    Fail,
}

/// The faults of one body.
#[derive(Debug)]
pub(crate) struct BodyFault {
    action: Action,
    connection: Arc<Activity>,
    is_http2: bool,
    /// Bytes that were sent.
    sent: u64,
    started: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    has_stalled: bool,
    has_cut: bool,
}

impl BodyFault {
    pub fn new(action: Action, connection: Arc<Activity>, is_http2: bool) -> Self {
        Self { action, connection, is_http2, sent: 0, started: None, timer: None, has_stalled: false, has_cut: false }
    }

    /// Waits until the body may go on. `is_settled` tells whether the connection has written all it was given.
    pub fn poll_turn(&mut self, is_settled: bool, context: &mut Context<'_>) -> Poll<Turn> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(context));
                self.timer = None;
            }
            let wait = match self.step(is_settled) {
                Step::Turn(turn) => return Poll::Ready(turn),
                // The connection ends, and this body with it.
                Step::Ended => return Poll::Pending,
                Step::Wait(wait) => wait,
            };
            self.timer = Some(Box::pin(sleep(wait)));
        }
    }

    fn step(&mut self, is_settled: bool) -> Step {
        let action = &self.action.message;
        let end = action.short_body.unwrap_or(u64::MAX);
        let mut most = end.saturating_sub(self.sent);
        if let Some(stall) = action.stall.as_ref().filter(|_| !self.has_stalled) {
            if self.sent >= stall.after_bytes {
                self.has_stalled = true;
                let is_endless = stall.seconds == 0.0;
                return Step::Wait(if is_endless { LONGEST_STALL } else { Duration::from_secs_f64(stall.seconds) });
            }
            most = most.min(stall.after_bytes - self.sent);
        } else if self.has_stalled && action.stall.as_ref().is_some_and(|stall| stall.seconds == 0.0) {
            self.connection.end.cut(false);
            return Step::Ended;
        }
        if let Some(cut) = action.cut.as_ref().filter(|_| !self.has_cut) {
            if self.sent < cut.after_bytes {
                most = most.min(cut.after_bytes - self.sent);
            } else if cut.kind() == Kind::Goaway {
                self.connection.end.go_away();
                self.has_cut = true;
            } else if !is_settled || self.started.is_none() {
                // The head goes out, too.
                self.started.get_or_insert_with(Instant::now);
                return Step::Wait(SETTLING);
            } else if cut.kind() == Kind::RstStream && self.is_http2 {
                return Step::Turn(Turn::Fail);
            } else {
                self.connection.end.cut(cut.kind() == Kind::Rst);
                return Step::Ended;
            }
        }
        if self.sent >= end {
            return Step::Turn(Turn::End);
        }
        let started = *self.started.get_or_insert_with(Instant::now);
        let rate = action.bytes_per_second;
        if rate > 0 {
            let due = (started.elapsed().as_secs_f64() * rate as f64) as u64;
            if due < self.sent {
                let missing = (self.sent - due) as f64 / rate as f64;
                return Step::Wait(Duration::from_secs_f64(missing.min(LONGEST_STALL.as_secs_f64())));
            }
            most = most.min(due.saturating_add(at_once(rate)) - self.sent);
        }
        Step::Turn(Turn::Send(most))
    }

    /// Bytes are sent: those that are to be wrong are changed.
    pub fn send(&mut self, bytes: Bytes) -> Bytes {
        let start = self.sent;
        self.sent = self.sent.saturating_add(bytes.len() as u64);
        let Some(corrupt) = &self.action.message.corrupt else { return bytes };
        let end = corrupt.offset.saturating_add(corrupt.length.max(1));
        if end <= start || corrupt.offset >= self.sent {
            return bytes;
        }
        let mut changed = BytesMut::from(bytes.as_ref());
        let within = |position: u64| usize::try_from(position.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
        for byte in changed.get_mut(within(corrupt.offset)..within(end)).unwrap_or_default() {
            *byte = !*byte;
        }
        changed.freeze()
    }
}

enum Step {
    Turn(Turn),
    Wait(Duration),
    Ended,
}
