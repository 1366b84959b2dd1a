//! `localregistry initramfs`: the archive that the guest boots from. In go the static init and a kernel's module tree; out comes a
//! deterministic newc archive with the init, the few modules that it loads, and the folders that it mounts on. Nothing else is
//! written.

mod archive;
pub mod init;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;

pub use init::InitError;

use super::elf::Processor;
use super::kernel::{self, Flavor};
use super::modules::{self, Modules, ModulesError};
use super::program::Program;
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::report::Report;
use crate::oci::Digest;

/// The command line of `localregistry initramfs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  localregistry initramfs -o initramfs.cpio
      this project's init with the modules of the kernel that `localregistry kernel` gives
  localregistry initramfs --modules /lib/modules/6.1.0-30-amd64 -o initramfs.cpio
      with the modules of any other kernel, in which depmod has run
  localregistry initramfs --init ./my-init -o initramfs.cpio
      with any other static program as PID 1; it loads /lib/modules/FILE for each line of /lib/modules/order

The same init and modules give the same bytes. LOCALREGISTRY_INIT names an init where --init does not.")]
pub struct Args {
    /// Write the archive to this file
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// The static program that becomes PID 1 [default: localregistry-init beside this program, or built in the same target/]
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,

    /// The kernel that is booted, as `localregistry kernel` gives it
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// The modules of the kernel that is booted, a folder lib/modules/RELEASE, instead of a flavor's
    #[arg(long, value_name = "DIR", conflicts_with = "flavor")]
    modules: Option<PathBuf>,
}

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no init, or not one for the guest.
    #[error(transparent)]
    Init(InitError),
    /// The modules cannot be packed.
    #[error(transparent)]
    Modules(ModulesError),
    /// One kernel cannot run them both.
    #[error(
        "the init is for {init}, and the module {module} for {other}: the init, the modules and the kernel that is booted have to be \
         for one processor"
    )]
    Processors {
        /// The init's processor.
        init: Processor,
        /// The first module that is for another one.
        module: String,
        /// That one.
        other: Processor,
    },
    /// There is no kernel to take modules from.
    #[error(transparent)]
    Kernel(kernel::Error),
    /// There is no cache.
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
        /// Why not.
        source: io::Error,
    },
    /// The result cannot be printed.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// The archive that was written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InitramfsResult")]
pub(crate) struct Written<'a> {
    /// The file, as it was given.
    file: &'a Path,
    /// Its size in bytes.
    bytes: usize,
    /// The modules' files, in load order.
    modules: Vec<&'a str>,
    /// Optional modules that the kernel does not have.
    #[schemars(with = "Vec<&'a str>")]
    absent: &'a [&'a str],
}

/// Runs `localregistry initramfs`.
///
/// # Errors
/// When the init or the modules are not usable, or the output cannot be written; it is then as it was.
pub fn run(args: &Args, report: &Report) -> Result<(), Error> {
    let init = read_init(args.init.as_deref())?;
    let tree = match &args.modules {
        Some(tree) => tree.clone(),
        None => kernel::cached_or_download(args.flavor, report).map_err(Error::Kernel)?.modules,
    };
    let modules = collect(&tree, report)?;
    let archive = archive(&init, &modules)?;
    let file = &args.output;
    files::write_atomically(file, &archive).map_err(|source| Error::Write { path: file.clone(), source })?;

    let names = modules.load.iter().map(|module| module.file.as_str()).collect::<Vec<_>>();
    let text = format!("{}: the init and {} modules, {} bytes", file.display(), names.len(), archive.len());
    let written = Written { file, bytes: archive.len(), modules: names, absent: &modules.absent };
    report.result(&written, &text).map_err(Error::Print)
}

/// The archive with the static program `init` as PID 1 and what it needs of the module tree `modules` (`…/lib/modules/<release>`).
/// The same contents give the same bytes.
///
/// # Errors
/// When `init` is not a static program, `modules` lacks a required module or is broken, or they are for different processors.
pub fn build(init: &Path, modules: &Path) -> Result<Vec<u8>, Error> {
    let init = init::read(init).map_err(Error::Init)?;
    let modules = modules::collect(modules).map_err(Error::Modules)?;
    archive(&init, &modules)
}

fn archive(init: &Program, modules: &Modules) -> Result<Vec<u8>, Error> {
    let other = modules.load.iter().find(|module| module.processor != init.processor);
    other.map_or(Ok(()), |module| {
        Err(Error::Processors { init: init.processor, module: module.file.clone(), other: module.processor })
    })?;
    archive::archive(&init.content, &modules.load).map_err(Error::Archive)
}

/// The archive for the kernel with the module tree `tree` in the cache, named by the digest of its content, so that it is never stale: built anew each time, which
/// reads a few megabytes, and written only where it is not there. `init` is this project's where none is given.
///
/// # Errors
/// As [`build`], or when there is no init or no cache.
pub fn cached(init: Option<&Path>, tree: &Path, report: &Report) -> Result<PathBuf, Error> {
    let folder = cache::folder("initramfs").map_err(Error::Cache)?;
    let init = read_init(init)?;
    let modules = collect(tree, report)?;
    let archive = archive(&init, &modules)?;
    store(&folder, &archive)
}

/// The file of `folder` that holds `archive`, written where it is not there.
fn store(folder: &Path, archive: &[u8]) -> Result<PathBuf, Error> {
    let path = folder.join(format!("{}.cpio", Digest::sha256_of(archive).hex()));
    if cache::is_file(&path) {
        mark_used(&path);
        return Ok(path);
    }
    match files::write_atomically(&path, archive) {
        Ok(()) => remove_unused(folder),
        Err(source) => return Err(Error::Write { path, source }),
    }
    Ok(path)
}

fn read_init(given: Option<&Path>) -> Result<Program, Error> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => init::find().map_err(Error::Init)?,
    };
    init::read(&path).map_err(Error::Init)
}

/// Reads the modules, and says which optional ones are not there.
fn collect(tree: &Path, report: &Report) -> Result<Modules, Error> {
    let modules = modules::collect(tree).map_err(Error::Modules)?;
    if !modules.absent.is_empty() {
        report.step(format!("this kernel has no {} (the guest does without)", modules.absent.join(", ")));
    }
    Ok(modules)
}

/// Archives that were not used for so long are removed: each build of the init leaves one behind.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Keeps an archive for another [`KEPT`]. Where that fails it is only built again later.
fn mark_used(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes the archives of `folder` that were not used for [`KEPT`]. It is only for the space: what fails is left for the next time.
fn remove_unused(folder: &Path) {
    let archives = fs::read_dir(folder).into_iter().flatten().flatten();
    for archive in archives.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cpio")) {
        let used = archive.metadata().and_then(|metadata| metadata.modified());
        if used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > KEPT)) {
            let _ = fs::remove_file(archive.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_stored_once_and_removed_when_long_unused() {
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
        assert!(first.exists(), "its use was noted");
        assert_eq!(
            second.file_name().unwrap(),
            "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437.cpio",
            "the digest of its content"
        );
    }
}
