//! The command line of `localregistry`: subcommands, exit codes, and how an error is shown.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::boot::initramfs;
use super::boot::kernel;
use super::deploy;
use super::docs::manual;
use super::docs::schema;
use super::doctor;
use super::hint;
use super::images::pack;
use super::images::sample;
use super::inspect::{self, diff};
use super::nodes::trust;
use super::runs::pull_log;
use super::runs::run;
use super::runs::{ps, stop};
use super::serve;
use super::support::report::{Report, escaped};

/// The program, also where a subcommand is asked for its version.
const NAME: &str = "localregistry";

/// Pack container images into a disk, boot it as a registry, pull from it.
#[derive(Debug, Parser)]
#[command(name = NAME, version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    report: Report,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack container images into a disk
    #[command(display_name = NAME)]
    Pack(Box<pack::PackArgs>),
    /// Show what a disk holds, verify it, write its layout back out
    #[command(display_name = NAME)]
    Inspect(inspect::Args),
    /// Show which images of two disks differ
    #[command(display_name = NAME)]
    Diff(diff::Args),
    /// Make a small runnable image, to try everything with
    #[command(display_name = NAME)]
    Sample(sample::SampleArgs),
    /// Serve a layout from this machine, without a VM
    #[command(display_name = NAME)]
    Serve(Box<serve::Args>),
    /// Write a kernel that QEMU boots directly
    #[command(display_name = NAME)]
    Kernel(kernel::Args),
    /// Write the archive that the guest boots from
    #[command(display_name = NAME)]
    Initramfs(initramfs::Args),
    /// Boot a packed disk and serve its images until a signal ends it
    #[command(display_name = NAME)]
    Run(Box<run::RunArgs>),
    /// Say what of this machine packing and booting need, and what is missing
    #[command(display_name = NAME)]
    Doctor(doctor::Args),
    /// List the runs of this user
    #[command(display_name = NAME)]
    Ps(ps::PsArgs),
    /// End a run in order
    #[command(display_name = NAME)]
    Stop(stop::StopArgs),
    /// Write the files that nodes need to trust a registry
    #[command(display_name = NAME)]
    Trust(trust::Args),
    /// Show who pulled what, from a log of events
    #[command(display_name = NAME)]
    Events(pull_log::events::EventsArgs),
    /// Hold a log of events against what should have been pulled
    #[command(display_name = NAME)]
    Assert(pull_log::assert::AssertArgs),
    /// Describe the JSON of events, commands and config, field by field
    #[command(display_name = NAME)]
    Schema(schema::Args),
    /// Make the images and the objects that serve a disk from a Kubernetes cluster
    #[command(display_name = NAME)]
    Deploy(Box<deploy::Args>),
    /// Write man pages and shell completions
    #[command(display_name = NAME)]
    Manual(manual::Args),
}

impl Cli {
    /// Runs the subcommand. Errors are printed as one line that ends with their causes.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let report = self.report;
        // `run` keeps its JSON line in its folder, whatever it prints.
        if (report.json || matches!(self.command, Command::Run(_)))
            && let Some(not_utf8) = not_utf8()
        {
            return usage(&format!("{not_utf8:?} is not UTF-8, which the JSON that names it has to be: use a path that is"));
        }
        match self.command {
            Command::Serve(args) => match args.conflict() {
                Some(conflict) => usage(conflict),
                None => status(serve::run(&args, report)),
            },
            Command::Kernel(args) => hinted(kernel::run(&args, &report), hint::kernel),
            Command::Initramfs(args) => hinted(initramfs::run(&args, &report), hint::initramfs),
            Command::Pack(args) => {
                pack::run(&args, report).map_or_else(|error| fail(&error, error.exit_code()), |()| ExitCode::SUCCESS)
            }
            Command::Doctor(args) => match doctor::run(&args, &report) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&error, 1),
            },
            Command::Inspect(args) => {
                inspect::run(&args, report).map_or_else(|error| fail(&error, error.exit_code()), |()| ExitCode::SUCCESS)
            }
            Command::Diff(args) => diff::run(&args, &report).unwrap_or_else(|error| fail(&error, error.exit_code())),
            Command::Sample(args) => hinted(sample::run(args, report), hint::sample),
            Command::Ps(args) => status(ps::run(&args, &report)),
            Command::Stop(args) => stop::run(&args, &report).map_or_else(|error| fail(&error, 1), ExitCode::from),
            Command::Run(args) => match args.conflict(&report) {
                Some(conflict) => usage(&conflict),
                None => run::run(&args, &report),
            },
            Command::Trust(args) => status(trust::run(&args, &report)),
            Command::Events(args) => status(pull_log::events::run(&args, &report)),
            Command::Assert(args) => pull_log::assert::run(&args, &report),
            Command::Schema(args) => status(schema::run(&args, &report)),
            Command::Deploy(args) => {
                let failed = |error| fail_with(&error, hint::deploy(&error), error.exit_code());
                deploy::run(&args, &report).map_or_else(failed, |()| ExitCode::SUCCESS)
            }
            Command::Manual(args) => status(manual::run(&args, &report)),
        }
    }
}

/// The first argument that is not UTF-8, or the working directory, which relative paths start from.
fn not_utf8() -> Option<OsString> {
    let folder = env::current_dir().ok().map(OsString::from);
    env::args_os().skip(1).chain(folder).find(|text| text.to_str().is_none())
}

/// Exit code 0, or the error printed and exit code 1.
fn status(result: Result<(), impl Error>) -> ExitCode {
    result.map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS)
}

/// The same, where `hint` has flags that help.
fn hinted<E: Error>(result: Result<(), E>, hint: impl FnOnce(&E) -> Option<&'static str>) -> ExitCode {
    result.map_or_else(|error| fail_with(&error, hint(&error), 1), |()| ExitCode::SUCCESS)
}

/// Prints which flags do not go together, as the flags' parser does, and gives exit code 2.
fn usage(conflict: &str) -> ExitCode {
    eprintln!("error: {conflict}\n\nFor more information, try '--help'.");
    ExitCode::from(2)
}

/// Prints `error` with its causes on one line and gives exit code `code`.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    fail_with(error, None, code)
}

/// The same with a hint.
fn fail_with(error: &dyn Error, hint: Option<&str>, code: u8) -> ExitCode {
    eprintln!("localregistry: {}", escaped(&hint::line(error, hint)));
    ExitCode::from(code)
}
