//! The process that serves. It waits until PID 1 has mounted the disks. It reads the config and the secrets, gives up every privilege
//! ([`confine`](super::confine)), and only then reads a disk's catalog or a byte from a client. What needs privileges, PID 1 does:
//! [`messages`].

use std::io;
use std::mem::ManuallyDrop;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use crate::config;
use crate::config::settings::Settings;
use crate::proto::{self, Disks, FaultCommand, FaultReply, Ready, Step, event};
use crate::registry::api::handler::{Options, Registry};
use crate::registry::auth::Auth;
use crate::registry::auth::client_certificate::ClientCa;
use crate::registry::content::store::{Disk, Store};
use crate::registry::faults::reply_messages;
use crate::registry::listen::server::{runtime, serve};
use crate::registry::telemetry::events::Events;
use crate::registry::tls::{Identity, Leaves};

use super::boot::{STRAGGLERS, catch_panic, merge_config, next};
use super::confine::confine;
use super::disk::{self, with_timeout};
use super::early::{console, machine};
use super::error::Fault;
use super::listeners::Listeners;
use super::messages::{self, Channel, DiskRoot, Order, Report, ServerFault, Shutdown};
use super::power::{Requester, ShutdownRequest};
use super::report::boot_timeline::BootTimeline;
use super::report::events::Writer;
use super::report::heartbeat;
use super::{access, endpoint_watch, tls};

/// What the server may read: the disks, and a file that tells an emulated ARM processor from others.
const READABLE: [&str; 2] = [disk::ROOT, "/proc/cpuinfo"];

/// Serves, with PID 1 at the other end of standard input, which ends it. It returns only if it cannot tell PID 1 how it ended.
pub fn run() -> ExitCode {
    console::hook_panics();
    console::log_warnings();
    let pid_1 = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixDatagram::from(socket),
        Err(error) => {
            console::log(&format!("the server has no standard input: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let report = match catch_panic(|| Secrets::read(&pid_1)?.serve(&pid_1)) {
        Ok(shutdown) => Report::Ended(shutdown),
        Err(fault) => Report::Failed(fault.into()),
    };
    // Within the runtime it does not block.
    match pid_1.set_nonblocking(false).and_then(|()| messages::send(&pid_1, &report, None)) {
        // PID 1 ends this process when it has read the message. It may be sending one itself: to a socket that is closed, Linux would drop
        // this one for it (unix_dgram_disconnected).
        Ok(()) => loop {
            thread::park();
        },
        Err(error) => {
            console::log(&format!("cannot send {report:?} to PID 1: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What PID 1 sends, and what is read and made while the process may still read everything.
struct Secrets {
    port: Option<OwnedFd>,
    timeline: BootTimeline,
    settings: Settings,
    disks: Vec<DiskRoot>,
    auth: Auth,
    clients: Option<ClientCa>,
    tls: tls::Early,
}

impl Secrets {
    fn read(pid_1: &UnixDatagram) -> Result<Self, Fault> {
        let (order, port) = messages::receive(pid_1).map_err(Fault::ServerMessage)?;
        let Order::Start { disks, clock_trusted, steps } = order else {
            return Err(Fault::ServerMessage(io::Error::other("the first message is not the one to start")));
        };
        let settings = merge_config(config::from_launcher()?, &disks)?;
        let mut timeline = BootTimeline::after(steps, settings.trace);
        let (auth, clients) =
            timeline.run("auth", || Ok::<_, Fault>((access::auth(&settings)?, access::client_ca(&settings)?)))?;
        let now = clock_trusted.then(SystemTime::now);
        let tls = timeline.run("CA", || tls::Early::prepare(&settings, clients.as_ref(), now))?;
        Ok(Self { port, timeline, settings, disks, auth, clients, tls })
    }

    fn serve(mut self, pid_1: &UnixDatagram) -> Result<Shutdown, Fault> {
        // Opened here, it can be read later.
        let _ = machine::memory();
        let landlocked = self.timeline.run("confine", || confine(&READABLE))?;
        let (events, queue) = Events::queue();
        let writer = Writer::start_on_port(self.port.take(), &events, queue).map_err(Fault::Runtime)?;
        if !landlocked {
            let message = "this kernel has no Landlock: a hole in the server could read every file that everybody may read";
            console::warn(&events, "LANDLOCK", message.to_owned());
        }
        let runtime = runtime().map_err(Fault::Runtime)?;
        // A panic must not drop the runtime: that waits for every thread, even for one whose disk hangs.
        let runtime = ManuallyDrop::new(runtime);
        let serve = async {
            let pid_1 = pid_1.try_clone().and_then(Channel::new).map_err(Fault::Runtime)?;
            self.serve_until_shutdown(pid_1, events).await
        };
        let end = catch_panic(|| runtime.block_on(serve));
        ManuallyDrop::into_inner(runtime).shutdown_timeout(STRAGGLERS);
        let dropped_events = writer.finish(None);
        Ok(Shutdown { dropped_events, ..end? })
    }

    async fn serve_until_shutdown(self, pid_1: Channel, events: Events) -> Result<Shutdown, Fault> {
        let Self { mut timeline, settings, disks, auth, clients, tls, .. } = self;
        let store = timeline.run("catalog", || open(&disks))?;
        let (addresses, step) = first_addresses(&pid_1).await?;
        step.into_iter().for_each(|step| timeline.record(step));
        let identity = timeline.run("tls", || tls.finish(&settings, &addresses, &store, clients.as_ref()))?;
        let options = Options {
            limits: settings.limits,
            auth,
            client_certificates: clients.map(|clients| clients.presence()),
            ca_pem: identity.ca_pem.clone(),
            verify: settings.verify,
            // Its disks are read-only.
            sendfile: true,
            leaves: identity.leaves.clone(),
        };
        let registry = Arc::new(Registry::new(store, events.clone(), options));
        let listeners = Listeners::of(&settings);
        let bound = timeline.run("listen", || listeners.listen(&identity.transport))?;
        registry.set_listeners(&bound);
        match registry.start_faults(settings.faults.clone()) {
            Ok(warnings) => warnings.into_iter().for_each(|warning| console::warn(&events, "FAULT_RULE", warning)),
            Err(error) => console::warn(&events, "FAULT_RULE", error),
        }
        pid_1.send(&Report::Ready).await;
        announce_ready(ready(&registry, &settings, &identity, &listeners, &addresses, &timeline), &events);

        let (sender, mut requests) = unbounded_channel();
        let (changes, changed) = unbounded_channel();
        tokio::spawn(endpoint_watch::run(changed, listeners, identity.leaves.clone(), events.clone()));
        let (to_disks, orders) = unbounded_channel();
        let disks = ServedDisks { registry: Arc::clone(&registry), leaves: identity.leaves, events: events.clone() };
        tokio::spawn(disks.run(orders, pid_1.clone()));
        let (to_faults, commands) = unbounded_channel();
        tokio::spawn(change_faults(Arc::clone(&registry), commands, pid_1.clone()));
        tokio::spawn(obey(pid_1, sender, changes, to_disks, to_faults));
        if let Some(interval) = settings.heartbeat {
            tokio::spawn(heartbeat::run(interval, Arc::clone(&registry), events));
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
        let by = first.unwrap_or(Requester::Command);
        Ok(Shutdown { repeated_by: second, ..Shutdown::new(by, totals) })
    }
}

/// The first addresses, and the step of the boot that found them.
async fn first_addresses(pid_1: &Channel) -> Result<(Vec<IpAddr>, Option<Step>), Fault> {
    match pid_1.receive().await.map_err(Fault::ServerMessage)? {
        Order::Addresses { addresses, step } => Ok((addresses, step)),
        other => Err(Fault::ServerMessage(io::Error::other(format!("{other:?} before there are addresses")))),
    }
}

/// Passes messages of PID 1 on, as long as they come.
async fn obey(
    pid_1: Channel,
    requests: UnboundedSender<ShutdownRequest>,
    addresses: UnboundedSender<Vec<IpAddr>>,
    disks: UnboundedSender<Order>,
    faults: UnboundedSender<FaultCommand>,
) {
    loop {
        match pid_1.receive().await {
            Ok(Order::ShutDown(request)) => drop(requests.send(request)),
            Ok(Order::Addresses { addresses: new, .. }) => drop(addresses.send(new)),
            Ok(Order::Faults(command)) => drop(faults.send(command)),
            Ok(order) => drop(disks.send(order)),
            Err(error) => return console::log(&format!("cannot receive a message of PID 1: {error}")),
        }
    }
}

/// Executes commands for the plan of faults.
async fn change_faults(registry: Arc<Registry>, mut commands: UnboundedReceiver<FaultCommand>, pid_1: Channel) {
    while let Some(command) = commands.recv().await {
        let registry = Arc::clone(&registry);
        let id = command.id;
        let failed = |error: JoinError| Some(FaultReply { id, error: error.to_string(), ..FaultReply::default() });
        let reply = spawn_blocking(move || registry.receive_faults(command)).await.unwrap_or_else(failed);
        for part in reply.map(reply_messages).unwrap_or_default() {
            pid_1.send(&Report::Faults(part)).await;
        }
    }
}

/// The disks of the registry while it serves.
struct ServedDisks {
    registry: Arc<Registry>,
    /// Issues certificates for the upstream hosts of a new disk.
    leaves: Option<Arc<Leaves>>,
    events: Events,
}

impl ServedDisks {
    async fn run(self, mut orders: UnboundedReceiver<Order>, pid_1: Channel) {
        while let Some(order) = orders.recv().await {
            let changed = match order {
                Order::Add(disk) => self.add(disk).await,
                Order::Remove(name) => self.remove(name).await,
                Order::Start { .. } | Order::Addresses { .. } | Order::ShutDown(_) | Order::Faults(_) => continue,
            };
            pid_1.send(&Report::DisksChanged(changed.map_err(ServerFault::from))).await;
        }
    }

    async fn add(&self, DiskRoot { name, root }: DiskRoot) -> Result<(), Fault> {
        let (registry, disk) = (Arc::clone(&self.registry), name.clone());
        let opened = with_timeout(&name, move || {
            let store = with_disk(registry.snapshot().store(), &root, &disk)?;
            Ok::<_, Fault>(registry.snapshot_of(store))
        });
        let snapshot = opened.await?;
        if let Some(leaves) = &self.leaves {
            leaves.add_upstreams(snapshot.store().upstreams());
        }
        self.registry.replace(snapshot);
        self.announce(name, String::new());
        Ok(())
    }

    async fn remove(&self, name: String) -> Result<(), Fault> {
        let (registry, disk) = (Arc::clone(&self.registry), name.clone());
        let without = move || Ok::<_, Fault>(registry.snapshot_of(registry.snapshot().store().without(&disk)));
        let changed = with_timeout(&name, without).await.map(|snapshot| self.registry.replace(snapshot));
        self.announce(String::new(), name);
        changed
    }

    fn announce(&self, added: String, removed: String) {
        let snapshot = self.registry.snapshot();
        let store = snapshot.store();
        self.events.emit(event::Event::Disks(Disks {
            added,
            removed,
            disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
            images: u32::try_from(store.images()).unwrap_or(u32::MAX),
            blobs: u32::try_from(store.blobs()).unwrap_or(u32::MAX),
            blob_bytes: store.blob_bytes(),
        }));
    }
}

/// Adds the disk at `root` to `store`.
fn with_disk(store: &Store, root: &Path, name: &str) -> Result<Store, Fault> {
    let opened = Disk::open(root, name).map_err(|source| Fault::Contents { disk: name.to_owned(), source })?;
    store.with(opened).map_err(Fault::Conflict)
}

/// Opens the content of all disks as one store.
fn open(disks: &[DiskRoot]) -> Result<Store, Fault> {
    let open = |DiskRoot { name, root }: &DiskRoot| match Disk::open(root, name.as_str()) {
        Ok(disk) => Ok(Arc::new(disk)),
        Err(source) => Err(Fault::Contents { disk: name.clone(), source }),
    };
    Store::merge(disks.iter().map(open).collect::<Result<_, _>>()?).map_err(Fault::Conflict)
}

fn announce_ready(ready: Ready, events: &Events) {
    let (endpoints, uptime) = ([&*ready.endpoints, &*ready.further_endpoints].concat().join(" "), ready.uptime);
    console::log(&format!("ready after {uptime:.2} s: {} images at {endpoints}", ready.images));
    events.emit(event::Event::Ready(ready));
}

fn ready(
    registry: &Registry,
    settings: &Settings,
    identity: &Identity,
    listeners: &Listeners,
    addresses: &[IpAddr],
    timeline: &BootTimeline,
) -> Ready {
    let (snapshot, memory) = (registry.snapshot(), machine::memory());
    let store = snapshot.store();
    let proto::Endpoints { endpoints, metrics_endpoints, further_endpoints } = listeners.endpoints(addresses);
    Ready {
        endpoints,
        ca_pem: identity.ca_pem.clone().unwrap_or_default(),
        images: u32::try_from(store.images()).unwrap_or(u32::MAX),
        blobs: u32::try_from(store.blobs()).unwrap_or(u32::MAX),
        blob_bytes: store.blob_bytes(),
        uptime: machine::uptime(),
        steps: timeline.steps(),
        memory_used: memory.used,
        memory_total: memory.total,
        metrics_endpoints,
        further_endpoints,
        heartbeat_seconds: settings.heartbeat.map_or(0, |interval| u32::try_from(interval.as_secs()).unwrap_or(u32::MAX)),
        disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
    }
}
