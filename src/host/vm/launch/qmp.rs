//! A minimal client of QEMU's control socket (QMP): sends commands, returns their answers, and passes QEMU's own events to the
//! [`Monitor`].

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::monitor::Monitor;
use crate::text::Lines;

/// Longest message from QEMU, in bytes.
const MAX_MESSAGE: usize = 256 * 1024;
/// Capacity of the queue of answers: only one command is under way at a time.
const ANSWER_QUEUE: usize = 8;

/// Why a command to QEMU failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU closed the socket.
    #[error("QEMU does not answer {command}: its control socket is closed")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// QEMU did not answer in time.
    #[error("QEMU has not answered {command} within {} s", .time_limit.as_secs())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// The time limit.
        time_limit: Duration,
    },
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's message.
        reason: String,
    },
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: OwnedWriteHalf,
    answers: mpsc::Receiver<Answer>,
    /// The id of the last command. Answers with another id belong to commands that timed out, and are skipped.
    last_id: u64,
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedReadHalf,
    answers: mpsc::Sender<Answer>,
}

/// One message from QEMU: an answer or an event.
#[derive(Debug, Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Debug)]
struct Answer {
    id: u64,
    result: Result<Value, String>,
}

impl Qmp {
    /// Splits `socket` into both halves.
    pub(crate) fn new(socket: UnixStream) -> (Self, Listener) {
        let (reader, writer) = socket.into_split();
        let (sender, answers) = mpsc::channel(ANSWER_QUEUE);
        (Self { socket: writer, answers, last_id: 0 }, Listener { socket: reader, answers: sender })
    }

    /// Sends `command` and returns its answer.
    ///
    /// # Errors
    /// Fails if QEMU is gone, refuses the command, or has not answered within `time_limit`.
    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        time_limit: Duration,
    ) -> Result<Value, QmpError> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "execute": command, "id": id });
        if let (Some(message), false) = (message.as_object_mut(), arguments.is_null()) {
            message.insert("arguments".into(), arguments);
        }
        let line = format!("{message}\n");
        let exchange = async {
            self.socket.write_all(line.as_bytes()).await.ok()?;
            loop {
                let answer = self.answers.recv().await?;
                if answer.id == id {
                    return Some(answer.result);
                }
            }
        };
        let answered = timeout(time_limit, exchange).await.map_err(|_| QmpError::TimedOut { command, time_limit })?;
        let result = answered.ok_or(QmpError::Closed { command })?;
        result.map_err(|reason| QmpError::Refused { command, reason })
    }
}

impl Listener {
    /// Reads until QEMU closes the socket.
    pub(crate) async fn listen(mut self, monitor: &Monitor) {
        let mut lines = Lines::new(MAX_MESSAGE);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            lines.feed(buffer.get(..count).unwrap_or_default(), |line| {
                if let Ok(message) = serde_json::from_slice(line.bytes) {
                    self.dispatch(message, monitor);
                }
            });
        }
    }

    /// Queues an answer, or notes an event. The greeting is neither, and ignored.
    fn dispatch(&self, message: Message, monitor: &Monitor) {
        match message {
            Message { event: Some(event), data, .. } => {
                let reason = data.get("reason").and_then(Value::as_str).map(str::to_owned);
                match event.as_str() {
                    "SHUTDOWN" => monitor.set_shutdown_reason(reason),
                    "GUEST_PANICKED" => monitor.set_panicked("QEMU's pvpanic device says so"),
                    _ => {}
                }
            }
            Message { id: Some(id), value, error, .. } => {
                let result = error.map_or(Ok(value.unwrap_or_default()), |refusal| Err(refusal.desc));
                // The queue is full only if commands timed out, and their answers are skipped anyway.
                let _timed_out = self.answers.try_send(Answer { id, result });
            }
            _ => {}
        }
    }
}

/// Finds the host port that QEMU forwards to `guest_port` in the monitor's answer to `info usernet`: in the HOST_FORWARD line with that
/// destination port, the column after the source address.
pub(crate) fn forwarded_port(usernet: &str, guest_port: u16) -> Option<u16> {
    usernet.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip_while(|column| *column != "TCP[HOST_FORWARD]");
        let source: u16 = columns.nth(3)?.parse().ok()?;
        let destination: u16 = columns.nth(1)?.parse().ok()?;
        (source != 0 && destination == guest_port).then_some(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_port_is_found() {
        let usernet = "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                       TCP[ESTABLISHED]  31       127.0.0.1  1234       10.0.2.15  5000     0     0\r\n  \
                       TCP[HOST_FORWARD]   4       127.0.0.1 43674       10.0.2.15  9090     0     0\r\n  \
                       TCP[HOST_FORWARD]   3       127.0.0.1 43673       10.0.2.15  5000     0     0\r\n";
        assert_eq!((forwarded_port(usernet, 5000), forwarded_port(usernet, 9090)), (Some(43673), Some(43674)));
        assert_eq!(forwarded_port(usernet, 443), None);
        for other in [
            "",
            "TCP[HOST_FORWARD]",
            "TCP[HOST_FORWARD] 3 127.0.0.1 0 10.0.2.15 5000",
            "TCP[HOST_FORWARD] 3 127.0.0.1 99999 10.0.2.15 5000",
            "TCP[HOST_FORWARD] 3 127.0.0.1 43673",
        ] {
            assert_eq!(forwarded_port(other, 5000), None, "{other:?}");
        }
    }

    /// A QMP client whose other end the test holds.
    fn pair() -> (Qmp, Listener, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, listener) = Qmp::new(ours);
        (qmp, listener, theirs)
    }

    #[tokio::test]
    async fn answer_to_a_timed_out_command_is_skipped() {
        let (mut qmp, listener, mut qemu) = pair();
        let task = tokio::spawn(async move { listener.listen(&Monitor::default()).await });
        let late = qmp.execute("query-status", Value::Null, Duration::ZERO).await.unwrap_err();
        assert_eq!(late.to_string(), "QEMU has not answered query-status within 0 s");

        qemu.write_all(b"{\"QMP\":{}}\r\njunk\r\n{\"return\":1,\"id\":1}\r\n{\"return\":2,\"id\":2}\r\n").await.unwrap();
        let answer = qmp.execute("query-name", Value::Null, Duration::from_secs(60)).await.unwrap();
        assert_eq!(answer, json!(2));

        qemu.write_all(b"{\"error\":{\"class\":\"X\",\"desc\":\"no such thing\"},\"id\":3}\r\n").await.unwrap();
        let refused = qmp.execute("quit", Value::Null, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(refused.to_string(), "QEMU refuses quit: no such thing");

        drop(qemu);
        task.await.unwrap();
        let closed = qmp.execute("quit", Value::Null, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(closed.to_string(), "QEMU does not answer quit: its control socket is closed");
    }

    #[tokio::test]
    async fn qemu_events_are_observed() {
        let (_qmp, listener, mut qemu) = pair();
        let monitor = Monitor::default();
        qemu.write_all(b"{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n").await.unwrap();
        qemu.write_all(b"{\"event\":\"GUEST_PANICKED\",\"data\":{\"action\":\"poweroff\"}}\n").await.unwrap();
        drop(qemu);
        listener.listen(&monitor).await;
        let state = monitor.state();
        assert_eq!(state.reason.as_deref(), Some("guest-reset"));
        assert_eq!(state.panic.as_deref(), Some("QEMU's pvpanic device says so"));
    }
}
