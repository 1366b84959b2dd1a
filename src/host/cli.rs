//! The command line of `localregistry`: subcommands, exit codes, and how errors are printed.

use std::env;
use std::error::Error;
use std::io::{self, ErrorKind::BrokenPipe};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};

use super::boot::initramfs;
use super::boot::kernel;
use super::deploy;
use super::docs::manual;
use super::docs::schema;
use super::doctor;
use super::faults;
use super::hint;
use super::images::pack;
use super::images::sample;
use super::inspect::{self, diff};
use super::nodes::trust;
use super::runs::pull_log;
use super::runs::run;
use super::runs::{freeze, ps, stop};
use super::serve;
use super::support::interrupt::Interrupt;
use super::support::report::{Report, message};
use crate::text::escaped;

/// The program's name, which `localregistry SUBCOMMAND --version` prints too.
const NAME: &str = "localregistry";

/// Stands for a newline in an argument while clap parses it: a character for private use, as invalid as a newline where text is checked.
const NEWLINE: &str = "\u{f000a}";

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
    /// Show what a disk contains, verify it, or export its image layout
    #[command(display_name = NAME)]
    Inspect(inspect::InspectArgs),
    /// Show which images of two disks differ
    #[command(display_name = NAME)]
    Diff(diff::DiffArgs),
    /// Make a small runnable image for trying things out
    #[command(display_name = NAME)]
    Sample(sample::SampleArgs),
    /// Serve an image layout from this machine, without a VM
    #[command(display_name = NAME)]
    Serve(Box<serve::ServeArgs>),
    /// Write a kernel that QEMU can boot directly
    #[command(display_name = NAME)]
    Kernel(kernel::KernelArgs),
    /// Write the initramfs that the guest boots from
    #[command(display_name = NAME)]
    Initramfs(initramfs::InitramfsArgs),
    /// Boot a packed disk and serve its images
    #[command(display_name = NAME)]
    Run(Box<run::RunArgs>),
    /// Save a machine that `run` starts from, instead of booting
    #[command(display_name = NAME)]
    Freeze(freeze::FreezeArgs),
    /// Check this machine for everything that `pack` and `run` need
    #[command(display_name = NAME)]
    Doctor(doctor::DoctorArgs),
    /// List your runs
    #[command(display_name = NAME)]
    Ps(ps::PsArgs),
    /// Stop a run gracefully
    #[command(display_name = NAME)]
    Stop(stop::StopArgs),
    /// Write the files that make nodes trust and use a registry
    #[command(display_name = NAME)]
    Trust(trust::TrustArgs),
    /// Show which clients pulled what, from an event log
    #[command(display_name = NAME)]
    Events(pull_log::events::EventsArgs),
    /// Compare an event log with the pulls you expect
    #[command(display_name = NAME)]
    Assert(Box<pull_log::assert::AssertArgs>),
    /// Make a registry misbehave on purpose, for requests that you choose
    #[command(display_name = NAME)]
    Faults(faults::FaultsArgs),
    /// Describe the JSON of events, commands and config, field by field
    #[command(display_name = NAME)]
    Schema(schema::SchemaArgs),
    /// Make images and Kubernetes objects that serve a disk from a cluster
    #[command(display_name = NAME)]
    Deploy(Box<deploy::DeployArgs>),
    /// Write man pages and shell completions
    #[command(display_name = NAME)]
    Manual(manual::ManualArgs),
}

impl Cli {
    /// Parses the command line and runs the subcommand. An error is printed on one line, followed by its causes. So is a panic, such as
    /// that of a library to which the system refuses a thread.
    #[must_use]
    pub fn main() -> ExitCode {
        // Past a limit on the size of files a write then fails as on a full disk, instead of ending the process.
        let _blocked = SigSet::from(Signal::SIGXFSZ).thread_block();
        panic::set_hook(Box::new(|panic| {
            let cause = panic.payload_as_str().unwrap_or("unknown");
            let place = panic.location().map(|place| format!(", in {place}")).unwrap_or_default();
            message(format!("localregistry: internal error: {cause}{place}"));
        }));
        let cli = match Self::try_parse() {
            Ok(cli) => cli,
            Err(stop) => {
                // The command line is wrong, or help was asked for.
                return match print(&stop) {
                    _ if stop.use_stderr() => ExitCode::from(2),
                    Err(error) if error.kind() != BrokenPipe => fail(&error, 1),
                    _ => ExitCode::SUCCESS,
                };
            }
        };
        // 1 is a result of these two.
        let code = if matches!(cli.command, Command::Diff(_) | Command::Assert(_)) { 2 } else { 1 };
        panic::catch_unwind(AssertUnwindSafe(|| cli.run())).unwrap_or(ExitCode::from(code))
    }

    fn run(self) -> ExitCode {
        let report = self.report;
        match self.command {
            Command::Serve(args) => match args.conflict() {
                Some(conflict) => usage(conflict),
                None => {
                    let failed = |error| fail_with(&error, hint::serve(&error), error.exit_code());
                    serve::run(&args, report).map_or_else(failed, |()| ExitCode::SUCCESS)
                }
            },
            Command::Kernel(args) => catching(|| hinted(kernel::run(&args, &report), hint::kernel)),
            Command::Initramfs(args) => catching(|| hinted(initramfs::run(&args, &report), hint::initramfs)),
            Command::Pack(args) => coded(pack::run(&args, report), pack::PackError::exit_code),
            Command::Doctor(args) => match doctor::run(&args, &report) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => fail(&error, 1),
            },
            Command::Inspect(args) => coded(inspect::run(&args, report), inspect::InspectError::exit_code),
            Command::Diff(args) => {
                let failed = |error| fail_with(&error, hint::diff(&error), error.exit_code());
                diff::run(&args, &report).unwrap_or_else(failed)
            }
            Command::Sample(args) => catching(|| hinted(sample::run(args, report), hint::sample)),
            Command::Freeze(args) => coded(freeze::run(&args, &report), freeze::FreezeCommandError::exit_code),
            Command::Ps(args) => status(ps::run(&args, &report)),
            Command::Stop(args) => stop::run(&args, &report).map_or_else(|error| fail(&error, 1), ExitCode::from),
            Command::Run(args) => match args.conflict(&report) {
                Some(conflict) => usage(&conflict),
                None => run::run(&args, &report),
            },
            Command::Trust(args) => {
                let failed = |error| fail_with(&error, hint::trust(&error), error.exit_code());
                trust::run(&args, &report).map_or_else(failed, |()| ExitCode::SUCCESS)
            }
            Command::Events(args) => status(pull_log::events::run(&args, &report)),
            Command::Assert(args) => pull_log::assert::run(&args, &report),
            Command::Faults(args) => match args.conflict() {
                Some(conflict) => usage(conflict),
                None => status(faults::run(&args, &report)),
            },
            Command::Schema(args) => status(schema::run(&args, &report)),
            Command::Deploy(args) => {
                let failed = |error| fail_with(&error, hint::deploy(&error), error.exit_code());
                deploy::run(&args, &report).map_or_else(failed, |()| ExitCode::SUCCESS)
            }
            Command::Manual(args) => catching(|| status(manual::run(&args, &report, &Self::command()))),
        }
    }
}

/// Prints what clap has to say. An argument in it starts no line, and a terminal does not obey it.
fn print(stop: &clap::Error) -> io::Result<()> {
    let arguments: Vec<String> = env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    if !stop.use_stderr() || arguments.iter().all(|argument| escaped(argument) == *argument) {
        return stop.print();
    }
    // Parsed once more, to tell the lines of the arguments from clap's. The rest is escaped as in every message.
    let arguments = arguments.iter().map(|argument| argument.replace('\n', NEWLINE));
    match Cli::try_parse_from(arguments) {
        Err(stop) => {
            // A message that quotes an argument as Rust does has escaped it already.
            let newline = |line: &str| line.replace(NEWLINE, "\\n").replace(r"\u{f000a}", "\\n");
            stop.to_string().trim_end().split('\n').for_each(|line| message(newline(line)));
        }
        Ok(_) => message(stop.to_string().trim_end()),
    }
    Ok(())
}

/// Runs a command that ends by [`Interrupt::of_process`]. The other commands handle signals themselves, or write no file.
fn catching(command: impl FnOnce() -> ExitCode) -> ExitCode {
    match Interrupt::catch() {
        Ok(_) => command(),
        Err(error) => {
            message(format!("localregistry: cannot handle signals: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns exit code 0, or prints the error and returns exit code 1.
fn status(result: Result<(), impl Error>) -> ExitCode {
    coded(result, |_| 1)
}

/// As [`status`], with the exit code of the error.
fn coded<E: Error>(result: Result<(), E>, code: impl FnOnce(&E) -> u8) -> ExitCode {
    result.map_or_else(|error| fail(&error, code(&error)), |()| ExitCode::SUCCESS)
}

/// As [`status`]; `hint` may add the flags that help.
fn hinted<E: Error>(result: Result<(), E>, hint: impl FnOnce(&E) -> Option<&'static str>) -> ExitCode {
    result.map_or_else(|error| fail_with(&error, hint(&error), 1), |()| ExitCode::SUCCESS)
}

/// Prints a conflict between flags as clap does, and returns exit code 2.
fn usage(conflict: &str) -> ExitCode {
    message(format!("error: {conflict}"));
    message("");
    message("For more information, try '--help'.");
    ExitCode::from(2)
}

/// Prints `error` and its causes on one line, and returns exit code `code`.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    fail_with(error, None, code)
}

/// As [`fail`], with a hint at the end of the line.
fn fail_with(error: &dyn Error, hint: Option<&str>, code: u8) -> ExitCode {
    message(format!("localregistry: {}", hint::line(error, hint)));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use schemars::generate::SchemaSettings;

    use super::*;

    #[test]
    fn every_subcommand_has_a_man_page_and_completions() {
        let mut program = Cli::command();
        let (pages, completions): (Vec<_>, Vec<_>) =
            manual::files(&program).unwrap().into_iter().partition(|(name, _)| name.starts_with("man/"));
        let completions: Vec<String> =
            completions.into_iter().map(|(_, completion)| String::from_utf8(completion).unwrap()).collect();
        assert_eq!(completions.len(), 3);
        program.build();
        for one in program.get_subcommands().filter(|one| one.get_name() != "help") {
            let path = format!("man/man1/localregistry-{}.1", one.get_name());
            let (_, page) = pages.iter().find(|(name, _)| *name == path).unwrap();
            let page = String::from_utf8(page.clone()).unwrap();
            for argument in one.get_arguments().filter_map(|one| one.get_long().map(|long| (long, one.is_hide_set()))) {
                let (long, hidden) = argument;
                assert_eq!(page.contains(&long.replace('-', "\\-")), !hidden, "{path}: {long}");
                // bash, zsh without and with a value, fish.
                let forms = [format!(" --{long} "), format!("--{long}["), format!("--{long}=["), format!("-l {long} ")];
                for completion in &completions {
                    assert_eq!(forms.iter().any(|form| completion.contains(form)), !hidden, "{path}: {long}");
                }
            }
        }
        assert_eq!(pages.len(), 1 + program.get_subcommands().filter(|one| one.get_name() != "help").count());
        assert!(pages.iter().all(|(_, page)| !String::from_utf8_lossy(page).contains(".SH EXTRA")));
    }

    #[test]
    fn every_subcommand_s_json_is_described() {
        let outputs = schema::outputs(&mut SchemaSettings::default().into_generator());
        let program = Cli::command();
        let mut commands: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
        let mut described: Vec<&str> = outputs.iter().map(|output| output.command.split(' ').next().unwrap()).collect();
        commands.sort_unstable();
        described.sort_unstable();
        described.dedup();
        assert_eq!(described, commands);
    }
}
