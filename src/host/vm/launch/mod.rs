//! The launcher: a disk and what to boot it with enter, a running appliance leaves, with its address, its CA, its events and the
//! way it ended. It starts one QEMU, makes no file that is not asked for, has no global state and prints nothing but progress.
//!
//! ```text
//! Appliance::builder … boot ─▶ Appliance ─┬─ ready, endpoint, ca_pem, next_event …
//!                                         ├─ write_ca, trust ─▶ files for nodes
//!                                         ├─ shutdown ─▶ Ended
//!                                         └─ drop: QEMU is killed and reaped
//! ```
//!
//! QEMU is reached through inherited socketpairs (console, events, control, QMP) and reads its config from anonymous memory: no
//! directory, no named socket, nothing to remove whatever happens. It dies with this program. For launchers that start QEMU
//! themselves there is [`command`], which writes that config to a file and gives the arguments.

mod builder;
pub mod command;
mod console;
pub mod error;
mod event;
mod heartbeat_watchdog;
mod options;
mod outcome;
mod prepare;
mod printable;
mod process;
mod qmp;
mod record;
mod shutdown;
mod spawn;
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
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::accel::{self, Accel, Choice};
use super::net::{self, Net};
use super::qemu::Forward;
use crate::host::support::files;
use crate::proto::{Event, Ready, event::Event as Kind};
use crate::text::chain;
use error::Purpose;
use prepare::{Further, Prepared};
use process::Process;
use record::Record;
use shutdown::{Commands, PATIENCE, stop};

pub(crate) use self::event::{LONGEST as LONGEST_EVENT, parse as parse_event};
pub use super::qemu::Board;
pub use crate::host::boot::kernel::Flavor;
pub use crate::host::nodes::access::{Access, AccessError};
pub use builder::{BuildError, Builder};
pub use error::LaunchError;
pub use event::BadEvent;
pub use options::{LEAST_MEMORY, Options};
pub use outcome::{Exit, Killed, Outcome};
pub use prepare::check_disk;
pub use printable::printable;
pub use qmp::QmpError;
pub use record::Ended;

/// Events that wait for [`Appliance::next_event`] at most.
const QUEUE: usize = 1024;
/// How long a guest under KVM may show no sign of life before automatic choice takes TCG. A working one prints within a second.
const SILENCE: Duration = Duration::from_secs(10);
/// How long QEMU may take to answer a command.
const ANSWER: Duration = Duration::from_secs(30);
/// How long after QEMU's end its sockets may still be read.
const LEFTOVERS: Duration = Duration::from_secs(5);

/// A running appliance whose registry is ready. Dropping it kills QEMU and returns when that is gone.
#[derive(Debug)]
pub struct Appliance {
    process: Process,
    /// After the process: it is dropped after it.
    _leftovers: spawn::Leftovers,
    record: Arc<Record>,
    events: mpsc::Receiver<Result<Event, BadEvent>>,
    /// For what is told of the guest in the place of events.
    into_events: mpsc::WeakSender<Result<Event, BadEvent>>,
    /// Events that came before `ready`, it included.
    early: VecDeque<Result<Event, BadEvent>>,
    /// Gone once the machine has been asked to stop.
    commands: Option<Commands>,
    /// The tasks that read; each ends with QEMU.
    readers: JoinSet<()>,
    /// The tasks that see to it that the machine ends in time.
    wardens: JoinSet<()>,
    accel: Accel,
    disks: Vec<PathBuf>,
    /// Further names of the certificate.
    names: Vec<String>,
    nets: Vec<Net>,
    /// Forwarded to the registry, and to health, metrics and the CA; no port is 0 once QEMU runs.
    registry: Option<Forward>,
    metrics: Option<Forward>,
    further: Vec<Further>,
    started: Instant,
    boot_time: Duration,
    ready: Ready,
}

impl Appliance {
    /// Boots an appliance and waits until its registry is ready. Dropping the future before that kills QEMU.
    ///
    /// Automatic choice of the accelerator falls from KVM to TCG where QEMU cannot start under KVM or crashes before the guest shows a
    /// sign of life, or where there is none in 10 s.
    ///
    /// # Errors
    /// See [`LaunchError`]. No QEMU is left running.
    pub async fn boot(options: Options) -> Result<Self, LaunchError> {
        let prepared = Prepared::of(options).await?;
        let options = &prepared.options;
        let kvm = if options.accel == Choice::Tcg { Ok(()) } else { accel::probe() };
        let (accel, why_not) = accel::choose(options.accel, kvm)?;
        if let Some(why) = why_not {
            options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&why)));
        }
        let may_fall = options.accel == Choice::Auto && accel == Accel::Kvm;
        match Self::attempt(&prepared, accel, may_fall.then_some(SILENCE)).await {
            Err(error) if may_fall && error.blames_accelerator() => {
                options.report.step(format!("Booting under TCG, KVM cannot be used: {}", chain(&error)));
                Self::attempt(&prepared, Accel::Tcg, None).await
            }
            result => result,
        }
    }

    /// Starts QEMU and waits for `ready`, but no longer than `silence` for a sign of life.
    async fn attempt(prepared: &Prepared, accel: Accel, silence: Option<Duration>) -> Result<Self, LaunchError> {
        let options = &prepared.options;
        let mut vm = spawn::start(prepared, accel).await?;
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
        let further = self.further.iter_mut().map(|further| &mut further.forward);
        let forwards = [self.registry.as_mut(), self.metrics.as_mut()].into_iter().flatten().chain(further);
        let mut unknown = forwards.filter(|forward| forward.host.port() == 0).peekable();
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

    /// What `error` of [`Appliance::connect`] means: mostly that QEMU refused to make the machine, and said why.
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
            let source = io::ErrorKind::AddrInUse.into();
            return LaunchError::port(Purpose::Registry, options.publish, source);
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
                self.boot_time = self.started.elapsed();
                if ready.heartbeat_seconds > 0 {
                    let every = Duration::from_secs(ready.heartbeat_seconds.into());
                    self.wardens.spawn(heartbeat_watchdog::watch(Arc::clone(&self.record), every, self.into_events.clone()));
                }
                self.ready = ready;
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

    /// Where clients reach the registry, as they put it before an image's name: on this machine where the first network is QEMU's
    /// user network, else the guest's own address.
    #[must_use]
    pub fn address(&self) -> String {
        let endpoint = self.endpoint();
        endpoint.split_once("://").map_or(endpoint.clone(), |(_, address)| address.to_owned())
    }

    /// The same as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        // The guest gave at least one, or it would not have been ready.
        self.endpoints().into_iter().next().unwrap_or_default()
    }

    /// Every URL that clients reach the registry by, those of the first network first: the forwarded one of QEMU's user network, the
    /// guest's own of the others.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        let plain = self.ready.endpoints.first().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let forwarded = self.registry.map(|forward| url(if plain { "http" } else { "https" }, forward.host));
        self.reached(forwarded.as_slice(), &self.ready.endpoints)
    }

    /// URLs of health, metrics and the CA, where they have a port of their own.
    #[must_use]
    pub fn metrics_endpoints(&self) -> Vec<String> {
        let forwarded = self.metrics.map(|forward| url("http", forward.host));
        self.reached(forwarded.as_slice(), &self.ready.metrics_endpoints)
    }

    /// URLs of the registry's further listeners, where the config has some.
    #[must_use]
    pub fn further_endpoints(&self) -> Vec<String> {
        let scheme = |plain| if plain { "http" } else { "https" };
        let forwarded: Vec<String> = self.further.iter().map(|one| url(scheme(one.plain), one.forward.host)).collect();
        self.reached(&forwarded, &self.ready.further_endpoints)
    }

    /// What clients reach, of URLs that are forwarded and the guest's own.
    fn reached(&self, forwarded: &[String], own: &[String]) -> Vec<String> {
        let own = net::reachable(&self.nets, own);
        if self.nets.first().is_some_and(Net::is_user) { [forwarded, &own].concat() } else { [&own, forwarded].concat() }
    }

    /// The names and addresses that clients may use besides those of the endpoints: the config's, which the certificate is for.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The CA certificate to trust, PEM. None with plain HTTP.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        Some(self.ready.ca_pem.as_str()).filter(|pem| !pem.is_empty())
    }

    /// Writes the CA certificate to `path`, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written, or there is none: plain HTTP.
    pub fn write_ca(&self, path: &Path) -> io::Result<()> {
        let pem = self.ca_pem().ok_or_else(|| io::Error::other("the registry serves plain HTTP: it has no CA"))?;
        files::write_atomically(path, pem.as_bytes())
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

    /// The next event of the guest, from `booting` on, or what came in place of one: a line that is none, or that the guest hangs.
    /// Nothing once QEMU has ended. Cancel-safe. An appliance whose events nobody takes goes on serving: it counts what it has to drop.
    pub async fn next_event(&mut self) -> Option<Result<Event, BadEvent>> {
        match self.early.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// The events as a stream: what [`Appliance::next_event`] gives, one after another.
    pub fn events(&mut self) -> Events<'_> {
        Events(self)
    }

    /// Asks the guest to end in order: by its control port, after 15 s by the power button, after 5 s more QEMU is killed. Returns
    /// at once; [`Appliance::next_event`] and [`Appliance::wait`] go on. Asking again changes nothing. Call it within a Tokio runtime.
    pub fn stop(&mut self) {
        if let Some(commands) = self.commands.take() {
            self.wardens.spawn(stop(commands, Arc::clone(&self.record), self.process.killer(), PATIENCE));
        }
    }

    /// Kills QEMU. [`Appliance::wait`] tells the rest.
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

    /// Ends the appliance in order ([`Appliance::stop`]), waits and tells how it ended.
    pub async fn shutdown(mut self) -> Ended {
        self.stop();
        self.wait().await
    }
}

/// The events of an appliance as a stream.
#[derive(Debug)]
pub struct Events<'a>(&'a mut Appliance);

impl Stream for Events<'_> {
    type Item = Result<Event, BadEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.early.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.0.events.poll_recv(context),
        }
    }
}

/// The URL at which this machine reaches whoever listens at `address`.
fn url(scheme: &str, mut address: SocketAddrV4) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST);
    }
    format!("{scheme}://{address}")
}
