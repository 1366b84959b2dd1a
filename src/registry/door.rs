//! The door: one thread takes connections up, and waits with them until they say something. What enters are bound sockets; what leaves
//! are connections whose first bytes are there. It never answers anybody.
//!
//! A flood of connections takes this thread's time, and so one processor's at most; whoever is being served has the others.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Handle};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::connection::{self, Closing, Shared};
use super::limits::DESCRIPTOR_PAUSE;
use super::serve::{Listener, Transport};

/// The thread. It ends when this is dropped, and lets go of whoever has said nothing yet.
#[derive(Debug)]
pub(super) struct Door {
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

/// Takes up those who connect, as places get free, and has `server` serve them. Has to be run by the door's thread.
pub(super) async fn accept(listener: Listener, shared: Arc<Shared>, places: Arc<Semaphore>, closing: Closing, server: Handle) {
    let Listener { socket, transport, surface } = listener;
    let Some(socket) = here(socket) else { return };
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The peer is gone already, or the process has no descriptor or memory left: neither ends the loop.
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(DESCRIPTOR_PAUSE).await;
                }
                continue;
            }
        };
        tune(&stream);
        let (shared, transport, closing, server) = (Arc::clone(&shared), transport.clone(), closing.clone(), server.clone());
        // Where the connection is gone already, what it had connected to is of no use either.
        let local = stream.local_addr().unwrap_or(peer);
        let client = Client { peer, local, encrypted: matches!(transport, Transport::Tls(_)), certified: false, surface };
        let open = shared.registry.metrics().connection();
        tokio::spawn(async move {
            let spoken = timeout(shared.registry.limits().first_byte, connection::spoken(&stream)).await;
            // Its descriptor goes over to the threads that serve.
            let (Ok(Some(spoken)), Ok(stream)) = (spoken, stream.into_std()) else { return };
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
