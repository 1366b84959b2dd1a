//! The host's program: see `localregistry --help`.

use std::process::ExitCode;

use localregistry::host::cli::Cli;
use mimalloc::MiMalloc;

// `serve` runs the guest's server on the host, with the guest's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    Cli::main()
}
