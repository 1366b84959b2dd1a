//! The plan of faults of a running appliance, changed through the guest's control port.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::proto::fault_command::Verb;
use crate::proto::{FaultCommand, FaultPlan, FaultReply, FaultStatus};
use crate::registry::faults::{command_messages, join_reply};

/// Longest reply, in bytes.
const MAX_LINE: u64 = 64 << 10;
/// Time that the guest has to reply.
const REPLY: Duration = Duration::from_secs(15);

/// Why the plan was not changed.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    /// The guest does not reply: it has ended, or hangs.
    #[error("the guest does not reply to a command for its plan of faults")]
    NoReply(#[source] io::Error),
    /// The guest refuses it, and says why.
    #[error("{0}")]
    Refused(String),
}

/// The host's end of the guest's control port.
#[derive(Debug)]
pub(crate) struct ControlPort {
    write: Mutex<OwnedWriteHalf>,
    /// Held from a command to its reply. The number is that of the last command.
    replies: Mutex<(u32, BufReader<OwnedReadHalf>)>,
}

impl ControlPort {
    pub fn new(socket: UnixStream) -> Self {
        let (read, write) = socket.into_split();
        Self { write: Mutex::new(write), replies: Mutex::new((0, BufReader::new(read))) }
    }

    /// Sends one or more lines.
    pub async fn write(&self, lines: &[u8]) -> io::Result<()> {
        self.write.lock().await.write_all(lines).await
    }

    async fn execute(&self, command: FaultCommand) -> io::Result<FaultReply> {
        let mut replies = self.replies.lock().await;
        let (last, lines) = &mut *replies;
        *last = last.wrapping_add(1);
        let id = *last;
        for message in command_messages(FaultCommand { id, ..command }) {
            self.write(format!("{}\n", json!({ "faults": message })).as_bytes()).await?;
        }
        let mut whole = FaultReply::default();
        loop {
            let mut line = Vec::new();
            if (&mut *lines).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // What is left of the reply to a command that was given up is skipped.
            let Some(part) = serde_json::from_slice::<FaultReply>(&line).ok().filter(|part| part.id == id) else { continue };
            let more = part.more;
            join_reply(&mut whole, part);
            if !more {
                return Ok(whole);
            }
        }
    }
}

/// Changes the plan of faults of an [`Appliance`](super::Appliance). When a method returns, the next request sees the change; an error means
/// that the plan is as before.
#[derive(Debug, Clone)]
pub struct Faults(pub(super) Arc<ControlPort>);

impl Faults {
    /// Adds the rules of `plan`. Returns a warning for each rule that can never match.
    ///
    /// # Errors
    /// Fails if a rule is invalid, or if the guest does not reply.
    pub async fn add(&self, plan: FaultPlan) -> Result<Vec<String>, FaultsError> {
        Ok(self.execute(of_plan(Verb::Add, plan)).await?.warnings)
    }

    /// Replaces all rules by those of `plan`, at once. Returns warnings as [`Faults::add`] does.
    ///
    /// # Errors
    /// Fails if a rule is invalid, or if the guest does not reply.
    pub async fn replace(&self, plan: FaultPlan) -> Result<Vec<String>, FaultsError> {
        Ok(self.execute(of_plan(Verb::Replace, plan)).await?.warnings)
    }

    /// The rules, with their counts.
    ///
    /// # Errors
    /// Fails if the guest does not reply.
    pub async fn list(&self) -> Result<Vec<FaultStatus>, FaultsError> {
        Ok(self.execute(of(Verb::List)).await?.rules)
    }

    /// Removes the rules with these ids.
    ///
    /// # Errors
    /// Fails if there is no such rule, or if the guest does not reply.
    pub async fn remove(&self, ids: impl IntoIterator<Item = impl Into<String>>) -> Result<(), FaultsError> {
        let ids = ids.into_iter().map(Into::into).collect();
        self.execute(FaultCommand { ids, ..of(Verb::Remove) }).await.map(drop)
    }

    /// Removes all rules.
    ///
    /// # Errors
    /// Fails if the guest does not reply.
    pub async fn clear(&self) -> Result<(), FaultsError> {
        self.execute(of(Verb::Clear)).await.map(drop)
    }

    /// Sets the counts of all rules to zero.
    ///
    /// # Errors
    /// Fails if the guest does not reply.
    pub async fn reset(&self) -> Result<(), FaultsError> {
        self.execute(of(Verb::Reset)).await.map(drop)
    }

    async fn execute(&self, command: FaultCommand) -> Result<FaultReply, FaultsError> {
        let reply = self.send(command).await.map_err(FaultsError::NoReply)?;
        if reply.error.is_empty() { Ok(reply) } else { Err(FaultsError::Refused(reply.error)) }
    }

    /// Sends a command, and returns the guest's reply as it is.
    pub(crate) async fn send(&self, command: FaultCommand) -> io::Result<FaultReply> {
        timeout(REPLY, self.0.execute(command)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn of(verb: Verb) -> FaultCommand {
    FaultCommand { verb: verb.into(), ..FaultCommand::default() }
}

fn of_plan(verb: Verb, plan: FaultPlan) -> FaultCommand {
    FaultCommand { rules: plan.rules, seed: plan.seed, ..of(verb) }
}
