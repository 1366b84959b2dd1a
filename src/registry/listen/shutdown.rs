//! Tells connections when to end, and the server when the last one has ended.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

/// How far the shutdown of the server has come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Phase {
    /// Each connection ends after the responses under way.
    Draining,
    /// Each connection ends at once.
    Closing,
}

/// A semaphore without permits for each phase, which is closed when the phase begins: that wakes those that wait in the order in which they
/// began to.
type Phases = Arc<[Semaphore; 2]>;

/// A connection's view of the shutdown. The server's drain lasts as long as one of these is alive.
#[derive(Debug, Clone)]
pub(crate) struct ShutdownSignal {
    phases: Phases,
    _alive: mpsc::Sender<()>,
}

impl ShutdownSignal {
    /// Waits until the phase begins, or the server is dropped.
    pub async fn begun(&self, phase: Phase) {
        if let Some(begun) = self.phases.get(phase as usize) {
            let _closed = begun.acquire().await;
        }
    }
}

/// The server's side: begins the phases, and waits for the connections.
#[derive(Debug)]
pub(crate) struct Shutdown {
    phases: Phases,
    all_ended: mpsc::Receiver<()>,
}

impl Shutdown {
    /// A shutdown that has not begun, and the signal for its connections.
    pub fn new() -> (Self, ShutdownSignal) {
        let phases = Arc::new([Semaphore::new(0), Semaphore::new(0)]);
        let (alive, all_ended) = mpsc::channel(1);
        (Self { phases: Arc::clone(&phases), all_ended }, ShutdownSignal { phases, _alive: alive })
    }

    /// Begins `phase` for all connections.
    pub fn enter(&self, phase: Phase) {
        self.phases.get(phase as usize).into_iter().for_each(Semaphore::close);
    }

    /// Waits until no connection is left.
    pub async fn all_ended(&mut self) {
        self.all_ended.recv().await;
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.phases.iter().for_each(Semaphore::close);
    }
}
