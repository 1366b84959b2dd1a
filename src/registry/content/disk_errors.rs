//! Counts disk errors by kind and reports them as warning events that name the blob and its disk. The rate of warnings is limited, and
//! reporting never blocks a request.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::oci::Digest;
use crate::registry::limits::{DISK_WARNING_INTERVAL, DISK_WARNINGS};
use crate::registry::telemetry::events::Events;

/// Why a disk did not return a blob as its catalog lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// The disk cannot be read.
    Unreadable,
    /// The blob has fewer bytes than the catalog says.
    Truncated,
    /// The disk did not answer in time.
    Hung,
    /// The bytes do not match the digest.
    WrongDigest,
}

impl DiskErrorKind {
    /// All kinds in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Unreadable, Self::Truncated, Self::Hung, Self::WrongDigest];

    /// The stable code of the warning. In lower case, it is the metric's label.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "READ_ERROR",
            Self::Truncated => "TRUNCATED",
            Self::Hung => "DISK_HUNG",
            Self::WrongDigest => "WRONG_DIGEST",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            io::ErrorKind::TimedOut => Self::Hung,
            io::ErrorKind::InvalidData => Self::WrongDigest,
            _ => Self::Unreadable,
        }
    }
}

/// The error for bytes whose digest is `found` instead of the expected one.
#[must_use]
pub fn wrong_digest(found: &Digest) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its bytes have the digest {found}"))
}

/// The disk errors so far.
#[derive(Debug, Default)]
pub struct DiskErrors {
    counts: [AtomicU64; DiskErrorKind::ALL.len()],
    /// One for each kind, so that many errors of one kind do not hide another kind.
    rate_limits: [Mutex<RateLimit>; DiskErrorKind::ALL.len()],
}

/// The warnings of the current period.
#[derive(Debug, Default)]
struct RateLimit {
    started: Option<Instant>,
    reported: u32,
    suppressed: u64,
}

impl DiskErrors {
    /// Counts that `disk` failed to return the blob `digest`, and reports it.
    pub fn record(&self, events: &Events, digest: &Digest, disk: &str, error: &io::Error) {
        let kind = DiskErrorKind::of(error);
        tracing::warn!(%digest, disk, code = kind.code(), %error, "a disk failed to return a blob");
        if let Some(count) = self.counts.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(suppressed) = self.admit(kind, Instant::now()) else { return };
        let more = if suppressed > 0 { format!(" ({suppressed} more such errors were not reported)") } else { String::new() };
        events.warn(kind.code(), format!("{digest} on {disk}: {error}{more}"));
    }

    /// The number of errors of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (DiskErrorKind, u64)> {
        DiskErrorKind::ALL.into_iter().zip(&self.counts).map(|(kind, count)| (kind, count.load(Ordering::Relaxed)))
    }

    /// If the rate limit allows a warning now, returns how many were suppressed since the last one.
    fn admit(&self, kind: DiskErrorKind, now: Instant) -> Option<u64> {
        let mut limit = self.rate_limits.get(kind as usize)?.lock().unwrap_or_else(PoisonError::into_inner);
        if limit.started.is_none_or(|started| now.saturating_duration_since(started) >= DISK_WARNING_INTERVAL) {
            (limit.started, limit.reported) = (Some(now), 0);
        }
        if limit.reported == DISK_WARNINGS {
            limit.suppressed += 1;
            return None;
        }
        limit.reported += 1;
        Some(std::mem::take(&mut limit.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::{Warning, event};

    #[test]
    fn errors_are_counted_and_reported_by_kind() {
        let (disk_errors, (events, queue)) = (DiskErrors::default(), Events::queue());
        let (digest, found) = (Digest::sha256_of(b"blob"), Digest::sha256_of(b"other"));
        let errors = [
            io::Error::from_raw_os_error(5),
            io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends at byte 7, before its range does"),
            io::Error::new(io::ErrorKind::TimedOut, "the disk did not answer within 30 s"),
            wrong_digest(&found),
        ];
        errors.iter().for_each(|error| disk_errors.record(&events, &digest, "/dev/vda", error));
        let reported: Vec<_> = queue.try_iter().filter_map(|event| event.event).collect();
        let warning = |code: &str, cause: String| {
            let message = format!("{digest} on /dev/vda: {cause}");
            event::Event::Warning(Warning { code: code.into(), message, ..Warning::default() })
        };
        let expected = [
            warning("READ_ERROR", "Input/output error (os error 5)".into()),
            warning("TRUNCATED", "the file ends at byte 7, before its range does".into()),
            warning("DISK_HUNG", "the disk did not answer within 30 s".into()),
            warning("WRONG_DIGEST", format!("its bytes have the digest {found}")),
        ];
        assert_eq!(reported, expected);
        assert_eq!(disk_errors.counts().map(|(_, count)| count).collect::<Vec<_>>(), [1; 4]);
    }

    #[test]
    fn rate_of_warnings_is_limited_by_kind_and_suppressed_ones_are_counted() {
        let (disk_errors, start) = (DiskErrors::default(), Instant::now());
        let admit = |after| disk_errors.admit(DiskErrorKind::Truncated, start + after);
        let reported = (0..DISK_WARNINGS + 7).filter(|_| admit(Duration::ZERO) == Some(0)).count();
        assert_eq!(reported, DISK_WARNINGS as usize);
        assert_eq!(disk_errors.admit(DiskErrorKind::Hung, start), Some(0), "another kind");
        assert_eq!([admit(DISK_WARNING_INTERVAL), admit(DISK_WARNING_INTERVAL)], [Some(7), Some(0)]);
    }
}
