//! The one call of the host's half that Rust cannot check: what a child does between `fork` and `exec`.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

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
