//! The server of a simulation, and what must hold of it at every step and at the end.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::content::{DISKS, Received, Wanted, library};
use super::disks::{self, Behaviour, HANG};
use super::network::{self, Socket};
use crate::proto::{self, event};
use crate::registry::api::handler::{Options, Registry};
use crate::registry::content::file_sender::FileSender;
use crate::registry::content::store::Store;
use crate::registry::limits::{CLOSE_TIMEOUT, DISK_READS, IN_FLIGHT, Limits, SMALL_CHUNK};
use crate::registry::listen::acceptor::ConnectionSlots;
use crate::registry::listen::activity::Activity;
use crate::registry::listen::client::{Client, Surface};
use crate::registry::listen::connection::{self, Protocol, ServerState};
use crate::registry::listen::server;
use crate::registry::listen::shutdown::{Shutdown, ShutdownSignal};
use crate::registry::listen::write_timeout::WriteTimeout;
use crate::registry::telemetry::events::Events;

/// What differs between simulations, other than the clients.
#[derive(Debug, Clone)]
pub struct Setting {
    pub limits: Limits,
    pub verify: bool,
    pub sendfile: bool,
    /// Whether files are sent in the steps of TLS.
    pub sends_small_steps: bool,
    pub disks: Vec<Behaviour>,
    /// The disks that are there at the start.
    pub present: [bool; DISKS],
    /// Whether a disk comes or goes.
    pub changes: [bool; DISKS],
    /// Bytes of [`IN_FLIGHT`] that others use.
    pub used: usize,
    /// How long the server drains.
    pub drain: Duration,
}

/// A response or a part of it, as its client has it.
struct Record {
    status: u16,
    /// The length of the whole body, and of what has arrived.
    announced: usize,
    body: usize,
    is_complete: bool,
}

/// A server and its clients.
pub struct World {
    pub registry: Arc<Registry>,
    setting: Setting,
    accept: UnboundedSender<(Socket, SocketAddr, Arc<FileSender>)>,
    connections: AtomicUsize,
    is_draining: AtomicBool,
    /// Whether a call fails or hangs that neither a client nor a disk is to blame for.
    has_fault: AtomicBool,
    records: Mutex<HashMap<String, Record>>,
    /// What has happened, in its order.
    trace: Mutex<Vec<String>>,
    started: Instant,
}

/// The parts of a server that [`World::end`] needs.
pub struct Server {
    ending: Shutdown,
    accepting: tokio::task::JoinHandle<JoinSet<()>>,
    stop: tokio::sync::oneshot::Sender<()>,
    queue: Receiver<proto::Event>,
}

impl World {
    pub fn start(setting: Setting) -> (Arc<Self>, Server) {
        let store =
            Store::merge((0..DISKS).filter(|disk| setting.present[*disk]).map(|disk| Arc::new(library().open(disk))).collect());
        let (events, queue) = Events::queue();
        let Setting { limits, verify, sendfile, .. } = setting;
        let registry = Registry::new(store.unwrap(), events, Options { limits, verify, sendfile, ..Options::default() });
        let registry = Arc::new(registry);
        registry.budget.take(setting.used);
        let (accept, incoming) = unbounded_channel();
        let world = Arc::new(Self {
            registry: Arc::clone(&registry),
            setting,
            accept,
            connections: AtomicUsize::default(),
            is_draining: AtomicBool::default(),
            has_fault: AtomicBool::default(),
            records: Mutex::default(),
            trace: Mutex::default(),
            started: Instant::now(),
        });
        let state = ServerState {
            handshakes: Semaphore::new(limits.handshakes),
            streams: Default::default(),
            registry,
            http2_connections: AtomicUsize::default(),
        };
        let (ending, signal) = Shutdown::new();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let accepting = tokio::spawn(async move {
            let (state, mut connections) = (Arc::new(state), JoinSet::new());
            tokio::select! {
                biased;
                _ = stopped => {}
                () = accept_all(incoming, &state, &signal, &mut connections) => {}
            }
            connections
        });
        (world, Server { ending, accepting, stop, queue })
    }

    /// A new connection to the server: the client's socket, and its address.
    pub fn connect(&self, rng: &mut fastrand::Rng, capacity: usize) -> (Socket, SocketAddr) {
        let number = u16::try_from(self.connections.fetch_add(1, Ordering::Relaxed)).unwrap();
        let peer = SocketAddr::new(Ipv4Addr::new(10, 1, 0, 7).into(), 1024 + number);
        let files = Arc::new(FileSender::new(self.setting.sends_small_steps));
        let (client, server) = network::connect(rng.fork(), capacity, Arc::clone(&files));
        // Once nothing is accepted any more, the socket is closed.
        let _ = self.accept.send((server, peer, files));
        (client, peer)
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }

    /// Whether a call fails or hangs now, so that a response may be cut, and a connection may neither go on nor end.
    pub fn has_fault(&self) -> bool {
        self.has_fault.load(Ordering::Relaxed)
    }

    pub fn set_fault(&self, has_fault: bool) {
        self.has_fault.store(has_fault, Ordering::Relaxed);
    }

    pub fn trace(&self, what: String) {
        let line = format!("{:?} {what}", self.started.elapsed());
        if super::is_replay() {
            eprintln!("{line}");
        }
        self.trace.lock().unwrap().push(line);
    }

    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.trace.lock().unwrap())
    }

    /// What holds at every step: the memory of bodies is bounded.
    pub fn check(&self) {
        // One small chunk of each request, and of each read that hangs. A buffer is up to twice as large as what it is used for.
        let bodies = self.registry.metrics().in_flight() as usize + DISKS * DISK_READS;
        let (used, most) = (self.registry.budget.used(), IN_FLIGHT.max(self.setting.used) + bodies * 2 * SMALL_CHUNK);
        assert!(used <= most, "{used} bytes of bodies are in memory, and {most} may be");
    }

    /// Whether no disk is to blame if the response is not there.
    fn are_disks_sound(&self, wanted: &Wanted) -> bool {
        let Setting { disks, present, changes, .. } = &self.setting;
        wanted.disks.iter().all(|disk| disks[*disk].is_sound() && present[*disk] && !changes[*disk])
    }

    /// A response has arrived, as far as it will.
    pub fn received(&self, tag: &str, wanted: &Wanted, received: &Received, is_client_fair: bool, is_before_drain: bool) {
        let Setting { disks, drain, .. } = &self.setting;
        self.trace(format!("{tag} {} {} {}", received.status, received.body.len(), received.is_complete));
        let has_time = !self.is_draining() || is_before_drain && *drain >= HANG;
        let has_wrong_bytes = wanted.disks.iter().any(|disk| disks[*disk].wrong_byte.is_some());
        let must_succeed = is_client_fair && self.are_disks_sound(wanted) && has_time && !self.has_fault();
        if let Err(why) = wanted.check(received, must_succeed, has_wrong_bytes) {
            panic!("{tag}: {why}");
        }
        let record = Record {
            status: received.status,
            announced: if wanted.has_body(received.status) { received.announced().unwrap_or_default() } else { 0 },
            body: received.body.len(),
            is_complete: received.is_complete,
        };
        assert!(self.records.lock().unwrap().insert(tag.to_owned(), record).is_none(), "{tag} is used twice");
    }

    /// The connection has ended, or the stream was reset, before the head of a response.
    pub fn closed(&self, tag: &str, wanted: &Wanted, is_client_fair: bool) {
        self.trace(format!("{tag} closed"));
        // If a disk fails right after the head, the end of the connection or stream overtakes that.
        let may_close = !is_client_fair || !self.are_disks_sound(wanted) || self.is_draining() || self.has_fault();
        assert!(may_close, "{tag}: there was no response to {wanted:?}");
    }

    /// A disk is pulled, or put back.
    pub fn change_disk(&self, disk: usize, is_there: bool) {
        self.trace(format!("disk {disk} there: {is_there}"));
        disks::change(disk, |behaviour| behaviour.is_gone = !is_there);
        let snapshot = self.registry.snapshot();
        let store = snapshot.store().without(&format!("simulated {disk}"));
        let store = if is_there { store.with(library().open(disk)).unwrap() } else { store };
        self.registry.replace(self.registry.snapshot_of(store));
    }

    /// Drains the server while `clients` end, and checks what must hold then.
    pub async fn end(&self, server: Server, clients: impl Future<Output = ()>) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.trace("drain".to_owned());
        let Server { ending, accepting, stop, queue } = server;
        drop(stop);
        let mut connections = accepting.await.unwrap();
        let (drain, metrics) = (self.setting.drain, self.registry.metrics());
        let ended = timeout(drain + CLOSE_TIMEOUT + Duration::from_millis(5), server::end(ending, &self.registry, sleep(drain)));
        let (ended, ()) = tokio::join!(
            async {
                let ended = ended.await;
                assert_eq!((metrics.connections(), metrics.in_flight()), (0, 0), "connections and requests after the drain");
                ended
            },
            clients
        );
        assert!(ended.is_ok(), "the drain did not end in time");
        while let Some(connection) = connections.join_next().await {
            connection.unwrap();
        }
        // Reads that hang hold their chunks.
        sleep(2 * HANG).await;
        assert_eq!(self.registry.budget.used(), self.setting.used, "bytes of bodies after the end");
        self.check_events(&queue);
    }

    /// Each request is in one event, and events, counters and clients agree.
    fn check_events(&self, queue: &Receiver<proto::Event>) {
        let (metrics, mut records) = (self.registry.metrics(), self.records.lock().unwrap());
        let (mut requests, mut bytes) = (0, 0);
        let mut seen = HashMap::new();
        for event in queue.try_iter() {
            let Some(event::Event::Request(request)) = event.event else { continue };
            requests += 1;
            bytes += request.bytes;
            let tag = request.user_agent.clone();
            if let Some(Record { status, announced, body, is_complete }) = records.remove(&tag) {
                assert_eq!(u32::from(status), request.status, "{request:?}");
                assert_eq!(request.complete, request.bytes == announced as u64, "of {announced} bytes: {request:?}");
                assert!(body as u64 <= request.bytes, "the client has {body} bytes: {request:?}");
                assert!(!is_complete || request.complete && request.bytes == body as u64, "the client has all: {request:?}");
            }
            let is_named = tag.starts_with("client ");
            assert!(seen.insert(tag, ()).is_none() || !is_named, "two events: {request:?}");
        }
        assert!(records.is_empty(), "responses without an event: {:?}", records.keys());
        let totals = metrics.totals();
        assert_eq!((totals.requests, totals.bytes), (requests, bytes), "the counters, and the sums of the events");
        assert_eq!((metrics.panics(), self.registry.events().dropped()), (0, 0), "panics, and events that were dropped");
    }
}

/// What the accept thread does, for connections in memory.
async fn accept_all(
    mut incoming: UnboundedReceiver<(Socket, SocketAddr, Arc<FileSender>)>,
    state: &Arc<ServerState>,
    signal: &ShutdownSignal,
    connections: &mut JoinSet<()>,
) {
    let limits = *state.registry.limits();
    let slots = ConnectionSlots::new(limits.connections);
    while let Some((socket, peer, files)) = incoming.recv().await {
        let Some(new) = slots.acquire().await else { return };
        let open = state.registry.metrics().connection();
        let (state, signal) = (Arc::clone(state), signal.clone());
        connections.spawn(async move {
            let Some((protocol, slot)) = new.protocol(detect(&socket), limits.first_byte, &signal).await else { return };
            let local = SocketAddr::new(Ipv4Addr::new(10, 1, 0, 1).into(), 5000);
            let client = Client { peer, local, encrypted: false, certified: false, surface: Surface::All };
            let activity = Arc::<Activity>::default();
            let stream = WriteTimeout::new(socket, &limits, Arc::clone(&activity));
            let files = state.registry.sendfile.then_some(files);
            // It fails if its client does.
            let _ = connection::plain(stream, protocol, files, client, &state, (activity, signal)).await;
            drop((open, slot));
        });
    }
}

async fn detect(socket: &Socket) -> Option<Protocol> {
    loop {
        let mut first = [0; 24];
        let (count, more) = socket.peek(&mut first).ok()?;
        if count > 0
            && let Some(protocol) = Protocol::of(&first[..count])
        {
            return Some(protocol);
        }
        if count == 0 && !more {
            return None;
        }
        sleep(Duration::from_millis(5)).await;
    }
}
