//! Tells connections when to end, and the server when the last one has ended.

use tokio::sync::{mpsc, watch};

/// How far the shutdown of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Each connection ends after the responses under way.
    Draining,
    /// Each connection ends at once.
    Closing,
}

/// A connection's view of the shutdown. The server's drain lasts as long as one of these is alive.
#[derive(Debug, Clone)]
pub(crate) struct ShutdownSignal {
    pub phase: watch::Receiver<Phase>,
    _alive: mpsc::Sender<()>,
}

/// The server's side: sets the phase, and waits for the connections.
#[derive(Debug)]
pub(crate) struct Shutdown {
    phase: watch::Sender<Phase>,
    all_ended: mpsc::Receiver<()>,
}

impl Shutdown {
    /// A shutdown that has not begun, and the signal for its connections.
    pub fn new() -> (Self, ShutdownSignal) {
        let (sender, phase) = watch::channel(Phase::Serving);
        let (alive, all_ended) = mpsc::channel(1);
        (Self { phase: sender, all_ended }, ShutdownSignal { phase, _alive: alive })
    }

    /// Moves all connections to `phase`.
    pub fn enter(&self, phase: Phase) {
        let _ = self.phase.send(phase);
    }

    /// Waits until no connection is left.
    pub async fn all_ended(&mut self) {
        self.all_ended.recv().await;
    }
}
