//! Bytes by repository. The first repositories that something is pulled from get a counter of their own, in order of their first
//! pull; all others share one. So the text is bounded whatever the disks hold, and no counter ever goes back, also where disks come
//! and go and every repository gets another number.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::catalog::RepositoryId;
use crate::registry::limits::REPOSITORY_SERIES;

/// No bytes of it were sent yet.
const NONE: u32 = 0;
/// It came after the counters were taken.
const SHARED: u32 = u32::MAX;

/// For each repository of a catalog: `NONE`, `SHARED`, or the number of its counter, from 1.
#[derive(Debug)]
pub struct Places(Box<[AtomicU32]>);

impl Places {
    /// Those of a catalog with so many repositories.
    #[must_use]
    pub fn new(repositories: usize) -> Self {
        Self((0..repositories).map(|_| AtomicU32::new(NONE)).collect())
    }
}

#[derive(Debug)]
pub(crate) struct Repositories {
    /// The repository of each counter that is taken. Looked at once for each repository of a catalog.
    owners: Mutex<Vec<String>>,
    bytes: Box<[AtomicU64]>,
    shared: AtomicU64,
}

impl Default for Repositories {
    fn default() -> Self {
        let bytes = (0..REPOSITORY_SERIES).map(|_| AtomicU64::default()).collect();
        Self { owners: Mutex::default(), bytes, shared: AtomicU64::default() }
    }
}

impl Repositories {
    /// Adds bytes of a repository, whose name is `name` and whose counter `places` has.
    pub fn add<'a>(&self, places: &Places, repository: RepositoryId, name: impl FnOnce() -> &'a str, bytes: u64) {
        let Some(cell) = places.0.get(repository.number()) else { return };
        let place = match cell.load(Ordering::Relaxed) {
            NONE => {
                let place = self.take(name());
                cell.store(place, Ordering::Relaxed);
                place
            }
            place => place,
        };
        let own = self.bytes.get((place as usize).wrapping_sub(1));
        own.unwrap_or(&self.shared).fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counter of a repository, whichever catalog it was first in.
    fn take(&self, name: &str) -> u32 {
        let mut owners = self.owners();
        let known = owners.iter().position(|owner| owner == name);
        let place = known.unwrap_or(owners.len());
        if place >= self.bytes.len() {
            return SHARED;
        }
        if known.is_none() {
            owners.push(name.to_owned());
        }
        u32::try_from(place + 1).unwrap_or(SHARED)
    }

    /// Name and bytes of each repository with a counter of its own.
    pub fn read(&self) -> Vec<(String, u64)> {
        let owners = self.owners();
        owners.iter().zip(&self.bytes).map(|(owner, bytes)| (owner.clone(), bytes.load(Ordering::Relaxed))).collect()
    }

    /// Bytes of all others.
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    fn owners(&self) -> MutexGuard<'_, Vec<String>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(repositories: &Repositories, places: &Places, number: usize, bytes: u64) {
        let name = format!("test/{number}");
        repositories.add(places, RepositoryId::from_number(number), || &name, bytes);
    }

    #[test]
    fn the_first_ones_have_a_line_of_their_own() {
        let (repositories, places) = (Repositories::default(), Places::new(REPOSITORY_SERIES + 10));
        for number in (0..REPOSITORY_SERIES + 10).rev() {
            add(&repositories, &places, number, 2);
            add(&repositories, &places, number, 1);
        }
        let own = repositories.read();
        let line = |number: usize| (format!("test/{number}"), 3);
        assert_eq!(
            (own.len(), &own[0], &own[1]),
            (REPOSITORY_SERIES, &line(REPOSITORY_SERIES + 9), &line(REPOSITORY_SERIES + 8))
        );
        assert_eq!(repositories.shared(), 30);
    }

    #[test]
    fn what_nobody_pulled_is_not_there() {
        let (repositories, places) = (Repositories::default(), Places::new(3));
        add(&repositories, &places, 1, 5);
        add(&repositories, &places, 7, 5);
        assert_eq!(repositories.read(), [("test/1".to_owned(), 5)]);
        assert_eq!(repositories.shared(), 0);
    }

    #[test]
    fn a_repository_keeps_its_counter_where_it_has_another_number() {
        let repositories = Repositories::default();
        let add = |places: &Places, number, name: &str| repositories.add(places, RepositoryId::from_number(number), || name, 1);
        let (before, after) = (Places::new(1), Places::new(2));
        add(&before, 0, "test/b");
        add(&after, 0, "test/a");
        add(&after, 1, "test/b");
        // A request that began before the change.
        add(&before, 0, "test/b");
        assert_eq!(repositories.read(), [("test/b".to_owned(), 3), ("test/a".to_owned(), 1)]);
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let (repositories, places) = (Repositories::default(), Places::new(REPOSITORY_SERIES));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..REPOSITORY_SERIES).for_each(|number| add(&repositories, &places, number, 1)));
            }
        });
        assert!(repositories.read().iter().all(|(_, bytes)| *bytes == 4));
        assert_eq!((repositories.read().len(), repositories.shared()), (REPOSITORY_SERIES, 0));
    }
}
