//! Commands from the launcher. What enters are lines of JSON from the port `localregistry.control`, each a
//! [`Command`]; what leaves is the clock set or a [`Stop`]. A line that is no command is a warning event; it never ends anything.

use std::fs::File;
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::proto::{Command, command};
use crate::registry::telemetry::events::Events;

use super::early::{clock, console, ports};
use super::power::{By, DRAIN, Stop};

/// Name of the port.
pub const PORT: &str = "localregistry.control";

/// Longest line, in bytes.
const LONGEST: usize = 64 << 10;
/// Longest part of a bad line that is repeated, in characters.
const SHOWN: usize = 80;
/// Time between two reads while nobody holds the host's end of the port: a read gives its end at once then.
const IDLE: Duration = Duration::from_millis(100);

/// Takes commands from the port, where there is one, until the machine ends.
pub fn listen(stop: UnboundedSender<Stop>, events: Events) {
    let listen = move || {
        let Some(path) = ports::find(PORT) else { return };
        let served = File::open(&path).and_then(|port| serve(port, &stop, &events));
        if let Err(error) = served {
            warn(&events, format!("no commands are taken any more: read {}: {error}", path.display()));
        }
    };
    if let Err(error) = thread::Builder::new().name("control".to_owned()).spawn(listen) {
        console::say(&format!("no commands are taken: no thread for them: {error}"));
    }
}

fn serve(mut port: impl Read, stop: &UnboundedSender<Stop>, events: &Events) -> io::Result<()> {
    let mut lines = Lines::default();
    let mut chunk = [0; 4096];
    loop {
        let read = port.read(&mut chunk)?;
        if read == 0 {
            thread::sleep(IDLE);
        }
        for line in lines.push(chunk.get(..read).unwrap_or_default()) {
            if let Err(problem) = line.and_then(|line| obey(&line, stop)) {
                warn(events, problem);
            }
        }
    }
}

fn obey(line: &[u8], stop: &UnboundedSender<Stop>) -> Result<(), String> {
    match parse(line)? {
        command::Command::Shutdown(shutdown) => {
            let drain = if shutdown.drain_seconds == 0 { DRAIN } else { Duration::from_secs(u64::from(shutdown.drain_seconds)) };
            stop.send(Stop { by: By::Command, drain }).map_err(|_| "the machine ends already".to_owned())
        }
        command::Command::SetClock(set) => clock::set(set.epoch_seconds),
    }
}

fn parse(line: &[u8]) -> Result<command::Command, String> {
    let bad = |problem: &str| {
        let text = String::from_utf8_lossy(line);
        let cut = if text.chars().count() > SHOWN { "…" } else { "" };
        let shown: String = text.chars().take(SHOWN).collect();
        format!(
            "not a command: {shown:?}{cut}: {problem}; expected {{\"shutdown\":{{}}}} or {{\"setClock\":{{\"epochSeconds\":N}}}}"
        )
    };
    let command: Command = serde_json::from_slice(line).map_err(|error| bad(&error.to_string()))?;
    command.command.ok_or_else(|| bad("it names no command"))
}

fn warn(events: &Events, message: String) {
    console::warn(events, "BAD_COMMAND", message);
}

/// Parts a stream into lines without ever holding more than [`LONGEST`] bytes.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    /// Whether the line that has begun is too long and its rest is to be skipped.
    skipping: bool,
}

impl Lines {
    /// The lines that end in `bytes`; blank ones are left out.
    fn push(&mut self, bytes: &[u8]) -> Vec<Result<Vec<u8>, String>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            if !self.skipping && self.partial.len().saturating_add(text.len()) > LONGEST {
                self.partial = Vec::new();
                self.skipping = true;
                lines.push(Err(format!("not a command: a line of over {LONGEST} bytes")));
            }
            if !self.skipping {
                self.partial.extend_from_slice(text);
            }
            if ended {
                self.skipping = false;
                let line = std::mem::take(&mut self.partial);
                if !line.trim_ascii().is_empty() {
                    lines.push(Ok(line));
                }
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{SetClock, Shutdown};

    #[test]
    fn commands_are_json() {
        let shutdown = |drain_seconds| command::Command::Shutdown(Shutdown { drain_seconds });
        assert_eq!(parse(br#"{"shutdown":{}}"#), Ok(shutdown(0)));
        assert_eq!(parse(br#" {"shutdown": {"drainSeconds": 3}} "#), Ok(shutdown(3)));
        let epoch_seconds = 1.8e9;
        assert_eq!(parse(br#"{"setClock":{"epochSeconds":1.8e9}}"#), Ok(command::Command::SetClock(SetClock { epoch_seconds })));
    }

    #[test]
    fn anything_else_is_refused_in_words() {
        let expected = r#"expected {"shutdown":{}} or {"setClock":{"epochSeconds":N}}"#;
        for (line, problem) in [
            ("{}", r#""{}": it names no command"#),
            ("stop", r#""stop": expected value at line 1 column 1"#),
            (
                r#"{"halt":{}}"#,
                r#""{\"halt\":{}}": unknown field `halt`, expected one of `shutdown`, `set_clock`, `setClock` at line 1 column 7"#,
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(format!("not a command: {problem}; {expected}")));
        }
        let long = parse(&[b'x'; 100]).unwrap_err();
        assert!(long.starts_with(&format!("not a command: \"{}\"…: expected value", "x".repeat(80))), "{long}");
    }

    #[test]
    fn a_shutdown_says_how_long_transfers_may_take() {
        let (stop, mut stops) = tokio::sync::mpsc::unbounded_channel();
        obey(br#"{"shutdown":{}}"#, &stop).unwrap();
        obey(br#"{"shutdown":{"drainSeconds":3}}"#, &stop).unwrap();
        assert_eq!(stops.try_recv(), Ok(Stop { by: By::Command, drain: Duration::from_secs(10) }));
        assert_eq!(stops.try_recv(), Ok(Stop { by: By::Command, drain: Duration::from_secs(3) }));
    }

    #[test]
    fn lines_may_come_in_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"ab"), []);
        assert_eq!(lines.push(b"c\n\n \r\nd\ne"), [Ok(b"abc".to_vec()), Ok(b"d".to_vec())]);
        assert_eq!(lines.push(b"\n"), [Ok(b"e".to_vec())]);
    }

    #[test]
    fn a_line_without_end_is_skipped_and_holds_no_memory() {
        let mut lines = Lines::default();
        let refused = Err("not a command: a line of over 65536 bytes".to_owned());
        assert_eq!(lines.push(&vec![b'x'; LONGEST]), []);
        assert_eq!(lines.push(b"x"), [refused]);
        assert_eq!(lines.push(&vec![b'x'; LONGEST]), []);
        assert_eq!(lines.partial.capacity(), 0);
        assert_eq!(lines.push(b"x\ngood\n"), [Ok(b"good".to_vec())]);
    }
}
