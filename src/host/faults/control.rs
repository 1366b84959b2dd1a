//! The socket through which `localregistry faults` changes the plan of a run: JSON lines, [`FaultCommand`] in, [`FaultReply`] out. Only its
//! owner may connect, and no network reaches it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::proto::{FaultCommand, FaultReply};
use crate::registry::faults::plan::MAX_RULES;
use crate::registry::faults::{command_messages, join_command, join_reply, reply_messages};

/// Longest line, in bytes.
const MAX_LINE: u64 = 64 << 10;
/// How long a run may take to reply.
const REPLY: Duration = Duration::from_secs(20);
/// Clients that are served at once. One that says nothing does not keep others waiting.
const CLIENTS: usize = 64;

/// The socket of a run. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens at `path`. Must be called within the runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Its folder may be open to others, so it gets its name after its mode.
        let own = path.with_extension(format!("{}.new", std::process::id()));
        let listener = UnixListener::bind(&own)?;
        // A process that was killed has left its socket. A connection to a file is refused as well.
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket && StdStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            std::fs::remove_file(path)?;
        }
        let named = std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600));
        let named = named.and_then(|()| std::fs::hard_link(&own, path));
        let _gone = std::fs::remove_file(&own);
        named.map(|()| Self { listener, path: path.to_owned() })
    }

    /// Serves clients until the result is dropped. `execute` gets whole commands.
    pub async fn serve<F>(self, execute: impl Fn(FaultCommand) -> F + Clone + Send + 'static)
    where
        F: Future<Output = io::Result<FaultReply>> + Send,
    {
        let mut clients = JoinSet::new();
        loop {
            let client = self.accept().await;
            while clients.try_join_next().is_some() {}
            if clients.len() >= CLIENTS {
                clients.join_next().await;
            }
            let execute = execute.clone();
            // A client that leaves loses its reply only.
            clients.spawn(async move { timeout(REPLY, answer(client, execute)).await.is_ok() });
        }
    }

    /// Waits for a client.
    async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

/// Executes the commands of a client, and sends the replies. A command of which a part is missing is not executed.
async fn answer<F>(client: UnixStream, execute: impl Fn(FaultCommand) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<FaultReply>>,
{
    let (read, mut write) = client.into_split();
    let mut lines = AsyncReader::new(read);
    let mut whole = FaultCommand::default();
    loop {
        let mut line = Vec::new();
        if (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_slice::<FaultCommand>(&line) {
            Ok(part) => {
                whole = join_command(whole, part);
                if whole.rules.len().max(whole.ids.len()) > MAX_RULES {
                    // What follows is part of the same command.
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                if whole.more {
                    continue;
                }
                execute(FaultCommand { more: false, ..std::mem::take(&mut whole) }).await?
            }
            Err(error) => FaultReply { error: format!("not a command: {error}"), ..FaultReply::default() },
        };
        for reply in reply_messages(reply) {
            write.write_all(&json_line(&reply)?).await?;
        }
    }
}

/// A message as a line.
pub(crate) fn json_line(message: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Sends a command to the run at `path`, and waits for its reply.
pub(super) fn send(path: &Path, command: FaultCommand) -> io::Result<FaultReply> {
    let mut stream = StdStream::connect(path)?;
    stream.set_read_timeout(Some(REPLY))?;
    stream.set_write_timeout(Some(REPLY))?;
    for message in command_messages(command) {
        stream.write_all(&json_line(&message)?)?;
    }
    let mut lines = BufReader::new(stream);
    let mut whole = FaultReply::default();
    loop {
        let mut line = Vec::new();
        if (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
        }
        let part: FaultReply = serde_json::from_slice(&line)?;
        let more = part.more;
        join_reply(&mut whole, part);
        if !more {
            return Ok(whole);
        }
    }
}
