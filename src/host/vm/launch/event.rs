//! Parses the guest's events. Input is untrusted: it may be any line.

use std::time::Duration;

use crate::proto::Event;
use crate::text::{Line, printable};

/// Longest event, in bytes. The longest event of a well-behaved guest is `ready`, with a CA of about 1 KiB.
pub(crate) const MAX_EVENT: usize = 64 * 1024;
/// Bytes of a bad line that an error quotes.
const QUOTED: usize = 120;

/// What [`super::Appliance::next_event`] returns in place of an event: a line that cannot be parsed, or a change of the heartbeat.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The line is too long.
    #[error("the guest sent an event of more than {MAX_EVENT} bytes, starting {start:?}")]
    TooLong {
        /// How the line starts.
        start: String,
    },
    /// The line is not the JSON of an event.
    #[error("the guest sent a line that is not an event: {start:?}")]
    Json {
        /// How the line starts.
        start: String,
        /// The JSON error.
        source: serde_json::Error,
    },
    /// The guest's heartbeat has stopped.
    #[error(
        "the guest hangs or is not scheduled: no sign of life for {} s; it sends a heartbeat every {} s",
        .silent.as_secs(), .every.as_secs()
    )]
    HeartbeatLost {
        /// Time since the last sign of life.
        silent: Duration,
        /// Time between two heartbeats.
        every: Duration,
    },
    /// The guest's heartbeat has come back.
    #[error("the guest is alive again after {} s without a sign of life", .silent.as_secs())]
    HeartbeatBack {
        /// How long there was no sign of life.
        silent: Duration,
    },
    /// The line is an event without content.
    #[error("the guest sent an empty event: {start:?}")]
    Empty {
        /// How the line starts.
        start: String,
    },
}

/// Parses the event in `line`.
pub(crate) fn parse(line: Line<'_>) -> Result<Event, EventError> {
    let start = || printable(line.bytes.get(..QUOTED).unwrap_or(line.bytes));
    if line.truncated {
        return Err(EventError::TooLong { start: start() });
    }
    let event: Event = serde_json::from_slice(line.bytes).map_err(|source| EventError::Json { start: start(), source })?;
    if event.event.is_none() {
        return Err(EventError::Empty { start: start() });
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event;

    fn parsed(bytes: &[u8]) -> Result<Event, EventError> {
        parse(Line { bytes, truncated: false })
    }

    #[test]
    fn event_is_parsed() {
        let event = parsed(br#"{"time":1.5,"done":{"reason":"asked","status":3,"code":"NO_DISK","bytes":"7"}}"#).unwrap();
        let Some(event::Event::Done(done)) = event.event else { panic!("{event:?}") };
        assert_eq!((done.status, done.code.as_str(), done.bytes), (3, "NO_DISK", 7));
    }

    #[test]
    fn bad_lines_are_quoted_in_the_error() {
        let deep = "[".repeat(60_000);
        for (line, message) in [
            (&b"junk"[..], r#"the guest sent a line that is not an event: "junk""#),
            (b"", r#"the guest sent a line that is not an event: """#),
            (b"\xff\x1b[2J", r#"the guest sent a line that is not an event: "\\xff""#),
            (br#"{"ready":7}"#, r#"the guest sent a line that is not an event: "{\"ready\":7}""#),
            (br#"{"time":1}"#, r#"the guest sent an empty event: "{\"time\":1}""#),
            (b"{}", r#"the guest sent an empty event: "{}""#),
            (deep.as_bytes(), &format!("the guest sent a line that is not an event: {:?}", "[".repeat(QUOTED))),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn truncated_line_is_refused_even_if_it_parses() {
        let error = parse(Line { bytes: br#"{"booting":{}}"#, truncated: true }).unwrap_err();
        assert_eq!(error.to_string(), r#"the guest sent an event of more than 65536 bytes, starting "{\"booting\":{}}""#);
    }
}
