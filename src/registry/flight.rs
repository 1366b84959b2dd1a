//! Bytes of bodies between the disk and the network: who holds how many, and who has to wait. Chunks to read into leave here; they come
//! back when the connection has written them or given them up. A body that nobody reads costs the process little, however many
//! there are, and none waits for another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::limits::{CHUNK, IN_FLIGHT, SHARE, SMALL_CHUNK};

/// Bytes that all bodies of a server have in flight.
#[derive(Debug, Default)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// How large the next chunk of a body may be: a power of two, so that buffers are used again.
    fn allowance(&self) -> usize {
        let left = IN_FLIGHT.saturating_sub(self.0.load(Ordering::Relaxed));
        let share = (left / SHARE).clamp(SMALL_CHUNK, CHUNK);
        1 << share.ilog2()
    }

    fn is_spent(&self) -> bool {
        self.allowance() == SMALL_CHUNK
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
        let largest = self.budget.allowance();
        if largest == SMALL_CHUNK && state.chunks > 0 {
            state.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        let size = usize::try_from(wanted).map_or(largest, |wanted| wanted.min(largest));
        // A buffer that is a little larger does as well; a much larger one would take what others need.
        let spare = state.spare.take().filter(|spare| (size..=size * 2).contains(&spare.len()));
        let buffer = spare.unwrap_or_else(|| vec![0; size]);
        state.chunks += 1;
        self.budget.0.fetch_add(buffer.len(), Ordering::Relaxed);
        Poll::Ready(Chunk { buffer, filled: 0, flight: Arc::clone(self) })
    }

    /// The same bytes, in flight as long as anybody has them. They are in memory already, and add nothing to the budget.
    pub fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.state().chunks += 1;
        Bytes::from_owner(Held { bytes, flight: Arc::clone(self) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Held {
    bytes: Bytes,
    flight: Arc<Flight>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.flight.state().chunks -= 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(flight: &Arc<Flight>) -> Option<Chunk> {
        match flight.poll_chunk(u64::MAX, &Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => Some(chunk),
            Poll::Pending => None,
        }
    }

    /// So many bodies, each of which takes all that it gets and gives nothing back.
    fn greedy(bodies: usize) -> (Vec<Arc<Flight>>, Vec<Chunk>) {
        let budget = Arc::<Budget>::default();
        let flights: Vec<_> = (0..bodies).map(|_| Arc::new(Flight::new(Arc::clone(&budget)))).collect();
        let mut taken = Vec::new();
        while let Some(round) = Some(flights.iter().filter_map(chunk).collect::<Vec<_>>()).filter(|round| !round.is_empty()) {
            taken.extend(round);
        }
        (flights, taken)
    }

    #[test]
    fn bodies_that_take_all_they_get_hold_the_budget_and_one_small_chunk_each() {
        for bodies in [1, 64, 1000, 4096] {
            let (flights, taken) = greedy(bodies);
            let held: usize = taken.iter().map(|chunk| chunk.buffer.len()).sum();
            assert!(held <= IN_FLIGHT + bodies * SMALL_CHUNK, "{bodies}: {held}");
            assert!(flights.iter().all(|flight| flight.state().chunks > 0), "{bodies}: each got something");
        }
    }

    #[test]
    fn sixty_four_bodies_that_are_read_have_large_chunks() {
        let budget = Arc::<Budget>::default();
        let flights: Vec<_> = (0..64).map(|_| Arc::new(Flight::new(Arc::clone(&budget)))).collect();
        let mut held: Vec<Option<Chunk>> = flights.iter().map(chunk).collect();
        for _ in 0..20 {
            for (flight, place) in flights.iter().zip(&mut held) {
                *place = None;
                *place = chunk(flight);
            }
        }
        let sizes: Vec<usize> = held.iter().flatten().map(|chunk| chunk.buffer.len()).collect();
        assert!(sizes.len() == 64 && sizes.iter().all(|size| *size >= 32 << 10), "{sizes:?}");
    }

    #[test]
    fn what_is_given_back_is_there_again() {
        let (flights, taken) = greedy(100);
        assert!(chunk(&flights[0]).is_none());
        drop(taken);
        assert_eq!(flights[0].budget.0.load(Ordering::Relaxed), 0);
        assert_eq!(chunk(&flights[0]).unwrap().buffer.len(), CHUNK);
    }

    #[test]
    fn bytes_of_a_body_that_has_ended_are_watched() {
        let flight = Arc::new(Flight::new(Arc::default()));
        let held = flight.hold(Bytes::from_static(b"list"));
        assert_eq!((&held[..], flight.state().chunks), (&b"list"[..], 1));
        let tails = Tails::default();
        tails.add(&flight);
        drop(flight);
        assert_eq!(tails.ended()[0].1.strong_count(), 1);
        drop(held);
        assert_eq!(tails.ended()[0].1.strong_count(), 0);
    }
}
