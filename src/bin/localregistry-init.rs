//! PID 1 of the appliance, and the process that serves. See [`localregistry::guest`].

use std::process::{self, ExitCode};

use localregistry::guest::{boot, server, supervisor};
use mimalloc::MiMalloc;

// With musl's allocator the server answers half as many requests.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // The sample image runs this program as PID 1 of a container, so these options come before the check of the process ID.
    let argument = std::env::args().nth(1);
    match argument.as_deref() {
        Some("--version") => return print(concat!("localregistry-init ", env!("CARGO_PKG_VERSION"))),
        Some("--hello") => return print(concat!("hello from localregistry ", env!("CARGO_PKG_VERSION"))),
        _ if process::id() == 1 => boot::run(),
        Some(supervisor::ARGUMENT) => return server::run(),
        _ => {}
    }
    eprintln!("localregistry-init: this program only runs as PID 1 of a virtual machine; start one with `localregistry run`");
    ExitCode::from(2)
}

fn print(line: &str) -> ExitCode {
    println!("{line}");
    ExitCode::SUCCESS
}
