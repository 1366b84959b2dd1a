//! Runs work on all processors.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The error of a thread that the system refuses to start, with what helps.
pub(crate) fn no_thread(refused: &io::Error) -> io::Error {
    let message = format!("cannot start a thread: {refused}; allow more processes (ulimit -u) or memory (ulimit -v)");
    io::Error::new(refused.kind(), message)
}

/// Calls `work` on this thread and on `count` - 1 others. A thread that the system refuses is done without.
pub fn parallel(count: usize, work: impl Fn() + Sync) {
    thread::scope(|scope| {
        for _ in 1..count {
            let _refused = thread::Builder::new().spawn_scoped(scope, &work);
        }
        work();
    });
}

/// Calls `work` for each of `items` on all processors. After an error, starts no further item.
///
/// # Errors
/// Fails with the error of the first item, in the order of `items`, whose work failed.
pub fn each<T: Sync, E: Send>(items: &[T], work: impl Fn(&T) -> Result<(), E> + Sync) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let worker = || {
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(item) = items.get(number)
        {
            let Err(error) = work(item) else { continue };
            next.store(items.len(), Ordering::Relaxed);
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            if failure.as_ref().is_none_or(|(before, _)| number < *before) {
                *failure = Some((number, error));
            }
        }
    };
    parallel(thread::available_parallelism().map_or(1, NonZero::get).min(items.len()), worker);
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_each_item_once_and_reports_the_first_error() {
        let items: Vec<usize> = (0..1000).collect();
        let sum = AtomicUsize::new(0);
        let all: Result<(), usize> = each(&items, |item| {
            sum.fetch_add(*item, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!((all, sum.into_inner()), (Ok(()), 499_500));
        assert_eq!(each(&items, |item| if *item < 3 { Ok(()) } else { Err(*item) }), Err(3));
        assert_eq!(each(&[] as &[usize], |_| Err(())), Ok(()));
    }
}
