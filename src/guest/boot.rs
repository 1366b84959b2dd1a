//! The order of boot: from the start of PID 1 to a serving registry, and from a shutdown request to power-off. [`run`] never
//! returns, because the kernel panics when PID 1 exits.

use std::any::Any;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use nix::sys::wait::WaitStatus;
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::proto::{Booting, Done, Event, event};
use crate::registry::listen::server::raise_open_files;
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::metrics::Totals;

use super::disk::MountedDisk;
use super::early::{clock, console, entropy, frozen, machine, modules, mount};
use super::error::Fault;
use super::messages::{DiskRoot, Order, Report, Shutdown};
use super::power::ShutdownRequest;
use super::report::boot_timeline::{self, BootTimeline};
use super::report::events::{self, Writer};
use super::supervisor::{Process, Server};

use super::control::FaultCommands;
use super::{control, disk, net, power};
use crate::config::disks::DiskChoice;
use crate::config::{self, Origin, PartialConfig, Settings};

/// Limit on open files: one for each connection and each blob in transfer. It is the kernel's own maximum (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;
/// How long remaining tasks may take to end after serving has stopped.
pub(super) const STRAGGLERS: Duration = Duration::from_millis(500);
/// How long the server may take to end after the time for transfers.
const ENDING: Duration = Duration::from_secs(10);

/// Boots, serves until a shutdown request or a fault, and cuts the power.
pub fn run() -> ! {
    console::open();
    console::hook_panics();
    console::log_warnings();
    let mut guest = Guest::new();
    let end = catch_panic(|| guest.boot());
    power::set_deadline();
    guest.finish(end);
    power::off()
}

/// The state that exists from the first step to the last.
#[derive(Debug)]
struct Guest {
    timeline: BootTimeline,
    events: Events,
    event_output: EventOutput,
}

/// The output of events: a queue until the writing thread has started.
#[derive(Debug)]
enum EventOutput {
    Queued(Receiver<Event>),
    Writing(Writer),
    Failed,
}

/// A machine that serves.
struct Prepared {
    server: Server,
    network: net::Network,
    choices: Vec<DiskChoice>,
    attached: Vec<MountedDisk>,
    /// The kernel's notifications of disks.
    changes: watch::Receiver<()>,
}

impl Guest {
    fn new() -> Self {
        let (events, queue) = Events::queue();
        Self { timeline: BootTimeline::default(), events, event_output: EventOutput::Queued(queue) }
    }

    /// The steps before the runtime and its threads.
    fn boot(&mut self) -> Result<Shutdown, Fault> {
        self.timeline.run("mounts", mount::mount_api_file_systems)?;
        // The program is loaded a second time while the next steps run.
        let process = Process::start();
        self.timeline.run("modules", modules::load)?;
        let freezes = frozen::is_wanted();
        if !freezes {
            self.emit_booting();
        }
        self.start_event_writer().map_err(Fault::Runtime)?;
        let process = process.map_err(Fault::Runtime)?;
        let runtime = self.timeline.run("runtime", || runtime::Builder::new_current_thread().enable_all().build());
        let runtime = runtime.map_err(Fault::Runtime)?;
        // A panic must not drop the runtime: that waits for every thread, even for one whose disk hangs.
        let runtime = ManuallyDrop::new(runtime);
        let end = runtime.block_on(self.serve_until_shutdown(process, freezes));
        ManuallyDrop::into_inner(runtime).shutdown_timeout(STRAGGLERS);
        end
    }

    /// From here on shutdown requests are accepted, even while a step waits. All that does not depend on the run comes before the wait of a
    /// machine that `freezes`.
    async fn serve_until_shutdown(&mut self, process: Process, freezes: bool) -> Result<Shutdown, Fault> {
        let (sender, requests, ended) = power::watch().map_err(Fault::Runtime)?;
        let faults = control::listen(sender, self.events.clone());
        if freezes {
            frozen::wait(&mut self.timeline)?;
            self.emit_booting();
        }
        let mut server = None;
        let end = self.supervise(process, &mut server, requests, ended, faults).await;
        // It must not send an event after the last one.
        server.iter().for_each(Server::kill);
        end
    }

    /// Boots, has the `process` serve as `server`, and does for it what needs privileges until it has ended.
    async fn supervise(
        &mut self,
        process: Process,
        server: &mut Option<Server>,
        mut requests: UnboundedReceiver<ShutdownRequest>,
        mut ended: UnboundedReceiver<WaitStatus>,
        mut faults: FaultCommands,
    ) -> Result<Shutdown, Fault> {
        let Prepared { server, network, choices, attached, changes } = tokio::select! {
            // A server that is ready says so here before the launcher knows, and may ask for the end.
            biased;
            prepared = self.prepare(process, server, &mut ended) => prepared?,
            request = next(&mut requests) => return Ok(Shutdown::new(request.by, Totals::default())),
        };
        tokio::spawn(report_addresses(network, server.clone()));
        let (answered, answers) = unbounded_channel();
        let disks = disk::hotplug::DiskManager::new(server.clone(), answers, choices, attached, self.events.clone());
        tokio::spawn(disks.run(changes));
        let mut deadline = None;
        loop {
            tokio::select! {
                biased;
                report = server.receive(&mut ended) => match report? {
                    Report::Ready => {}
                    Report::DisksChanged(result) => drop(answered.send(result)),
                    Report::Faults(reply) => faults.reply(reply),
                    Report::Ended(shutdown) => return Ok(shutdown),
                    Report::Failed(fault) => return Err(fault.into()),
                },
                request = next(&mut requests) => {
                    deadline.get_or_insert(Instant::now() + request.drain + ENDING);
                    server.send(&Order::ShutDown(request)).await;
                }
                command = faults.next() => server.send(&Order::Faults(command)).await,
                () = until(deadline) => return Err(Fault::ServerHangs),
            }
        }
    }

    /// The steps from the config to a server that is ready.
    async fn prepare(
        &mut self,
        process: Process,
        server: &mut Option<Server>,
        ended: &mut UnboundedReceiver<WaitStatus>,
    ) -> Result<Prepared, Fault> {
        let launcher = self.timeline.run("config", config::from_launcher)?;
        let early = launcher.settings(Origin::Together)?;
        self.trace(&early);

        let changes = disk::watch()?;
        let attached = self.timeline.run_async("disk", disk::attach(&early.disks, early.disk_wait)).await?;
        let disks: Vec<DiskRoot> = attached.iter().map(DiskRoot::from).collect();
        let settings = self.timeline.run("config on the disk", || merge_config(launcher, &disks))?;
        self.trace(&settings);

        let clock = self.timeline.run("clock", || clock::initialize(settings.clock));
        clock.warning.into_iter().for_each(|message| self.warn("CLOCK", message));
        self.set_name_and_limits(&settings.hostname);
        self.timeline.run_async("entropy", entropy::wait()).await?;

        let port = if let EventOutput::Writing(writer) = &self.event_output { writer.port() } else { None };
        let order = Order::Start { disks, clock_trusted: clock.trusted.is_some(), steps: self.timeline.steps() };
        let server = server.insert(process.begin(&order, port).map_err(Fault::ServerMessage)?).clone();
        // The server does what needs no address while the network waits for answers.
        let started = machine::uptime();
        let network = tokio::select! {
            network = net::start(&settings.interfaces, &settings.hostname, &self.events) => network?,
            report = server.receive(ended) => return Err(fault(report?)),
        };
        let step = Some(boot_timeline::step("network", started));
        server.send(&Order::Addresses { addresses: network.addresses().to_vec(), step }).await;
        match server.receive(ended).await? {
            Report::Ready => Ok(Prepared { server, network, choices: settings.disks, attached, changes }),
            other => Err(fault(other)),
        }
    }

    fn trace(&mut self, settings: &Settings) {
        if settings.trace {
            self.timeline.trace();
        }
    }

    fn set_name_and_limits(&self, hostname: &str) {
        if let Err(error) = machine::set_hostname(hostname) {
            self.warn("HOSTNAME", format!("cannot set the host name {hostname}: {error}"));
        }
        if let Err(error) = raise_open_files(Some(OPEN_FILES)) {
            self.warn("OPEN_FILES", format!("cannot raise the limit on open files: {error}"));
        }
    }

    fn emit_booting(&self) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.events.emit(event::Event::Booting(Booting { version, kernel: machine::kernel_release() }));
    }

    fn warn(&self, code: &str, message: String) {
        console::warn(&self.events, code, message);
    }

    fn start_event_writer(&mut self) -> io::Result<()> {
        self.event_output = match std::mem::replace(&mut self.event_output, EventOutput::Failed) {
            EventOutput::Queued(queue) => EventOutput::Writing(Writer::start(&self.events, queue)?),
            opened => opened,
        };
        Ok(())
    }

    /// Reports the end to the console and the launcher.
    fn finish(mut self, end: Result<Shutdown, Fault>) {
        let done = match end {
            Ok(ended) => {
                let (reason, Shutdown { requests, bytes, dropped_events, .. }) = (ended.reason(), ended);
                console::log(&format!("{reason}: {requests} requests, {bytes} bytes"));
                Done { reason, requests, bytes, dropped_events, ..Done::default() }
            }
            Err(fault) => {
                let (code, reason) = (fault.code().to_owned(), fault.chain());
                console::fatal(&code, &reason);
                Done { reason, status: 1, code, ..Done::default() }
            }
        };
        if let Err(error) = self.start_event_writer() {
            console::log(&format!("cannot start the thread that writes events: {error}"));
        }
        match self.event_output {
            EventOutput::Writing(writer) => drop(writer.finish(Some(done))),
            EventOutput::Queued(_) | EventOutput::Failed => events::write_last(done),
        }
    }
}

/// The config of the launcher and of `disks`.
///
/// # Errors
/// Fails if they are invalid together.
pub(super) fn merge_config(launcher: PartialConfig, disks: &[DiskRoot]) -> Result<Settings, config::ConfigError> {
    let on_disks = config::from_disks(disks.iter().map(|disk| (disk.name.as_str(), disk.root.as_path())))?;
    on_disks.overridden_by(launcher).settings(Origin::Together)?.check_together()
}

/// Tells the server each change of the addresses.
async fn report_addresses(mut network: net::Network, server: Server) {
    loop {
        let addresses = network.changed().await.to_vec();
        server.send(&Order::Addresses { addresses, step: None }).await;
    }
}

/// What a report means before the server is ready.
fn fault(report: Report) -> Fault {
    match report {
        Report::Failed(fault) => fault.into(),
        other => Fault::ServerMessage(io::Error::other(format!("{other:?} before it is ready"))),
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The next shutdown request. The channel does not close while a source exists.
pub(super) async fn next(requests: &mut UnboundedReceiver<ShutdownRequest>) -> ShutdownRequest {
    match requests.recv().await {
        Some(request) => request,
        None => std::future::pending().await,
    }
}

/// Runs `boot` and turns a panic into a fault.
pub(super) fn catch_panic(boot: impl FnOnce() -> Result<Shutdown, Fault>) -> Result<Shutdown, Fault> {
    catch_unwind(AssertUnwindSafe(boot)).unwrap_or_else(|panic| Err(Fault::Panic(panic_message(&*panic))))
}

/// The message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_becomes_a_fault_with_its_message() {
        let at = 7;
        for (end, words) in [
            (catch_panic(|| panic!("no more")), "a bug in localregistry-init: no more"),
            (catch_panic(|| panic!("at {at}")), "a bug in localregistry-init: at 7"),
            (catch_panic(|| std::panic::panic_any(5)), "a bug in localregistry-init: no message"),
        ] {
            let fault = end.unwrap_err();
            assert_eq!((fault.code(), fault.chain().as_str()), ("PANIC", words));
        }
    }

    #[test]
    fn event_writer_is_started_once() {
        let mut guest = Guest::new();
        for _ in 0..2 {
            guest.start_event_writer().unwrap();
            assert!(matches!(guest.event_output, EventOutput::Writing(_)));
        }
    }
}
