//! The order of boot. What enters is a machine whose kernel has just started this program; what leaves is a registry that serves
//! until it is told to end, and then a machine without power. It never returns: the kernel panics when PID 1 does.

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
use crate::registry::listen::server::{runtime, serve};
use crate::registry::telemetry::events::Events;
use crate::registry::telemetry::metrics::Totals;
use crate::registry::tls::Identity;

use super::disk::Attached;
use super::early::{clock, console, entropy, machine, modules, mount};
use super::error::Fault;
use super::listeners::Listeners;
use super::power::{By, Stop};
use super::report::boot_timeline::Steps;
use super::report::events::Writer;
use super::report::{events, heartbeat};

use super::{access, control, disk, endpoint_watch, net, power, tls};
use crate::config::{self, Layer, Origin, Settings};

/// How long what still runs may take to notice that it has ended.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// Boots, serves and cuts the power.
pub fn run() -> ! {
    console::open();
    console::hook_panics();
    console::log_warnings();
    let mut guest = Guest::new();
    let end = caught(|| guest.boot());
    power::set_deadline();
    guest.finish(end);
    power::off()
}

/// What lives from the first step to the last.
#[derive(Debug)]
struct Guest {
    steps: Steps,
    events: Events,
    outbox: Outbox,
}

/// Where events wait, and who writes them out once somebody can.
#[derive(Debug)]
enum Outbox {
    Waiting(Receiver<Event>),
    Writing(Writer),
    Broken,
}

/// An end that was asked for.
#[derive(Debug)]
struct Ended {
    by: By,
    /// Who asked again, before the transfers under way had ended.
    hurried: Option<By>,
    totals: Totals,
}

impl Ended {
    /// In words, for the console and the `done` event.
    fn reason(&self) -> String {
        let hurried = self.hurried.map_or_else(String::new, |by| format!(", and at once by {}", by.words()));
        format!("shut down by {}{hurried}", self.by.words())
    }
}

/// A registry that only has to be served.
struct Prepared {
    registry: Arc<Registry>,
    listeners: Listeners,
    /// The same, bound.
    bound: Vec<Listener>,
    identity: Identity,
    network: net::Network,
    /// Who keeps to disks that come and go, and what tells of them.
    disks: (disk::hotplug::Keeper, watch::Receiver<()>),
    heartbeat: Option<Duration>,
}

impl Guest {
    fn new() -> Self {
        let (events, queue) = Events::queue();
        Self { steps: Steps::default(), events, outbox: Outbox::Waiting(queue) }
    }

    /// What comes before there are threads.
    fn boot(&mut self) -> Result<Ended, Fault> {
        self.steps.run("mounts", mount::kernel)?;
        self.steps.run("modules", modules::load)?;
        self.say_booting();
        self.open_outbox().map_err(Fault::Runtime)?;
        let runtime = self.steps.run("runtime", runtime).map_err(Fault::Runtime)?;
        // Not dropped by a panic: that waits for every thread, however long its disk hangs.
        let runtime = ManuallyDrop::new(runtime);
        let end = runtime.block_on(self.serve_until_told());
        ManuallyDrop::into_inner(runtime).shutdown_timeout(STRAGGLERS);
        end
    }

    /// Whoever asks for the end is heard from here on, also while a step waits.
    async fn serve_until_told(&mut self) -> Result<Ended, Fault> {
        let (stop, mut stops) = power::watch().map_err(Fault::Runtime)?;
        control::listen(stop, self.events.clone());
        let prepared = tokio::select! {
            biased;
            stop = next(&mut stops) => return Ok(Ended { by: stop.by, hurried: None, totals: Totals::default() }),
            prepared = self.prepare() => prepared?,
        };
        self.say_ready(&prepared);
        let Prepared { registry, listeners, bound, identity, network, disks: (keeper, changes), heartbeat } = prepared;
        tokio::spawn(endpoint_watch::follow(network, listeners, identity.leaves, self.events.clone()));
        tokio::spawn(keeper.run(changes));
        if let Some(every) = heartbeat {
            tokio::spawn(heartbeat::beat(every, Arc::clone(&registry), self.events.clone()));
        }
        // Who asked for the end, and who asked again.
        let (mut first, mut again) = (None, None);
        let shutdown = async {
            let stop = next(&mut stops).await;
            first = Some(stop.by);
            (stop, stops)
        };
        // Runs where there are transfers, and once nobody is accepted any more.
        let drain = async |(Stop { by, drain }, mut stops)| {
            console::say(&format!("{}: no more connections; transfers have {} s", by.words(), drain.as_secs()));
            again = timeout(drain, next(&mut stops)).await.ok().map(|stop| stop.by);
        };
        let totals = serve(bound, registry, shutdown, drain).await;
        Ok(Ended { by: first.unwrap_or(By::Command), hurried: again, totals })
    }

    /// The steps from the config to the listening socket.
    async fn prepare(&mut self) -> Result<Prepared, Fault> {
        let outside = self.steps.run("config", config::from_launcher)?;
        let early = outside.settings(Origin::Together)?;
        self.trace(&early);
        let changes = disk::notified()?;
        let attached = self.steps.wait("disk", disk::attach(&early.disks, early.disk_wait)).await?;
        let settings = self.steps.run("config on the disk", || config_over_disks(outside, &attached))?;
        self.trace(&settings);
        let clock = self.steps.run("clock", || clock::settle(settings.clock));
        clock.warning.into_iter().for_each(|message| self.warn("CLOCK", message));
        self.name_machine(&settings.hostname);
        let network = net::start(&settings.interfaces, &settings.hostname, &self.events);
        let network = self.steps.wait("network", network).await?;
        let store = self.steps.run("catalog", || open(&attached))?;
        self.steps.wait("entropy", entropy::wait()).await?;
        let (auth, clients) =
            self.steps.run("auth", || Ok::<_, Fault>((access::auth(&settings)?, access::client_ca(&settings)?)))?;
        let identity =
            self.steps.run("tls", || tls::identity(&settings, network.addresses(), &store, clients.as_ref(), clock.sure))?;
        let options = Options {
            limits: settings.limits,
            auth,
            client_certificates: clients.map(|clients| clients.presence()),
            ca_pem: identity.ca_pem.clone(),
            verify: settings.verify,
        };
        let registry = Arc::new(Registry::new(store, self.events.clone(), options));
        let listeners = Listeners::of(&settings);
        let bound = self.steps.run("listen", || listeners.open(&identity.transport))?;
        let (own, leaves) = (Arc::clone(&registry), identity.leaves.clone());
        let disks = (disk::hotplug::Keeper::new(own, settings.disks, attached, leaves, self.events.clone()), changes);
        Ok(Prepared { registry, listeners, bound, identity, network, disks, heartbeat: settings.heartbeat })
    }

    fn trace(&mut self, settings: &Settings) {
        if settings.trace {
            self.steps.trace();
        }
    }

    fn name_machine(&self, hostname: &str) {
        if let Err(error) = machine::set_hostname(hostname) {
            self.warn("HOSTNAME", format!("the host name {hostname} could not be set: {error}"));
        }
        if let Err(error) = machine::raise_open_files() {
            self.warn("OPEN_FILES", format!("the limit on open files could not be raised: {error}"));
        }
    }

    fn say_booting(&self) {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.events.emit(event::Event::Booting(Booting { version, kernel: machine::kernel_release() }));
    }

    fn say_ready(&self, prepared: &Prepared) {
        let ready = self.ready(prepared);
        let (endpoints, uptime) = ([&*ready.endpoints, &*ready.further_endpoints].concat().join(" "), ready.uptime);
        console::say(&format!("ready after {uptime:.2} s: {} images at {endpoints}", ready.images));
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
            steps: self.steps.report(),
            memory_used: memory.used,
            memory_total: memory.total,
            metrics_endpoints,
            further_endpoints,
            heartbeat_seconds: prepared.heartbeat.map_or(0, |every| u32::try_from(every.as_secs()).unwrap_or(u32::MAX)),
            disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
        }
    }

    fn warn(&self, code: &str, message: String) {
        console::warn(&self.events, code, message);
    }

    fn open_outbox(&mut self) -> io::Result<()> {
        self.outbox = match std::mem::replace(&mut self.outbox, Outbox::Broken) {
            Outbox::Waiting(queue) => Outbox::Writing(Writer::start(&self.events, queue)?),
            opened => opened,
        };
        Ok(())
    }

    /// Tells the console and the launcher how it ended.
    fn finish(mut self, end: Result<Ended, Fault>) {
        let done = match end {
            Ok(ended) => {
                let (reason, Totals { requests, bytes }) = (ended.reason(), ended.totals);
                console::say(&format!("{reason}: {requests} requests, {bytes} bytes"));
                Done { reason, requests, bytes, ..Done::default() }
            }
            Err(fault) => {
                let (code, reason) = (fault.code(), fault.chain());
                console::fatal(code, &reason);
                Done { reason, status: 1, code: code.to_owned(), ..Done::default() }
            }
        };
        if let Err(error) = self.open_outbox() {
            console::say(&format!("no thread writes the events: {error}"));
        }
        match self.outbox {
            Outbox::Writing(writer) => writer.finish(done),
            Outbox::Waiting(_) | Outbox::Broken => events::write_last(done),
        }
    }
}

fn config_over_disks(outside: Layer, disks: &[Attached]) -> Result<Settings, config::ConfigError> {
    let named: Vec<_> = disks.iter().map(|disk| (disk.device.to_string(), disk.root.as_path())).collect();
    let inside = config::from_disks(named.iter().map(|(name, root)| (name.as_str(), *root)))?;
    inside.overridden_by(outside).settings(Origin::Together)?.check_together()
}

/// What the disks have, as one.
fn open(disks: &[Attached]) -> Result<Store, Fault> {
    let open = |Attached { device, root }: &Attached| match Disk::open(root, device.to_string()) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(source) => Err(Fault::Contents { disk: device.to_string(), source }),
    };
    Store::merge(disks.iter().map(open).collect::<Result<_, _>>()?).map_err(Fault::Conflict)
}

/// The next request to end. The channel never closes while somebody may ask.
async fn next(stops: &mut UnboundedReceiver<Stop>) -> Stop {
    match stops.recv().await {
        Some(stop) => stop,
        None => std::future::pending().await,
    }
}

/// What `boot` gives, a panic in it being a fault like others.
fn caught(boot: impl FnOnce() -> Result<Ended, Fault>) -> Result<Ended, Fault> {
    catch_unwind(AssertUnwindSafe(boot)).unwrap_or_else(|panic| Err(Fault::Panic(words(&*panic))))
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_fault_with_its_words() {
        let at = 7;
        for (end, words) in [
            (caught(|| panic!("no more")), "a bug in localregistry-init: no more"),
            (caught(|| panic!("at {at}")), "a bug in localregistry-init: at 7"),
            (caught(|| std::panic::panic_any(5)), "a bug in localregistry-init: no message"),
        ] {
            let fault = end.unwrap_err();
            assert_eq!((fault.code(), fault.chain().as_str()), ("PANIC", words));
        }
    }

    #[test]
    fn the_outbox_is_opened_once_and_stays_open() {
        let mut guest = Guest::new();
        for _ in 0..2 {
            guest.open_outbox().unwrap();
            assert!(matches!(guest.outbox, Outbox::Writing(_)));
        }
    }

    #[test]
    fn the_reason_says_who_asked_and_who_asked_again() {
        let reason = |by, hurried| Ended { by, hurried, totals: Totals::default() }.reason();
        for (by, again, words) in [
            (By::Command, None, "shut down by a command on the control port"),
            (By::Terminate, Some(By::Interrupt), "shut down by SIGTERM, and at once by SIGINT (Ctrl-Alt-Del)"),
            (By::Button, Some(By::Button), "shut down by the power button, and at once by the power button"),
        ] {
            assert_eq!(reason(by, again), words);
        }
    }
}
