//! `localregistry kernel`: a kernel that QEMU boots directly. In goes the distribution's kernel package, or any bzImage; out come the
//! bootable ELF and the tree of its modules. Nothing is installed, and nothing outside the cache and the named output is written.

mod bzimage;
mod download;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use bzimage::{ImageError, MAX_KERNEL, vmlinux};
pub use download::DownloadError;

use super::cache::{self, CacheError};
use super::files;
use super::report::Report;

/// The command line of `localregistry kernel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  localregistry kernel -o vmlinux
      Debian's cloud kernel: downloaded into the cache once, never installed
  localregistry kernel --kernel /boot/vmlinuz-6.1.0-30-amd64 -o vmlinux
      any other kernel, from its bzImage

The cache is $LOCALREGISTRY_CACHE, else $XDG_CACHE_HOME/localregistry, else ~/.cache/localregistry.
Delete the folder kernel/ in it to download the newest kernel again.")]
pub struct Args {
    /// Write the bootable ELF to this file
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Take this kernel (a bzImage, or an ELF with the PVH entry) instead of the distribution's
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
}

/// A kernel that can be booted with the modules that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF with the PVH entry, for QEMU's `-kernel`.
    pub elf: PathBuf,
    /// The folder of its modules, `…/lib/modules/<release>`, with a `modules.dep`.
    pub modules: PathBuf,
    /// The release, as `uname -r` prints it.
    pub release: String,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The given kernel cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Read {
        /// The kernel.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is nothing to boot in it.
    #[error("{} gives no kernel that QEMU can boot", path.display())]
    Image {
        /// The kernel.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The output cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is no cache.
    #[error(transparent)]
    Cache(CacheError),
    /// The distribution's kernel cannot be had.
    #[error(transparent)]
    Download(DownloadError),
    /// The result cannot be printed.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    bytes: usize,
    /// Null where the input does not name it (an ELF).
    release: Option<&'a str>,
}

/// Runs `localregistry kernel`.
///
/// # Errors
/// When there is no kernel to be had, or the output cannot be written; it is then as it was.
pub fn run(args: &Args, report: &Report) -> Result<(), Error> {
    let (elf, release) = match &args.kernel {
        Some(path) => extract(path)?,
        None => {
            let kernel = cached_or_download(report)?;
            (read(&kernel.elf)?, Some(kernel.release))
        }
    };
    let file = &args.output;
    files::write_atomically(file, &elf).map_err(|source| Error::Write { path: file.clone(), source })?;
    let name = release.as_deref().map_or_else(|| "a kernel".to_owned(), |release| format!("Linux {release}"));
    let text = format!("{}: {name}, {} bytes", file.display(), elf.len());
    report.result(&Written { file, bytes: elf.len(), release: release.as_deref() }, &text).map_err(Error::Print)
}

/// The newest kernel of the cache; where it has none, the distribution's is downloaded into it first.
///
/// # Errors
/// When there is no cache, or the package cannot be found, downloaded, unpacked or made into a bootable kernel.
pub fn cached_or_download(report: &Report) -> Result<Kernel, Error> {
    let store = cache::folder("kernel").map_err(Error::Cache)?;
    download::cached_or_download(&store, report).map_err(Error::Download)
}

/// The bootable ELF of the kernel at `path`, and its release where that is known.
fn extract(path: &Path) -> Result<(Vec<u8>, Option<String>), Error> {
    let image = read(path)?;
    let release = bzimage::release(&image);
    let elf = vmlinux(&image).map_err(|source| Error::Image { path: path.to_owned(), source })?;
    Ok((elf.into_owned(), release))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    files::read(path, MAX_KERNEL as u64).map_err(|source| Error::Read { path: path.to_owned(), source })
}
