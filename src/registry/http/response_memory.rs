//! Room in memory for documents that are made for one request: lists and metrics. Room is taken before a document is made and given
//! back when it is written, so that clients who take nothing hold a bounded number of bytes, however many they are. Images need none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::RegistryError;
use crate::registry::limits::{DOCUMENT_WAIT, DOCUMENT_WAITERS, DOCUMENTS, SMALL_CHUNK};

/// The room that is left, in bytes.
#[derive(Debug)]
pub(crate) struct Documents {
    room: Arc<Semaphore>,
    /// Places for those who wait.
    waiters: Semaphore,
    patience: Duration,
}

/// Room that was taken.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Default for Documents {
    fn default() -> Self {
        Self::new(DOCUMENTS, DOCUMENT_WAIT)
    }
}

impl Documents {
    fn new(bytes: usize, patience: Duration) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes)), waiters: Semaphore::new(DOCUMENT_WAITERS), patience }
    }

    /// Room for a document of at most so many bytes.
    ///
    /// # Errors
    /// 429, where others' documents take all of it for too long, or too many wait already.
    pub async fn room(&self, bytes: usize) -> Result<Room, RegistryError> {
        let bytes = u32::try_from(bytes.min(DOCUMENTS)).unwrap_or(u32::MAX);
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            return Ok(Room(room));
        }
        const BUSY: RegistryError = RegistryError::Busy("too many lists wait to be read");
        let _waiter = self.waiters.try_acquire().map_err(|_| BUSY)?;
        let room = timeout(self.patience, Arc::clone(&self.room).acquire_many_owned(bytes)).await;
        room.ok().and_then(Result::ok).map(Room).ok_or(BUSY)
    }
}

impl Room {
    /// The document, which takes its room for as long as anybody has it. What it does not fill is given back at once, and a document
    /// that is as small as any body's chunk takes none.
    pub fn hold(mut self, document: Vec<u8>) -> Bytes {
        if document.len() <= SMALL_CHUNK {
            return document.into();
        }
        drop(self.0.split(self.0.num_permits().saturating_sub(document.len())));
        Bytes::from_owner(Held { document, _room: self })
    }
}

#[derive(Debug)]
struct Held {
    document: Vec<u8>,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn documents_take_their_own_size_until_they_are_gone() {
        let documents = Documents::new(100_000, Duration::from_millis(1));
        let held = documents.room(100_000).await.unwrap().hold(vec![7; 60_000]);
        assert_eq!((held.len(), documents.room.available_permits()), (60_000, 40_000));
        let refused = documents.room(50_000).await.unwrap_err();
        assert_eq!(refused, RegistryError::Busy("too many lists wait to be read"));
        let part = held.slice(..10);
        drop(held);
        assert_eq!(documents.room.available_permits(), 40_000, "part of it is still being written");
        drop(part);
        assert_eq!(documents.room.available_permits(), 100_000);
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let documents = Arc::new(Documents::new(10, Duration::from_secs(600)));
        let held = documents.room(10).await.unwrap();
        let waiting: Vec<_> = (0..DOCUMENT_WAITERS)
            .map(|_| {
                let documents = Arc::clone(&documents);
                tokio::spawn(async move { documents.room(1).await.map(drop) })
            })
            .collect();
        while documents.waiters.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(documents.room(1).await.unwrap_err(), RegistryError::Busy("too many lists wait to be read"));
        drop(held);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test]
    async fn small_ones_take_none() {
        let documents = Documents::new(10_000, Duration::from_millis(1));
        let small: Vec<_> = [0, 1, SMALL_CHUNK].map(|size| vec![7; size]).into();
        let mut held = Vec::new();
        for document in small {
            held.push(documents.room(10_000).await.unwrap().hold(document));
        }
        assert_eq!(documents.room.available_permits(), 10_000);
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), 1 + SMALL_CHUNK);
    }
}
