//! `localregistry kernel`: a kernel that QEMU boots directly. In goes one of the distribution's kernel packages, our own kernel
//! that `image/kernel` has built, or any bzImage; out come the bootable ELF and the tree of its modules. Nothing is installed, and
//! nothing outside the cache and the named output is written.

mod bzimage;
mod download;
mod options;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

pub use bzimage::{ImageError, MAX_KERNEL, vmlinux};
pub use download::{DownloadError, TOOLS};
pub use options::{Options, Wanted};

use super::modules::Need;
use crate::host::boot::board::Board;
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::report::Report;
use crate::oci::Digest;

/// The command line of `localregistry kernel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  localregistry kernel -o vmlinux
      Debian's cloud kernel: downloaded into the cache once, never installed
  localregistry kernel --flavor own -o vmlinux
      our own kernel, which image/kernel has built: everything built in
  localregistry kernel --kernel /boot/vmlinuz-6.1.0-30-amd64 -o vmlinux
      any other kernel, from its bzImage

The cache is $LOCALREGISTRY_CACHE, else $XDG_CACHE_HOME/localregistry, else ~/.cache/localregistry.
Delete the folder kernel/FLAVOR in it to download the newest kernel again.")]
pub struct Args {
    /// Write the bootable ELF to this file
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Which kernel
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Take this kernel (a bzImage, or an ELF with the PVH entry) instead
    #[arg(long, value_name = "BZIMAGE", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,
}

/// The kernels that the cache can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Flavor {
    /// Debian's for virtual machines, downloaded
    #[default]
    Cloud,
    /// Debian's for every machine, downloaded
    Full,
    /// Our own, built by image/kernel: small, everything built in
    Own,
}

impl Flavor {
    /// Its name on the command line and in the cache.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
            Self::Own => "own",
        }
    }

    /// Debian's package that depends on the newest kernel of this kind; none where it is not the distribution's.
    #[must_use]
    pub const fn package(self) -> Option<&'static str> {
        match self {
            Self::Cloud => Some("linux-image-cloud-amd64"),
            Self::Full => Some("linux-image-amd64"),
            Self::Own => None,
        }
    }
}

/// The config that our own kernel is built from. Its digest is in the name of what is built, so that a kernel of an older config is
/// not taken for one of this.
const OWN_CONFIG: &[u8] = include_bytes!("../../../../image/kernel.config");

/// A kernel that can be booted with the modules that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF with the PVH entry, for QEMU's `-kernel`.
    pub elf: PathBuf,
    /// The folder of its modules, `…/lib/modules/<release>`, with a `modules.dep`.
    pub modules: PathBuf,
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// What it was built from, where that is known.
    pub config: Option<PathBuf>,
}

impl Kernel {
    /// What it was built with, where that is known.
    #[must_use]
    pub fn options(&self) -> Option<Options> {
        self.config.as_deref().and_then(read_options).or_else(|| options_of(&self.elf))
    }
}

/// A kernel that lacks what the guest cannot do without.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel {} cannot run the guest on {}: by its config it lacks {missing}; boot one that has it (`localregistry doctor` checks \
     one)",
    .kernel.display(), .board.name()
)]
pub struct Unfit {
    /// The kernel.
    pub kernel: PathBuf,
    /// The board that it is to run on.
    pub board: Board,
    /// The options that it lacks, each with its use.
    pub missing: String,
}

/// Checks that the kernel with these `options` can run the guest on `board`, where the options are known.
///
/// # Errors
/// [`Unfit`], where it is known that it cannot.
pub fn check_fits(kernel: &Path, options: Option<Options>, board: Board) -> Result<(), Unfit> {
    let missing = options.map(|options| options.missing(board)).unwrap_or_default();
    let missing: Vec<String> = missing.iter().filter(|option| option.need == Need::Required).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(Unfit { kernel: kernel.to_owned(), board, missing: missing.join(", ") }) }
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
    /// Our own is not built.
    #[error(
        "there is no kernel of our own in {} that is built from this version's config ({}): build it with image/kernel (about ten \
         minutes of one processor), or take the flavor cloud",
        store.display(), own_config()
    )]
    NotBuilt {
        /// The folder that it was looked for in.
        store: PathBuf,
    },
    /// The result cannot be printed.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// The kernel that was written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "KernelResult")]
pub(crate) struct Written<'a> {
    /// The file, as it was given.
    file: &'a Path,
    /// Its size in bytes.
    bytes: usize,
    /// The release, as `uname -r` prints it; null where the input does not name it (an ELF).
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
            let kernel = cached_or_download(args.flavor, report)?;
            (read(&kernel.elf)?, Some(kernel.release))
        }
    };
    let file = &args.output;
    files::write_atomically(file, &elf).map_err(|source| Error::Write { path: file.clone(), source })?;
    let name = release.as_deref().map_or_else(|| "a kernel".to_owned(), |release| format!("Linux {release}"));
    let text = format!("{}: {name}, {} bytes", file.display(), elf.len());
    report.result(&Written { file, bytes: elf.len(), release: release.as_deref() }, &text).map_err(Error::Print)
}

/// What the kernel at `path`, an ELF or a bzImage, was built with, where that can be known: by the config beside it, which distributions
/// install as `config-RELEASE` beside `vmlinuz-RELEASE`, or by the one that it carries.
#[must_use]
pub fn options_of(path: &Path) -> Option<Options> {
    let name = path.file_name()?.to_str()?;
    let version = name.strip_prefix("vmlinuz").or_else(|| name.strip_prefix("vmlinux"));
    let beside = version.and_then(|version| read_options(&path.with_file_name(format!("config{version}"))));
    beside.or_else(|| Options::embedded(&vmlinux(&read(path).ok()?).ok()?))
}

fn read_options(config: &Path) -> Option<Options> {
    Options::parse(&String::from_utf8_lossy(&files::read(config, options::LARGEST_CONFIG as u64).ok()?))
}

/// The newest kernel of a flavor in the cache; where it has none, the distribution's is downloaded into it first.
///
/// # Errors
/// When there is no cache, or the package cannot be found, downloaded, unpacked or made into a bootable kernel; when our own is not
/// built.
pub fn cached_or_download(flavor: Flavor, report: &Report) -> Result<Kernel, Error> {
    let store = store(flavor)?;
    match flavor.package() {
        Some(package) => download::cached_or_download(&store, package, report).map_err(Error::Download),
        None => own(&store).ok_or(Error::NotBuilt { store }),
    }
}

/// The newest kernel of a flavor in the cache, where it has one.
///
/// # Errors
/// When there is no cache.
pub fn cached(flavor: Flavor) -> Result<Option<Kernel>, Error> {
    let store = store(flavor)?;
    Ok(if flavor == Flavor::Own { own(&store) } else { store::newest(&store) })
}

/// The cache's folder of a flavor.
fn store(flavor: Flavor) -> Result<PathBuf, Error> {
    cache::folder(Path::new("kernel").join(flavor.name())).map_err(Error::Cache)
}

/// Our own kernel of the newest source, built from the config of this version.
fn own(store: &Path) -> Option<Kernel> {
    store::newest(&store.join(own_config()))
}

/// The first digits of the digest of our own kernel's config, as `image/kernel` names its folder.
fn own_config() -> String {
    Digest::sha256_of(OWN_CONFIG).hex().chars().take(12).collect()
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
