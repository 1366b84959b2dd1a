//! Bytes of bodies between the disk and the network: who holds how many, and who has to wait. Chunks to read into leave here; they come
//! back when the connection has written them or given them up. A body that nobody reads costs the process little, however many
//! there are, and none waits for another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::limits::{CHUNK, IN_FLIGHT, SMALL_CHUNK};

/// Bytes that all bodies of a server have in flight.
#[derive(Debug, Default)]
pub struct Budget(AtomicUsize);

impl Budget {
    fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= IN_FLIGHT
    }
}

/// What one body has in flight.
#[derive(Debug, Default)]
pub(super) struct Flight {
    budget: Arc<Budget>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: usize,
    /// A buffer that came back: the next chunk is read into it.
    spare: Option<Vec<u8>>,
    waiting: Option<Waker>,
}

impl Flight {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// A chunk to read up to `wanted` bytes into. While the budget is spent chunks are small, and a body waits until its last one has
    /// been written.
    pub fn poll_chunk(self: &Arc<Self>, wanted: u64, context: &Context<'_>) -> Poll<Chunk> {
        let mut state = self.state();
        let largest = match self.budget.is_spent() {
            true if state.chunks > 0 => {
                state.waiting = Some(context.waker().clone());
                return Poll::Pending;
            }
            true => SMALL_CHUNK,
            false => CHUNK,
        };
        let size = usize::try_from(wanted).map_or(largest, |wanted| wanted.min(largest));
        let buffer = state.spare.take().filter(|spare| spare.len() == size).unwrap_or_else(|| vec![0; size]);
        state.chunks += 1;
        self.budget.0.fetch_add(size, Ordering::Relaxed);
        Poll::Ready(Chunk { buffer, filled: 0, flight: Arc::clone(self) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer in flight, from the moment that it is read into.
#[derive(Debug)]
pub(super) struct Chunk {
    buffer: Vec<u8>,
    filled: usize,
    flight: Arc<Flight>,
}

impl Chunk {
    /// All of the buffer.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The same, with so many bytes of it read.
    pub fn filled(mut self, bytes: usize) -> Self {
        self.filled = bytes;
        self
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (buffer, budget) = (std::mem::take(&mut self.buffer), &self.flight.budget);
        budget.0.fetch_sub(buffer.len(), Ordering::Relaxed);
        let mut state = self.flight.state();
        state.chunks -= 1;
        if !budget.is_spent() {
            state.spare = Some(buffer);
        }
        let waiting = state.waiting.take();
        drop(state);
        if let Some(body) = waiting {
            body.wake();
        }
    }
}

/// Bodies of one connection that have ended while chunks of theirs were still in flight: HTTP/2 keeps them until its peer opens the
/// stream's window, and nothing else watches over them.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Vec<(Instant, Weak<Flight>)>>);

impl Tails {
    /// Takes over what has just ended.
    pub fn add(&self, flight: &Arc<Flight>) {
        if flight.state().chunks > 0 {
            self.ended().push((Instant::now(), Arc::downgrade(flight)));
        }
    }

    /// Ends when one of them has waited for `patience` or longer.
    pub async fn overdue(&self, patience: Duration) {
        loop {
            tokio::time::sleep(patience).await;
            let mut ended = self.ended();
            ended.retain(|(_, flight)| flight.strong_count() > 0);
            if ended.iter().any(|(since, _)| since.elapsed() >= patience) {
                return;
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, Vec<(Instant, Weak<Flight>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
