//! `localregistry initramfs`: builds the initramfs that the guest boots from. It is a reproducible newc archive with the static
//! init, the kernel modules that the init loads, and its mount points.

mod archive;
pub mod init;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;

pub use init::InitError;

use super::board::Board;
use super::elf::Processor;
use super::kernel::{self, Flavor, Kernel};
use super::modules::{self, Modules, ModulesError};
use super::static_program::Program;
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::Digest;

/// The command line of `localregistry initramfs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  localregistry initramfs -o initramfs.cpio
      The init of this project, and the modules of the kernel that `localregistry kernel` writes
  localregistry initramfs --modules /lib/modules/6.1.0-30-amd64 -o initramfs.cpio
      The modules of another kernel, in which depmod has run
  localregistry initramfs --init ./my-init -o initramfs.cpio
      Another static program as PID 1; it should load /lib/modules/FILE for each line of /lib/modules/order

The same init and modules give the same bytes. LOCALREGISTRY_INIT sets the init if --init is not given.")]
pub struct InitramfsArgs {
    /// File to write the archive to
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Static program to run as PID 1 [default: localregistry-init next to this program, or built in the same target/]
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,

    /// Kernel to take the modules of
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Module folder lib/modules/RELEASE of another kernel, instead of --flavor
    #[arg(long, value_name = "DIR", conflicts_with = "flavor")]
    modules: Option<PathBuf>,
}

/// Why the initramfs cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// There is no usable init.
    #[error(transparent)]
    Init(InitError),
    /// The modules cannot be collected.
    #[error(transparent)]
    Modules(ModulesError),
    /// Init and modules are for different processors.
    #[error(
        "the init is for {init}, and the module {module} for {other}: the init, the modules and the kernel must be for one processor"
    )]
    Processors {
        /// The init's processor.
        init: Processor,
        /// The first module for another processor.
        module: String,
        /// That module's processor.
        other: Processor,
    },
    /// There is no kernel to take modules from.
    #[error(transparent)]
    Kernel(kernel::KernelError),
    /// There is no cache folder.
    #[error(transparent)]
    Cache(CacheError),
    /// A file is too large for the format.
    #[error("cannot write the archive")]
    Archive(#[source] io::Error),
    /// The output cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Standard output cannot be written to.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// The archive that was written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InitramfsResult")]
pub(crate) struct InitramfsResult<'a> {
    /// The file that was written.
    file: String,
    /// Its size in bytes.
    bytes: usize,
    /// The modules' file names, in load order.
    modules: Vec<&'a str>,
    /// Optional modules that the kernel does not have.
    #[schemars(with = "Vec<&'a str>")]
    absent: &'a [&'a str],
}

/// Runs `localregistry initramfs`.
///
/// # Errors
/// Fails if the init or the modules are not usable, or if the output cannot be written. An old output file then stays as it is.
pub fn run(args: &InitramfsArgs, report: &Report) -> Result<(), InitramfsError> {
    let interrupt = Interrupt::of_process();
    let _ends = interrupt.end_at_once("");
    let init = read_init(args.init.as_deref())?;
    let tree = match &args.modules {
        Some(tree) => tree.clone(),
        None => kernel::cached_or_download(args.flavor, Board::default(), report).map_err(InitramfsError::Kernel)?.modules,
    };
    let modules = collect(&tree, report)?;
    let archive = archive(&init, &modules)?;
    let file = &args.output;
    files::write_atomically(file, &archive).map_err(|source| InitramfsError::Write { path: file.clone(), source })?;

    let names = modules.load.iter().map(|module| module.file.as_str()).collect::<Vec<_>>();
    let text = format!("{}: the init and {} modules, {} bytes", file.display(), names.len(), archive.len());
    let result =
        InitramfsResult { file: file.display().to_string(), bytes: archive.len(), modules: names, absent: &modules.absent };
    report.result(&result, &text).map_err(InitramfsError::Print)
}

/// Builds the archive with the static program `init` as PID 1 and the modules it loads from `modules`, a folder
/// `…/lib/modules/RELEASE`. The same content gives the same bytes.
///
/// # Errors
/// Fails if `init` is not a static program, if `modules` is damaged or lacks a required module, or if they are for different
/// processors.
pub fn build(init: &Path, modules: &Path) -> Result<Vec<u8>, InitramfsError> {
    let init = init::read(init).map_err(InitramfsError::Init)?;
    let modules = modules::collect(modules).map_err(InitramfsError::Modules)?;
    archive(&init, &modules)
}

fn archive(init: &Program, modules: &Modules) -> Result<Vec<u8>, InitramfsError> {
    let other = modules.load.iter().find(|module| module.processor != init.processor);
    other.map_or(Ok(()), |module| {
        Err(InitramfsError::Processors { init: init.processor, module: module.file.clone(), other: module.processor })
    })?;
    archive::archive(&init.content, &modules.load).map_err(InitramfsError::Archive)
}

/// Returns the archive for `kernel`: that of the release, or, where it has none or another init is named, the [`cached`] one.
///
/// # Errors
/// Fails as [`cached`] does.
pub fn of_kernel(init: Option<&Path>, kernel: &Kernel, report: &Report) -> Result<PathBuf, InitramfsError> {
    match kernel.initramfs.clone().filter(|_| init.is_none() && !init::is_named()) {
        Some(released) => Ok(released),
        None => cached(init, &kernel.modules, report),
    }
}

/// Returns the cached archive for the module tree `tree`. Its name is the digest of its content, so it is never stale: it is built
/// each time, which reads a few megabytes, and written only if it is new. Without `init`, this project's init is used.
///
/// # Errors
/// Fails as [`build`] does, or if there is no init or no cache folder.
pub fn cached(init: Option<&Path>, tree: &Path, report: &Report) -> Result<PathBuf, InitramfsError> {
    let folder = cache::folder("initramfs").map_err(InitramfsError::Cache)?;
    let init = read_init(init)?;
    let modules = collect(tree, report)?;
    let archive = archive(&init, &modules)?;
    store(&folder, &archive)
}

/// Returns the file in `folder` that holds `archive`, and writes it if it is missing.
fn store(folder: &Path, archive: &[u8]) -> Result<PathBuf, InitramfsError> {
    let path = folder.join(format!("{}.cpio", Digest::sha256_of(archive).hex()));
    if cache::is_file(&path) {
        mark_used(&path);
        return Ok(path);
    }
    match files::write_atomically(&path, archive) {
        Ok(()) => remove_unused(folder),
        Err(source) => return Err(InitramfsError::Write { path, source }),
    }
    Ok(path)
}

fn read_init(path: Option<&Path>) -> Result<Program, InitramfsError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => init::find().map_err(InitramfsError::Init)?,
    };
    init::read(&path).map_err(InitramfsError::Init)
}

/// Collects the modules, and prints which optional ones the kernel lacks.
fn collect(tree: &Path, report: &Report) -> Result<Modules, InitramfsError> {
    let modules = modules::collect(tree).map_err(InitramfsError::Modules)?;
    if !modules.absent.is_empty() {
        report.step(format!("this kernel has no {} (the guest works without)", modules.absent.join(", ")));
    }
    Ok(modules)
}

/// Archives unused for this long are removed. Each build of the init leaves one behind.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keeps an archive for another [`RETENTION`]. If this fails, the archive is only built again later.
fn mark_used(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes archives unused for [`RETENTION`]. It only saves space: failures are ignored.
fn remove_unused(folder: &Path) {
    let archives = fs::read_dir(folder).into_iter().flatten().flatten();
    for archive in archives.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cpio")) {
        let used = archive.metadata().and_then(|metadata| metadata.modified());
        if used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > RETENTION)) {
            let _ = fs::remove_file(archive.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_stored_once_and_removed_when_long_unused() {
        let folder = tempfile::tempdir().unwrap();
        let age = |path: &Path, age| File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let (old, used, new) = (b"old", b"used", b"new");

        let old = store(folder.path(), old).unwrap();
        age(&old, 8 * day);
        let first = store(folder.path(), used).unwrap();
        assert!(!old.exists());
        assert_eq!(fs::read(&first).unwrap(), used);

        age(&first, 8 * day);
        assert_eq!(store(folder.path(), used).unwrap(), first);
        let second = store(folder.path(), new).unwrap();
        assert!(first.exists(), "its use was recorded");
        assert_eq!(
            second.file_name().unwrap(),
            "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437.cpio",
            "the digest of its content"
        );
    }
}
