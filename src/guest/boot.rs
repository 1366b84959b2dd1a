//! The order of boot. What enters is a machine whose kernel has just started this program; what leaves is a registry that serves
//! until it is told to end, and then a machine without power. It never returns: the kernel panics when PID 1 does.

use std::any::Any;
use std::io;
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::proto::{self, Booting, Done, Event, Ready, Warning, event};
use crate::registry::answer::Registry;
use crate::registry::client::Surface;
use crate::registry::events::Events;
use crate::registry::metrics::Totals;
use crate::registry::serve::{Listener, Transport, runtime, serve};
use crate::registry::store::{Disk, Store};

use super::config::{self, Layer, Origin, Settings};
use super::disk::Attached;
use super::error::Fault;
use super::events::Writer;
use super::power::{By, Stop};
use super::readdress::{self, Place};
use super::steps::Steps;
use super::tls::Identity;
use super::{access, clock, console, control, disk, machine, modules, mount, net, power, tls};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

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
    totals: Totals,
}

/// A registry that only has to be served.
struct Prepared {
    registry: Arc<Registry>,
    listener: TcpListener,
    /// Of health, metrics and the CA, where they have a port of their own.
    observed: Option<(TcpListener, NonZeroU16)>,
    identity: Identity,
    network: net::Network,
    port: NonZeroU16,
    /// Who keeps to disks that come and go, and what tells of them.
    disks: (disk::follow::Keeper, watch::Receiver<()>),
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
            stop = next(&mut stops) => return Ok(Ended { by: stop.by, totals: Totals::default() }),
            prepared = self.prepare() => prepared?,
        };
        let place = self.say_ready(&prepared);
        tokio::spawn(readdress::follow(prepared.network, place, prepared.identity.renewal, self.events.clone()));
        let (keeper, changes) = prepared.disks;
        tokio::spawn(keeper.run(changes));
        let (asked, mut by) = tokio::sync::oneshot::channel();
        let shutdown = async move {
            let stop = next(&mut stops).await;
            let _ = asked.send(stop.by);
            stop.drain
        };
        let surface = if prepared.observed.is_some() { Surface::Registry } else { Surface::All };
        let mut listeners = vec![Listener { socket: prepared.listener, transport: prepared.identity.transport, surface }];
        listeners.extend(prepared.observed.map(|(socket, _)| Listener {
            socket,
            transport: Transport::Plain,
            surface: Surface::Observability,
        }));
        let totals = serve(listeners, prepared.registry, shutdown).await;
        Ok(Ended { by: by.try_recv().unwrap_or(By::Command), totals })
    }

    /// The steps from the config to the listening socket.
    async fn prepare(&mut self) -> Result<Prepared, Fault> {
        let outside = self.steps.run("config", config::outside)?;
        let early = outside.settings(Origin::Together)?;
        self.trace(&early);
        let changes = disk::notified()?;
        let attached = self.steps.wait("disk", disk::attach(&early.disks, early.disk_wait)).await?;
        let settings = self.steps.run("config on the disk", || config_over_disks(outside, &attached))?;
        self.trace(&settings);
        let clock = self.steps.run("clock", || clock::settle(settings.clock));
        clock.into_iter().for_each(|message| self.warn("CLOCK", message));
        self.name_machine(&settings.hostname);
        let network = net::start(&settings.interfaces, &settings.hostname, &self.events);
        let network = self.steps.wait("network", network).await?;
        let store = self.steps.run("catalog", || open(&attached))?;
        let (auth, clients) =
            self.steps.run("auth", || Ok::<_, Fault>((access::auth(&settings)?, access::client_ca(&settings)?)))?;
        let registry = Registry::new(store, self.events.clone(), settings.limits).with_auth(auth, clients.as_ref());
        let registry = if settings.verify { registry.verifying() } else { registry };
        let identity = self.steps.run("tls", || tls::identity(&settings, network.addresses(), &registry, clients.as_ref()))?;
        let registry = Arc::new(match identity.ca_pem.as_str() {
            "" => registry,
            ca_pem => registry.with_ca(ca_pem),
        });
        let listening = |port| listen(port).map_err(|source| Fault::Listen { port, source });
        let port = settings.port;
        let listener = self.steps.run("listen", || listening(port))?;
        let observed = settings.metrics_port.map(|port| Ok::<_, Fault>((listening(port)?, port))).transpose()?;
        let (own, renewal) = (Arc::clone(&registry), identity.renewal.clone());
        let disks = (disk::follow::Keeper::new(own, settings.disks, attached, renewal, self.events.clone()), changes);
        Ok(Prepared { registry, listener, observed, identity, network, port, disks })
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

    fn say_ready(&self, prepared: &Prepared) -> Place {
        let metrics_port = prepared.observed.as_ref().map(|(_, port)| *port);
        let place = Place { scheme: prepared.identity.scheme, port: prepared.port, metrics_port };
        let ready = self.ready(prepared, place);
        let (endpoints, uptime) = (ready.endpoints.join(" "), ready.uptime);
        console::say(&format!("ready after {uptime:.2} s: {} images at {endpoints}", ready.images));
        self.events.emit(event::Event::Ready(ready));
        place
    }

    fn ready(&self, prepared: &Prepared, place: Place) -> Ready {
        let Prepared { registry, identity, network, .. } = prepared;
        let (holdings, memory) = (registry.holdings(), machine::memory());
        let store = holdings.store();
        let proto::Endpoints { endpoints, metrics_endpoints } = place.endpoints(network.addresses());
        Ready {
            endpoints,
            ca_pem: identity.ca_pem.clone(),
            images: u32::try_from(store.images()).unwrap_or(u32::MAX),
            blobs: u32::try_from(store.blobs()).unwrap_or(u32::MAX),
            blob_bytes: store.blob_bytes(),
            uptime: machine::uptime(),
            steps: self.steps.report(),
            memory_used: memory.used,
            memory_total: memory.total,
            metrics_endpoints,
            disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
        }
    }

    fn warn(&self, code: &str, message: String) {
        console::say(&format!("warning {code} {message}"));
        self.events.emit(event::Event::Warning(Warning { code: code.to_owned(), message }));
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
            Ok(Ended { by, totals: Totals { requests, bytes } }) => {
                console::say(&format!("{}: {requests} requests, {bytes} bytes", by.words()));
                Done { reason: by.words().to_owned(), requests, bytes, ..Done::default() }
            }
            Err(fault) => {
                let (code, reason) = (fault.code(), fault.chain());
                console::fatal(code, &reason);
                Done { reason, status: 1, code: code.to_owned(), ..Done::default() }
            }
        };
        if let Err(error) = self.open_outbox() {
            console::say(&format!("the last event cannot be written: {error}"));
        }
        if let Outbox::Writing(writer) = self.outbox {
            writer.finish(done);
        }
    }
}

fn config_over_disks(outside: Layer, disks: &[Attached]) -> Result<Settings, config::ConfigError> {
    let named: Vec<_> = disks.iter().map(|disk| (disk.device.to_string(), disk.root.as_path())).collect();
    let inside = config::on_disks(named.iter().map(|(name, root)| (name.as_str(), *root)))?;
    inside.under(outside).settings(Origin::Together)
}

/// What the disks have, as one.
fn open(disks: &[Attached]) -> Result<Store, Fault> {
    let open = |Attached { device, root }: &Attached| match Disk::open(root, device.to_string()) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(source) => Err(Fault::Contents { disk: device.to_string(), source }),
    };
    Store::of(disks.iter().map(open).collect::<Result<_, _>>()?).map_err(Fault::Conflict)
}

/// Every address of the guest, by IPv6 and by IPv4; by IPv4 alone where the kernel has no IPv6.
fn listen(port: NonZeroU16) -> io::Result<TcpListener> {
    let every = |address: IpAddr| SocketAddr::new(address, port.get());
    match TcpSocket::new_v6() {
        Ok(socket) => bind(&socket, every(Ipv6Addr::UNSPECIFIED.into())).and_then(|()| socket.listen(BACKLOG)),
        Err(_) => {
            let socket = TcpSocket::new_v4()?;
            bind(&socket, every(Ipv4Addr::UNSPECIFIED.into()))?;
            socket.listen(BACKLOG)
        }
    }
}

fn bind(socket: &TcpSocket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuseaddr(true)?;
    socket.bind(address)
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

    #[tokio::test]
    async fn both_families_are_listened_for_and_a_port_in_use_is_refused() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = NonZeroU16::new(free).unwrap();
        let listener = listen(port).unwrap();
        for address in ["127.0.0.1", "::1"] {
            tokio::net::TcpStream::connect((address, free)).await.unwrap();
        }
        let source = listen(port).unwrap_err();
        let fault = Fault::Listen { port, source };
        assert_eq!(fault.chain(), format!("listen on TCP port {free}: Address already in use (os error 98)"));
        drop(listener);
    }
}
