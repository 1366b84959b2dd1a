//! The host's unsafe system calls: setup between `fork` and `exec`, opening a tap, inherited file descriptors, and the processor's
//! time stamp counter.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{getpid, getppid};

/// The device that creates and opens taps.
const TUN: &str = "/dev/net/tun";

/// Makes the kernel send `signal` to the child of `command` when the **thread** that spawns it ends, at the latest when this
/// process ends. Spawn on a thread that outlives the child.
pub fn signal_with_parent(command: &mut Command, signal: Signal) {
    let parent = getpid();
    let before_exec = move || {
        prctl::set_pdeathsig(signal)?;
        // If the parent has ended before the line above, the signal never comes.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed. It makes two system calls
    // (prctl, getppid), allocates nothing, takes no lock and panics nowhere; `parent` and `signal` are copied numbers.
    unsafe { command.pre_exec(before_exec) };
}

/// Whether this process ignores `signal`.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, sigaction changes nothing; it writes the old one to `action`, which lives for the call.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeros are a valid `sigaction`, and the kernel has overwritten them with another valid one.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Opens or creates the tap `name`, and returns it with its name. `%d` in the name becomes a free number. A tap created here is
/// removed when its last descriptor is closed. Its frames have a virtio-net header, which QEMU accepts.
///
/// # Errors
/// Fails if the device is missing or the kernel refuses.
pub fn open_tap(name: &str) -> io::Result<(OwnedFd, String)> {
    let tun = OpenOptions::new().read(true).write(true).open(TUN)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // The last byte stays 0.
    let target = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    target.zip(name.bytes()).for_each(|(to, byte)| *to = c_char::from_ne_bytes([byte]));
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one `ifreq`, which `request` is, for the length of the call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(result)?;
    let name: Vec<u8> = request.ifr_name.iter().take_while(|byte| **byte != 0).flat_map(|byte| byte.to_ne_bytes()).collect();
    Ok((tun.into(), String::from_utf8_lossy(&name).into_owned()))
}

/// Duplicates the open socket `number`, which this program inherited.
///
/// # Errors
/// Fails if the descriptor is not open or is not a socket.
pub fn inherited_socket(number: i32) -> io::Result<OwnedFd> {
    let copy = inherited(number)?;
    getsockopt(&copy, sockopt::SockType)?;
    Ok(copy)
}

/// Duplicates the open file descriptor `number`, which this program inherited.
///
/// # Errors
/// Fails if the descriptor is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes any number, and refuses one that is not open; F_DUPFD_CLOEXEC touches no memory.
    let copy = nix::errno::Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// How long the counter is observed.
const TSC_SAMPLE: Duration = Duration::from_millis(20);

/// Measures the rate of this machine's time stamp counter in kHz, as QEMU's TCG passes it to a guest. Takes 20 ms. On processors
/// without such a counter QEMU counts nanoseconds.
#[must_use]
pub fn tsc_khz() -> u64 {
    let (start, from) = reading();
    std::thread::sleep(TSC_SAMPLE);
    let (end, to) = reading();
    u64::try_from(u128::from(to.wrapping_sub(from)) * 1_000_000 / (end - start).as_nanos().max(1)).unwrap_or(u64::MAX)
}

/// Reads the clock and the counter at the same moment. Of several readings it takes the shortest, during which this thread was not
/// scheduled out.
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
