//! Lets one call of a simulation fail: the one of a given number, among all calls to disks and sockets.

use std::cell::Cell;
use std::io;

use rustix::io::Errno;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// With an error.
    Error,
    /// It takes or returns one byte.
    Short,
    /// A signal interrupts it.
    Interrupted,
    /// It does not return.
    Hang,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::Error, Self::Short, Self::Interrupted, Self::Hang];
}

thread_local! {
    /// Calls so far on this thread, and which of them fails how.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static FAULT: Cell<Option<(u64, Fault)>> = const { Cell::new(None) };
}

/// Counts from 0 again. `fault` is the number of the call that fails, from 0 on, and how it does.
pub fn set(fault: Option<(u64, Fault)>) {
    CALLS.set(0);
    FAULT.set(fault);
}

/// Calls since [`set`].
pub fn calls() -> u64 {
    CALLS.get()
}

/// The fault of the next call.
pub fn next() -> Option<Fault> {
    let number = CALLS.get();
    CALLS.set(number + 1);
    FAULT.get().filter(|(at, _)| *at == number).map(|(_, fault)| fault)
}

/// The next call is one to a disk. Returns the most bytes that it may return. A call that hangs is one of [`disk_wait`].
pub fn disk_call() -> io::Result<usize> {
    match next() {
        Some(Fault::Error) => Err(Errno::IO.into()),
        Some(Fault::Interrupted) => Err(Errno::INTR.into()),
        Some(Fault::Short) => Ok(1),
        Some(Fault::Hang) | None => Ok(usize::MAX),
    }
}

/// The next call is one to a thread that waits for the disk. Returns whether it hangs.
pub fn disk_wait() -> bool {
    next() == Some(Fault::Hang)
}
