//! The launcher: a disk and what to boot it with enter, a running appliance leaves, with its address, its CA, its events and the
//! way it ended. It starts one QEMU, makes no file of its own, has no global state and prints nothing but progress.
//!
//! ```text
//! Options ─ Vm::boot ─▶ Vm ─┬─ ready, endpoint, next_event …
//!                           ├─ shutdown ─▶ Ended
//!                           └─ drop: QEMU is killed and reaped
//! ```
//!
//! QEMU is reached through inherited socketpairs (console, events, control, QMP) and reads its config from anonymous memory: no
//! directory, no named socket, nothing to remove whatever happens. It dies with this program.

mod console;
mod error;
mod event;
mod lines;
mod outcome;
mod process;
mod qmp;
mod record;
mod spawn;

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use self::process::{Killer, Process};
use self::qmp::Qmp;
use self::record::Record;
use super::accel::{self, Accel, Choice};
use super::config::GuestConfig;
use super::qemu::{Board, Forward};
use super::report::Report;
use crate::causes::chain;
use crate::proto::{Event, Ready, event::Event as Kind};

pub use self::error::LaunchError;
pub use self::event::BadEvent;
pub use self::lines::printable;
pub use self::outcome::{Exit, Killed, Outcome};
pub use self::qmp::QmpError;
pub use self::record::Ended;
pub use self::spawn::check_disk;

/// Events that wait for [`Vm::next_event`] at most.
const QUEUE: usize = 1024;
/// How long a guest under KVM may show no sign of life before automatic choice takes TCG. A working one prints within a second.
const SILENCE: Duration = Duration::from_secs(10);
/// How long QEMU may take to answer a command.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the guest may take to say `done` once asked to stop: transfers under way have 10 s.
const DRAIN: Duration = Duration::from_secs(15);
/// How long it may take after the power button.
const BUTTON: Duration = Duration::from_secs(5);
/// How long QEMU may take to end after `done` or a panic.
const GRACE: Duration = Duration::from_secs(10);
/// How long after QEMU's end its sockets may still be read.
const LEFTOVERS: Duration = Duration::from_secs(5);

/// The command that stops the guest, as it goes through the control port.
const SHUTDOWN: &[u8] = b"{\"shutdown\":{}}\n";

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The board.
    pub board: Board,
    /// The packed disk.
    pub disk: PathBuf,
    /// The kernel: a bootable ELF or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs, with `localregistry-init` as `/init`.
    pub initramfs: PathBuf,
    /// QEMU's program: a path, or a name that is looked up in `PATH`.
    pub qemu: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// What runs the guest's instructions.
    pub accel: Choice,
    /// Where the host listens for the registry. Port 0: a free one.
    pub publish: SocketAddrV4,
    /// Where the host listens for health, metrics and the CA, where they are to have a port of their own. Port 0: a free one.
    pub metrics: Option<SocketAddrV4>,
    /// What the guest is told. The addresses of `publish` are added to its names, the host's time to its clock.
    pub config: GuestConfig,
    /// Certificate chain and key, PEM files, where `config` says that they are provided.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Further files for the guest, by their names in fw_cfg: the password file and the client CA, where `config` asks for them.
    pub secrets: Vec<(&'static str, PathBuf)>,
    /// File that keeps every event, one JSON line each.
    pub events: Option<PathBuf>,
    /// File that keeps the raw console.
    pub console: Option<PathBuf>,
    /// How long the boot may take, from QEMU's start to `ready`.
    pub timeout: Duration,
    /// Where progress is told.
    pub report: Report,
}

/// A running appliance whose registry is ready. Dropping it kills QEMU and returns when that is gone.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    record: Arc<Record>,
    events: mpsc::Receiver<Result<Event, BadEvent>>,
    /// Events that came before `ready`, it included.
    early: VecDeque<Result<Event, BadEvent>>,
    /// Gone once the machine has been asked to stop.
    commands: Option<Commands>,
    /// The tasks that read; each ends with QEMU.
    readers: JoinSet<()>,
    /// The tasks that see to it that the machine ends in time.
    wardens: JoinSet<()>,
    accel: Accel,
    /// Forwarded to the registry, and to health, metrics and the CA; no port is 0 once QEMU runs.
    registry: Forward,
    metrics: Option<Forward>,
    started: Instant,
    boot_time: Duration,
    ready: Ready,
}

/// The ways to talk to a machine.
#[derive(Debug)]
struct Commands {
    control: UnixStream,
    qmp: Qmp,
}

impl Vm {
    /// Boots an appliance and waits until its registry is ready. Dropping the future before that kills QEMU.
    ///
    /// Automatic choice of the accelerator falls from KVM to TCG where QEMU cannot start under KVM or crashes before the guest shows a
    /// sign of life, or where there is none in 10 s.
    ///
    /// # Errors
    /// See [`LaunchError`]. No QEMU is left running.
    pub async fn boot(options: Options) -> Result<Self, LaunchError> {
        spawn::check(&options)?;
        let kvm = if options.accel == Choice::Tcg { Ok(()) } else { accel::probe() };
        let (accel, why_not) = accel::choose(options.accel, kvm)?;
        if let Some(why) = why_not {
            options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&why)));
        }
        let may_fall = options.accel == Choice::Auto && accel == Accel::Kvm;
        match Self::attempt(&options, accel, may_fall.then_some(SILENCE)).await {
            Err(error) if may_fall && error.blames_accelerator() => {
                options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&error)));
                Self::attempt(&options, Accel::Tcg, None).await
            }
            result => result,
        }
    }

    /// Starts QEMU and waits for `ready`, but no longer than `silence` for a sign of life.
    async fn attempt(options: &Options, accel: Accel, silence: Option<Duration>) -> Result<Self, LaunchError> {
        let mut vm = spawn::start(options, accel)?;
        let record = Arc::clone(&vm.record);
        let silent = async {
            match silence {
                Some(after) if timeout(after, record.alive()).await.is_err() => after,
                _ => std::future::pending().await,
            }
        };
        let boot = async {
            vm.connect().await?;
            Ok(vm.until_ready().await)
        };
        let booted = tokio::select! {
            after = silent => return Err(LaunchError::Silent { after }),
            booted = timeout(options.timeout, boot) => booted,
        };
        match booted {
            Ok(Ok(true)) => return Ok(vm),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return Err(vm.start_error(error, options).await),
            Err(_) => vm.kill_for(Killed::NotReady(options.timeout)),
        }
        Err(LaunchError::Ended(Box::new(vm.wait().await)))
    }

    /// Makes QMP ready, which QEMU answers only after it has made the machine, and learns the forwarded port.
    async fn connect(&mut self) -> Result<(), LaunchError> {
        let Some(Commands { qmp, .. }) = &mut self.commands else { return Ok(()) };
        qmp.execute("qmp_capabilities", Value::Null, ANSWER).await?;
        let unknown = [Some(&mut self.registry), self.metrics.as_mut()].into_iter().flatten().filter(|f| f.host.port() == 0);
        let mut unknown = unknown.peekable();
        if unknown.peek().is_some() {
            let question = json!({ "command-line": "info usernet" });
            let answer = qmp.execute("human-monitor-command", question, ANSWER).await?;
            let answer = answer.as_str().unwrap_or_default();
            for forward in unknown {
                let port = qmp::forwarded_port(answer, forward.guest_port);
                forward.host.set_port(port.ok_or_else(|| LaunchError::NoPort { answer: answer.to_owned() })?);
            }
        }
        Ok(())
    }

    /// What `error` of [`Vm::connect`] means: mostly that QEMU refused to make the machine, and said why.
    async fn start_error(self, error: LaunchError, options: &Options) -> LaunchError {
        if !matches!(error, LaunchError::Qmp(QmpError::Closed { .. })) {
            return error;
        }
        let exit = timeout(ANSWER, self.process.ended()).await;
        let Ok(exit) = exit else { return error };
        let ended = self.wait().await;
        // A refusal has a status. A signal, or an end in order, came from elsewhere.
        if !matches!(exit, Exit::Code(1..)) {
            return LaunchError::Ended(Box::new(ended));
        }
        let stderr = ended.stderr;
        // The port was free when `spawn::check` looked, so somebody has just taken it.
        if stderr.iter().any(|line| line.contains("Could not set up host forwarding rule")) {
            let source = std::io::ErrorKind::AddrInUse.into();
            return LaunchError::Port { flag: "--publish", address: options.publish, source };
        }
        LaunchError::Start { exit, stderr }
    }

    /// Waits for `ready`. False: the events have ended without it.
    async fn until_ready(&mut self) -> bool {
        while let Some(event) = self.events.recv().await {
            let ready = match &event {
                Ok(Event { event: Some(Kind::Ready(ready)), .. }) => Some(ready.clone()),
                _ => None,
            };
            if self.early.len() < QUEUE || ready.is_some() {
                self.early.push_back(event);
            }
            if let Some(ready) = ready {
                self.ready = ready;
                self.boot_time = self.started.elapsed();
                return true;
            }
        }
        false
    }

    /// What the guest said when it was ready: its own endpoints, its CA, the number of images, the steps of its boot.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Where the registry is on this machine, as clients put it before an image's name.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        reachable(self.registry.host)
    }

    /// URL of health, metrics and the CA on this machine, where they have a port of their own.
    #[must_use]
    pub fn metrics_endpoint(&self) -> Option<String> {
        self.metrics.map(|forward| format!("http://{}", reachable(forward.host)))
    }

    /// The same as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let plain = self.ready.endpoints.first().is_some_and(|endpoint| endpoint.starts_with("http://"));
        format!("{}://{}", if plain { "http" } else { "https" }, self.address())
    }

    /// What runs the guest's instructions.
    #[must_use]
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Number of the QEMU process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Time from QEMU's start to `ready`.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The next event of the guest, from `booting` on, or what came in place of one. Nothing once QEMU has ended. Cancel-safe. An
    /// appliance whose events nobody takes goes on serving: it counts what it has to drop.
    pub async fn next_event(&mut self) -> Option<Result<Event, BadEvent>> {
        match self.early.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// Asks the guest to end in order: by its control port, after 15 s by the power button, after 5 s more QEMU is killed. Returns
    /// at once; [`Vm::next_event`] and [`Vm::wait`] go on. Asking again changes nothing. Call it within a Tokio runtime.
    pub fn stop(&mut self) {
        if let Some(commands) = self.commands.take() {
            self.wardens.spawn(stop(commands, Arc::clone(&self.record), self.process.killer()));
        }
    }

    /// Kills QEMU. [`Vm::wait`] tells the rest.
    pub fn kill(&mut self) {
        self.kill_for(Killed::Wanted);
    }

    fn kill_for(&self, why: Killed) {
        self.record.kills(why);
        self.process.killer().kill();
    }

    /// Waits until the machine has ended by itself, and tells how.
    pub async fn wait(mut self) -> Ended {
        // A reader that waits for room in the queue goes on.
        self.events.close();
        let exit = self.process.ended().await;
        let read = async { while self.readers.join_next().await.is_some() {} };
        let _all = timeout(LEFTOVERS, read).await;
        self.record.ended(exit)
    }

    /// Ends the appliance in order ([`Vm::stop`]), waits and tells how it ended.
    pub async fn shutdown(mut self) -> Ended {
        self.stop();
        self.wait().await
    }
}

/// An address of this machine that reaches whoever listens at `address`.
fn reachable(mut address: SocketAddrV4) -> SocketAddrV4 {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST);
    }
    address
}

/// Ends a machine in order, or kills it.
async fn stop(commands: Commands, record: Arc<Record>, killer: Killer) {
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
        record.kills(Killed::Asked);
        killer.kill();
    }
}

/// Kills a machine that is about to end and does not.
async fn guard(record: Arc<Record>, killer: Killer) {
    let why = record.end().await;
    sleep(GRACE).await;
    record.kills(why);
    killer.kill();
}
