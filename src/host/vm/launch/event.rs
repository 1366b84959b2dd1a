//! Events as they come out of the guest's port. A line enters, an event or the reason why it is none leaves. The guest may be
//! anything, so may the line.

use std::time::Duration;

use super::printable::printable;
use crate::proto::Event;
use crate::text::Line;

/// Longest event, in bytes. The longest honest one is `ready`, with a CA of about 1 KiB.
pub(crate) const LONGEST: usize = 64 * 1024;
/// Bytes of a bad line that are shown.
const SHOWN: usize = 120;

/// What comes in the place of an event: a line of the port that is none, or none where one is due.
#[derive(Debug, thiserror::Error)]
pub enum BadEvent {
    /// The line is too long.
    #[error("the guest sent an event of more than {LONGEST} bytes, starting {start:?}")]
    TooLong {
        /// How it starts.
        start: String,
    },
    /// The line is not the JSON of an event.
    #[error("the guest sent a line that is no event: {start:?}")]
    Json {
        /// How it starts.
        start: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The guest's heartbeat has stopped.
    #[error(
        "the guest hangs, or is kept from running: nothing has come from it for {} s, and a heartbeat is due every {} s",
        .silent.as_secs(), .every.as_secs()
    )]
    Silent {
        /// For how long nothing has come.
        silent: Duration,
        /// Time between two heartbeats.
        every: Duration,
    },
    /// It goes on.
    #[error("the guest goes on, after {} s in which nothing came from it", .silent.as_secs())]
    Back {
        /// For how long nothing had come.
        silent: Duration,
    },
    /// The line is an event that says nothing.
    #[error("the guest sent an event that says nothing: {start:?}")]
    Empty {
        /// How it starts.
        start: String,
    },
}

/// The event in `line`.
pub(crate) fn parse(line: Line<'_>) -> Result<Event, BadEvent> {
    let start = || printable(line.bytes.get(..SHOWN).unwrap_or(line.bytes));
    if line.truncated {
        return Err(BadEvent::TooLong { start: start() });
    }
    let event: Event = serde_json::from_slice(line.bytes).map_err(|source| BadEvent::Json { start: start(), source })?;
    if event.event.is_none() {
        return Err(BadEvent::Empty { start: start() });
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event;

    fn whole(bytes: &[u8]) -> Result<Event, BadEvent> {
        parse(Line { bytes, truncated: false })
    }

    #[test]
    fn an_event_is_read() {
        let event = whole(br#"{"time":1.5,"done":{"reason":"asked","status":3,"code":"NO_DISK","bytes":"7"}}"#).unwrap();
        let Some(event::Event::Done(done)) = event.event else { panic!("{event:?}") };
        assert_eq!((done.status, done.code.as_str(), done.bytes), (3, "NO_DISK", 7));
    }

    #[test]
    fn whatever_else_comes_is_named() {
        let deep = "[".repeat(60_000);
        for (line, message) in [
            (&b"junk"[..], r#"the guest sent a line that is no event: "junk""#),
            (b"", r#"the guest sent a line that is no event: """#),
            (b"\xff\x1b[2J", r#"the guest sent a line that is no event: "\\xff""#),
            (br#"{"ready":7}"#, r#"the guest sent a line that is no event: "{\"ready\":7}""#),
            (br#"{"time":1}"#, r#"the guest sent an event that says nothing: "{\"time\":1}""#),
            (b"{}", r#"the guest sent an event that says nothing: "{}""#),
            (deep.as_bytes(), &format!("the guest sent a line that is no event: {:?}", "[".repeat(SHOWN))),
        ] {
            assert_eq!(whole(line).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_line_that_was_cut_is_refused_even_where_it_reads_well() {
        let error = parse(Line { bytes: br#"{"booting":{}}"#, truncated: true }).unwrap_err();
        assert_eq!(error.to_string(), r#"the guest sent an event of more than 65536 bytes, starting "{\"booting\":{}}""#);
    }
}
