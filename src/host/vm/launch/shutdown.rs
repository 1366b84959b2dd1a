//! Ends a machine: asks the guest through its control port, then presses the power button, then kills QEMU.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::QMP_TIMEOUT;
use super::faults::ControlPort;
use super::monitor::Monitor;
use super::outcome::KillReason;
use super::process::Killer;
use super::qmp::Qmp;

/// Time until a guest that does not shut down is killed: 20 s in all.
pub(crate) const SHUTDOWN_TIMEOUTS: ShutdownTimeouts =
    ShutdownTimeouts { request: Duration::from_secs(15), power_button: Duration::from_secs(5) };
/// Time that QEMU has to end after `done` or a panic.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The shutdown command for the guest's control port.
const SHUTDOWN: &[u8] = b"{\"shutdown\":{}}\n";

/// The channels that a machine takes commands from.
#[derive(Debug)]
pub(crate) struct ControlChannels {
    pub control: Arc<ControlPort>,
    pub qmp: Qmp,
}

/// How long the launcher waits for `done`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShutdownTimeouts {
    /// After the request through the control port. The guest gives transfers under way 10 s.
    request: Duration,
    /// After the power button, including QEMU's answer.
    power_button: Duration,
}

/// Shuts the machine down gracefully, or kills it when `timeouts` have passed.
pub(crate) async fn shut_down(channels: ControlChannels, monitor: Arc<Monitor>, killer: Killer, timeouts: ShutdownTimeouts) {
    let ControlChannels { control, mut qmp } = channels;
    let request = async {
        control.write(SHUTDOWN).await.ok()?;
        Some(monitor.ending().await)
    };
    // If the control port cannot be written to, or the guest does not read it, the power button comes next.
    if let Ok(Some(_)) = timeout(timeouts.request, request).await {
        return;
    }
    let power_button = async {
        // The answer does not matter: either the guest ends now, or it is killed. A stopped QEMU does not answer.
        let _refused = qmp.execute("system_powerdown", Value::Null, QMP_TIMEOUT).await;
        monitor.ending().await
    };
    if timeout(timeouts.power_button, power_button).await.is_err() {
        let hung = monitor.state().hung;
        monitor.set_killed(if hung { KillReason::Hung } else { KillReason::NoShutdown });
        killer.kill();
    }
}

/// Kills a machine that is about to end by itself but does not.
pub(crate) async fn kill_if_stuck(monitor: Arc<Monitor>, killer: Killer) {
    let reason = monitor.ending().await;
    sleep(EXIT_TIMEOUT).await;
    monitor.set_killed(reason);
    killer.kill();
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::host::vm::launch::outcome::Exit;
    use crate::host::vm::launch::process::Process;

    #[tokio::test]
    async fn qemu_that_does_not_answer_is_killed_in_time() {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let process = Process::start(sleep).unwrap();
        let (control, mut guest) = UnixStream::pair().unwrap();
        let (qmp, mut qemu) = UnixStream::pair().unwrap();
        // The other end never answers.
        let (qmp, _listener) = Qmp::new(qmp);
        let monitor = Arc::new(Monitor::default());
        let short = Duration::from_millis(20);
        let timeouts = ShutdownTimeouts { request: short, power_button: short };
        let control = Arc::new(ControlPort::new(control));
        let ends = shut_down(ControlChannels { control, qmp }, Arc::clone(&monitor), process.killer(), timeouts);
        timeout(QMP_TIMEOUT, ends).await.expect("QEMU's answer is not waited for");
        assert_eq!(process.exit().await, Exit::Signal(9));
        assert_eq!(monitor.state().killed, Some(KillReason::NoShutdown));

        // Both requests came before.
        let mut received = String::new();
        guest.read_to_string(&mut received).await.unwrap();
        assert_eq!(received.as_bytes(), SHUTDOWN);
        let mut pressed = vec![0; 1024];
        let count = qemu.read(&mut pressed).await.unwrap();
        assert!(String::from_utf8_lossy(&pressed[..count]).contains("\"system_powerdown\""));
    }
}
