//! `localregistry run`: a thin shell over [`super::launch`]. Arguments enter; where the registry is leaves on standard output, what
//! went wrong on standard error, and an exit status that tells the truth:
//!
//! | status | meaning |
//! |---|---|
//! | 0 | the guest ended in order, as asked (`done` with status 0) |
//! | 1 | an error before the boot, or in what this program itself does |
//! | 2 | the command line is wrong |
//! | 3 | the guest stopped with a fault, named by its code |
//! | 4 | the guest's kernel panicked |
//! | 5 | the registry was not ready in time |
//! | 6 | QEMU died or was killed |
//! | 7 | QEMU ended in order, the guest did not: it reset or powered off by itself |

mod args;
mod print;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::access::AccessError;
use super::config::{ConfigError, GuestConfig};
use super::launch::{self, Ended, LaunchError, Options, Vm};
use super::modules::Need;
use super::qemu::Board;
use super::report::Report;
use super::{files, initramfs, kernel};
use crate::causes::chain;
use crate::proto::event::Event as Kind;

pub use args::{Args, Publish, PublishError};

/// Bad events that are shown: a guest gone mad must not fill the terminal.
const BAD_EVENTS: u32 = 10;

/// Why `run` failed, apart from how the machine ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot read the config {}", .path.display())]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("the config {} cannot be used", .path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("--set does not fit what was set before")]
    Set(#[source] ConfigError),
    #[error("cannot let anybody in")]
    Access(#[source] AccessError),
    #[error("there is no kernel to boot")]
    Kernel(#[source] kernel::Error),
    #[error(
        "the kernel {} cannot run the guest on {board}: by its config it lacks {missing}; boot one that has it (`localregistry \
         doctor` checks one)",
        .kernel.display()
    )]
    Unfit { kernel: PathBuf, board: &'static str, missing: String },
    #[error("there is no initramfs to boot with")]
    Initramfs(#[source] initramfs::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot write the CA certificate to {}", .path.display())]
    Ca { path: PathBuf, source: io::Error },
    #[error("the guest serves over TLS and gave no CA certificate")]
    NoCa,
    #[error("cannot print where the registry is")]
    Print(#[source] io::Error),
    #[error("stopped by {name} before the registry was ready; QEMU was killed")]
    Interrupted { name: &'static str },
}

impl RunError {
    /// The exit status.
    fn status(&self) -> u8 {
        match self {
            Self::Launch(error) => error.exit_status(),
            Self::Interrupted { .. } => 6,
            _ => 1,
        }
    }
}

/// Runs an appliance until it ends or a signal ends it, and gives the exit status.
#[must_use]
pub fn run(args: &Args, report: &Report) -> ExitCode {
    match appliance(args, report) {
        Ok(ended) => ExitCode::from(print::ended(&ended, report)),
        Err(error) => {
            eprintln!("localregistry: {}", chain(&error));
            if let RunError::Launch(LaunchError::Ended(ended)) = &error {
                print::last_lines(ended);
            }
            ExitCode::from(error.status())
        }
    }
}

/// Makes ready what is needed, and runs.
fn appliance(args: &Args, report: &Report) -> Result<Ended, RunError> {
    let config = config(args)?;
    // Before a kernel is downloaded for a disk that is not there.
    launch::check_disk(&args.disk)?;
    args.access.check().map_err(RunError::Access)?;
    let (kernel, initramfs) = boot_files(args, report)?;
    let options = args.options(kernel, initramfs, config, *report);
    // One thread: there is one machine to wait for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(boot_and_follow(args, options))
}

/// The guest's config: the file, the single settings over it, and over these the flags of their own.
fn config(args: &Args) -> Result<GuestConfig, RunError> {
    let mut config = match &args.config {
        Some(path) => {
            let text = files::read(path, args::LARGEST_CONFIG);
            let text = text.map_err(|source| RunError::ReadConfig { path: path.clone(), source })?;
            GuestConfig::parse(&text).map_err(|source| RunError::Config { path: path.clone(), source })?
        }
        None => GuestConfig::default(),
    };
    for setting in args.settings() {
        config.set(&setting).map_err(RunError::Set)?;
    }
    for name in &args.san {
        config.add_name(name);
    }
    Ok(config)
}

/// The kernel and the initramfs: those given, else the cached ones.
fn boot_files(args: &Args, report: &Report) -> Result<(PathBuf, PathBuf), RunError> {
    let (kernel, options, tree) = match &args.kernel {
        Some(kernel) => (kernel.clone(), kernel::options_of(kernel), args.modules.clone()),
        None => {
            let kernel = kernel::cached_or_download(args.flavor, report).map_err(RunError::Kernel)?;
            let options = kernel.options();
            (kernel.elf, options, Some(kernel.modules))
        }
    };
    fits(&kernel, options, args.machine)?;
    let initramfs = match &args.initramfs {
        Some(given) => given.clone(),
        // Without an initramfs, a given kernel comes with its modules.
        None => initramfs::cached(args.init.as_deref(), &tree.unwrap_or_default(), report).map_err(RunError::Initramfs)?,
    };
    Ok((kernel, initramfs))
}

/// Refuses a kernel that is known to lack what the guest cannot do without.
fn fits(kernel: &Path, options: Option<kernel::Options>, board: Board) -> Result<(), RunError> {
    let missing = options.map(|options| options.missing(board)).unwrap_or_default();
    let missing: Vec<String> = missing.iter().filter(|option| option.need == Need::Required).map(ToString::to_string).collect();
    let kernel = kernel.to_owned();
    if missing.is_empty() { Ok(()) } else { Err(RunError::Unfit { kernel, board: board.name(), missing: missing.join(", ") }) }
}

/// A signal that comes this soon after another is the same wish.
const ECHO: Duration = Duration::from_secs(1);

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The name of the next one. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

async fn boot_and_follow(args: &Args, options: Options) -> Result<Ended, RunError> {
    let report = options.report;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let vm = tokio::select! {
        vm = Vm::boot(options) => vm?,
        // Nothing is being served yet: the future is dropped, and QEMU with it.
        name = signals.next() => return Err(RunError::Interrupted { name }),
    };
    announce(&vm, args, &report)?;
    Ok(follow(vm, signals, args.log, &report).await)
}

/// Writes the CA and prints where the registry is.
fn announce(vm: &Vm, args: &Args, report: &Report) -> Result<(), RunError> {
    let ca = if vm.endpoint().starts_with("http://") { None } else { Some(write_ca(&vm.ready().ca_pem, &args.ca)?) };
    let place = print::Place::of(vm, ca);
    report.result(&place, &place.to_string()).map_err(RunError::Print)
}

/// Writes `pem` to `path`, whole or not at all, and gives its absolute path.
fn write_ca(pem: &str, path: &Path) -> Result<PathBuf, RunError> {
    if !pem.starts_with("-----BEGIN CERTIFICATE-----") {
        return Err(RunError::NoCa);
    }
    let failed = |source| RunError::Ca { path: path.to_owned(), source };
    files::write_atomically(path, pem.as_bytes()).map_err(failed)?;
    path.canonicalize().map_err(failed)
}

/// Follows the machine to its end. The first signal ends it in order, a later one at once.
async fn follow(mut vm: Vm, mut signals: Signals, log: bool, report: &Report) -> Ended {
    let mut asked: Option<Instant> = None;
    let mut bad = 0;
    loop {
        tokio::select! {
            name = signals.next() => {
                match asked {
                    None => {
                        report.step(format!("{name}: stopping in order (once more kills)"));
                        vm.stop();
                        asked = Some(Instant::now());
                    }
                    // A terminal and a wrapper may each pass the same one on.
                    Some(when) if when.elapsed() < ECHO => {}
                    Some(_) => {
                        report.step(format!("{name}: killing QEMU"));
                        vm.kill();
                    }
                }
            }
            event = vm.next_event() => match event {
                Some(Ok(event)) => match &event.event {
                    Some(Kind::Request(request)) if log => eprintln!("{}", print::request(request)),
                    Some(Kind::Warning(warning)) => report.step(print::warning(warning)),
                    _ => {}
                },
                Some(Err(error)) => {
                    bad += 1;
                    if bad <= BAD_EVENTS {
                        report.step(format!("warning: {}", chain(&error)));
                    }
                }
                None => break,
            },
        }
    }
    vm.wait().await
}
