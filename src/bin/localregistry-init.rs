//! PID 1 of the appliance. See [`localregistry::guest`].

use std::process::{self, ExitCode};

use localregistry::guest::boot;
use mimalloc::MiMalloc;

// With musl's allocator the server answers half as many requests.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // The sample image runs this program as PID 1 of a container, so these options come before the check of the process ID.
    match std::env::args().nth(1).as_deref() {
        Some("--version") => return print(concat!("localregistry-init ", env!("CARGO_PKG_VERSION"))),
        Some("--hello") => return print(concat!("hello from localregistry ", env!("CARGO_PKG_VERSION"))),
        _ => {}
    }
    if process::id() != 1 {
        eprintln!("localregistry-init: this program only runs as PID 1 of a virtual machine; start one with `localregistry run`");
        return ExitCode::from(2);
    }
    boot::run()
}

fn print(line: &str) -> ExitCode {
    println!("{line}");
    ExitCode::SUCCESS
}
