//! Bytes of bodies between the disk and the network: who holds how many, and who has to wait. Chunks to read into leave here; they come
//! back when the connection has written them or given them up. A body that nobody reads costs the process little, however many
//! there are, and none waits for another.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::registry::limits::{CHUNK, IN_FLIGHT, SHARE, SMALL_CHUNK};

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
pub(crate) struct Flight {
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
        Poll::Ready(Chunk { buffer, limit: size, filled: 0, flight: Arc::clone(self) })
    }

    /// The same bytes, in flight as long as anybody has them. They are in memory already, and add nothing to the budget.
    pub fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.state().chunks += 1;
        Bytes::from_owner(Held { bytes, flight: Arc::clone(self) })
    }

    /// Takes note that a chunk is no longer in flight, keeps its buffer for the next one, and wakes a body that waits for that.
    fn landed(&self, spare: Option<Vec<u8>>) {
        let mut state = self.state();
        state.chunks -= 1;
        if spare.is_some() {
            state.spare = spare;
        }
        let waiting = state.waiting.take();
        drop(state);
        if let Some(body) = waiting {
            body.wake();
        }
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
        self.flight.landed(None);
    }
}

/// A buffer in flight, from the moment that it is read into. It never takes more bytes than were wanted, however long the buffer is.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// At least `limit` bytes.
    buffer: Vec<u8>,
    /// Bytes that are wanted.
    limit: usize,
    /// Bytes that it has, at most `limit`.
    filled: usize,
    flight: Arc<Flight>,
}

impl Chunk {
    /// Bytes that it has.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether it has all bytes that are wanted.
    pub fn is_full(&self) -> bool {
        self.filled == self.limit
    }

    /// Adds what `read` puts into the free space, `most` bytes at most, and returns how many bytes that were.
    ///
    /// # Errors
    /// Those of `read`; also if it claims to have put in more than there was space for.
    pub fn fill(&mut self, most: u64, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<u64> {
        let free = self.buffer.get_mut(self.filled..self.limit).unwrap_or_default();
        let most = usize::try_from(most).map_or(free.len(), |most| most.min(free.len()));
        let count = read(free.get_mut(..most).unwrap_or_default())?;
        if count > most {
            return Err(io::Error::other(format!("{count} bytes were read into a buffer of {most}")));
        }
        self.filled += count;
        Ok(count as u64)
    }

    /// Adds as many of these bytes as there is space for, and returns how many those are.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let free = self.buffer.get_mut(self.filled..self.limit).unwrap_or_default();
        let count = bytes.len().min(free.len());
        if let (Some(to), Some(from)) = (free.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
            self.filled += count;
        }
        count
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
        let spare = (!budget.is_spent()).then_some(buffer);
        self.flight.landed(spare);
    }
}

/// Bodies of one connection that have ended while chunks of theirs were still in flight: HTTP/2 keeps them until its peer opens the
/// stream's window, and nothing else watches over them.
#[derive(Debug, Default)]
pub(crate) struct Tails(Mutex<Vec<(Instant, Weak<Flight>)>>);

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
    fn a_chunk_takes_no_more_than_was_wanted_though_its_buffer_is_longer() {
        let flight = Arc::new(Flight::new(Arc::default()));
        let wanting = |wanted| match flight.poll_chunk(wanted, &Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => panic!("there is room"),
        };
        let fill = |chunk: &mut Chunk, most| chunk.fill(most, |space| Ok(space.len())).unwrap();
        drop(wanting(131_072));
        let mut chunk = wanting(68_928);
        assert_eq!((chunk.buffer.len(), chunk.limit), (131_072, 68_928), "the buffer is used again");
        assert_eq!((fill(&mut chunk, 7), fill(&mut chunk, u64::MAX), chunk.is_full()), (7, 68_921, true));
        assert_eq!((fill(&mut chunk, u64::MAX), chunk.put(b"more"), chunk.as_ref().len()), (0, 0, 68_928));
        let mut chunk = wanting(40_000);
        assert_eq!((chunk.put(&[7; 40_001]), chunk.as_ref()), (40_000, &[7; 40_000][..]));
        let mut chunk = wanting(10);
        assert!(chunk.fill(5, |space| Ok(space.len() + 1)).is_err(), "more than the space that it was given");
        assert_eq!(chunk.len(), 0);
    }

    #[test]
    fn a_body_that_waits_for_bytes_in_memory_is_woken_when_they_are_gone() {
        let (flights, taken) = greedy(100);
        let flight = Arc::new(Flight::new(Arc::clone(&flights[0].budget)));
        let held = flight.hold(Bytes::from_static(b"list"));
        assert!(chunk(&flight).is_none() && flight.state().waiting.is_some());
        drop(held);
        assert!(flight.state().waiting.is_none() && chunk(&flight).is_some());
        drop(taken);
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
