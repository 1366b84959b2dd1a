//! Serving: listeners become connections, a shutdown becomes a drain. What enters is bound sockets; what leaves is totals. It goes on
//! accepting whatever a peer or the process's limits do to it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::disable_transparent_huge_pages;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};

use super::acceptor::{Door, Rooms, accept};
use super::admission;
use super::client::Surface;
use super::connection::{Closing, Phase, Shared};
use crate::registry::api::handler::Registry;
use crate::registry::limits::{BACKLOG, CUT, OBSERVERS, OWN_DESCRIPTORS, TURNS_BETWEEN_EVENTS, UNSENT};
use crate::registry::telemetry::metrics::Totals;

pub use super::connection::Transport;

/// A bound socket and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    /// Bound and listening.
    pub socket: TcpListener,
    /// What is spoken.
    pub transport: Transport,
    /// What is answered.
    pub surface: Surface,
}

impl Listener {
    /// Binds `address` (port 0 takes a free one) and listens for clients of `surface`.
    ///
    /// # Errors
    /// As of binding: the address is no one of this machine, or is taken.
    pub fn bind(address: SocketAddr, transport: Transport, surface: Surface) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Connections of a server that has just ended do not keep the address from the next one.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket: socket.listen(BACKLOG)?, transport, surface })
    }
}

/// A runtime as serving wants it: a thread for each processor, and no connection that has others wait for long.
///
/// # Errors
/// As of starting threads and making an epoll instance.
pub fn runtime() -> io::Result<Runtime> {
    runtime::Builder::new_multi_thread().enable_all().event_interval(TURNS_BETWEEN_EVENTS).build()
}

/// Serves until `shutdown`; then stops accepting, and lets transfers under way go on until all of them have ended, or `drain`, which gets
/// what `shutdown` gave, has. What is left then is cut, and logged as incomplete. Turns transparent huge pages off for the whole process.
pub async fn serve<T>(
    listeners: Vec<Listener>,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = T>,
    drain: impl AsyncFnOnce(T),
) -> Totals {
    // Most of a connection's buffers is never written to. With huge pages it would be in memory all the same: a thousand idle connections
    // take 24 MiB without them, and 44 MiB with them.
    if let Err(error) = disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages could not be disabled");
    }
    let limits = registry.limits();
    let rooms = Rooms::new(limits.connections.min(affordable()));
    let observers = Rooms::new(OBSERVERS);
    let shared = Arc::new(Shared {
        handshakes: Semaphore::new(limits.handshakes),
        streams: admission::Shared::default(),
        registry: Arc::clone(&registry),
        multiplexed: AtomicUsize::default(),
    });
    let (close, closing) = watch::channel(Phase::Open);
    // Every connection holds a sender: the receiver ends when the last of them has ended.
    let (alive, mut all_done) = mpsc::channel::<()>(1);
    let door = door();
    let at = door.as_ref().map_or_else(Handle::current, |door| door.handle().clone());
    let mut loops = tokio::task::JoinSet::new();
    for listener in listeners {
        let closing = Closing { closing: closing.clone(), _alive: alive.clone() };
        bound_unsent(&listener.socket);
        let rooms = if listener.surface == Surface::Observability { &observers } else { &rooms };
        loops.spawn_on(accept(listener, Arc::clone(&shared), Arc::clone(rooms), closing, Handle::current()), &at);
    }
    drop((alive, closing));

    let told = shutdown.await;
    loops.shutdown().await;
    drop(door);
    let _ = close.send(Phase::Draining);
    let in_time = tokio::select! {
        biased;
        _ = all_done.recv() => true,
        () = drain(told) => false,
    };
    if !in_time {
        let connections = registry.metrics().connections();
        let _ = close.send(Phase::Cut);
        tracing::warn!(connections, "the drain ended before its transfers: they were cut");
        let _ = tokio::time::timeout(CUT, all_cut(&mut all_done, &registry)).await;
    }
    registry.metrics().refusals.flush(registry.events());
    registry.totals()
}

/// Waits until no connection is left, and nothing that one has left behind: the streams of HTTP/2 end after it.
async fn all_cut(all_done: &mut mpsc::Receiver<()>, registry: &Registry) {
    all_done.recv().await;
    while registry.metrics().in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The thread that takes connections up; none where there can be none: then those that serve do it.
fn door() -> Option<Door> {
    Door::open().inspect_err(|error| tracing::warn!(%error, "connections are taken up by the threads that serve")).ok()
}

/// Connections that the process has file descriptors for: each is one, and the blob that it is being sent is another. The limit is
/// raised as far as the system allows it to be.
fn affordable() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    let descriptors = limit.current.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    (descriptors.saturating_sub(OWN_DESCRIPTORS) / 2).max(1)
}

/// Bounds what the kernel holds for clients that take nothing. Connections have it of their listener.
fn bound_unsent(socket: &TcpListener) {
    if let Err(error) = SockRef::from(socket).set_tcp_notsent_lowat(UNSENT) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT could not be set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_have_the_bound_on_unsent_bytes_of_their_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        bound_unsent(&listener);
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(SockRef::from(&accepted).tcp_notsent_lowat().unwrap(), UNSENT);
    }
}
