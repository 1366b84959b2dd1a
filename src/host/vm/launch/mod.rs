//! The launcher: boots a packed disk and returns the running appliance (the machine and its QEMU process), with its address, its CA, its
//! events and how it ended. It starts one QEMU, creates only the files that are asked for, has no global state, and prints nothing but
//! progress.
//!
//! ```text
//! Appliance::builder … boot ─▶ Appliance ─┬─ ready, endpoint, ca_pem, next_event …
//!                                         ├─ write_ca, trust ─▶ files for nodes
//!                                         ├─ shutdown ─▶ ExitReport
//!                                         └─ drop: QEMU is killed and reaped
//! ```
//!
//! The launcher talks to QEMU through inherited socket pairs (console, events, control, QMP), and passes the guest's config in anonymous
//! memory. There is no directory and no named socket, so nothing has to be removed. QEMU dies with this process. For launchers that start
//! QEMU themselves, [`command`] writes the config to a file and returns the arguments.

mod builder;
pub mod command;
pub mod error;
mod event;
mod faults;
pub(crate) mod frozen;
mod heartbeat_watchdog;
mod monitor;
mod options;
mod outcome;
pub(crate) mod passt;
mod prepare;
mod process;
mod qmp;
mod shutdown;
mod spawn;
mod tail;
mod trust_files;
mod version;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use serde_json::{Value, json};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::accel::{self, Accel, AccelChoice};
use super::net::{self, Net};
use crate::host::support::files;
use crate::proto::{Event, Ready, event::Event as Kind};
use crate::text::chain;
use error::Purpose;
use monitor::Monitor;
use prepare::{Forwards, Prepared};
use process::Process;
use shutdown::{ControlChannels, SHUTDOWN_TIMEOUTS, shut_down};

pub(crate) use self::event::{MAX_EVENT, parse as parse_event};
pub use super::qemu::Board;
pub use crate::host::boot::kernel::Flavor;
pub use crate::host::nodes::access::{Access, AccessError};
pub use builder::{BuildError, Builder};
pub use error::LaunchError;
pub use event::EventError;
use faults::ControlPort;
pub use faults::{Faults, FaultsError};
pub use frozen::{FreezeError, Start};
use frozen::{Incoming, NoMachine, Saved, save_beside};
pub use monitor::ExitReport;
pub use options::{MIN_MEMORY, Options};
pub use outcome::{Exit, KillReason, Outcome};
pub use prepare::check_disk;
pub(crate) use prepare::check_outputs;
pub use qmp::QmpError;

/// Capacity of the queue for [`Appliance::next_event`].
const EVENT_QUEUE: usize = 1024;
/// Time that a guest under KVM has for its first output before automatic choice falls back to TCG. A working guest prints within a second.
const SIGN_OF_LIFE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that QEMU has to answer a command.
const QMP_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to read the rest of QEMU's sockets after its end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A running appliance whose registry is ready. Dropping it kills and reaps QEMU.
#[derive(Debug)]
pub struct Appliance {
    process: Process,
    // Dropped after `process`: QEMU must be gone before its sockets are removed.
    _socket_files: spawn::SocketFiles,
    monitor: Arc<Monitor>,
    events: mpsc::Receiver<Result<Event, EventError>>,
    /// For the heartbeat watchdog, whose reports go between the events.
    event_sender: mpsc::WeakSender<Result<Event, EventError>>,
    /// Events up to and including `ready`.
    early_events: VecDeque<Result<Event, EventError>>,
    /// `None` once the machine has been asked to shut down.
    channels: Option<ControlChannels>,
    control: Arc<ControlPort>,
    /// Tasks that read from QEMU. Each ends with QEMU.
    readers: JoinSet<()>,
    /// Tasks that watch the heartbeat, shut the machine down, kill it when it is stuck, or save a frozen machine for later runs.
    guards: JoinSet<()>,
    accel: Accel,
    cpus: u32,
    disks: Vec<PathBuf>,
    /// Names of the certificate from the config.
    names: Vec<String>,
    nets: Vec<Net>,
    /// No host port is 0 once QEMU runs.
    forwards: Forwards,
    /// Whether passt carries the user network.
    has_passt: bool,
    /// What QEMU and the guest get when they start from a frozen machine.
    incoming: Option<Incoming>,
    /// The input of the guest's console. If it were closed, QEMU would close the console.
    _console_input: OwnedWriteHalf,
    start: Start,
    started: Instant,
    boot_time: Duration,
    ready: Ready,
}

impl Appliance {
    /// Boots an appliance and waits until its registry is ready. Dropping the future before that kills QEMU.
    ///
    /// Automatic choice of the accelerator falls back from KVM to TCG if QEMU cannot start under KVM, crashes before the guest's first
    /// output, or there is no output within 10 s.
    ///
    /// # Errors
    /// See [`LaunchError`]. No QEMU is left running.
    pub async fn boot(options: Options) -> Result<Self, LaunchError> {
        let prepared = Prepared::new(options, true).await?;
        let options = &prepared.options;
        let (accel, why_not) = accel::select(options.accel)?;
        if let Some(why) = why_not {
            options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&why)));
        }
        let may_fall_back = options.accel == AccelChoice::Auto && accel == Accel::Kvm;
        let NoMachine { why, missing } = match Saved::find(options, accel) {
            Err(none) => none,
            Ok(saved) => match Self::attempt(&prepared, accel, Some(SIGN_OF_LIFE_TIMEOUT), Some(&saved)).await {
                Err(error) if error.blames_frozen_machine() => {
                    // Further arguments may be the cause.
                    let removed = options.qemu_arguments.is_empty();
                    let what =
                        if removed { "does not start, and was removed" } else { "does not start with these arguments of QEMU" };
                    let why = format!("the frozen machine {what}: {}", chain(&error));
                    if removed {
                        saved.discard(&why);
                    }
                    options.report.step(format!("Booting from the start instead: {why}"));
                    why.into()
                }
                result => return result,
            },
        };
        let booted = match Self::attempt(&prepared, accel, may_fall_back.then_some(SIGN_OF_LIFE_TIMEOUT), None).await {
            Err(error) if may_fall_back && error.blames_accelerator() => {
                options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&error)));
                Self::attempt(&prepared, Accel::Tcg, None, None).await
            }
            result => result,
        };
        let mut appliance = booted?;
        let saved = missing.filter(|_| appliance.accel == accel).map(|target| {
            appliance.guards.spawn(save_beside(options.clone(), accel, target));
            "; it is saved while this run goes on"
        });
        let why = why + saved.unwrap_or_default();
        Ok(Self { start: Start::Cold { why }, ..appliance })
    }

    /// Starts QEMU and waits for `ready`. With `sign_of_life` it fails earlier if there is no output in that time.
    /// It starts from the machine `saved` if there is one.
    async fn attempt(
        prepared: &Prepared,
        accel: Accel,
        sign_of_life: Option<Duration>,
        saved: Option<&Saved>,
    ) -> Result<Self, LaunchError> {
        let options = &prepared.options;
        let mut vm = spawn::start(prepared, accel, saved).await?;
        let monitor = Arc::clone(&vm.monitor);
        let no_sign_of_life = async {
            match sign_of_life {
                Some(after) if timeout(after, monitor.alive()).await.is_err() => after,
                _ => std::future::pending().await,
            }
        };
        let boot = async {
            vm.connect().await?;
            Ok(vm.until_ready().await)
        };
        let booted = tokio::select! {
            after = no_sign_of_life => return Err(LaunchError::NoSignOfLife { after }),
            booted = timeout(options.timeout, boot) => booted,
        };
        match booted {
            Ok(Ok(true)) => return Ok(vm),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return Err(vm.start_error(error, options).await),
            Err(_) => vm.kill_for(KillReason::NotReady(options.timeout)),
        }
        Err(LaunchError::Ended(Box::new(vm.wait().await)))
    }

    /// Negotiates QMP, which QEMU answers only after it has built the machine, and learns the forwarded ports.
    async fn connect(&mut self) -> Result<(), LaunchError> {
        let Some(ControlChannels { qmp, .. }) = &mut self.channels else { return Ok(()) };
        qmp.execute("qmp_capabilities", Value::Null, QMP_TIMEOUT).await?;
        if let Some(incoming) = &mut self.incoming {
            incoming.resume(qmp).await?;
        }
        let mut unknown = self.forwards.all_mut().filter(|forward| forward.host.port() == 0).peekable();
        if unknown.peek().is_some() {
            let question = json!({ "command-line": "info usernet" });
            let answer = qmp.execute("human-monitor-command", question, QMP_TIMEOUT).await?;
            let answer = answer.as_str().unwrap_or_default();
            for forward in unknown {
                let port = qmp::forwarded_port(answer, forward.guest_port);
                forward.host.set_port(port.ok_or_else(|| LaunchError::NoPort { answer: answer.to_owned() })?);
            }
        }
        Ok(())
    }

    /// Explains an `error` of [`Appliance::connect`]. Mostly QEMU refused to build the machine, and printed why.
    async fn start_error(self, error: LaunchError, options: &Options) -> LaunchError {
        if !matches!(error, LaunchError::Qmp(QmpError::Closed { .. })) {
            return error;
        }
        let exit = timeout(QMP_TIMEOUT, self.process.exit()).await;
        let Ok(exit) = exit else { return error };
        let report = self.wait().await;
        // A refusal has a nonzero status. A signal, or status 0, has another cause.
        if !matches!(exit, Exit::Code(1..)) {
            return LaunchError::Ended(Box::new(report));
        }
        let stderr = report.stderr;
        // The port was free in `Prepared::new`: another process has taken it since.
        if stderr.iter().any(|line| line.contains("Could not set up host forwarding rule")) {
            let source = io::ErrorKind::AddrInUse.into();
            return LaunchError::port(Purpose::Registry, options.publish, source);
        }
        LaunchError::Start { exit, stderr }
    }

    /// Waits for `ready`. Returns false if the events end without it.
    async fn until_ready(&mut self) -> bool {
        while let Some(event) = self.events.recv().await {
            let ready = match &event {
                Ok(Event { event: Some(Kind::Ready(ready)), .. }) => Some(ready.clone()),
                _ => None,
            };
            if self.early_events.len() < EVENT_QUEUE || ready.is_some() {
                self.early_events.push_back(event);
            }
            if let Some(ready) = ready {
                self.boot_time = self.started.elapsed();
                if ready.heartbeat_seconds > 0 {
                    let every = Duration::from_secs(ready.heartbeat_seconds.into());
                    self.guards.spawn(heartbeat_watchdog::watch(Arc::clone(&self.monitor), every, self.event_sender.clone()));
                }
                self.ready = ready;
                return true;
            }
        }
        false
    }

    /// The guest's `ready` event: its own endpoints, its CA, the number of images, the steps of its boot.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Host and port of the registry, as they stand before an image's name: the forwarded address if the first network is QEMU's user
    /// network, otherwise the guest's own.
    #[must_use]
    pub fn address(&self) -> String {
        let endpoint = self.endpoint();
        endpoint.split_once("://").map_or(endpoint.clone(), |(_, address)| address.to_owned())
    }

    /// [`Appliance::address`] as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        // A ready guest has an endpoint.
        self.endpoints().into_iter().next().unwrap_or_default()
    }

    /// Every URL of the registry, those of the first network first: the forwarded one on QEMU's user network, the guest's own on others.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let plain = self.ready.endpoints.first().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let forwarded = self.forwards.registry.map(|forward| url(if plain { "http" } else { "https" }, forward.host));
        self.reachable(forwarded.as_slice(), &self.ready.endpoints)
    }

    /// URLs of health, metrics and the CA. Empty if they share the registry's port.
    #[must_use]
    pub fn metrics_endpoints(&self) -> Vec<String> {
        let forwarded = self.forwards.metrics.map(|forward| url("http", forward.host));
        self.reachable(forwarded.as_slice(), &self.ready.metrics_endpoints)
    }

    /// URLs of the registry's further listeners from the config.
    #[must_use]
    pub fn further_endpoints(&self) -> Vec<String> {
        let scheme = |plain| if plain { "http" } else { "https" };
        let forwarded: Vec<String> = self.forwards.further.iter().map(|one| url(scheme(one.plain), one.forward.host)).collect();
        self.reachable(&forwarded, &self.ready.further_endpoints)
    }

    /// The URLs that clients can reach, of the forwarded ones and the guest's own.
    fn reachable(&self, forwarded: &[String], own: &[String]) -> Vec<String> {
        let own = net::reachable(&self.nets, own);
        if self.nets.first().is_some_and(Net::is_user) { [forwarded, &own].concat() } else { [&own, forwarded].concat() }
    }

    /// The names and addresses from the config that the certificate is valid for, besides the endpoints' own.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The CA certificate to trust, PEM. `None` with plain HTTP.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        Some(self.ready.ca_pem.as_str()).filter(|pem| !pem.is_empty())
    }

    /// Writes the CA certificate to `path` atomically.
    ///
    /// # Errors
    /// Fails if the file cannot be written, or there is no CA because of plain HTTP.
    pub fn write_ca(&self, path: &Path) -> io::Result<()> {
        let pem = self.ca_pem().ok_or_else(|| io::Error::other("the registry serves plain HTTP: it has no CA"))?;
        files::write_atomically(path, pem.as_bytes())
    }

    /// The number of its virtual processors.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// The accelerator in use.
    #[must_use]
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Whether it started from a frozen machine, and why not.
    #[must_use]
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// What carries the user network: `passt` or `slirp`. `None` without it.
    #[must_use]
    pub fn user_network(&self) -> Option<&'static str> {
        let user = self.nets.iter().any(Net::is_user);
        user.then_some(if self.has_passt { "passt" } else { "slirp" })
    }

    /// The process ID of QEMU.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Time from QEMU's start to `ready`.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Waits for the next event of the guest, from `booting` on. An [`EventError`] reports a line that cannot be parsed, or a change of
    /// the heartbeat. Returns `None` once QEMU has ended. Cancel-safe. If nobody takes the events, the appliance still serves, and counts
    /// the events that it drops.
    pub async fn next_event(&mut self) -> Option<Result<Event, EventError>> {
        match self.early_events.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// The results of [`Appliance::next_event`] as a stream.
    pub fn events(&mut self) -> Events<'_> {
        Events(self)
    }

    /// Asks the guest to shut down gracefully: through its control port, after 15 s by the power button; after 5 s more QEMU is killed.
    /// Returns at once; [`Appliance::next_event`] and [`Appliance::wait`] go on. Calling it again changes nothing. Call it within a
    /// Tokio runtime.
    pub fn stop(&mut self) {
        if let Some(channels) = self.channels.take() {
            self.guards.spawn(shut_down(channels, Arc::clone(&self.monitor), self.process.killer(), SHUTDOWN_TIMEOUTS));
        }
    }

    /// The plan of faults: how the registry misbehaves on purpose. The handle may be used beside the events.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(Arc::clone(&self.control))
    }

    /// Kills QEMU. [`Appliance::wait`] returns the report.
    pub fn kill(&mut self) {
        self.kill_for(KillReason::Requested);
    }

    fn kill_for(&self, reason: KillReason) {
        self.monitor.set_killed(reason);
        self.process.killer().kill();
    }

    /// Waits until the machine has ended, and reports how.
    pub async fn wait(mut self) -> ExitReport {
        // Unblocks a reader that waits for space in the queue.
        self.events.close();
        let exit = self.process.exit().await;
        let read = async { while self.readers.join_next().await.is_some() {} };
        let _all_read = timeout(DRAIN_TIMEOUT, read).await;
        self.monitor.report(exit)
    }

    /// Shuts the appliance down gracefully ([`Appliance::stop`]), waits, and reports how it ended.
    pub async fn shutdown(mut self) -> ExitReport {
        self.stop();
        self.wait().await
    }
}

/// The events of an appliance as a stream.
#[derive(Debug)]
pub struct Events<'a>(&'a mut Appliance);

impl Stream for Events<'_> {
    type Item = Result<Event, EventError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.early_events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.0.events.poll_recv(context),
        }
    }
}

/// The URL at which this machine reaches a listener on `address`.
fn url(scheme: &str, mut address: SocketAddrV4) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST);
    }
    format!("{scheme}://{address}")
}
