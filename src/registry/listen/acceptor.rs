//! Accepts connections on a thread of its own, bounds their number, and waits for the first bytes of each.
//!
//! A flood of connections uses at most the one processor that this thread runs on. The threads that serve requests have the others.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::connection::{self, Protocol, ServerState};
use super::file_socket::reset_on_close;
use super::listener::{Listener, Transport};
use super::shutdown::{Phase, ShutdownSignal};
use crate::proto::fault_action::Connection;
use crate::registry::limits::{ACCEPT_WARNING_INTERVAL, DESCRIPTOR_PAUSE, SILENCE};

/// The accept thread. It ends when this is dropped, and closes the connections that have sent nothing yet.
#[derive(Debug)]
pub(crate) struct AcceptThread {
    handle: Handle,
    _end: oneshot::Sender<()>,
}

impl AcceptThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// Fails if the thread or its epoll instance cannot be created.
    pub fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let (hand_over, handed_over) = mpsc::sync_channel::<Runtime>(1);
        let serve = move || handed_over.recv().map(|runtime| drop(runtime.block_on(ended)));
        if let Err(refused) = thread::Builder::new().name("accept".to_owned()).spawn(serve) {
            // Dropped in an asynchronous context, a runtime panics.
            runtime.shutdown_background();
            return Err(refused);
        }
        // The thread waits for it.
        let _sent = hand_over.send(runtime);
        Ok(Self { handle, _end: end })
    }

    /// The runtime of the thread.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Bounds the number of connections, and evicts an idle one for a new one.
#[derive(Debug)]
pub(crate) struct ConnectionSlots {
    slots: Arc<Semaphore>,
    idle: Mutex<IdleQueue>,
}

/// Connections that have sent nothing yet, oldest first: when each was accepted, and the sender whose drop closes it.
#[derive(Debug, Default)]
struct IdleQueue {
    accepted: u64,
    connections: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl ConnectionSlots {
    /// Allows `count` connections.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { slots: Arc::new(Semaphore::new(count)), idle: Mutex::default() })
    }

    /// Acquires a connection slot. If none is free, evicts the connection that has been idle longest, provided it has been idle for at
    /// least [`SILENCE`]: a real client sends its first bytes at once, and must not wait behind connections that never send any.
    ///
    /// Returns `None` if the server has ended.
    pub async fn acquire(self: &Arc<Self>) -> Option<NewConnection> {
        let slot = loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                break slot;
            }
            let next = Arc::clone(&self.slots).acquire_owned();
            match self.evict_idle() {
                None => break next.await.ok()?,
                Some(remaining) => {
                    if let Ok(slot) = timeout(remaining, next).await {
                        break slot.ok()?;
                    }
                }
            }
        };
        let (evict, evicted) = oneshot::channel();
        let mut idle = self.idle();
        idle.accepted += 1;
        let number = idle.accepted;
        idle.connections.insert(number, (Instant::now(), evict));
        Some(NewConnection { slot, idle: IdleGuard { slots: Arc::clone(self), number }, evicted })
    }

    /// Evicts the connection that has been idle longest. If that is for less than [`SILENCE`], returns the time that is left.
    ///
    /// Returns `None` if a connection was evicted, or none is idle.
    fn evict_idle(&self) -> Option<Duration> {
        let mut idle = self.idle();
        let (since, _) = idle.connections.first_key_value()?.1;
        let remaining = SILENCE.saturating_sub(since.elapsed());
        if remaining.is_zero() {
            // Drops the sender, which the connection's task waits for.
            idle.connections.pop_first();
            return None;
        }
        Some(remaining)
    }

    fn idle(&self) -> MutexGuard<'_, IdleQueue> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that has a slot and has sent nothing yet.
#[derive(Debug)]
pub(crate) struct NewConnection {
    slot: OwnedSemaphorePermit,
    idle: IdleGuard,
    /// Fires when the connection is evicted.
    evicted: oneshot::Receiver<()>,
}

impl NewConnection {
    /// Waits for the first bytes, which `detecting` finds. Returns the slot, too, which the connection has until that is dropped. `None` if
    /// the bytes do not arrive within `limit`, or before the connection is evicted or the server drains.
    pub async fn protocol(
        self,
        detecting: impl Future<Output = Option<Protocol>>,
        limit: Duration,
        shutdown: &ShutdownSignal,
    ) -> Option<(Protocol, OwnedSemaphorePermit)> {
        let Self { slot, idle: _idle, evicted } = self;
        let protocol = tokio::select! {
            biased;
            protocol = timeout(limit, detecting) => protocol.ok().flatten(),
            _ = evicted => None,
            () = shutdown.begun(Phase::Draining) => None,
        };
        protocol.map(|protocol| (protocol, slot))
    }
}

/// Keeps a connection in the idle queue until it is dropped.
#[derive(Debug)]
struct IdleGuard {
    slots: Arc<ConnectionSlots>,
    number: u64,
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        self.slots.idle().connections.remove(&self.number);
    }
}

/// Accepts connections as slots become free. Hands each one over to `server` once its first bytes have arrived. Must run on the accept
/// thread.
pub(crate) async fn accept(
    listener: Listener,
    state: Arc<ServerState>,
    slots: Arc<ConnectionSlots>,
    shutdown: ShutdownSignal,
    server: Handle,
) {
    let Listener { socket, transport, surface } = listener;
    let Some(socket) = register(socket) else { return };
    let mut warned: Option<Instant> = None;
    loop {
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The peer has left already, or the process is out of descriptors or memory. Neither ends the loop.
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    if warned.is_none_or(|at| at.elapsed() >= ACCEPT_WARNING_INTERVAL) {
                        tracing::warn!(%error, "a connection could not be accepted");
                        warned = Some(Instant::now());
                    }
                    sleep(DESCRIPTOR_PAUSE).await;
                }
                continue;
            }
        };
        let Some(new) = slots.acquire().await else { return };
        disable_nagle(&stream);
        // If this fails, the connection is gone, and its local address no longer matters.
        let local = stream.local_addr().unwrap_or(peer);
        let client = Client { peer, local, encrypted: matches!(transport, Transport::Tls(_)), certified: false, surface };
        if state.registry.connection_fault(&client, &[Connection::Refuse]) == Connection::Refuse {
            reset_on_close(&stream);
            continue;
        }
        let (state, transport, shutdown, server) = (Arc::clone(&state), transport.clone(), shutdown.clone(), server.clone());
        let open = state.registry.metrics().connection();
        tokio::spawn(async move {
            let first_byte = state.registry.limits().first_byte;
            let detected = new.protocol(connection::detect_protocol(&stream), first_byte, &shutdown).await;
            // The descriptor moves to the runtime that serves.
            let (Some((protocol, slot)), Ok(stream)) = (detected, stream.into_std()) else { return };
            server.spawn(async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection::run(stream, protocol, client, transport, &state, shutdown).await;
                }
                drop((open, slot));
            });
        });
        // In a flood, the connections accepted before get a turn between any two new ones.
        tokio::task::yield_now().await;
    }
}

/// Registers the socket with the runtime of the calling thread.
fn register(socket: TcpListener) -> Option<TcpListener> {
    let moved = socket.into_std().and_then(TcpListener::from_std);
    moved.inspect_err(|error| tracing::error!(%error, "cannot poll a listening socket")).ok()
}

/// Small responses go out at once.
fn disable_nagle(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}
