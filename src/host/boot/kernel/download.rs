//! Downloads the distribution's kernel package and unpacks it into the cache, without root and without installing it. The kernel
//! gets its final name in the cache only when it is complete.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::bzimage::{self, BzImageError, MAX_KERNEL};
use super::{Kernel, store};
use crate::host::support::files::{self, TemporaryDir};
use crate::host::support::report::Report;
use crate::host::support::tools::{Tool, ToolError};

const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt" };
const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg" };
/// Creates `modules.dep`, which the package lacks: normally its installation runs depmod.
const DEPMOD: Tool = Tool { name: "depmod", package: "kmod" };

/// The programs that unpack a package.
const UNPACK: [Tool; 2] = [DPKG_DEB, DEPMOD];
/// All programs that a download runs.
pub const TOOLS: [Tool; 4] = [APT_CACHE, APT_GET, DPKG_DEB, DEPMOD];

/// Prefix of unfinished folders. The next run removes those of a killed run.
const UNFINISHED: &str = ".new-";

/// Why the kernel cannot be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// A program is missing or failed.
    #[error("cannot {doing}")]
    Tool {
        /// What it was to do.
        doing: &'static str,
        /// The cause.
        source: ToolError,
    },
    /// apt does not know the package or has no source for it.
    #[error("apt finds no package {meta}: run `apt-get update` as root first, or use a kernel that you have")]
    Unknown {
        /// The meta package that depends on the newest kernel.
        meta: &'static str,
        /// apt's error.
        source: ToolError,
    },
    /// The package's record names no kernel package.
    #[error("apt's record of {0} names no kernel package (`Depends: linux-image-… (= VERSION)`): use a kernel that you have")]
    Depends(&'static str),
    /// apt cannot download the package.
    #[error("cannot download {package} {version}; if apt's lists are old, run `apt-get update` as root first")]
    Fetch {
        /// The kernel package.
        package: String,
        /// Its version.
        version: String,
        /// apt's error.
        source: ToolError,
    },
    /// The package lacks a file.
    #[error("the package {package} {version} has no {missing}: use another kernel")]
    Contents {
        /// The kernel package.
        package: String,
        /// Its version.
        version: String,
        /// The missing file.
        missing: &'static str,
    },
    /// The cache cannot be read or written.
    #[error("cannot {doing} {}", path.display())]
    Cache {
        /// What failed.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The package's kernel cannot be booted.
    #[error("{package} {version} contains no kernel that QEMU can boot: use another kernel")]
    Image {
        /// The kernel package.
        package: String,
        /// Its version.
        version: String,
        /// The cause.
        source: BzImageError,
    },
}

/// Downloads the kernel that the distribution's package `meta` depends on into the cache folder `store`, unless another run does so.
pub fn download_once(store: &Path, meta: &'static str, report: &Report) -> Result<Kernel, DownloadError> {
    let _lock = lock(store)?;
    // Another run may have downloaded it meanwhile.
    if let Some(kernel) = store::newest(store) {
        return Ok(kernel);
    }
    remove_unfinished(store)?;
    download(store, meta, report)
}

/// Waits until no other run downloads into `store`. Closing the file releases the lock.
fn lock(store: &Path) -> Result<File, DownloadError> {
    let path = store.join(".lock");
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let locked = file.and_then(|file| file.lock().map(|()| file));
    locked.map_err(|source| DownloadError::Cache { doing: "lock", path, source })
}

fn remove_unfinished(store: &Path) -> Result<(), DownloadError> {
    let entries = fs::read_dir(store).map_err(cache_error("read", store))?.flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        let path = entry.path();
        fs::remove_dir_all(&path).map_err(cache_error("remove", &path))?;
    }
    Ok(())
}

fn download(store: &Path, meta: &'static str, report: &Report) -> Result<Kernel, DownloadError> {
    // Checked before a download that could not be unpacked.
    for tool in UNPACK {
        tool.find().map_err(|source| DownloadError::Tool { doing: "unpack the distribution's kernel package", source })?;
    }
    let (package, version) = find_package(meta)?;
    report.step(format!("downloading Debian's kernel {package} {version} into {}", store.display()));
    let unfinished = TemporaryDir::new_in(store, UNFINISHED).map_err(cache_error("create a folder in", store))?;
    let root = unfinished.path();
    fetch(&package, &version, root)?;
    complete(&package, &version, root, report)?;

    let folder = store.join(format!("{package}_{version}"));
    // A folder of this name is incomplete: a complete kernel would have been found.
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(cache_error("remove", &folder))?;
    }
    fs::rename(root, &folder).map_err(cache_error("create", &folder))?;
    store::open(&folder).ok_or(DownloadError::Contents { package, version, missing: "complete kernel" })
}

/// Returns the kernel package that the meta package depends on, and its version.
fn find_package(meta: &'static str) -> Result<(String, String), DownloadError> {
    let arguments = ["show", "--no-all-versions", meta].map(OsStr::new);
    let record = APT_CACHE.run(Path::new("/"), &arguments).map_err(|source| match source {
        ToolError::Failed { .. } => DownloadError::Unknown { meta, source },
        _ => DownloadError::Tool { doing: "find the distribution's kernel package", source },
    })?;
    dependency(&record).ok_or(DownloadError::Depends(meta))
}

/// Parses the kernel package and its version from a meta package's record.
fn dependency(record: &str) -> Option<(String, String)> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends.split([',', '|']).find_map(|dependency| {
        let (package, rest) = dependency.trim().split_once(" (= ")?;
        let version = rest.strip_suffix(')')?;
        // The two form a folder's name.
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.~:".contains(c));
        let fits = package.starts_with("linux-image-") && plain(package) && plain(version);
        fits.then(|| (package.to_owned(), version.to_owned()))
    })
}

/// Downloads the package into `root`, an empty folder, and unpacks it there.
fn fetch(package: &str, version: &str, root: &Path) -> Result<(), DownloadError> {
    let wanted = format!("{package}={version}");
    APT_GET.run(root, &["-q", "download", &wanted].map(OsStr::new)).map_err(|source| match source {
        ToolError::Failed { .. } => DownloadError::Fetch { package: package.to_owned(), version: version.to_owned(), source },
        _ => DownloadError::Tool { doing: "download the distribution's kernel package", source },
    })?;
    let mut files = fs::read_dir(root).map_err(cache_error("read", root))?.flatten().map(|entry| entry.path());
    let archive = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let archive = archive.ok_or_else(|| contents(package, version, ".deb file"))?;
    let unpacked = DPKG_DEB.run(root, &[OsStr::new("-x"), archive.as_os_str(), root.as_os_str()]);
    unpacked.map_err(|source| DownloadError::Tool { doing: "unpack the kernel package", source })?;
    fs::remove_file(&archive).map_err(cache_error("remove", &archive))
}

/// Adds to the unpacked package the files of its installation (`modules.dep` and the like), and the bootable ELF.
fn complete(package: &str, version: &str, root: &Path, report: &Report) -> Result<(), DownloadError> {
    // Packages for a merged /usr have the modules in usr/lib, but depmod looks in lib.
    if !root.join("lib/modules").exists() && root.join("usr/lib/modules").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).map_err(cache_error("create a link in", root))?;
    }
    let found = store::release(root).ok().flatten();
    let (release, _) = found.ok_or_else(|| contents(package, version, "folder lib/modules/RELEASE"))?;
    let arguments = [OsStr::new("-b"), root.as_os_str(), OsStr::new(&release)];
    let listed = DEPMOD.run(root, &arguments);
    listed.map_err(|source| DownloadError::Tool { doing: "list the dependencies of the kernel's modules", source })?;

    report.step(format!("extracting the bootable ELF of Linux {release}"));
    let path = root.join("boot").join(format!("vmlinuz-{release}"));
    let image = match files::read(&path, MAX_KERNEL as u64) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(contents(package, version, "boot/vmlinuz-RELEASE"));
        }
        other => other.map_err(cache_error("read", &path))?,
    };
    let kernel = bzimage::vmlinux(&image).map_err(|source| DownloadError::Image {
        package: package.to_owned(),
        version: version.to_owned(),
        source,
    })?;
    let elf = root.join("vmlinux");
    files::write_atomically(&elf, &kernel).map_err(cache_error("write", &elf))
}

fn contents(package: &str, version: &str, missing: &'static str) -> DownloadError {
    DownloadError::Contents { package: package.to_owned(), version: version.to_owned(), missing }
}

fn cache_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError + use<> {
    let path = path.to_owned();
    move |source| DownloadError::Cache { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_kernel_package_from_a_record() {
        let cases = [
            ("Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1\n", true),
            ("Depends: initramfs-tools, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2) | x (= 1)\n", true),
            ("Depends: linux-image-6.1.0-56-cloud-amd64\n", false),
            ("Depends: linux-base (= 6.1.192-2)\n", false),
            ("Depends: linux-image-/../x (= 6.1.192-2)\n", false),
            ("Depends: linux-image-x (= ../1)\n", false),
            ("Pre-Depends: linux-image-x (= 1)\n", false),
            ("", false),
        ];
        let expected = ("linux-image-6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned());
        for (record, fits) in cases {
            assert_eq!(dependency(record), fits.then(|| expected.clone()), "{record:?}");
        }
    }

    #[test]
    fn unfinished_folders_of_a_killed_run_are_removed() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir_all(store.path().join(".new-a/boot")).unwrap();
        fs::create_dir_all(store.path().join("kept_1")).unwrap();
        remove_unfinished(store.path()).unwrap();
        let left: Vec<_> = fs::read_dir(store.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kept_1"]);
    }
}
