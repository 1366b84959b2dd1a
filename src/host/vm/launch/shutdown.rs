//! How a machine is brought to its end: asked, asked again, killed. Its ways to be talked to enter; nothing leaves, the record tells.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::ANSWER;
use super::outcome::Killed;
use super::process::Killer;
use super::qmp::Qmp;
use super::record::Record;

/// How long a guest that is asked to stop has before it is killed: 20 s in all.
pub(crate) const PATIENCE: Patience = Patience { drain: Duration::from_secs(15), button: Duration::from_secs(5) };
/// How long QEMU may take to end after `done` or a panic.
const GRACE: Duration = Duration::from_secs(10);

/// The command that stops the guest, as it goes through the control port.
const SHUTDOWN: &[u8] = b"{\"shutdown\":{}}\n";

/// The ways to talk to a machine.
#[derive(Debug)]
pub(crate) struct Commands {
    pub control: UnixStream,
    pub qmp: Qmp,
}

/// How long the guest may take to say `done`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Once it is asked through its control port. Transfers under way have 10 s.
    drain: Duration,
    /// Once the power button is pressed, QEMU's answer included.
    button: Duration,
}

/// Ends a machine in order, or kills it when `patience` has passed.
pub(crate) async fn stop(commands: Commands, record: Arc<Record>, killer: Killer, patience: Patience) {
    let Commands { mut control, mut qmp } = commands;
    let asked = async {
        control.write_all(SHUTDOWN).await.ok()?;
        Some(record.end().await)
    };
    // A control port that cannot be written to, or that nobody reads, leaves the power button.
    if let Ok(Some(_)) = timeout(patience.drain, asked).await {
        return;
    }
    let pressed = async {
        // An answer is of no use: either the guest ends now, or it is killed. A QEMU that is stopped gives none.
        let _refused = qmp.execute("system_powerdown", Value::Null, ANSWER).await;
        record.end().await
    };
    if timeout(patience.button, pressed).await.is_err() {
        let hangs = record.facts().hangs;
        record.kills(if hangs { Killed::Hung } else { Killed::Asked });
        killer.kill();
    }
}

/// Kills a machine that is about to end and does not.
pub(crate) async fn guard(record: Arc<Record>, killer: Killer) {
    let why = record.end().await;
    sleep(GRACE).await;
    record.kills(why);
    killer.kill();
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::host::vm::launch::outcome::Exit;
    use crate::host::vm::launch::process::Process;

    #[tokio::test]
    async fn qemu_that_answers_nothing_is_killed_without_waiting_for_its_answer() {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let process = Process::start(sleep).unwrap();
        let (control, mut guest) = UnixStream::pair().unwrap();
        let (qmp, mut qemu) = UnixStream::pair().unwrap();
        // Nobody reads the answers, and none comes.
        let (qmp, _listener) = Qmp::over(qmp);
        let record = Arc::new(Record::default());
        let short = Duration::from_millis(20);
        let patience = Patience { drain: short, button: short };
        let ends = stop(Commands { control, qmp }, Arc::clone(&record), process.killer(), patience);
        timeout(ANSWER, ends).await.expect("QEMU's answer is not waited for");
        assert_eq!(process.ended().await, Exit::Signal(9));
        assert_eq!(record.facts().killed, Some(Killed::Asked));

        // Asked in both ways before.
        let mut said = String::new();
        guest.read_to_string(&mut said).await.unwrap();
        assert_eq!(said.as_bytes(), SHUTDOWN);
        let mut pressed = vec![0; 1024];
        let count = qemu.read(&mut pressed).await.unwrap();
        assert!(String::from_utf8_lossy(&pressed[..count]).contains("\"system_powerdown\""));
    }
}
