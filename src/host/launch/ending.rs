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

/// How long the guest may take to say `done` once asked to stop: transfers under way have 10 s.
const DRAIN: Duration = Duration::from_secs(15);
/// How long it may take after the power button.
const BUTTON: Duration = Duration::from_secs(5);
/// How long QEMU may take to end after `done` or a panic.
const GRACE: Duration = Duration::from_secs(10);

/// The command that stops the guest, as it goes through the control port.
const SHUTDOWN: &[u8] = b"{\"shutdown\":{}}\n";

/// The ways to talk to a machine.
#[derive(Debug)]
pub(super) struct Commands {
    pub control: UnixStream,
    pub qmp: Qmp,
}

/// Ends a machine in order, or kills it.
pub(super) async fn stop(commands: Commands, record: Arc<Record>, killer: Killer) {
    let Commands { mut control, mut qmp } = commands;
    let asked = async {
        control.write_all(SHUTDOWN).await.ok()?;
        Some(record.end().await)
    };
    // A control port that cannot be written to, or that nobody reads, leaves the power button.
    if let Ok(Some(_)) = timeout(DRAIN, asked).await {
        return;
    }
    // An answer is of no use: either the guest ends now, or it is killed.
    let _refused = qmp.execute("system_powerdown", Value::Null, ANSWER).await;
    if timeout(BUTTON, record.end()).await.is_err() {
        let hangs = record.facts().hangs;
        record.kills(if hangs { Killed::Hung } else { Killed::Asked });
        killer.kill();
    }
}

/// Kills a machine that is about to end and does not.
pub(super) async fn guard(record: Arc<Record>, killer: Killer) {
    let why = record.end().await;
    sleep(GRACE).await;
    record.kills(why);
    killer.kill();
}
