//! What disks did not give. What enters are errors of reading; what leaves is a count for each reason and, bounded in rate, a warning
//! event that names the blob and its disk. It never holds a request up.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::oci::Digest;
use crate::registry::limits::{FAULTS, FAULTS_EVERY};
use crate::registry::telemetry::events::Events;

/// Why a disk did not give what its catalog says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be read.
    Unreadable,
    /// There is less of it than there should be.
    Truncated,
    /// It does not answer.
    Hung,
    /// Other bytes.
    WrongDigest,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Unreadable, Self::Truncated, Self::Hung, Self::WrongDigest];

    /// Stable name, of the warning and, in small letters, of the count.
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

/// The error of bytes with another digest.
#[must_use]
pub fn wrong_digest(found: &Digest) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its bytes have the digest {found}"))
}

/// The faults so far.
#[derive(Debug, Default)]
pub struct Faults {
    counts: [AtomicU64; Reason::ALL.len()],
    /// Of each reason: a flood of one must not hide another.
    paces: [Mutex<Pace>; Reason::ALL.len()],
}

/// How many warnings were told lately.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Instant>,
    told: u32,
    /// Not told of.
    held: u64,
}

impl Faults {
    /// Counts that `disk` did not give `digest`, and tells of it.
    pub fn happened(&self, events: &Events, digest: &Digest, disk: &str, error: &io::Error) {
        let reason = Reason::of(error);
        tracing::warn!(%digest, disk, code = reason.code(), %error, "a disk did not give a blob");
        if let Some(count) = self.counts.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(held) = self.turn(reason, Instant::now()) else { return };
        let more = if held > 0 { format!(" ({held} more such faults are not told of)") } else { String::new() };
        let message = format!("{digest} on {disk}: {error}{more}");
        events.warn(reason.code(), message);
    }

    /// How many there were, for each reason.
    pub fn read(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(&self.counts).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }

    /// Whether one more may be told of now; and how many were not before it.
    fn turn(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut pace = self.paces.get(reason as usize)?.lock().unwrap_or_else(PoisonError::into_inner);
        if pace.since.is_none_or(|since| now.saturating_duration_since(since) >= FAULTS_EVERY) {
            (pace.since, pace.told) = (Some(now), 0);
        }
        if pace.told == FAULTS {
            pace.held += 1;
            return None;
        }
        pace.told += 1;
        Some(std::mem::take(&mut pace.held))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::{Warning, event};

    #[test]
    fn faults_are_counted_by_their_reason_and_named() {
        let (faults, (events, queue)) = (Faults::default(), Events::queue());
        let (digest, found) = (Digest::sha256_of(b"blob"), Digest::sha256_of(b"other"));
        let errors = [
            io::Error::from_raw_os_error(5),
            io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends at byte 7, before its slice does"),
            io::Error::new(io::ErrorKind::TimedOut, "the disk did not answer within 30 s"),
            wrong_digest(&found),
        ];
        errors.iter().for_each(|error| faults.happened(&events, &digest, "/dev/vda", error));
        let told: Vec<_> = queue.try_iter().filter_map(|event| event.event).collect();
        let warning = |code: &str, what: String| {
            let message = format!("{digest} on /dev/vda: {what}");
            event::Event::Warning(Warning { code: code.into(), message, ..Warning::default() })
        };
        let expected = [
            warning("READ_ERROR", "Input/output error (os error 5)".into()),
            warning("TRUNCATED", "the file ends at byte 7, before its slice does".into()),
            warning("DISK_HUNG", "the disk did not answer within 30 s".into()),
            warning("WRONG_DIGEST", format!("its bytes have the digest {found}")),
        ];
        assert_eq!(told, expected);
        assert_eq!(faults.read().map(|(_, count)| count).collect::<Vec<_>>(), [1; 4]);
    }

    #[test]
    fn so_many_are_told_of_and_the_next_one_says_how_many_were_not() {
        let (faults, start) = (Faults::default(), Instant::now());
        let turn = |after| faults.turn(Reason::Truncated, start + after);
        let told = (0..FAULTS + 7).filter(|_| turn(Duration::ZERO) == Some(0)).count();
        assert_eq!(told, FAULTS as usize);
        assert_eq!(faults.turn(Reason::Hung, start), Some(0), "of another reason");
        assert_eq!([turn(FAULTS_EVERY), turn(FAULTS_EVERY)], [Some(7), Some(0)]);
    }
}
