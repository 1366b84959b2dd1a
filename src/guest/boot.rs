//! The order of boot: from the start of PID 1 to a serving registry, and from a shutdown request to power-off. [`run`] never
//! returns, because the kernel panics when PID 1 exits.

use std::any::Any;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::proto::{self, Booting, Done, Event, Ready, event};
use crate::registry::api::handler::{Options, Registry};
use crate::registry::content::store::{Disk, Store};
use crate::registry::listen::listener::Listener;
use crate::registry::listen::server::{raise_open_files, runtime, serve};
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::metrics::Totals;
use crate::registry::tls::Identity;

use super::disk::MountedDisk;
use super::early::{clock, console, entropy, frozen, machine, modules, mount};
use super::error::Fault;
use super::listeners::Listeners;
use super::power::{Requester, ShutdownRequest};
use super::report::boot_timeline::BootTimeline;
use super::report::events::Writer;
use super::report::{events, heartbeat};

use super::{access, control, disk, endpoint_watch, net, power, tls};
use crate::config::{self, Origin, PartialConfig, Settings};

/// Limit on open files: one for each connection and each blob in transfer. It is the kernel's own maximum (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;
/// How long remaining tasks may take to end after serving has stopped.
const STRAGGLERS: Duration = Duration::from_millis(500);

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

/// The result of a requested shutdown.
#[derive(Debug)]
struct Shutdown {
    by: Requester,
    /// The source of a second request, which ended the transfers in progress.
    repeated_by: Option<Requester>,
    totals: Totals,
}

impl Shutdown {
    /// A description for the console and the `done` event.
    fn reason(&self) -> String {
        let again = self.repeated_by.map_or_else(String::new, |by| format!(", and at once by {}", by.describe()));
        format!("shut down by {}{again}", self.by.describe())
    }
}

/// A registry that is ready to serve.
struct Prepared {
    registry: Arc<Registry>,
    listeners: Listeners,
    /// Their bound sockets.
    bound: Vec<Listener>,
    identity: Identity,
    network: net::Network,
    /// The manager of disks, and the notifications that it follows.
    disks: (disk::hotplug::DiskManager, watch::Receiver<()>),
    heartbeat: Option<Duration>,
}

impl Guest {
    fn new() -> Self {
        let (events, queue) = Events::queue();
        Self { timeline: BootTimeline::default(), events, event_output: EventOutput::Queued(queue) }
    }

    /// The steps before the runtime and its threads.
    fn boot(&mut self) -> Result<Shutdown, Fault> {
        self.timeline.run("mounts", mount::mount_api_file_systems)?;
        self.timeline.run("modules", modules::load)?;
        let freezes = frozen::is_wanted();
        if !freezes {
            self.emit_booting();
        }
        self.start_event_writer().map_err(Fault::Runtime)?;
        let runtime = self.timeline.run("runtime", runtime).map_err(Fault::Runtime)?;
        // A panic must not drop the runtime: that waits for every thread, even for one whose disk hangs.
        let runtime = ManuallyDrop::new(runtime);
        let end = runtime.block_on(self.serve_until_shutdown(freezes));
        ManuallyDrop::into_inner(runtime).shutdown_timeout(STRAGGLERS);
        end
    }

    /// From here on shutdown requests are accepted, even while a step waits. All that does not depend on the run comes before the wait of a
    /// machine that `freezes`.
    async fn serve_until_shutdown(&mut self, freezes: bool) -> Result<Shutdown, Fault> {
        let (sender, mut requests) = power::watch().map_err(Fault::Runtime)?;
        control::listen(sender, self.events.clone());
        if freezes {
            frozen::wait(&mut self.timeline)?;
            self.emit_booting();
        }
        let prepared = tokio::select! {
            biased;
            request = next(&mut requests) => return Ok(Shutdown { by: request.by, repeated_by: None, totals: Totals::default() }),
            prepared = self.prepare() => prepared?,
        };
        self.announce_ready(&prepared);
        let Prepared { registry, listeners, bound, identity, network, disks: (disks, changes), heartbeat } = prepared;
        tokio::spawn(endpoint_watch::run(network, listeners, identity.leaves, self.events.clone()));
        tokio::spawn(disks.run(changes));
        if let Some(interval) = heartbeat {
            tokio::spawn(heartbeat::run(interval, Arc::clone(&registry), self.events.clone()));
        }
        // The sources of the first and the second shutdown request.
        let (mut first, mut second) = (None, None);
        let shutdown = async {
            let request = next(&mut requests).await;
            first = Some(request.by);
            (request, requests)
        };
        // Runs after the listeners have closed, if transfers are in progress.
        let drain = async |(ShutdownRequest { by, drain }, mut requests)| {
            console::log(&format!(
                "shutdown by {}: no new connections; transfers in progress have {} s",
                by.describe(),
                drain.as_secs()
            ));
            second = timeout(drain, next(&mut requests)).await.ok().map(|request| request.by);
        };
        let totals = serve(bound, registry, shutdown, drain).await;
        Ok(Shutdown { by: first.unwrap_or(Requester::Command), repeated_by: second, totals })
    }

    /// The steps from the config to the listening sockets.
    async fn prepare(&mut self) -> Result<Prepared, Fault> {
        let launcher = self.timeline.run("config", config::from_launcher)?;
        let early = launcher.settings(Origin::Together)?;
        self.trace(&early);

        let changes = disk::watch()?;
        let attached = self.timeline.run_async("disk", disk::attach(&early.disks, early.disk_wait)).await?;
        let settings = self.timeline.run("config on the disk", || merge_config(launcher, &attached))?;
        self.trace(&settings);

        let clock = self.timeline.run("clock", || clock::initialize(settings.clock));
        clock.warning.into_iter().for_each(|message| self.warn("CLOCK", message));
        self.set_name_and_limits(&settings.hostname);

        // What needs no address is done while the network waits for answers.
        let (started, events, timeline) = (machine::uptime(), &self.events, &mut self.timeline);
        let network = async { Ok::<_, Fault>(net::start(&settings.interfaces, &settings.hostname, events).await?) };
        let meanwhile = async {
            let store = timeline.run("catalog", || open(&attached))?;
            timeline.run_async("entropy", entropy::wait()).await?;
            let (auth, clients) =
                timeline.run("auth", || Ok::<_, Fault>((access::auth(&settings)?, access::client_ca(&settings)?)))?;
            let early_tls = timeline.run("CA", || tls::Early::prepare(&settings, clients.as_ref(), clock.trusted))?;
            Ok((store, auth, clients, early_tls))
        };
        let (network, (store, auth, clients, early_tls)) = tokio::try_join!(network, meanwhile)?;
        self.timeline.end("network", started);
        let identity = self.timeline.run("tls", || early_tls.finish(&settings, network.addresses(), &store, clients.as_ref()))?;
        let options = Options {
            limits: settings.limits,
            auth,
            client_certificates: clients.map(|clients| clients.presence()),
            ca_pem: identity.ca_pem.clone(),
            verify: settings.verify,
            // Its disks are read-only.
            sendfile: true,
        };
        let registry = Arc::new(Registry::new(store, self.events.clone(), options));
        let listeners = Listeners::of(&settings);
        let bound = self.timeline.run("listen", || listeners.listen(&identity.transport))?;
        let (own, leaves) = (Arc::clone(&registry), identity.leaves.clone());
        let disks = (disk::hotplug::DiskManager::new(own, settings.disks, attached, leaves, self.events.clone()), changes);
        Ok(Prepared { registry, listeners, bound, identity, network, disks, heartbeat: settings.heartbeat })
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

    fn announce_ready(&self, prepared: &Prepared) {
        let ready = self.ready(prepared);
        let (endpoints, uptime) = ([&*ready.endpoints, &*ready.further_endpoints].concat().join(" "), ready.uptime);
        console::log(&format!("ready after {uptime:.2} s: {} images at {endpoints}", ready.images));
        self.events.emit(event::Event::Ready(ready));
    }

    fn ready(&self, prepared: &Prepared) -> Ready {
        let Prepared { registry, identity, network, listeners, .. } = prepared;
        let (snapshot, memory) = (registry.snapshot(), machine::memory());
        let store = snapshot.store();
        let proto::Endpoints { endpoints, metrics_endpoints, further_endpoints } = listeners.endpoints(network.addresses());
        Ready {
            endpoints,
            ca_pem: identity.ca_pem.clone().unwrap_or_default(),
            images: u32::try_from(store.images()).unwrap_or(u32::MAX),
            blobs: u32::try_from(store.blobs()).unwrap_or(u32::MAX),
            blob_bytes: store.blob_bytes(),
            uptime: machine::uptime(),
            steps: self.timeline.steps(),
            memory_used: memory.used,
            memory_total: memory.total,
            metrics_endpoints,
            further_endpoints,
            heartbeat_seconds: prepared.heartbeat.map_or(0, |interval| u32::try_from(interval.as_secs()).unwrap_or(u32::MAX)),
            disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
        }
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
                let (reason, Totals { requests, bytes }) = (ended.reason(), ended.totals);
                console::log(&format!("{reason}: {requests} requests, {bytes} bytes"));
                Done { reason, requests, bytes, ..Done::default() }
            }
            Err(fault) => {
                let (code, reason) = (fault.code(), fault.chain());
                console::fatal(code, &reason);
                Done { reason, status: 1, code: code.to_owned(), ..Done::default() }
            }
        };
        if let Err(error) = self.start_event_writer() {
            console::log(&format!("cannot start the thread that writes events: {error}"));
        }
        match self.event_output {
            EventOutput::Writing(writer) => writer.finish(done),
            EventOutput::Queued(_) | EventOutput::Failed => events::write_last(done),
        }
    }
}

fn merge_config(launcher: PartialConfig, disks: &[MountedDisk]) -> Result<Settings, config::ConfigError> {
    let named: Vec<_> = disks.iter().map(|disk| (disk.device.to_string(), disk.root.as_path())).collect();
    let on_disks = config::from_disks(named.iter().map(|(name, root)| (name.as_str(), *root)))?;
    on_disks.overridden_by(launcher).settings(Origin::Together)?.check_together()
}

/// Opens the content of all disks as one store.
fn open(disks: &[MountedDisk]) -> Result<Store, Fault> {
    let open = |MountedDisk { device, root }: &MountedDisk| match Disk::open(root, device.to_string()) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(source) => Err(Fault::Contents { disk: device.to_string(), source }),
    };
    Store::merge(disks.iter().map(open).collect::<Result<_, _>>()?).map_err(Fault::Conflict)
}

/// The next shutdown request. The channel does not close while a source exists.
async fn next(requests: &mut UnboundedReceiver<ShutdownRequest>) -> ShutdownRequest {
    match requests.recv().await {
        Some(request) => request,
        None => std::future::pending().await,
    }
}

/// Runs `boot` and turns a panic into a fault.
fn catch_panic(boot: impl FnOnce() -> Result<Shutdown, Fault>) -> Result<Shutdown, Fault> {
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

    #[test]
    fn shutdown_reason_names_the_sources_of_both_requests() {
        let reason = |by, repeated_by| Shutdown { by, repeated_by, totals: Totals::default() }.reason();
        for (by, again, words) in [
            (Requester::Command, None, "shut down by a command on the control port"),
            (Requester::Terminate, Some(Requester::Interrupt), "shut down by SIGTERM, and at once by SIGINT (Ctrl-Alt-Del)"),
            (Requester::Button, Some(Requester::Button), "shut down by the power button, and at once by the power button"),
        ] {
            assert_eq!(reason(by, again), words);
        }
    }
}
