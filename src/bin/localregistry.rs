//! The host's program: see `localregistry --help`.

use std::process::ExitCode;

use clap::Parser;
use localregistry::host::cli::Cli;
use mimalloc::MiMalloc;

// `serve` is the appliance's server on the host: it stands on the same allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
