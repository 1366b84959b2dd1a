//! Waits for a condition, however slow the machine is.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Checks all cases, six at a time: for cases that mostly wait.
pub fn at_once<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
            check(case);
        }
    };
    scope(|scope| (0..cases.len().min(6)).for_each(|_| drop(scope.spawn(work))));
}

/// Waits until this holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(|| if holds() { Ok(()) } else { Err(format!("{what} did not come")) });
}

/// Repeats an attempt until it succeeds. After three minutes, its error is a failure of the test.
pub fn eventually<T, E: Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(20));
    }
}
