//! Executes commands from the launcher: JSON lines from the port `localregistry.control`, each a [`Command`]. An invalid line
//! causes a warning event and nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::proto::{Command, FaultCommand, FaultReply, command};
use crate::registry::telemetry::events::Events;
use crate::text::{Line, Lines};

use super::early::{clock, console, virtio_serial};
use super::power::{DRAIN, Requester, ShutdownRequest};

/// Name of the port.
pub const PORT: &str = "localregistry.control";

/// Longest line, in bytes.
const MAX_LINE: usize = 64 << 10;
/// Longest part of an invalid line shown in a warning, in characters.
const MAX_SHOWN: usize = 80;
/// Time between two reads while the host's end of the port is closed: a read then returns at once.
const IDLE: Duration = Duration::from_millis(100);

/// Commands for the plan of faults, which the server executes, and the way back of its replies.
#[derive(Debug)]
pub struct FaultCommands {
    commands: UnboundedReceiver<FaultCommand>,
    replies: mpsc::Sender<FaultReply>,
}

impl FaultCommands {
    /// The next command.
    pub async fn next(&mut self) -> FaultCommand {
        match self.commands.recv().await {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }

    /// Sends a reply to the launcher. It is lost if the port is gone.
    pub fn reply(&self, reply: FaultReply) {
        let _lost = self.replies.send(reply);
    }
}

/// Where commands go.
struct Receivers {
    requests: UnboundedSender<ShutdownRequest>,
    faults: UnboundedSender<FaultCommand>,
}

/// Executes commands from the port, if there is one, until the machine powers off.
pub fn listen(requests: UnboundedSender<ShutdownRequest>, events: Events) -> FaultCommands {
    let (faults, commands) = unbounded_channel();
    let (replies, to_write) = mpsc::channel();
    let receivers = Receivers { requests, faults };
    let listen = move || {
        let Some(path) = virtio_serial::find_port(PORT) else { return };
        let opened = File::options().read(true).write(true).open(&path);
        let result = opened.and_then(|port| {
            write_replies(port.try_clone()?, to_write)?;
            serve(port, &receivers, &events)
        });
        if let Err(error) = result {
            warn(&events, format!("cannot read {}, so commands are no longer accepted: {error}", path.display()));
        }
    };
    if let Err(error) = thread::Builder::new().name("control".to_owned()).spawn(listen) {
        console::log(&format!("cannot start the thread for the control port, so commands are not accepted: {error}"));
    }
    FaultCommands { commands, replies }
}

/// Writes replies on a thread of its own: a launcher that does not read must not delay its next command.
fn write_replies(mut port: File, replies: mpsc::Receiver<FaultReply>) -> io::Result<()> {
    let write = move || {
        for reply in replies {
            let written = serde_json::to_vec(&reply).map_err(io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                port.write_all(&line)
            });
            if let Err(error) = written {
                console::log(&format!("cannot write a reply to the control port: {error}"));
            }
        }
    };
    thread::Builder::new().name("replies".to_owned()).spawn(write).map(drop)
}

fn serve(mut port: impl Read, receivers: &Receivers, events: &Events) -> io::Result<()> {
    let mut lines = Lines::new(MAX_LINE);
    let mut chunk = [0; 4096];
    loop {
        let read = port.read(&mut chunk)?;
        if read == 0 {
            thread::sleep(IDLE);
        }
        lines.feed(chunk.get(..read).unwrap_or_default(), |line| {
            if let Err(problem) = execute_line(line, receivers) {
                warn(events, problem);
            }
        });
    }
}

/// Executes the command in `line`. Ignores a blank line.
fn execute_line(line: Line<'_>, receivers: &Receivers) -> Result<(), String> {
    match line {
        Line { truncated: true, .. } => Err(format!("not a command: the line is longer than {MAX_LINE} bytes")),
        Line { bytes, .. } if bytes.trim_ascii().is_empty() => Ok(()),
        Line { bytes, .. } => execute(bytes, receivers),
    }
}

fn execute(line: &[u8], receivers: &Receivers) -> Result<(), String> {
    match parse(line)? {
        command::Command::Shutdown(shutdown) => {
            let drain = if shutdown.drain_seconds == 0 { DRAIN } else { Duration::from_secs(u64::from(shutdown.drain_seconds)) };
            receivers
                .requests
                .send(ShutdownRequest { by: Requester::Command, drain })
                .map_err(|_| "the machine is already shutting down".to_owned())
        }
        command::Command::SetClock(set) => clock::set(set.epoch_seconds),
        command::Command::Faults(command) => {
            receivers.faults.send(command).map_err(|_| "the machine is already shutting down".to_owned())
        }
    }
}

fn parse(line: &[u8]) -> Result<command::Command, String> {
    let bad = |problem: &str| {
        let text = String::from_utf8_lossy(line);
        let cut = if text.chars().count() > MAX_SHOWN { "…" } else { "" };
        let shown: String = text.chars().take(MAX_SHOWN).collect();
        format!(
            "not a command: {shown:?}{cut}: {problem}; expected {{\"shutdown\":{{}}}}, {{\"setClock\":{{\"epochSeconds\":N}}}} or {{\"faults\":{{\"verb\":\"LIST\"}}}}"
        )
    };
    let command: Command = serde_json::from_slice(line).map_err(|error| bad(&error.to_string()))?;
    command.command.ok_or_else(|| bad("it has no command"))
}

fn warn(events: &Events, message: String) {
    console::warn(events, "BAD_COMMAND", message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{SetClock, Shutdown};

    fn receivers() -> (Receivers, UnboundedReceiver<ShutdownRequest>) {
        let (requests, received) = unbounded_channel();
        (Receivers { requests, faults: unbounded_channel().0 }, received)
    }

    #[test]
    fn commands_are_parsed_from_json() {
        let shutdown = |drain_seconds| command::Command::Shutdown(Shutdown { drain_seconds });
        assert_eq!(parse(br#"{"shutdown":{}}"#), Ok(shutdown(0)));
        assert_eq!(parse(br#" {"shutdown": {"drainSeconds": 3}} "#), Ok(shutdown(3)));
        let epoch_seconds = 1.8e9;
        assert_eq!(parse(br#"{"setClock":{"epochSeconds":1.8e9}}"#), Ok(command::Command::SetClock(SetClock { epoch_seconds })));
    }

    #[test]
    fn lines_that_are_not_commands_are_rejected_with_a_reason() {
        let expected = r#"expected {"shutdown":{}}, {"setClock":{"epochSeconds":N}} or {"faults":{"verb":"LIST"}}"#;
        for (line, problem) in [
            ("{}", r#""{}": it has no command"#),
            ("stop", r#""stop": expected value at line 1 column 1"#),
            (
                r#"{"halt":{}}"#,
                r#""{\"halt\":{}}": unknown field `halt`, expected one of `shutdown`, `set_clock`, `setClock`, `faults` at line 1 column 7"#,
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(format!("not a command: {problem}; {expected}")));
        }
        let long = parse(&[b'x'; 100]).unwrap_err();
        assert!(long.starts_with(&format!("not a command: \"{}\"…: expected value", "x".repeat(80))), "{long}");
    }

    #[test]
    fn shutdown_command_sets_the_time_to_drain() {
        let (receivers, mut received) = receivers();
        execute(br#"{"shutdown":{}}"#, &receivers).unwrap();
        execute(br#"{"shutdown":{"drainSeconds":3}}"#, &receivers).unwrap();
        assert_eq!(received.try_recv(), Ok(ShutdownRequest { by: Requester::Command, drain: Duration::from_secs(10) }));
        assert_eq!(received.try_recv(), Ok(ShutdownRequest { by: Requester::Command, drain: Duration::from_secs(3) }));
    }

    #[test]
    fn blank_line_is_ignored_and_long_line_is_rejected() {
        let (receivers, mut received) = receivers();
        let mut lines = Lines::new(MAX_LINE);
        let mut results = Vec::new();
        lines.feed(b"\n \r\n", |line| results.push(execute_line(line, &receivers)));
        lines.feed(&[b'x'; MAX_LINE], |_| panic!("the line has not ended"));
        lines.feed(b"x\n{\"shutdown\":{}}\n", |line| results.push(execute_line(line, &receivers)));
        assert_eq!(results, [Ok(()), Ok(()), Err("not a command: the line is longer than 65536 bytes".to_owned()), Ok(())]);
        assert!(received.try_recv().is_ok());
    }
}
