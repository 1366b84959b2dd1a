//! `localregistry run`: boots an appliance with [`crate::host::vm::launch`] and runs it until it ends.
//!
//! Standard output gets the address of the registry, standard error what went wrong, and the exit status says how the run ended (see
//! `run --help`). Files are written to the run's own folder ([`super::dir`]) or where options say, and removed at the end.

mod args;
mod detach;
mod event_loop;
mod print;
mod publish;
mod status_file;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::dir::RunDir;
use super::folder::RunsError;
use crate::config::guest_config::{GuestConfig, GuestConfigError};
use crate::disk::catalog::Catalog;
use crate::host::exit::Status;
use crate::host::faults::control::ControlSocket;
use crate::host::faults::{PlanFileError, SOCKET, file};
use crate::host::hint;
use crate::host::inspect::look::{CheckedDisk, DamageError};
use crate::host::nodes::trust::{self, DiskImages, TrustError};
use crate::host::support::files;
use crate::host::support::interrupt::{Interrupt, Interrupted, Signals};
use crate::host::support::parent_watch::{self, Descriptor, ParentWatch, ParentWatchError};
use crate::host::support::report::{Report, message};
use crate::host::vm::launch::{Appliance, BuildError, Builder, ExitReport, LaunchError, Options, command};
use crate::text::chain;

use tokio::task::JoinSet;

use event_loop::Output;
use status_file::{StatusFile, check_writable};

pub use args::RunArgs;
pub(crate) use print::{RunCommand, RunReady};
pub use publish::{Publish, PublishError};

/// Why `run` failed, except for how a ready machine ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot read the config {}", .path.display())]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("the config {} cannot be used", .path.display())]
    Config { path: PathBuf, source: GuestConfigError },
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot boot {}", .disk.display())]
    Disk { disk: PathBuf, source: DamageError },
    #[error("cannot make the trust files")]
    Trust(#[source] TrustError),
    #[error(transparent)]
    Runs(#[from] RunsError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot write {what} to {}", .path.display())]
    Write { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the guest serves over TLS and sent no CA certificate")]
    NoCa,
    #[error("cannot print where the registry is")]
    Print(#[source] io::Error),
    #[error("cannot go into the background")]
    Background(#[source] io::Error),
    #[error(transparent)]
    Stopped(#[from] Interrupted),
    #[error("stopped by {name} before the registry was ready; QEMU was killed")]
    Interrupted { name: &'static str },
    #[error(transparent)]
    Faults(#[from] PlanFileError),
    #[error(transparent)]
    ParentWatch(#[from] ParentWatchError),
    #[error("{0} was closed before the registry was ready; QEMU was killed")]
    LauncherGone(Descriptor),
}

impl RunError {
    fn exit_status(&self) -> u8 {
        if let Self::Stopped(cause) = self { cause.exit_code() } else { self.status().code() }
    }

    fn status(&self) -> Status {
        match self {
            Self::Build(error) => error.status(),
            Self::Launch(error) => error.status(),
            Self::Interrupted { .. } | Self::LauncherGone(_) => Status::QemuDied,
            Self::ParentWatch(_) | Self::Config { .. } | Self::Faults(_) => Status::Usage,
            Self::Disk { .. } => Status::NoDisk,
            Self::Runs(_) | Self::Write { .. } | Self::Trust(TrustError::Write(_)) => Status::CannotWrite,
            _ => Status::Error,
        }
    }

    /// The options that help.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Build(error) => hint::build(error),
            Self::Launch(error) => hint::launch(error),
            Self::Runs(RunsError::Create { .. } | RunsError::Shared { .. }) => Some("--run-dir takes another folder"),
            _ => None,
        }
    }

    /// Prints it on standard error, and returns the exit status.
    fn print(&self) -> u8 {
        message(format!("localregistry: {}", hint::line(self, self.hint())));
        if let Self::Launch(LaunchError::Ended(exit)) = self {
            print::print_last_lines(exit);
        }
        self.exit_status()
    }
}

/// The files of a run. They are removed when this is dropped, except for a folder that is to be kept.
struct RunFiles {
    dir: RunDir,
    ready: Option<StatusFile>,
    _pid: Option<StatusFile>,
}

/// Runs an appliance until it has ended, and returns the exit status.
#[must_use]
pub fn run(args: &RunArgs, report: &Report) -> ExitCode {
    if args.program.detach && !args.program.supervised {
        return detach::detach(args.program.watched_descriptor() == Some(Descriptor::Stdin));
    }
    // Before other threads start: they inherit the blocked signals.
    let interrupt = match Interrupt::catch() {
        Ok(interrupt) => interrupt,
        Err(error) => return ExitCode::from(RunError::Signals(error).print()),
    };
    // A signal before the boot causes errors of many kinds. Report the signal instead.
    let failed = |error: RunError| match (interrupt.check(), &error) {
        (Err(cause), error) if !matches!(error, RunError::Interrupted { .. }) => RunError::Stopped(cause).print(),
        _ => error.print(),
    };
    let mut files = None;
    let status = if args.program.print_command {
        print_command(args, report, &interrupt).map_or_else(failed, |()| 0)
    } else {
        run_appliance(args, report, &interrupt, &mut files).map_or_else(failed, |exit| print::print_exit(&exit, report))
    };
    if let Some(files) = &mut files {
        files.dir.write_exit_status(status);
    }
    ExitCode::from(status)
}

/// Prepares the run and its files, boots the appliance and waits until it has ended.
fn run_appliance(
    args: &RunArgs,
    report: &Report,
    interrupt: &Interrupt,
    files: &mut Option<RunFiles>,
) -> Result<ExitReport, RunError> {
    if args.program.supervised {
        detach::leave_session().map_err(RunError::Background)?;
    }
    let parent = args.program.watched_descriptor().map(ParentWatch::watch).transpose()?;
    let (builder, contents) = check(args, report, interrupt)?;
    let files = files.insert(RunFiles::create(args)?);
    let mut signals = interrupt.signals();
    run_async(async {
        let options = prepare(builder, &mut signals).await?;
        boot_and_wait(args, options, contents, files, signals, parent, report).await
    })
}

/// Finds the kernel, the initramfs and the CA. A signal ends a download at once.
async fn prepare(builder: Builder, signals: &mut Signals) -> Result<Options, RunError> {
    tokio::select! {
        options = builder.resolve_options() => Ok(options?),
        signal = signals.next() => Err(RunError::Stopped(Interrupted(signal))),
    }
}

/// Prints QEMU's command line, and writes its files.
fn print_command(args: &RunArgs, report: &Report, interrupt: &Interrupt) -> Result<(), RunError> {
    let (builder, _) = check(args, report, interrupt)?;
    let options = run_async(prepare(builder, &mut interrupt.signals()))?;
    let dir = RunDir::create_unlocked(&args.program.run_dir())?;
    let command = run_async(async { Ok(command::command(options, dir.folder()).await?) })?;
    let result = RunCommand::new(&command, dir.folder());
    report.result(&result, &result.to_string()).map_err(RunError::Print)?;
    dir.persist();
    Ok(())
}

/// Runs `work` on this thread, as there is only one machine to wait for.
fn run_async<T>(work: impl Future<Output = Result<T, RunError>>) -> Result<T, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    let done = runtime.block_on(work);
    // After a signal, a thread may still wait for a download. The end of the process ends it.
    runtime.shutdown_background();
    done
}

/// Checks what can be checked before anything is created or downloaded. Returns the builder and, with `--trust`, what the trust files
/// contain of the disks.
fn check(args: &RunArgs, report: &Report, interrupt: &Interrupt) -> Result<(Builder, Option<DiskImages>), RunError> {
    let mut builder = args.builder(read_config(args)?, report);
    if let Some(path) = &args.faults {
        builder = builder.faults(&file::read(path, report)?);
    }
    builder.check()?;
    if let Some(path) = args.certificates.output() {
        check_writable(path).map_err(|source| RunError::Write { what: "the CA certificate", path: path.to_owned(), source })?;
    }
    args.trust.as_deref().map_or(Ok(()), trust::check).map_err(|error| RunError::Trust(error.into()))?;
    let catalogs =
        args.disk.iter().filter_map(|disk| look(disk, args, report, interrupt).transpose()).collect::<Result<Vec<_>, _>>()?;
    let contents = args.trust.as_ref().map(|_| DiskImages::new(&args.disk, &catalogs));
    Ok((builder, contents.transpose().map_err(|error| RunError::Trust(error.into()))?))
}

/// The catalog of a disk without faults. `None` for a disk that may be whole and that only the guest can read: it has the last word.
fn look(disk: &Path, args: &RunArgs, report: &Report, interrupt: &Interrupt) -> Result<Option<Catalog>, RunError> {
    match CheckedDisk::open(disk, false, interrupt) {
        Ok(checked) => Ok(Some(checked.served.catalog)),
        Err(cause) if cause.is_unsupported() && args.trust.is_none() => {
            report.step(format!("{} is not checked before the boot: {}", disk.display(), chain(&cause)));
            Ok(None)
        }
        Err(source) => Err(RunError::Disk { disk: disk.to_owned(), source }),
    }
}

fn read_config(args: &RunArgs) -> Result<GuestConfig, RunError> {
    let Some(path) = &args.config else { return Ok(GuestConfig::default()) };
    let text = files::read(path, args::CONFIG_MAX);
    let text = text.map_err(|source| RunError::ReadConfig { path: path.clone(), source })?;
    GuestConfig::parse(&text).map_err(|source| RunError::Config { path: path.clone(), source })
}

impl RunFiles {
    /// Creates the run's folder, and writes the process ID.
    fn create(args: &RunArgs) -> Result<Self, RunError> {
        let program = &args.program;
        let status_file = |what, path: &Option<PathBuf>| {
            let failed = |path: &Path, source| RunError::Write { what, path: path.to_owned(), source };
            path.as_ref().map(|path| StatusFile::new(path).map_err(|source| failed(path, source))).transpose()
        };
        let ready = status_file(READY_FILE, &program.ready_file)?;
        let pid = status_file(PID_FILE, &program.pid_file)?;
        let dir = RunDir::create(&program.run_dir(), &args.disk, program.keep)?;
        if let Some(pid) = &pid {
            let written = pid.write(&format!("{}\n", std::process::id()));
            written.map_err(|source| RunError::Write { what: PID_FILE, path: pid.path().to_owned(), source })?;
        }
        Ok(Self { dir, ready, _pid: pid })
    }

    /// Writes the CA certificate to the run's folder and to `output`. Returns the path of `output`, or of the file in the folder.
    fn write_ca(&self, pem: &str, output: Option<&Path>) -> Result<PathBuf, RunError> {
        if !pem.starts_with("-----BEGIN CERTIFICATE-----") {
            return Err(RunError::NoCa);
        }
        let own = self.dir.write("ca.crt", pem.as_bytes())?;
        let Some(path) = output else { return Ok(own) };
        let failed = |source| RunError::Write { what: "the CA certificate", path: path.to_owned(), source };
        files::write_atomically(path, pem.as_bytes()).map_err(failed)?;
        path.canonicalize().map_err(failed)
    }
}

// The content of the status files, for messages.
const READY_FILE: &str = "where the registry is";
const PID_FILE: &str = "the process's number";

async fn boot_and_wait(
    args: &RunArgs,
    options: Options,
    contents: Option<DiskImages>,
    files: &RunFiles,
    mut signals: Signals,
    mut parent: Option<ParentWatch>,
    report: &Report,
) -> Result<ExitReport, RunError> {
    let vm = tokio::select! {
        vm = Appliance::boot(options) => vm?,
        // Nothing is being served yet: dropping the future kills QEMU.
        signal = signals.next() => return Err(RunError::Interrupted { name: signal.as_str() }),
        descriptor = parent_watch::closed(&mut parent) => return Err(RunError::LauncherGone(descriptor)),
    };
    // A launcher may change the plan of faults as soon as it learns that the registry is ready.
    let _commands = take_fault_commands(&vm, files, report);
    announce(&vm, args, contents, files, report)?;
    let output = Output { requests: args.log, events: args.program.follow };
    Ok(event_loop::run(vm, signals, parent, output, report).await)
}

/// Passes commands of `localregistry faults` on to the guest, until the result is dropped. Without a socket the run goes on.
fn take_fault_commands(vm: &Appliance, files: &RunFiles, report: &Report) -> Option<JoinSet<()>> {
    let path = files.dir.path(SOCKET);
    let socket = ControlSocket::bind(&path);
    let socket = socket.inspect_err(|error| {
        report.warn(format!("`localregistry faults` cannot change this run: cannot make the socket {}: {error}", path.display()));
    });
    let (socket, faults) = (socket.ok()?, vm.faults());
    let mut tasks = JoinSet::new();
    tasks.spawn(socket.serve(move |command| {
        let faults = faults.clone();
        async move { faults.send(command).await }
    }));
    Some(tasks)
}

/// Writes the CA and the trust files, and reports where the registry is.
fn announce(
    vm: &Appliance,
    args: &RunArgs,
    contents: Option<DiskImages>,
    files: &RunFiles,
    report: &Report,
) -> Result<(), RunError> {
    let plain = vm.endpoint().starts_with("http://");
    let ca = if plain { None } else { Some(files.write_ca(&vm.ready().ca_pem, args.certificates.output())?) };
    let trust = args.trust.as_deref().zip(contents).map(|(dir, contents)| vm.write_trust(dir, &args.trust_host, contents));
    let trust = trust.transpose().map_err(RunError::Trust)?;
    let result = RunReady::new(vm, ca, trust, &files.dir, args.program.detach);
    let line = result.json().map_err(RunError::Print)? + "\n";
    files.dir.write_ready(&line)?;
    if let Some(ready) = &files.ready {
        let written = ready.write(&line);
        written.map_err(|source| RunError::Write { what: READY_FILE, path: ready.path().to_owned(), source })?;
    }
    if args.program.supervised {
        detach::outlive_parent().map_err(RunError::Background)?;
    }
    report.result(&result, &result.to_string()).map_err(RunError::Print)?;
    if args.program.supervised {
        detach::close_stdio(&files.dir.path("log")).map_err(RunError::Background)?;
    }
    Ok(())
}
