//! The host's program: see `localregistry --help`.

use std::process::ExitCode;

use clap::Parser;
use localregistry::host::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
