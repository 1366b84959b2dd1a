//! PID 1 of the appliance: see [`localregistry::guest`].

use std::process::{self, ExitCode};

use localregistry::guest::boot;
use mimalloc::MiMalloc;

// musl's own allocator serves half as many requests.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // The sample image runs this program in a container, where it is PID 1 too: these come first.
    match std::env::args().nth(1).as_deref() {
        Some("--version") => return say(concat!("localregistry-init ", env!("CARGO_PKG_VERSION"))),
        Some("--hello") => return say(concat!("hello from localregistry ", env!("CARGO_PKG_VERSION"))),
        _ => {}
    }
    if process::id() != 1 {
        eprintln!(
            "localregistry-init: this is PID 1 of a virtual machine and does nothing elsewhere; boot it with `localregistry run`"
        );
        return ExitCode::from(2);
    }
    boot::run()
}

fn say(line: &str) -> ExitCode {
    println!("{line}");
    ExitCode::SUCCESS
}
