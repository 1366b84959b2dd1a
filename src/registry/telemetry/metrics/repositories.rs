//! Counts blob bytes by repository. The first [`REPOSITORY_SERIES`] repositories that are pulled from get counters of their own; all others
//! share one. So the size of the metrics is bounded. A repository keeps its counter when disks come and go and its number in the catalog
//! changes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::catalog::RepositoryId;
use crate::registry::limits::REPOSITORY_SERIES;

/// The repository has no counter yet.
const UNASSIGNED: u32 = 0;
/// The repository uses the shared counter.
const SHARED: u32 = u32::MAX;

/// The counter of each repository of a catalog: `UNASSIGNED`, `SHARED`, or the number of the counter, from 1.
#[derive(Debug)]
pub struct RepositorySlots(Box<[AtomicU32]>);

impl RepositorySlots {
    /// Slots for the repositories of a catalog, all unassigned.
    #[must_use]
    pub fn new(repositories: usize) -> Self {
        Self((0..repositories).map(|_| AtomicU32::new(UNASSIGNED)).collect())
    }
}

/// A repository of a catalog, with the slots of that catalog.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct RepositoryRef<'a> {
    pub slots: &'a RepositorySlots,
    pub id: RepositoryId,
    pub name: &'a str,
}

/// The counters.
#[derive(Debug)]
pub(crate) struct RepositoryCounters {
    /// The repository of each counter in use. Searched once for each repository of a catalog.
    names: Mutex<Vec<String>>,
    bytes: Box<[AtomicU64]>,
    shared: AtomicU64,
}

impl Default for RepositoryCounters {
    fn default() -> Self {
        let bytes = (0..REPOSITORY_SERIES).map(|_| AtomicU64::default()).collect();
        Self { names: Mutex::default(), bytes, shared: AtomicU64::default() }
    }
}

impl RepositoryCounters {
    /// Adds bytes sent from a repository.
    pub fn add(&self, repository: RepositoryRef<'_>, bytes: u64) {
        let Some(slot) = repository.slots.0.get(repository.id.number()) else { return };
        let number = match slot.load(Ordering::Relaxed) {
            UNASSIGNED => {
                let number = self.assign(repository.name);
                slot.store(number, Ordering::Relaxed);
                number
            }
            number => number,
        };
        let counter = self.bytes.get((number as usize).wrapping_sub(1));
        counter.unwrap_or(&self.shared).fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counter of the repository, also if another catalog assigned it.
    fn assign(&self, name: &str) -> u32 {
        let mut names = self.names();
        let known = names.iter().position(|other| other == name);
        let index = known.unwrap_or(names.len());
        if index >= self.bytes.len() {
            return SHARED;
        }
        if known.is_none() {
            names.push(name.to_owned());
        }
        u32::try_from(index + 1).unwrap_or(SHARED)
    }

    /// The name and bytes of each repository with a counter of its own.
    pub fn read(&self) -> Vec<(String, u64)> {
        let names = self.names();
        names.iter().zip(&self.bytes).map(|(name, bytes)| (name.clone(), bytes.load(Ordering::Relaxed))).collect()
    }

    /// The bytes of all other repositories.
    pub fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(counters: &RepositoryCounters, slots: &RepositorySlots, number: usize, bytes: u64) {
        let name = format!("test/{number}");
        counters.add(RepositoryRef { slots, id: RepositoryId::from_number(number), name: &name }, bytes);
    }

    #[test]
    fn first_repositories_have_separate_counters() {
        let (counters, slots) = (RepositoryCounters::default(), RepositorySlots::new(REPOSITORY_SERIES + 10));
        for number in (0..REPOSITORY_SERIES + 10).rev() {
            add(&counters, &slots, number, 2);
            add(&counters, &slots, number, 1);
        }
        let own = counters.read();
        let line = |number: usize| (format!("test/{number}"), 3);
        assert_eq!(
            (own.len(), &own[0], &own[1]),
            (REPOSITORY_SERIES, &line(REPOSITORY_SERIES + 9), &line(REPOSITORY_SERIES + 8))
        );
        assert_eq!(counters.shared(), 30);
    }

    #[test]
    fn repositories_never_pulled_from_have_no_counter() {
        let (counters, slots) = (RepositoryCounters::default(), RepositorySlots::new(3));
        add(&counters, &slots, 1, 5);
        add(&counters, &slots, 7, 5);
        assert_eq!(counters.read(), [("test/1".to_owned(), 5)]);
        assert_eq!(counters.shared(), 0);
    }

    #[test]
    fn repository_keeps_its_counter_when_its_number_changes() {
        let counters = RepositoryCounters::default();
        let add = |slots: &RepositorySlots, number, name: &str| {
            counters.add(RepositoryRef { slots, id: RepositoryId::from_number(number), name }, 1);
        };
        let (before, after) = (RepositorySlots::new(1), RepositorySlots::new(2));
        add(&before, 0, "test/b");
        add(&after, 0, "test/a");
        add(&after, 1, "test/b");
        // A request that started before the change.
        add(&before, 0, "test/b");
        assert_eq!(counters.read(), [("test/b".to_owned(), 3), ("test/a".to_owned(), 1)]);
    }

    #[test]
    fn concurrent_additions_lose_nothing() {
        let (counters, slots) = (RepositoryCounters::default(), RepositorySlots::new(REPOSITORY_SERIES));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..REPOSITORY_SERIES).for_each(|number| add(&counters, &slots, number, 1)));
            }
        });
        assert!(counters.read().iter().all(|(_, bytes)| *bytes == 4));
        assert_eq!((counters.read().len(), counters.shared()), (REPOSITORY_SERIES, 0));
    }
}
