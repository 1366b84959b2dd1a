//! Serves a set of listeners until a shutdown, then drains.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::disable_transparent_huge_pages;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::Semaphore;

use super::acceptor::{AcceptThread, ConnectionSlots, accept};
use super::admission::StreamPool;
use super::client::Surface;
use super::connection::ServerState;
use super::listener::Listener;
use super::shutdown::{Phase, Shutdown};
use crate::registry::api::handler::Registry;
use crate::registry::limits::{CLOSE_TIMEOUT, OBSERVER_CONNECTIONS, OWN_DESCRIPTORS, THREADS_STAY, TURNS_BETWEEN_EVENTS};
use crate::registry::telemetry::metrics::Totals;

/// Builds the runtime to serve with: one worker thread per processor, and short turns so that no connection delays the others. Threads for
/// reading, of which there are at most [`DISK_READS`](crate::registry::limits::DISK_READS), stay once they are started, and one is started here: if the system refuses another
/// one later, reads wait for those that are there.
///
/// # Errors
/// Fails if the epoll instance cannot be created.
///
/// # Panics
/// Panics, as the library does, if a thread cannot be started. The unwinding then waits for those that were: end the process in the hook.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().event_interval(TURNS_BETWEEN_EVENTS).thread_keep_alive(THREADS_STAY).build()?;
    let _first = runtime.spawn_blocking(|| ());
    Ok(runtime)
}

/// Serves until `shutdown` completes. Then stops accepting, and lets transfers go on until all of them have ended or `drain` completes;
/// `drain` gets the output of `shutdown`. Transfers that are left then are closed, and logged as incomplete.
///
/// Turns transparent huge pages off for the whole process.
pub async fn serve<T>(
    listeners: Vec<Listener>,
    registry: Arc<Registry>,
    shutdown: impl Future<Output = T>,
    drain: impl AsyncFnOnce(T),
) -> Totals {
    // Most of a connection's buffers is never written to. With huge pages it would be resident all the same: a thousand idle
    // connections take 24 MiB without them, and 44 MiB with them.
    if let Err(error) = disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "cannot disable huge pages");
    }
    let limits = registry.limits();
    let slots = ConnectionSlots::new(limits.connections.min(affordable_connections()));
    let observer_slots = ConnectionSlots::new(OBSERVER_CONNECTIONS);
    let state = Arc::new(ServerState {
        handshakes: Semaphore::new(limits.handshakes),
        streams: StreamPool::default(),
        registry: Arc::clone(&registry),
        http2_connections: AtomicUsize::default(),
    });
    let (ending, signal) = Shutdown::new();
    let thread = accept_thread();
    let accept_on = thread.as_ref().map_or_else(Handle::current, |thread| thread.handle().clone());
    let mut loops = tokio::task::JoinSet::new();
    for listener in listeners {
        let slots = if listener.surface == Surface::Observability { &observer_slots } else { &slots };
        let (state, slots, signal) = (Arc::clone(&state), Arc::clone(slots), signal.clone());
        loops.spawn_on(accept(listener, state, slots, signal, Handle::current()), &accept_on);
    }
    drop(signal);

    let cause = shutdown.await;
    loops.shutdown().await;
    drop(thread);
    end(ending, &registry, drain(cause)).await;
    registry.totals()
}

/// Lets the responses under way go on until `drain` completes, and then ends the connections that are left.
pub(in crate::registry) async fn end(mut ending: Shutdown, registry: &Registry, drain: impl Future<Output = ()>) {
    ending.enter(Phase::Draining);
    let drained = tokio::select! {
        biased;
        () = ending.all_ended() => true,
        () = drain => false,
    };
    if !drained {
        let connections = registry.metrics().connections();
        ending.enter(Phase::Closing);
        tracing::warn!(connections, "the drain ended before its transfers: they were cut");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, all_closed(&mut ending, registry)).await;
    }
    registry.metrics().refusals.flush(registry.events());
}

/// Waits until no connection is left, and no response either: HTTP/2 streams end after their connection.
async fn all_closed(ending: &mut Shutdown, registry: &Registry) {
    ending.all_ended().await;
    while registry.metrics().in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Starts the accept thread. Returns `None` if it cannot be started; the worker threads then accept connections themselves.
fn accept_thread() -> Option<AcceptThread> {
    AcceptThread::start().inspect_err(|error| tracing::warn!(%error, "no accept thread: the worker threads accept")).ok()
}

/// Raises the limit on open files, and the maximum of that limit, to `limit`. `None` is the present maximum, which needs no privilege.
///
/// # Errors
/// Fails if the kernel refuses.
pub fn raise_open_files(limit: Option<u64>) -> io::Result<()> {
    let limit = limit.or(getrlimit(Resource::Nofile).maximum);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
}

/// The number of connections that the file descriptor limit allows, after raising that limit as far as the system permits. A connection
/// takes two descriptors: its socket and the blob it is sent.
fn affordable_connections() -> usize {
    // Without a higher limit, fewer connections are accepted.
    let _ = raise_open_files(None);
    let descriptors = getrlimit(Resource::Nofile).current.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    (descriptors.saturating_sub(OWN_DESCRIPTORS) / 2).max(1)
}
