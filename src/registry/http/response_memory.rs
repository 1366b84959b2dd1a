//! Limits the memory of generated responses: lists and metrics. A request acquires a permit before its response is generated and holds it
//! until the response is written, so clients that read nothing hold a bounded number of bytes. Blobs and manifests need no permit.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::RegistryError;
use crate::registry::limits::{RESPONSE_MEMORY, RESPONSE_MEMORY_WAITERS, SMALL_CHUNK};

/// The memory that generated responses may use together.
#[derive(Debug)]
pub(crate) struct ResponseMemory {
    free_bytes: Arc<Semaphore>,
    waiters: Semaphore,
    max_wait: Duration,
}

/// Memory reserved for one response, one semaphore permit for each byte.
#[derive(Debug)]
pub(crate) struct Permit(OwnedSemaphorePermit);

impl ResponseMemory {
    /// A request waits at most `max_wait` for its part of `bytes`.
    pub fn new(bytes: usize, max_wait: Duration) -> Self {
        Self { free_bytes: Arc::new(Semaphore::new(bytes)), waiters: Semaphore::new(RESPONSE_MEMORY_WAITERS), max_wait }
    }

    /// Reserves memory for a response of at most `bytes` bytes.
    ///
    /// # Errors
    /// Fails with 429 if other responses hold the memory for too long, or if too many requests wait already.
    pub async fn acquire(&self, bytes: usize) -> Result<Permit, RegistryError> {
        let bytes = u32::try_from(bytes.min(RESPONSE_MEMORY)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.free_bytes).try_acquire_many_owned(bytes) {
            return Ok(Permit(permit));
        }
        const BUSY: RegistryError = RegistryError::Busy("too many list requests are waiting");
        let _waiter = self.waiters.try_acquire().map_err(|_| BUSY)?;
        let permit = timeout(self.max_wait, Arc::clone(&self.free_bytes).acquire_many_owned(bytes)).await;
        permit.ok().and_then(Result::ok).map(Permit).ok_or(BUSY)
    }
}

impl Permit {
    /// Ties the permit to the response's bytes: it is released when the last reference to them is dropped. Memory that `document` does not
    /// use is released at once. A document no larger than a body's smallest chunk needs no permit.
    pub fn attach(mut self, document: Vec<u8>) -> Bytes {
        if document.len() <= SMALL_CHUNK {
            return document.into();
        }
        drop(self.0.split(self.0.num_permits().saturating_sub(document.len())));
        Bytes::from_owner(PermittedBytes { document, _permit: self })
    }
}

#[derive(Debug)]
struct PermittedBytes {
    document: Vec<u8>,
    _permit: Permit,
}

impl AsRef<[u8]> for PermittedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permit_is_held_until_the_last_reference_is_dropped() {
        let memory = ResponseMemory::new(100_000, Duration::from_millis(1));
        let document = memory.acquire(100_000).await.unwrap().attach(vec![7; 60_000]);
        assert_eq!((document.len(), memory.free_bytes.available_permits()), (60_000, 40_000));
        let refused = memory.acquire(50_000).await.unwrap_err();
        assert_eq!(refused, RegistryError::Busy("too many list requests are waiting"));
        let slice = document.slice(..10);
        drop(document);
        assert_eq!(memory.free_bytes.available_permits(), 40_000, "a slice is still being written");
        drop(slice);
        assert_eq!(memory.free_bytes.available_permits(), 100_000);
    }

    #[tokio::test]
    async fn number_of_waiters_is_limited() {
        let memory = Arc::new(ResponseMemory::new(10, Duration::from_secs(600)));
        let permit = memory.acquire(10).await.unwrap();
        let waiting: Vec<_> = (0..RESPONSE_MEMORY_WAITERS)
            .map(|_| {
                let memory = Arc::clone(&memory);
                tokio::spawn(async move { memory.acquire(1).await.map(drop) })
            })
            .collect();
        while memory.waiters.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(memory.acquire(1).await.unwrap_err(), RegistryError::Busy("too many list requests are waiting"));
        drop(permit);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test]
    async fn small_documents_release_their_permit_at_once() {
        let memory = ResponseMemory::new(10_000, Duration::from_millis(1));
        let mut documents = Vec::new();
        for size in [0, 1, SMALL_CHUNK] {
            documents.push(memory.acquire(10_000).await.unwrap().attach(vec![7; size]));
        }
        assert_eq!(memory.free_bytes.available_permits(), 10_000);
        assert_eq!(documents.iter().map(Bytes::len).sum::<usize>(), 1 + SMALL_CHUNK);
    }
}
