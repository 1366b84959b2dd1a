//! Waits for a condition, however slow the machine is.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

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
