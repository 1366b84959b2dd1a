//! `localregistry doctor`: checks that this machine has everything that `pack` and `run` need, and says how to fix what is missing.
//! It downloads and installs nothing.

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
      Check for everything that `localregistry run` needs without flags
  localregistry doctor --machine microvm
      Check for another machine type
  localregistry doctor --kernel /boot/vmlinuz-6.1.0-30-amd64 --modules /lib/modules/6.1.0-30-amd64
      Check that the guest can run on a kernel of your own

Each line starts with `ok`, `note` (a feature is missing, slower or needs a flag) or `FAIL`. External programs that only some flag needs
get a `note` if they are missing.

Exit status: 0 without a FAIL, 1 with one, 2 for a wrong command line.")]
pub struct DoctorArgs {
    /// Machine type to check for
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    machine: Board,

    /// Kernel to check, as in `localregistry kernel`
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Check this kernel (ELF or bzImage) instead of --flavor
    #[arg(long, value_name = "FILE", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,

    /// Module folder of that kernel, lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// QEMU to check [default: qemu-system-x86_64, or qemu-system-aarch64 for virt]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DoctorCheck")]
pub struct Check {
    /// The name of the check.
    name: &'static str,
    /// The outcome.
    status: Status,
    /// What was found.
    found: String,
    /// What to do; null if nothing needs to be done.
    advice: Option<String>,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DoctorStatus")]
enum Status {
    /// Everything is fine.
    Ok,
    /// A feature is missing, slower or needs a flag.
    Note,
    /// `pack` or `run` will fail.
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

    /// Formats the check as a line of text.
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

/// The results of all checks.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DoctorResult")]
pub(crate) struct DoctorResult<'a> {
    /// Whether no check failed.
    ok: bool,
    /// The checks, in the order in which `pack` and `run` need the things.
    #[schemars(with = "Vec<Check>")]
    checks: &'a [Check],
}

/// Standard output cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot print the result")]
pub struct PrintError(#[source] io::Error);

/// Runs `localregistry doctor`, and returns whether no check failed.
///
/// # Errors
/// Fails if standard output cannot be written to.
pub fn run(args: &DoctorArgs, report: &Report) -> Result<bool, PrintError> {
    let checks = checks(args);
    let ok = checks.iter().all(|check| check.status != Status::Fail);
    let text: Vec<String> = checks.iter().map(Check::line).collect();
    report.result(&DoctorResult { ok, checks: &checks }, &text.join("\n")).map_err(PrintError)?;
    Ok(ok)
}

/// Runs all checks, in the order in which `pack` and `run` need the things.
fn checks(args: &DoctorArgs) -> Vec<Check> {
    let program = args.qemu.clone().unwrap_or_else(|| args.machine.program().into());
    let mut checks = vec![machine::qemu(args.machine, &program), machine::kvm(args.machine, &program), machine::memory()];
    checks.push(machine::user_network());
    checks.push(machine::cache());
    checks.push(machine::frozen_machines());
    checks.extend(boot_files(args));
    checks.extend(programs(args));
    checks
}

/// Checks the external programs other than QEMU: those that download a kernel, needed until the cache has one, and those that make
/// optional file systems.
fn programs(args: &DoctorArgs) -> impl Iterator<Item = Check> + use<> {
    let lacks_kernel =
        args.kernel.is_none() && args.flavor != Flavor::Own && matches!(kernel::cached(args.flavor, args.machine), Ok(None));
    let download = if lacks_kernel { "`kernel` and `run`" } else { "`kernel` and `run` with a kernel that is not in the cache" };
    let download = kernel::TOOLS.into_iter().map(move |tool| machine::program(tool, download, lacks_kernel));
    let make = [(Format::Squashfs, "`pack --fs squashfs`"), (Format::Ext4, "`pack --fs ext4`")];
    let make = make
        .into_iter()
        .flat_map(|(format, purpose)| format.tools().iter().map(move |tool| machine::program(*tool, purpose, false)));
    download.chain(make)
}

/// Checks the kernel, its modules and the init.
fn boot_files(args: &DoctorArgs) -> Vec<Check> {
    let kernel_and_modules = match &args.kernel {
        Some(path) => {
            let name = path.display();
            let kernel = match kernel::is_kernel(path) {
                Err(error) => Check::fail("kernel", format!("cannot read {name}: {error}"), "name an existing kernel"),
                Ok(false) => {
                    Check::fail("kernel", format!("{name} is not a kernel"), "name a bzImage (vmlinuz) or an ELF (vmlinux)")
                }
                Ok(true) => options(&name.to_string(), kernel::options_of(path), args.machine),
            };
            let modules = match &args.modules {
                Some(tree) => modules_in(tree),
                None => Check::note("modules", "not checked", "if the kernel has modules, name their folder with --modules"),
            };
            [kernel, modules]
        }
        None => flavor(args),
    };
    kernel_and_modules.into_iter().chain([guest_init()]).collect()
}

/// Checks the cached kernel of a flavor and its modules.
fn flavor(args: &DoctorArgs) -> [Check; 2] {
    let unknown = || Check::note("modules", "not known yet", "they come with the kernel");
    match kernel::cached(args.flavor, args.machine) {
        Ok(Some(kernel)) => {
            let Kernel { elf, release, modules, .. } = &kernel;
            let name = format!("{} Linux {release} ({})", args.flavor.name(), elf.display());
            [options(&name, kernel.options(), args.machine), modules_in(modules)]
        }
        Ok(None) if args.flavor == Flavor::Own => {
            [Check::fail("kernel", "our own kernel is not built", "build it with image/kernel, or use --flavor cloud"), unknown()]
        }
        Ok(None) => [not_downloaded(args.flavor), unknown()],
        Err(error) => [Check::fail("kernel", chain(&error), "see the check `cache`"), unknown()],
    }
}

/// Reports a distribution's kernel that is not in the cache yet.
fn not_downloaded(flavor: Flavor) -> Check {
    let found = format!("{} is not in the cache", flavor.name());
    let missing: Vec<_> = kernel::TOOLS.into_iter().filter_map(|tool| tool.find().err()).collect();
    match missing.first() {
        None => Check::note("kernel", found, "`localregistry run` downloads it on the first boot"),
        Some(error) => Check::fail("kernel", format!("{found}, and cannot be downloaded: {error}"), "or name one with --kernel"),
    }
}

/// Checks that a kernel with these options can run the guest.
fn options(kernel: &str, options: Option<kernel::KernelOptions>, board: Board) -> Check {
    let Some(options) = options else {
        let advice = "put the config next to the kernel as config-RELEASE, or build the kernel with CONFIG_IKCONFIG";
        return Check::note("kernel", format!("{kernel}: its config is unknown"), advice);
    };
    let missing = options.missing(board);
    let named = |need| {
        let named = missing.iter().filter(|option| option.need == need).map(ToString::to_string);
        named.collect::<Vec<_>>().join(", ")
    };
    match (named(Need::Required), named(Need::Optional)) {
        (required, _) if !required.is_empty() => {
            Check::fail("kernel", format!("{kernel} lacks {required}"), "boot a kernel that has them, such as --flavor cloud")
        }
        (_, optional) if !optional.is_empty() => {
            Check::note("kernel", format!("{kernel} lacks {optional}"), "the guest works without")
        }
        _ => Check::ok("kernel", format!("{kernel} has every option that {} needs", board.name())),
    }
}

/// Checks the modules that the guest loads.
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
        Err(error) => Check::fail("modules", chain(&error), "name the folder of the kernel's modules with --modules"),
    }
}

/// Checks the guest's init.
fn guest_init() -> Check {
    match init::find().and_then(|path| init::read(&path).map(|_| path)) {
        Ok(path) => Check::ok("init", path.display().to_string()),
        Err(error) => Check::fail("init", chain(&error), "`qemu/build` builds it"),
    }
}
