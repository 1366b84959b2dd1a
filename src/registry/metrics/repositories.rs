//! Bytes by repository. The first repositories that something is pulled from get a counter of their own, in order of their first
//! pull; all others share one. So the text is bounded whatever the disk holds, and no counter ever goes back.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::registry::catalog::RepositoryId;
use crate::registry::limits::REPOSITORY_SERIES;

/// No bytes of it were sent yet.
const NONE: u32 = 0;
/// It came after the places were taken.
const SHARED: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Repositories {
    /// For each repository of the catalog: [`NONE`], [`SHARED`], or the number of its place, from 1.
    places: Box<[AtomicU32]>,
    taken: AtomicU32,
    bytes: Box<[AtomicU64]>,
    /// For each place, the repository's number, from 1.
    owners: Box<[AtomicU64]>,
    shared: AtomicU64,
}

impl Repositories {
    pub fn new(repositories: usize) -> Self {
        let series = repositories.min(REPOSITORY_SERIES);
        Self {
            places: (0..repositories).map(|_| AtomicU32::new(NONE)).collect(),
            taken: AtomicU32::default(),
            bytes: (0..series).map(|_| AtomicU64::default()).collect(),
            owners: (0..series).map(|_| AtomicU64::default()).collect(),
            shared: AtomicU64::default(),
        }
    }

    pub fn add(&self, repository: RepositoryId, bytes: u64) {
        let number = repository.number();
        let Some(cell) = self.places.get(number) else { return };
        let place = match cell.load(Ordering::Relaxed) {
            NONE => self.take(cell, number),
            place => place,
        };
        let own = self.bytes.get(index(place));
        own.unwrap_or(&self.shared).fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives a repository a place. Where two requests do it at once, one of the two places stays empty.
    fn take(&self, cell: &AtomicU32, number: usize) -> u32 {
        // Left alone once it is past the end, so that it cannot wrap.
        let free = self.taken.load(Ordering::Relaxed) as usize <= self.bytes.len();
        let place = if free { self.taken.fetch_add(1, Ordering::Relaxed) + 1 } else { SHARED };
        let owner = self.owners.get(index(place));
        let place = if owner.is_some() { place } else { SHARED };
        match cell.compare_exchange(NONE, place, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                owner.into_iter().for_each(|owner| owner.store(number as u64 + 1, Ordering::Relaxed));
                place
            }
            Err(other) => other,
        }
    }

    /// Number and bytes of each repository with a place of its own.
    pub fn read(&self) -> impl Iterator<Item = (usize, u64)> {
        let owned = self.owners.iter().zip(&self.bytes);
        owned.filter_map(|(owner, bytes)| {
            let number = owner.load(Ordering::Relaxed).checked_sub(1)?;
            Some((usize::try_from(number).ok()?, bytes.load(Ordering::Relaxed)))
        })
    }

    /// Bytes of all others.
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }
}

/// Where a place is in the columns; out of them for [`SHARED`].
fn index(place: u32) -> usize {
    (place as usize).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_have_a_line_of_their_own() {
        let repositories = Repositories::new(REPOSITORY_SERIES + 10);
        for number in (0..REPOSITORY_SERIES + 10).rev() {
            repositories.add(RepositoryId::from_number(number), 2);
            repositories.add(RepositoryId::from_number(number), 1);
        }
        let own: Vec<_> = repositories.read().collect();
        assert_eq!((own.len(), own[0], own[1]), (REPOSITORY_SERIES, (REPOSITORY_SERIES + 9, 3), (REPOSITORY_SERIES + 8, 3)));
        assert_eq!(repositories.shared(), 30);
    }

    #[test]
    fn what_nobody_pulled_is_not_there() {
        let repositories = Repositories::new(3);
        repositories.add(RepositoryId::from_number(1), 5);
        repositories.add(RepositoryId::from_number(7), 5);
        assert_eq!(repositories.read().collect::<Vec<_>>(), [(1, 5)]);
        assert_eq!(repositories.shared(), 0);
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let repositories = Repositories::new(REPOSITORY_SERIES);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..REPOSITORY_SERIES {
                        repositories.add(RepositoryId::from_number(number), 1);
                    }
                });
            }
        });
        let sum: u64 = repositories.read().map(|(_, bytes)| bytes).sum();
        assert_eq!(sum + repositories.shared(), 4 * REPOSITORY_SERIES as u64);
    }
}
