//! `localregistry run`: a thin shell over [`crate::host::vm::launch`]. Arguments enter; where the registry is leaves on standard output, what
//! went wrong on standard error, and an exit status that tells the truth (see `run --help`). What it writes is in the run's own folder
//! ([`super::dir`]) or where flags say, and gone at its end.

mod args;
mod detach;
mod follow;
mod lifeline;
mod notes;
mod print;
mod publish;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::dir::{RunDir, RunsError};
use crate::config::guest_config::{ConfigError, GuestConfig};
use crate::host::boot::{initramfs, kernel};
use crate::host::hint;
use crate::host::nodes::access::AccessError;
use crate::host::nodes::ca;
use crate::host::nodes::trust::{self, Contents, TrustError};
use crate::host::support::files;
use crate::host::support::report::Report;
use crate::host::support::signals::Signals;
use crate::host::vm::launch::error::{NO_ACCESS, NO_KERNEL, NO_PLACE};
use crate::host::vm::launch::{self, Appliance, Ended, LaunchError, Options, command};

use follow::{Shown, follow};
use lifeline::{Descriptor, Lifeline, LifelineError};
use notes::{Note, writable};

pub use args::Args;
pub(crate) use print::{Place, Printed};
pub use publish::{Publish, PublishError};

/// Exit status where a signal ended it before it was ready: QEMU was killed.
const INTERRUPTED: u8 = 6;
/// Exit status where the command line cannot be followed.
const USAGE: u8 = 2;

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
    #[error("cannot use the CA")]
    OwnCa(#[source] ca::Error),
    #[error("cannot make the trust files")]
    Trust(#[source] TrustError),
    #[error("there is no kernel to boot")]
    Kernel(#[source] kernel::Error),
    #[error(transparent)]
    Unfit(#[from] kernel::Unfit),
    #[error("there is no initramfs to boot with")]
    Initramfs(#[source] initramfs::Error),
    #[error(transparent)]
    Runs(#[from] RunsError),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("cannot write {what} to {}", .path.display())]
    Write { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the guest serves over TLS and gave no CA certificate")]
    NoCa,
    #[error("cannot print where the registry is")]
    Print(#[source] io::Error),
    #[error("cannot go into the background")]
    Background(#[source] io::Error),
    #[error("stopped by {name} before the registry was ready; QEMU was killed")]
    Interrupted { name: &'static str },
    #[error(transparent)]
    Lifeline(#[from] LifelineError),
    #[error("{0} has ended before the registry was ready; QEMU was killed")]
    LauncherGone(Descriptor),
}

impl RunError {
    /// The exit status.
    fn status(&self) -> u8 {
        match self {
            Self::Launch(error) => error.exit_status(),
            Self::Interrupted { .. } | Self::LauncherGone(_) => INTERRUPTED,
            Self::Lifeline(_) => USAGE,
            Self::Access(_) | Self::OwnCa(_) => NO_ACCESS,
            Self::Kernel(_) | Self::Unfit(_) | Self::Initramfs(_) => NO_KERNEL,
            Self::Runs(_) | Self::Write { .. } | Self::Trust(TrustError::Write(_)) => NO_PLACE,
            _ => 1,
        }
    }

    /// The flags that help.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Launch(error) => hint::launch(error),
            Self::Kernel(error) => hint::kernel(error),
            Self::Initramfs(error) => hint::initramfs(error),
            _ => None,
        }
    }

    /// Says it on standard error.
    fn tell(&self) -> u8 {
        eprintln!("localregistry: {}", hint::line(self, self.hint()));
        if let Self::Launch(LaunchError::Ended(ended)) = self {
            print::last_lines(ended);
        }
        self.status()
    }
}

/// What a run writes. Dropping it removes all that is not to be kept.
struct Site {
    folder: RunDir,
    ready: Option<Note>,
    _pid: Option<Note>,
}

/// Runs an appliance until it ends or a signal ends it, and gives the exit status.
#[must_use]
pub fn run(args: &Args, report: &Report) -> ExitCode {
    if args.program.detach && !args.program.supervised {
        return detach::detach(args.program.lifeline() == Some(Descriptor::Stdin));
    }
    if args.program.print_command {
        return printed(args, report).map_or_else(|error| ExitCode::from(error.tell()), |()| ExitCode::SUCCESS);
    }
    let mut site = None;
    let status = match appliance(args, report, &mut site) {
        Ok(ended) => print::ended(&ended, report),
        Err(error) => error.tell(),
    };
    if let Some(site) = &mut site {
        site.folder.ended(status);
    }
    ExitCode::from(status)
}

/// Makes ready what is needed, and runs.
fn appliance(args: &Args, report: &Report, site: &mut Option<Site>) -> Result<Ended, RunError> {
    if args.program.supervised {
        detach::leave_session().map_err(RunError::Background)?;
    }
    let lifeline = args.program.lifeline().map(Lifeline::watch).transpose()?;
    let Checked { config, ca, contents } = checked(args)?;
    let site = site.insert(Site::make(args)?);
    let (kernel, initramfs) = boot_files(args, report)?;
    let options = args.options(kernel, initramfs, config, ca, *report);
    runtime()?.block_on(boot_and_follow(args, options, contents, site, lifeline))
}

/// QEMU's command line, printed, and its files written.
fn printed(args: &Args, report: &Report) -> Result<(), RunError> {
    let Checked { config, ca, .. } = checked(args)?;
    let (kernel, initramfs) = boot_files(args, report)?;
    let options = args.options(kernel, initramfs, config, ca, *report);
    let folder = RunDir::make_for_others(&args.program.folder())?;
    let command = runtime()?.block_on(command::command(options, folder.folder()))?;
    let printed = Printed::of(&command, folder.folder());
    report.result(&printed, &printed.to_string()).map_err(RunError::Print)?;
    folder.leave();
    Ok(())
}

/// One thread: there is one machine to wait for.
fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)
}

/// What has been checked, and found by it.
struct Checked {
    /// The guest's config.
    config: GuestConfig,
    /// The files of the CA that signs, by their names in fw_cfg.
    ca: Vec<(&'static str, PathBuf)>,
    /// What the trust files are to say of the disk, where they are asked for.
    contents: Option<Contents>,
}

/// Checks what can be checked before a kernel is downloaded. A CA that a folder is to keep is made, as the last of it.
fn checked(args: &Args) -> Result<Checked, RunError> {
    let config = config(args)?;
    args.disk.iter().try_for_each(|disk| launch::check_disk(disk))?;
    args.access.check().map_err(RunError::Access)?;
    if let Some(path) = args.certificates.output() {
        writable(path).map_err(|source| RunError::Write { what: "the CA certificate", path: path.to_owned(), source })?;
    }
    let contents = args.trust.as_deref().map(|dir| trust::prepare(dir, &args.disk)).transpose().map_err(RunError::Trust)?;
    let ca = args.certificates.secrets().map_err(RunError::OwnCa)?;
    Ok(Checked { config, ca, contents })
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
    let hosts = args.trust_host.iter().map(|endpoint| endpoint.host.name().trim_matches(['[', ']']));
    for name in args.san.iter().map(String::as_str).chain(hosts) {
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
    kernel::check_fits(&kernel, options, args.machine)?;
    let initramfs = match &args.initramfs {
        Some(given) => given.clone(),
        // Without an initramfs, a given kernel comes with its modules.
        None => initramfs::cached(args.init.as_deref(), &tree.unwrap_or_default(), report).map_err(RunError::Initramfs)?,
    };
    Ok((kernel, initramfs))
}

impl Site {
    /// Makes the run's folder, and writes which process this is.
    fn make(args: &Args) -> Result<Self, RunError> {
        let program = &args.program;
        let note = |what, path: &Option<PathBuf>| {
            let failed = |path: &Path, source| RunError::Write { what, path: path.to_owned(), source };
            path.as_ref().map(|path| Note::at(path).map_err(|source| failed(path, source))).transpose()
        };
        let ready = note(READY_FILE, &program.ready_file)?;
        let pid = note(PID_FILE, &program.pid_file)?;
        let folder = RunDir::make(&program.folder(), &args.disk, program.keep)?;
        if let Some(pid) = &pid {
            let written = pid.write(&format!("{}\n", std::process::id()));
            written.map_err(|source| RunError::Write { what: PID_FILE, path: pid.path().to_owned(), source })?;
        }
        Ok(Self { folder, ready, _pid: pid })
    }

    /// Writes the CA, and gives its path: the one that was asked for, else the one in the run's folder.
    fn write_ca(&self, pem: &str, path: Option<&Path>) -> Result<PathBuf, RunError> {
        if !pem.starts_with("-----BEGIN CERTIFICATE-----") {
            return Err(RunError::NoCa);
        }
        let own = self.folder.write("ca.crt", pem.as_bytes())?;
        let Some(path) = path else { return Ok(own) };
        let failed = |source| RunError::Write { what: "the CA certificate", path: path.to_owned(), source };
        files::write_atomically(path, pem.as_bytes()).map_err(failed)?;
        path.canonicalize().map_err(failed)
    }
}

/// What the files are for.
const READY_FILE: &str = "where the registry is";
const PID_FILE: &str = "the process's number";

async fn boot_and_follow(
    args: &Args,
    options: Options,
    contents: Option<Contents>,
    site: &Site,
    mut lifeline: Option<Lifeline>,
) -> Result<Ended, RunError> {
    let report = options.report;
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let vm = tokio::select! {
        vm = Appliance::boot(options) => vm?,
        // Nothing is being served yet: the future is dropped, and QEMU with it.
        name = signals.next() => return Err(RunError::Interrupted { name }),
        descriptor = lifeline::closed(&mut lifeline) => return Err(RunError::LauncherGone(descriptor)),
    };
    announce(&vm, args, contents, site, &report)?;
    let shown = Shown { requests: args.log, events: args.program.follow };
    Ok(follow(vm, signals, lifeline, shown, &report).await)
}

/// Writes the CA and the trust files, and tells everybody where the registry is.
fn announce(vm: &Appliance, args: &Args, contents: Option<Contents>, site: &Site, report: &Report) -> Result<(), RunError> {
    let plain = vm.endpoint().starts_with("http://");
    let ca = if plain { None } else { Some(site.write_ca(&vm.ready().ca_pem, args.certificates.output())?) };
    let trusted = args.trust.as_deref().zip(contents).map(|(dir, contents)| vm.write_trust(dir, &args.trust_host, contents));
    let trusted = trusted.transpose().map_err(RunError::Trust)?;
    let place = Place::of(vm, ca, trusted, &site.folder, args.program.detach);
    let line = place.json().map_err(RunError::Print)? + "\n";
    site.folder.ready(&line)?;
    if let Some(ready) = &site.ready {
        let written = ready.write(&line);
        written.map_err(|source| RunError::Write { what: READY_FILE, path: ready.path().to_owned(), source })?;
    }
    if args.program.supervised {
        detach::outlive_parent().map_err(RunError::Background)?;
    }
    report.result(&place, &place.to_string()).map_err(RunError::Print)?;
    if args.program.supervised {
        detach::let_go(&site.folder.path("log")).map_err(RunError::Background)?;
    }
    Ok(())
}
