//! Commands from the launcher. What enters are lines of JSON from the port `localregistry.control`, each a
//! [`Command`]; what leaves is the clock set or a [`Stop`]. A line that is no command is a warning event; it never ends anything.

use std::fs::File;
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::proto::{Command, command};
use crate::registry::telemetry::events::Events;
use crate::text::{Line, Lines};

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
    let mut lines = Lines::new(LONGEST);
    let mut chunk = [0; 4096];
    loop {
        let read = port.read(&mut chunk)?;
        if read == 0 {
            thread::sleep(IDLE);
        }
        lines.feed(chunk.get(..read).unwrap_or_default(), |line| {
            if let Err(problem) = take(line, stop) {
                warn(events, problem);
            }
        });
    }
}

/// Carries out the command in `line`. A blank line is ignored.
fn take(line: Line<'_>, stop: &UnboundedSender<Stop>) -> Result<(), String> {
    match line {
        Line { truncated: true, .. } => Err(format!("not a command: a line of over {LONGEST} bytes")),
        Line { bytes, .. } if bytes.trim_ascii().is_empty() => Ok(()),
        Line { bytes, .. } => obey(bytes, stop),
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
    fn blank_line_is_ignored_and_long_line_is_refused() {
        let (stop, mut stops) = tokio::sync::mpsc::unbounded_channel();
        let mut lines = Lines::new(LONGEST);
        let mut results = Vec::new();
        lines.feed(b"\n \r\n", |line| results.push(take(line, &stop)));
        lines.feed(&[b'x'; LONGEST], |_| panic!("the line has not ended"));
        lines.feed(b"x\n{\"shutdown\":{}}\n", |line| results.push(take(line, &stop)));
        assert_eq!(results, [Ok(()), Ok(()), Err("not a command: a line of over 65536 bytes".to_owned()), Ok(())]);
        assert!(stops.try_recv().is_ok());
    }
}
