//! A log of events, line by line: a file that may still grow, or a socket that gives them as they come. Bytes enter, each whole line
//! leaves; a last line that was cut off in writing is told apart.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::host::vm::launch::{BadEvent, LONGEST_EVENT, parse_event};
use crate::proto::Event;
use crate::text::{Line, Lines};

/// How often a file is looked at for more.
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// One line of a log.
pub(crate) struct Entry<'a> {
    /// Its number, from 1.
    pub number: u64,
    /// The line, without its end.
    pub bytes: &'a [u8],
    /// What it says.
    pub event: Result<Event, BadEvent>,
}

/// Gives each line of the log at `path` to `each`, until that breaks or there are no more: of a file with `follow` never.
/// True: the last line has no end and is no event, so it was cut off and was not given.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path, follow: bool, mut each: impl FnMut(Entry<'_>) -> ControlFlow<()>) -> io::Result<bool> {
    let is_socket = fs::metadata(path)?.file_type().is_socket();
    let mut source: Box<dyn Read> = if is_socket { Box::new(UnixStream::connect(path)?) } else { Box::new(File::open(path)?) };
    let mut lines = Lines::new(LONGEST_EVENT);
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
            std::thread::sleep(PERIOD);
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
    let rest = lines.unfinished();
    if rest.bytes.is_empty() {
        return Ok(false);
    }
    let last = entry(number + 1, rest);
    let cut = last.event.is_err();
    if !cut {
        let _end = each(last);
    }
    Ok(cut)
}

fn entry(number: u64, line: Line<'_>) -> Entry<'_> {
    Entry { number, bytes: line.bytes, event: parse_event(line) }
}
