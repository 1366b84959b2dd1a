//! The door: one thread takes connections up, and waits with them until they say something. What enters are bound sockets; what leaves
//! are connections whose first bytes are there. It never answers anybody.
//!
//! A flood of connections takes this thread's time, and so one processor's at most; whoever is being served has the others.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::connection::{self, Closing, Shared};
use super::listener::{Listener, Transport};
use crate::registry::limits::{DESCRIPTOR_PAUSE, REMINDER, SILENCE};

/// The thread. It ends when this is dropped, and lets go of whoever has said nothing yet.
#[derive(Debug)]
pub(crate) struct Door {
    handle: Handle,
    _end: oneshot::Sender<()>,
}

impl Door {
    /// Starts the thread.
    ///
    /// # Errors
    /// As of starting threads and making an epoll instance.
    pub fn open() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("door".to_owned()).spawn(move || drop(runtime.block_on(ended)))?;
        Ok(Self { handle, _end: end })
    }

    /// Where its work is done.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Places for those who are connected, and who of them has said nothing yet.
#[derive(Debug)]
pub(crate) struct Rooms {
    places: Arc<Semaphore>,
    silent: Mutex<Line>,
}

/// Those who are silent, by the numbers of their coming: since when, and what sends each away.
#[derive(Debug, Default)]
struct Line {
    came: u64,
    silent: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl Rooms {
    /// So many places.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(count)), silent: Mutex::default() })
    }

    /// A place for one more. Where there is none, whoever has said nothing for longest, and for [`SILENCE`], makes it: who comes speaks at
    /// once, and must not wait behind those who never do.
    async fn enter(self: &Arc<Self>) -> Option<(OwnedSemaphorePermit, Silent, oneshot::Receiver<()>)> {
        let place = loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                break place;
            }
            let next = Arc::clone(&self.places).acquire_owned();
            match self.send_away() {
                None => break next.await.ok()?,
                Some(patience) => {
                    if let Ok(place) = timeout(patience, next).await {
                        break place.ok()?;
                    }
                }
            }
        };
        let (away, sent_away) = oneshot::channel();
        let mut line = self.line();
        line.came += 1;
        let number = line.came;
        line.silent.insert(number, (Instant::now(), away));
        Some((place, Silent { rooms: Arc::clone(self), number }, sent_away))
    }

    /// Sends away whoever has been silent for longest, where that is long enough; else says how much longer it may be. Nothing where nobody
    /// is silent, or a place is about to be free.
    fn send_away(&self) -> Option<Duration> {
        let mut line = self.line();
        let (since, _) = line.silent.first_key_value()?.1;
        let patience = SILENCE.saturating_sub(since.elapsed());
        if patience.is_zero() {
            // What it is told is that its sender is gone.
            line.silent.pop_first();
            return None;
        }
        Some(patience)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who has said nothing yet, as long as that is so.
#[derive(Debug)]
struct Silent {
    rooms: Arc<Rooms>,
    number: u64,
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.rooms.line().silent.remove(&self.number);
    }
}

/// Takes up those who connect, as places get free, and has `server` serve them when they have spoken. Has to be run by the door's thread.
pub(crate) async fn accept(listener: Listener, shared: Arc<Shared>, rooms: Arc<Rooms>, closing: Closing, server: Handle) {
    let Listener { socket, transport, surface } = listener;
    let Some(socket) = here(socket) else { return };
    let mut told: Option<Instant> = None;
    loop {
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The peer is gone already, or the process has no descriptor or memory left: neither ends the loop.
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    if told.is_none_or(|at| at.elapsed() >= REMINDER) {
                        tracing::warn!(%error, "a connection could not be accepted");
                        told = Some(Instant::now());
                    }
                    sleep(DESCRIPTOR_PAUSE).await;
                }
                continue;
            }
        };
        let Some((place, silent, sent_away)) = rooms.enter().await else { return };
        tune(&stream);
        let (shared, transport, closing, server) = (Arc::clone(&shared), transport.clone(), closing.clone(), server.clone());
        // Where the connection is gone already, what it had connected to is of no use either.
        let local = stream.local_addr().unwrap_or(peer);
        let client = Client { peer, local, encrypted: matches!(transport, Transport::Tls(_)), certified: false, surface };
        let open = shared.registry.metrics().connection();
        tokio::spawn(async move {
            let spoken = tokio::select! {
                biased;
                spoken = timeout(shared.registry.limits().first_byte, connection::spoken(&stream)) => spoken.ok().flatten(),
                _ = sent_away => None,
            };
            drop(silent);
            // Its descriptor goes over to the threads that serve.
            let (Some(spoken), Ok(stream)) = (spoken, stream.into_std()) else { return };
            server.spawn(async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection::run(stream, spoken, client, transport, &shared, closing).await;
                }
                drop((open, place));
            });
        });
        // Those who have spoken come first: a flood of connections is taken up one at a time, with what they wait for between.
        tokio::task::yield_now().await;
    }
}

/// The socket, watched by the thread that this runs on.
fn here(socket: TcpListener) -> Option<TcpListener> {
    let moved = socket.into_std().and_then(TcpListener::from_std);
    moved.inspect_err(|error| tracing::error!(%error, "a listener could not be watched")).ok()
}

/// Small responses go out at once.
fn tune(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
}
