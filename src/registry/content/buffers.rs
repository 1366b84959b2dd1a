//! The buffers of response bodies between the disk and the socket, and the budget of their bytes.
//!
//! A body reads into a `Chunk`; the connection drops the chunk when it has written it. Chunks get smaller as the budget is used up. When
//! it is used up, each body may still hold one small chunk, so bodies that are not read cost little and block no other body.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::registry::limits::{CHUNK, IN_FLIGHT, SHARE, SMALL_CHUNK};

/// The bytes in flight of all bodies of a server.
#[derive(Debug, Default)]
pub struct ByteBudget(AtomicUsize);

impl ByteBudget {
    /// The maximum size of the next chunk: a power of two, so that buffers can be reused.
    fn chunk_size(&self) -> usize {
        let left = IN_FLIGHT.saturating_sub(self.0.load(Ordering::Relaxed));
        let share = (left / SHARE).clamp(SMALL_CHUNK, CHUNK);
        1 << share.ilog2()
    }

    /// The bytes in flight.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes bytes that nothing gives back.
    #[cfg(test)]
    pub fn take(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn is_used_up(&self) -> bool {
        self.chunk_size() == SMALL_CHUNK
    }
}

/// The chunks of one body that are not written yet.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    budget: Arc<ByteBudget>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: usize,
    /// The buffer of a written chunk, for the next one.
    spare: Option<Vec<u8>>,
    /// The body, if it waits for its last chunk to be written.
    waiting: Option<Waker>,
}

impl InFlight {
    pub fn new(budget: Arc<ByteBudget>) -> Self {
        Self { budget, state: Mutex::default() }
    }

    /// Returns a chunk for at most `wanted` bytes. If the budget is used up, the chunk is small, and the body must wait for it until its
    /// last chunk is written.
    pub fn poll_chunk(self: &Arc<Self>, wanted: u64, context: &Context<'_>) -> Poll<Chunk> {
        let mut state = self.state();
        let largest = self.budget.chunk_size();
        if largest == SMALL_CHUNK && state.chunks > 0 {
            state.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        let size = usize::try_from(wanted).map_or(largest, |wanted| wanted.min(largest));
        // A spare buffer may be up to twice as large. A larger one would take budget from other bodies.
        let spare = state.spare.take().filter(|spare| (size..=size * 2).contains(&spare.len()));
        let buffer = spare.unwrap_or_else(|| vec![0; size]);
        state.chunks += 1;
        self.budget.0.fetch_add(buffer.len(), Ordering::Relaxed);
        Poll::Ready(Chunk { buffer, limit: size, filled: 0, in_flight: Arc::clone(self) })
    }

    /// Removes a chunk, keeps its buffer for the next one, and wakes the body if it waits.
    fn release(&self, spare: Option<Vec<u8>>) {
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

/// A buffer in flight. It never holds more than `limit` bytes, however long the buffer is.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// At least `limit` bytes long.
    buffer: Vec<u8>,
    limit: usize,
    /// The number of bytes read so far, at most `limit`.
    filled: usize,
    in_flight: Arc<InFlight>,
}

impl Chunk {
    /// The number of bytes read so far.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the chunk has all the bytes it was requested for.
    pub fn is_full(&self) -> bool {
        self.filled == self.limit
    }

    /// Appends what `read` puts into the free space, at most `max` bytes. Returns the number of bytes.
    ///
    /// # Errors
    /// Fails if `read` fails or claims more bytes than there was space for.
    pub fn fill(&mut self, max: u64, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<u64> {
        let free = self.buffer.get_mut(self.filled..self.limit).unwrap_or_default();
        let max = usize::try_from(max).map_or(free.len(), |max| max.min(free.len()));
        let count = read(free.get_mut(..max).unwrap_or_default())?;
        if count > max {
            return Err(io::Error::other(format!("{count} bytes were read into a buffer of {max}")));
        }
        self.filled += count;
        Ok(count as u64)
    }

    /// Appends as many of the bytes as fit. Returns their number.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
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
        let (buffer, budget) = (std::mem::take(&mut self.buffer), &self.in_flight.budget);
        budget.0.fetch_sub(buffer.len(), Ordering::Relaxed);
        let spare = (!budget.is_used_up()).then_some(buffer);
        self.in_flight.release(spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(body: &Arc<InFlight>) -> Option<Chunk> {
        match body.poll_chunk(u64::MAX, &Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => Some(chunk),
            Poll::Pending => None,
        }
    }

    /// Bodies that take all the chunks they can get and release none.
    fn greedy(count: usize) -> (Vec<Arc<InFlight>>, Vec<Chunk>) {
        let budget = Arc::<ByteBudget>::default();
        let bodies: Vec<_> = (0..count).map(|_| Arc::new(InFlight::new(Arc::clone(&budget)))).collect();
        let mut chunks = Vec::new();
        while let Some(round) = Some(bodies.iter().filter_map(chunk).collect::<Vec<_>>()).filter(|round| !round.is_empty()) {
            chunks.extend(round);
        }
        (bodies, chunks)
    }

    #[test]
    fn unread_bodies_hold_at_most_the_budget_and_one_small_chunk_each() {
        for count in [1, 64, 1000, 4096] {
            let (bodies, chunks) = greedy(count);
            let held: usize = chunks.iter().map(|chunk| chunk.buffer.len()).sum();
            assert!(held <= IN_FLIGHT + count * SMALL_CHUNK, "{count}: {held}");
            assert!(bodies.iter().all(|body| body.state().chunks > 0), "{count}: each body has a chunk");
        }
    }

    #[test]
    fn chunks_of_64_bodies_that_are_read_stay_large() {
        let budget = Arc::<ByteBudget>::default();
        let bodies: Vec<_> = (0..64).map(|_| Arc::new(InFlight::new(Arc::clone(&budget)))).collect();
        let mut held: Vec<Option<Chunk>> = bodies.iter().map(chunk).collect();
        for _ in 0..20 {
            for (body, slot) in bodies.iter().zip(&mut held) {
                *slot = None;
                *slot = chunk(body);
            }
        }
        let sizes: Vec<usize> = held.iter().flatten().map(|chunk| chunk.buffer.len()).collect();
        assert!(sizes.len() == 64 && sizes.iter().all(|size| *size >= 32 << 10), "{sizes:?}");
    }

    #[test]
    fn dropped_chunks_return_to_the_budget() {
        let (bodies, chunks) = greedy(100);
        assert!(chunk(&bodies[0]).is_none());
        drop(chunks);
        assert_eq!(bodies[0].budget.0.load(Ordering::Relaxed), 0);
        assert_eq!(chunk(&bodies[0]).unwrap().buffer.len(), CHUNK);
    }

    #[test]
    fn chunk_holds_at_most_the_wanted_bytes_in_a_longer_reused_buffer() {
        let body = Arc::new(InFlight::new(Arc::default()));
        let request = |wanted| match body.poll_chunk(wanted, &Context::from_waker(Waker::noop())) {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => panic!("the budget is not used up"),
        };
        let fill = |chunk: &mut Chunk, max| chunk.fill(max, |space| Ok(space.len())).unwrap();
        drop(request(131_072));
        let mut chunk = request(68_928);
        assert_eq!((chunk.buffer.len(), chunk.limit), (131_072, 68_928), "the buffer is reused");
        assert_eq!((fill(&mut chunk, 7), fill(&mut chunk, u64::MAX), chunk.is_full()), (7, 68_921, true));
        assert_eq!((fill(&mut chunk, u64::MAX), chunk.append(b"more"), chunk.as_ref().len()), (0, 0, 68_928));
        let mut chunk = request(40_000);
        assert_eq!((chunk.append(&[7; 40_001]), chunk.as_ref()), (40_000, &[7; 40_000][..]));
        let mut chunk = request(10);
        assert!(chunk.fill(5, |space| Ok(space.len() + 1)).is_err(), "more than the free space");
        assert_eq!(chunk.len(), 0);
    }
}
