//! `localregistry doctor`: whether this machine has what `pack` and `run` need. Facts of the machine enter, one line for each thing
//! leaves, with what to do where it is not as it should be. It downloads and installs nothing, and boots nothing but five bytes.

mod machine;
mod trial;

use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use super::boot::initramfs::init;
use super::boot::kernel::{self, Flavor, Kernel};
use super::boot::modules::{self, Need};
use super::images::pack::Format;
use super::support::report::Report;
use super::vm::qemu::Board;
use crate::text::chain;

/// The command line of `localregistry doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  localregistry doctor
      What `localregistry run` without flags needs
  localregistry doctor --machine microvm --flavor own
      The same for that machine and kernel
  localregistry doctor --kernel /boot/vmlinuz-6.1.0-30-amd64 --modules /lib/modules/6.1.0-30-amd64
      Whether the guest can run on a kernel

Each line is `ok`, `note` (something works less well, later or only with another flag) or `FAIL`. Every program that a command runs has a
line: `note` where it is missing and only some flag needs it. Exit status: 0 without a FAIL, else 1; 2 where the command line is wrong.")]
pub struct Args {
    /// The board
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    machine: Board,

    /// The kernel, as `localregistry kernel` gives it
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Check this kernel (ELF or bzImage) instead of a flavor's
    #[arg(long, value_name = "FILE", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,

    /// The modules of that kernel, a folder lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// The QEMU to check [default: qemu-system-x86_64, for virt qemu-system-aarch64]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DoctorCheck")]
pub struct Check {
    /// The thing.
    name: &'static str,
    /// Whether it is as it should be.
    status: Status,
    /// What there is.
    found: String,
    /// What to do; null where it is as it should be.
    advice: Option<String>,
}

/// Whether a thing is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DoctorStatus")]
enum Status {
    /// It is.
    Ok,
    /// Something works less well, or later.
    Note,
    /// `pack` or `run` will not work.
    Fail,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }

    fn note(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Note, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
    }

    /// One line for a person.
    fn line(&self) -> String {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Fail => "FAIL",
        };
        let advice = self.advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!("{status:<4}  {:<10}  {}{advice}", self.name, self.found)
    }
}

/// What this machine has of what `pack` and `run` need.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DoctorResult")]
pub(crate) struct Written<'a> {
    /// Whether no check failed.
    ok: bool,
    /// The checks, in the order in which things are needed.
    #[schemars(with = "Vec<Check>")]
    checks: &'a [Check],
}

/// The result cannot be printed.
#[derive(Debug, thiserror::Error)]
#[error("cannot print the result")]
pub struct PrintError(#[source] io::Error);

/// Runs `localregistry doctor`, and tells whether all is well.
///
/// # Errors
/// When the result cannot be printed.
pub fn run(args: &Args, report: &Report) -> Result<bool, PrintError> {
    let checks = checks(args);
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    let text: Vec<String> = checks.iter().map(Check::line).collect();
    report.result(&Written { ok, checks: &checks }, &text.join("\n")).map_err(PrintError)?;
    Ok(ok)
}

/// Every check, in the order in which things are needed.
fn checks(args: &Args) -> Vec<Check> {
    let program = args.qemu.clone().unwrap_or_else(|| args.machine.program().into());
    let mut checks = vec![machine::qemu(args.machine, &program), machine::kvm(args.machine, &program), machine::memory()];
    checks.push(machine::cache());
    checks.extend(boot_files(args));
    checks.extend(programs(args));
    checks
}

/// The programs that commands run besides QEMU: those that download a kernel, which is needed until there is one, and those that make
/// file systems other than the default one.
fn programs(args: &Args) -> impl Iterator<Item = Check> + use<> {
    let lacks_kernel = args.kernel.is_none() && args.flavor != Flavor::Own && matches!(kernel::cached(args.flavor), Ok(None));
    let download = if lacks_kernel { "`kernel` and `run`" } else { "`kernel` and `run` with a kernel that is not in the cache" };
    let download = kernel::TOOLS.into_iter().map(move |tool| machine::program(tool, download, lacks_kernel));
    let make = [(Format::Squashfs, "`pack --fs squashfs`"), (Format::Ext4, "`pack --fs ext4`")];
    let make = make
        .into_iter()
        .flat_map(|(format, purpose)| format.tools().iter().map(move |tool| machine::program(*tool, purpose, false)));
    download.chain(make)
}

/// The kernel, its modules and the init.
fn boot_files(args: &Args) -> Vec<Check> {
    let kernel_and_modules = match &args.kernel {
        Some(path) => {
            let readable = std::fs::File::open(path).map(|_| ());
            let kernel = match readable {
                Err(error) => Check::fail("kernel", format!("cannot read {}: {error}", path.display()), "give one that is there"),
                Ok(()) => options(&path.display().to_string(), kernel::options_of(path), args.machine),
            };
            let modules = match &args.modules {
                Some(tree) => modules_in(tree),
                None => Check::note("modules", "not checked", "name the kernel's with --modules where it has some"),
            };
            [kernel, modules]
        }
        None => flavor(args),
    };
    kernel_and_modules.into_iter().chain([guest_init()]).collect()
}

/// The kernel of a flavor and its modules, where the cache has it.
fn flavor(args: &Args) -> [Check; 2] {
    let unknown = || Check::note("modules", "not known yet", "they come with the kernel");
    match kernel::cached(args.flavor) {
        Ok(Some(kernel)) => {
            let Kernel { elf, release, modules, .. } = &kernel;
            let name = format!("{} Linux {release} ({})", args.flavor.name(), elf.display());
            [options(&name, kernel.options(), args.machine), modules_in(modules)]
        }
        Ok(None) if args.flavor == Flavor::Own => {
            [Check::fail("kernel", "our own is not built", "build it with image/kernel, or take --flavor cloud"), unknown()]
        }
        Ok(None) => [not_downloaded(args.flavor), unknown()],
        Err(error) => [Check::fail("kernel", chain(&error), "see the line of the cache"), unknown()],
    }
}

/// A kernel of the distribution that `run` has yet to download.
fn not_downloaded(flavor: Flavor) -> Check {
    let found = format!("{} is not in the cache", flavor.name());
    let missing: Vec<_> = kernel::TOOLS.into_iter().filter_map(|tool| tool.find().err()).collect();
    match missing.first() {
        None => Check::note("kernel", found, "`localregistry run` downloads it when it boots for the first time"),
        Some(error) => Check::fail("kernel", format!("{found}, and cannot be downloaded: {error}"), "or name one with --kernel"),
    }
}

/// What the guest uses of a kernel with these options.
fn options(kernel: &str, options: Option<kernel::Options>, board: Board) -> Check {
    let Some(options) = options else {
        let advice = "put it beside the kernel as config-RELEASE, or build the kernel with CONFIG_IKCONFIG";
        return Check::note("kernel", format!("{kernel}: its config is not known"), advice);
    };
    let missing = options.missing(board);
    let named = |need| {
        let named = missing.iter().filter(|option| option.need == need).map(ToString::to_string);
        named.collect::<Vec<_>>().join(", ")
    };
    match (named(Need::Required), named(Need::Optional)) {
        (required, _) if !required.is_empty() => {
            Check::fail("kernel", format!("{kernel} lacks {required}"), "boot one that has it: --flavor cloud")
        }
        (_, optional) if !optional.is_empty() => {
            Check::note("kernel", format!("{kernel} lacks {optional}"), "the guest does without")
        }
        _ => Check::ok("kernel", format!("{kernel} has every option that {} needs", board.name())),
    }
}

/// The modules of a tree that the guest loads.
fn modules_in(tree: &Path) -> Check {
    match modules::collect(tree) {
        Ok(found) => {
            let bytes: usize = found.load.iter().map(|module| module.content.len()).sum();
            let load = match found.load.len() {
                0 => "none to load, all is built in".to_owned(),
                count => format!("{count} to load, {bytes} bytes"),
            };
            Check::ok("modules", format!("{load} ({})", tree.display()))
        }
        Err(error) => Check::fail("modules", chain(&error), "give those of the kernel (--modules)"),
    }
}

/// The guest's program.
fn guest_init() -> Check {
    match init::find().and_then(|path| init::read(&path).map(|_| path)) {
        Ok(path) => Check::ok("init", path.display().to_string()),
        Err(error) => Check::fail("init", chain(&error), "`qemu/build` builds it"),
    }
}
