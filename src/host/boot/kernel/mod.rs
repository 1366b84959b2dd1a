//! `localregistry kernel`: provides a kernel that QEMU boots directly, and its modules: the distribution's, our own built by
//! `image/kernel`, or any bzImage. It installs nothing and writes only to the cache and the output file.

mod bzimage;
mod download;
mod options;
mod store;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::Serialize;

pub use bzimage::{BzImageError, MAX_KERNEL, vmlinux};
pub use download::{DownloadError, TOOLS};
pub use options::{KernelOptions, WantedOption};

use super::elf::Processor;
use super::modules::Need;
use crate::host::boot::board::Board;
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::Digest;

/// The command line of `localregistry kernel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  localregistry kernel -o vmlinux
      Debian's cloud kernel, downloaded into the cache on first use
  localregistry kernel --flavor full -o vmlinux
      Debian's full kernel; `own` is our own one, which image/kernel builds
  localregistry kernel --kernel /boot/vmlinuz-6.1.0-30-amd64 -o vmlinux
      Any other kernel, from its bzImage

The cache is $LOCALREGISTRY_CACHE, else $XDG_CACHE_HOME/localregistry, else ~/.cache/localregistry. To download the newest kernel again,
delete the folder kernel/FLAVOR there.")]
pub struct KernelArgs {
    /// File to write the bootable ELF to
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Kernel to take
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    flavor: Flavor,

    /// Take this kernel instead: a bzImage, or an ELF with a PVH entry point
    #[arg(long, value_name = "BZIMAGE", conflicts_with = "flavor")]
    kernel: Option<PathBuf>,
}

/// The kernels that the cache can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Flavor {
    /// Debian's kernel for virtual machines, downloaded
    Cloud,
    /// Debian's kernel for all machines, downloaded
    Full,
    /// Our own kernel, small and with all drivers built in: that of the release, or built by image/kernel
    Own,
}

/// That of the release which this program belongs to, else Debian's.
impl Default for Flavor {
    fn default() -> Self {
        if released(Board::default()).is_some() || Board::default() == Board::Virt { Self::Own } else { Self::Cloud }
    }
}

impl Flavor {
    /// The flavor's name on the command line and in the cache.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Full => "full",
            Self::Own => "own",
        }
    }

    /// The smallest memory in MiB that the guest boots and serves in. With less some boots panic ("System is deadlocked on memory") or die
    /// silently: while they are unpacked, the init and its modules are in memory twice. Measured: our own kernel serves eight
    /// pulls at once in 44; the cloud kernel boots in 88, the full one in 104.
    #[must_use]
    pub const fn min_memory_mib(self) -> u32 {
        match self {
            Self::Cloud => 96,
            Self::Full => 112,
            Self::Own => 48,
        }
    }

    /// Debian's package that depends on the newest kernel of this flavor. `None` for our own kernel.
    #[must_use]
    pub const fn package(self) -> Option<&'static str> {
        match self {
            Self::Cloud => Some("linux-image-cloud-amd64"),
            Self::Full => Some("linux-image-amd64"),
            Self::Own => None,
        }
    }
}

/// What our own kernel is built from, besides the distribution's source: the same for each processor, and what 64-bit ARM adds. The
/// digest is in the built kernel's folder name, so that an older kernel is not used.
const OWN_RECIPE: &str = concat!(include_str!("../../../../image/kernel.config"), include_str!("../../../../image/kernel.patch"));
const OWN_RECIPE_ARM: &str = include_str!("../../../../image/kernel.arm64.config");

/// Where a release has its kernel, its initramfs and its init, beside the folder of its program.
const RELEASED: &str = "lib/localregistry";

/// A bootable kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// For QEMU's `-kernel`: an ELF with a PVH entry point, or an `Image` of 64-bit ARM.
    pub elf: PathBuf,
    /// The folder of its modules, `…/lib/modules/RELEASE`, with a `modules.dep`.
    pub modules: PathBuf,
    /// The release, as in `uname -r`.
    pub release: String,
    /// The file of the kernel's config, if there is one.
    pub config: Option<PathBuf>,
    /// The initramfs that a release has for it.
    pub initramfs: Option<PathBuf>,
}

impl Kernel {
    /// The kernel's options, if they are known.
    #[must_use]
    pub fn options(&self) -> Option<KernelOptions> {
        self.config.as_deref().and_then(read_options).or_else(|| options_of(&self.elf))
    }
}

/// The kernel lacks options that the guest requires.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel {} cannot run the guest on {}: its config lacks {missing}; boot a kernel that has them (`localregistry doctor` checks \
     a kernel)",
    .kernel.display(), .board.name()
)]
pub struct UnfitKernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The board to run on.
    pub board: Board,
    /// The missing options, each with its use.
    pub missing: String,
}

/// Checks that a kernel with these `options` can run the guest on `board`. Unknown options pass.
///
/// # Errors
/// Fails if the kernel lacks a required option.
pub fn check_fits(kernel: &Path, options: Option<KernelOptions>, board: Board) -> Result<(), UnfitKernel> {
    let missing = options.map(|options| options.missing(board)).unwrap_or_default();
    let missing: Vec<String> = missing.iter().filter(|option| option.need == Need::Required).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(UnfitKernel { kernel: kernel.to_owned(), board, missing: missing.join(", ") }) }
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Read {
        /// The kernel.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file contains no bootable kernel.
    #[error("{} contains no kernel that QEMU can boot", path.display())]
    Image {
        /// The kernel.
        path: PathBuf,
        /// The cause.
        source: BzImageError,
    },
    /// The output cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The output.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no cache folder.
    #[error(transparent)]
    Cache(CacheError),
    /// The distribution's kernel cannot be downloaded.
    #[error(transparent)]
    Download(DownloadError),
    /// Our own kernel is not built.
    #[error(
        "our own kernel is not built: {} has none; build it with image/kernel (about ten minutes on one processor), or use the \
         flavor cloud",
        store.display()
    )]
    NotBuilt {
        /// The folder that should contain it.
        store: PathBuf,
    },
    /// Standard output cannot be written to.
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// The kernel that was written.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "KernelResult")]
pub(crate) struct KernelResult<'a> {
    /// The file that was written.
    file: String,
    /// Its size in bytes.
    bytes: usize,
    /// The release, as in `uname -r`; null if the input does not contain it (an ELF).
    release: Option<&'a str>,
}

/// Runs `localregistry kernel`.
///
/// # Errors
/// Fails if there is no kernel, or if the output cannot be written. An old output file then stays as it is.
pub fn run(args: &KernelArgs, report: &Report) -> Result<(), KernelError> {
    let interrupt = Interrupt::of_process();
    let _ends = interrupt.end_at_once("");
    let (elf, release) = match &args.kernel {
        Some(path) => extract(path)?,
        None => {
            let kernel = cached_or_download(args.flavor, Board::default(), report)?;
            (read(&kernel.elf)?, Some(kernel.release))
        }
    };
    let file = &args.output;
    files::write_atomically(file, &elf).map_err(|source| KernelError::Write { path: file.clone(), source })?;
    let name = release.as_deref().map_or_else(|| "a kernel".to_owned(), |release| format!("Linux {release}"));
    let text = format!("{}: {name}, {} bytes", file.display(), elf.len());
    let result = KernelResult { file: file.display().to_string(), bytes: elf.len(), release: release.as_deref() };
    report.result(&result, &text).map_err(KernelError::Print)
}

/// The options of the kernel at `path`, an ELF or a bzImage, if they are known: from the file `config-RELEASE` next to
/// `vmlinuz-RELEASE`, where distributions install it, or from the copy in the kernel.
#[must_use]
pub fn options_of(path: &Path) -> Option<KernelOptions> {
    let name = path.file_name()?.to_str()?;
    let version = name.strip_prefix("vmlinuz").or_else(|| name.strip_prefix("vmlinux"));
    let installed = version.and_then(|version| read_options(&path.with_file_name(format!("config{version}"))));
    installed.or_else(|| KernelOptions::embedded(&vmlinux(&read(path).ok()?).ok()?))
}

/// Whether the file at `path` starts as a kernel that QEMU loads: an ELF, a bzImage, or an arm64 Image (Linux,
/// Documentation/arch/arm64/booting.rst), also compressed with gzip.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn is_kernel(path: &Path) -> io::Result<bool> {
    let mut start = Vec::with_capacity(1024);
    File::open(path)?.take(1024).read_to_end(&mut start)?;
    let is_arm64 = start.get(56..60) == Some(b"ARM\x64");
    let is_known = [&b"\x7fELF"[..], b"\x1f\x8b"].iter().any(|magic| start.starts_with(magic));
    Ok(is_known || is_arm64 || bzimage::has_header(&start))
}

fn read_options(config: &Path) -> Option<KernelOptions> {
    KernelOptions::parse(&String::from_utf8_lossy(&files::read(config, options::LARGEST_CONFIG as u64).ok()?))
}

/// Returns the kernel of a flavor for `board`: our own of the release, else the newest in the cache. If there is none, downloads the
/// distribution's.
///
/// # Errors
/// Fails if there is no cache folder, if the package cannot be downloaded or unpacked or contains no bootable kernel, or if our own
/// kernel is not built.
pub fn cached_or_download(flavor: Flavor, board: Board, report: &Report) -> Result<Kernel, KernelError> {
    match (cached(flavor, board)?, flavor.package()) {
        (Some(kernel), _) => Ok(kernel),
        (None, Some(package)) => download::download_once(&store(flavor, board)?, package, report).map_err(KernelError::Download),
        (None, None) => Err(KernelError::NotBuilt { store: store(flavor, board)? }),
    }
}

/// Returns the kernel of a flavor for `board` that needs no download, if there is one.
///
/// # Errors
/// Fails if there is no cache folder.
pub fn cached(flavor: Flavor, board: Board) -> Result<Option<Kernel>, KernelError> {
    match released(board).filter(|_| flavor == Flavor::Own) {
        Some(kernel) => Ok(Some(kernel.clone())),
        None => Ok(store::newest(&store(flavor, board)?)),
    }
}

/// Our own kernel that this program was released with, if it is for `board`. Six commands have a default that depends on it, and all are
/// set up at each start: it is looked for once.
fn released(board: Board) -> Option<&'static Kernel> {
    static FOUND: LazyLock<Option<Kernel>> = LazyLock::new(|| {
        let program = std::env::current_exe().ok()?;
        store::open(&program.parent()?.parent()?.join(RELEASED))
    });
    FOUND.as_ref().filter(|_| board.processor() == Board::default().processor())
}

/// The cache folder of a flavor. That of our own kernel is named by the first digits of the digest of what it is built from, as
/// `image/kernel` names it.
fn store(flavor: Flavor, board: Board) -> Result<PathBuf, KernelError> {
    let arm = if board.processor() == Processor::Arm { OWN_RECIPE_ARM } else { "" };
    let recipe = || Digest::sha256_of([OWN_RECIPE, arm].concat().as_bytes()).hex().chars().take(12).collect::<String>();
    let folder = Path::new("kernel").join(flavor.name());
    cache::folder(if flavor == Flavor::Own { folder.join(recipe()) } else { folder }).map_err(KernelError::Cache)
}

/// Returns the bootable ELF of the kernel at `path`, and its release if known.
fn extract(path: &Path) -> Result<(Vec<u8>, Option<String>), KernelError> {
    let image = read(path)?;
    let release = bzimage::release(&image);
    let elf = vmlinux(&image).map_err(|source| KernelError::Image { path: path.to_owned(), source })?;
    Ok((elf.into_owned(), release))
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    files::read(path, MAX_KERNEL as u64).map_err(|source| KernelError::Read { path: path.to_owned(), source })
}
