//! QEMU's control socket (QMP): commands enter, answers leave, and what QEMU reports by itself goes into the record. It knows the
//! few commands that the launcher needs.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::record::Record;
use crate::text::Lines;

/// Longest message from QEMU, in bytes.
const LONGEST: usize = 256 * 1024;
/// Answers that may wait: one command is under way at a time.
const WAITING: usize = 8;

/// What went wrong in talking to QEMU.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU closed the socket or cannot be written to.
    #[error("QEMU does not answer {command}: its control socket is closed")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// QEMU has not answered in time.
    #[error("QEMU has not answered {command} within {} s", .after.as_secs())]
    Late {
        /// The command.
        command: &'static str,
        /// The time it had.
        after: Duration,
    },
    /// QEMU refuses the command.
    #[error("QEMU refuses {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its words.
        reason: String,
    },
}

/// The commanding end of the socket.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: OwnedWriteHalf,
    answers: mpsc::Receiver<Answer>,
    /// Number of the last command: an answer to an older one, given up by its caller, is passed over.
    last: u64,
}

/// The listening end.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedReadHalf,
    answers: mpsc::Sender<Answer>,
}

/// One message from QEMU: an answer, or what happened.
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
    /// Both ends over `socket`.
    pub(crate) fn over(socket: UnixStream) -> (Self, Listener) {
        let (reader, writer) = socket.into_split();
        let (sender, answers) = mpsc::channel(WAITING);
        (Self { socket: writer, answers, last: 0 }, Listener { socket: reader, answers: sender })
    }

    /// Sends `command` and gives its answer.
    ///
    /// # Errors
    /// QEMU is gone, refuses, or has not answered within `after`.
    pub(crate) async fn execute(&mut self, command: &'static str, arguments: Value, after: Duration) -> Result<Value, QmpError> {
        self.last += 1;
        let id = self.last;
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
        let answered = timeout(after, exchange).await.map_err(|_| QmpError::Late { command, after })?;
        let result = answered.ok_or(QmpError::Closed { command })?;
        result.map_err(|reason| QmpError::Refused { command, reason })
    }
}

impl Listener {
    /// Reads until QEMU closes the socket.
    pub(crate) async fn listen(mut self, record: &Record) {
        let mut lines = Lines::new(LONGEST);
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            lines.feed(buffer.get(..count).unwrap_or_default(), |line| {
                if let Ok(message) = serde_json::from_slice(line.bytes) {
                    self.take(message, record);
                }
            });
        }
    }

    /// Passes an answer on and records an event; the greeting is neither.
    fn take(&self, message: Message, record: &Record) {
        match message {
            Message { event: Some(event), data, .. } => {
                let reason = data.get("reason").and_then(Value::as_str).map(str::to_owned);
                match event.as_str() {
                    "SHUTDOWN" => record.ending(reason),
                    "GUEST_PANICKED" => record.panicked("QEMU's pvpanic device says so"),
                    _ => {}
                }
            }
            Message { id: Some(id), value, error, .. } => {
                let result = error.map_or(Ok(value.unwrap_or_default()), |refusal| Err(refusal.desc));
                // Full only where answers were given up: those are passed over anyway.
                let _given_up = self.answers.try_send(Answer { id, result });
            }
            _ => {}
        }
    }
}

/// The port that QEMU forwards to the guest's `guest_port`, in what its monitor prints for `info usernet`: of the lines that say
/// HOST_FORWARD the one with that destination, and its column after the source address.
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
    fn the_forwarded_port_is_read() {
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

    /// A QMP that a test answers by hand.
    fn pair() -> (Qmp, Listener, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, listener) = Qmp::over(ours);
        (qmp, listener, theirs)
    }

    #[tokio::test]
    async fn an_answer_to_a_command_that_was_given_up_is_passed_over() {
        let (mut qmp, listener, mut qemu) = pair();
        let task = tokio::spawn(async move { listener.listen(&Record::default()).await });
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
    async fn what_qemu_reports_is_recorded() {
        let (_qmp, listener, mut qemu) = pair();
        let record = Record::default();
        qemu.write_all(b"{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\n").await.unwrap();
        qemu.write_all(b"{\"event\":\"GUEST_PANICKED\",\"data\":{\"action\":\"poweroff\"}}\n").await.unwrap();
        drop(qemu);
        listener.listen(&record).await;
        let facts = record.facts();
        assert_eq!(facts.reason.as_deref(), Some("guest-reset"));
        assert_eq!(facts.panic.as_deref(), Some("QEMU's pvpanic device says so"));
    }
}
