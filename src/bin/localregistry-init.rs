//! PID 1 of the appliance: see [`localregistry::guest`].

use std::process::{self, ExitCode};

use localregistry::guest::boot;
use mimalloc::MiMalloc;

// musl's own allocator serves half as many requests.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    if process::id() != 1 {
        eprintln!(
            "localregistry-init: this is PID 1 of a virtual machine and does nothing elsewhere; boot it with `localregistry run`"
        );
        return ExitCode::from(2);
    }
    boot::run()
}
