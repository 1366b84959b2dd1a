//! What of the host's half Rust cannot check: what a child does between `fork` and `exec`, and the processor's counter of ticks.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

/// Has the kernel kill the child of `command` (SIGKILL) when the **thread** that spawns it ends, and so at the latest when this
/// process does, in whatever way. Spawn on a thread that outlives the child.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let before_exec = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have gone before the line above: then the signal never comes.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::ESRCH)) }
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed. It makes two system calls
    // (prctl, getppid), allocates nothing, takes no lock and panics nowhere; `parent` is a copied number.
    unsafe { command.pre_exec(before_exec) };
}

/// How long the counter is watched.
const WATCHED: Duration = Duration::from_millis(20);

/// The rate of this machine's time stamp counter in kHz, as QEMU's emulation passes it on; takes 20 ms. On processors without one QEMU
/// counts nanoseconds.
#[must_use]
pub fn tsc_khz() -> u64 {
    let (start, from) = reading();
    std::thread::sleep(WATCHED);
    let (end, to) = reading();
    u64::try_from(u128::from(to.wrapping_sub(from)) * 1_000_000 / (end - start).as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// The clock and the counter at one moment: of some readings the one in which least time passed, so that none in which this thread had
/// to wait for the processor counts.
fn reading() -> (Instant, u64) {
    let readings = (0..16).map(|_| {
        let (before, ticks) = (Instant::now(), ticks());
        (before.elapsed(), before, ticks)
    });
    readings.min_by_key(|(passed, ..)| *passed).map_or_else(|| (Instant::now(), ticks()), |(_, when, ticks)| (when, ticks))
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: every 64-bit x86 processor has the instruction; it reads a counter and touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos().try_into().unwrap_or(u64::MAX))
}
