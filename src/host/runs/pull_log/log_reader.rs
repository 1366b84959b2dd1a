//! Reads a log of events: a file, which may still be growing, or a Unix socket.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::disk::layout::check_holes;
use crate::host::vm::launch::{EventError, MAX_EVENT, parse_event};
use crate::proto::Event;
use crate::text::{Line, Lines, chain};

/// Interval at which a growing file is read.
const POLL: Duration = Duration::from_millis(100);
const CHUNK: usize = 64 * 1024;

/// One line of a log.
pub(crate) struct LogEntry<'a> {
    /// Its line number, from 1.
    pub number: u64,
    /// The line without its newline.
    pub bytes: &'a [u8],
    pub event: Result<Event, EventError>,
}

/// Calls `each` for every line of the log at `path`, until it breaks or the log ends. With `follow`, a file does not end. Returns true if
/// the last line is incomplete: it has no newline and is not an event. Such a line is skipped.
///
/// # Errors
/// Fails if the log cannot be read, or is nearly all holes.
pub(crate) fn read(path: &Path, follow: bool, mut each: impl FnMut(LogEntry<'_>) -> ControlFlow<()>) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    let is_socket = metadata.file_type().is_socket();
    let mut source: Box<dyn Read> = if is_socket {
        Box::new(UnixStream::connect(path)?)
    } else {
        let file = File::open(path)?;
        if metadata.is_file() {
            check_holes(&file, metadata.len())?;
        }
        Box::new(file)
    };
    let mut lines = Lines::new(MAX_EVENT);
    let mut number = 0;
    let mut flow = ControlFlow::Continue(());
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match source.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 && (is_socket || !follow) {
            break;
        }
        if count == 0 {
            std::thread::sleep(POLL);
        }
        lines.feed(chunk.get(..count).unwrap_or_default(), |line| {
            if flow.is_continue() {
                number += 1;
                flow = each(entry(number, line));
            }
        });
        if flow.is_break() {
            return Ok(false);
        }
    }
    let unfinished = lines.unfinished();
    if unfinished.bytes.is_empty() {
        return Ok(false);
    }
    let last = entry(number + 1, unfinished);
    let incomplete = last.event.is_err();
    if !incomplete {
        let _flow = each(last);
    }
    Ok(incomplete)
}

impl LogEntry<'_> {
    /// Why the line is not an event, in words for a log. `None` if it is one.
    pub fn fault(&self) -> Option<String> {
        Some(match self.event.as_ref().err()? {
            EventError::Json { start, source } => format!("it is not an event: {start:?}: {source}"),
            EventError::TooLong { start } => format!("it is longer than the {MAX_EVENT} bytes of an event, and starts {start:?}"),
            EventError::Empty { start } => format!("it is an event without content: {start:?}"),
            other => chain(other),
        })
    }
}

fn entry(number: u64, line: Line<'_>) -> LogEntry<'_> {
    LogEntry { number, bytes: line.bytes, event: parse_event(line) }
}
