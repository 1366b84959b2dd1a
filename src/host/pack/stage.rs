//! The disk's content as a folder: every blob copied from its source and hashed on the way, then the files that make it an image
//! layout and a disk of this program. It is removed with everything in it when it is dropped.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use indicatif::ProgressBar;
use oci_spec::image::OciLayoutBuilder;
use tempfile::TempDir;

use super::index;
use super::interrupt::{Interrupt, Interrupted};
use super::source::Source;
use super::union::{Contents, Wanted};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::registry::catalog;

/// Modes of the disk's files and folders: read-only for everyone, as the disk is.
const FILE_MODE: u32 = 0o444;
const FOLDER_MODE: u32 = 0o555;
/// Mode of the folders while they are filled.
const OPEN_FOLDER_MODE: u32 = 0o755;
/// Folder of the disk's content within the working folder.
const ROOT: &str = "root";
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Why the content is not staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// No working folder.
    #[error("cannot make a working folder in {}", folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A blob cannot be read.
    #[error("cannot pack {}: image {image}: cannot read {path}, of {size} bytes", source_path.display())]
    Read {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// Why not.
        source: io::Error,
    },
    /// A blob is not as long as it was.
    #[error(
        "cannot pack {}: image {image}: {path} gave {found} bytes, and {expected} are expected; \
         does something write to it?",
        source_path.display()
    )]
    Size {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its size in bytes.
        expected: u64,
        /// What was read, at least.
        found: u64,
    },
    /// A blob's content does not have the digest that names it.
    #[error("cannot pack {}: image {image}: {path} has the content of {found}; {expected} is expected", source_path.display())]
    Digest {
        /// The source.
        source_path: PathBuf,
        /// An image that has the blob.
        image: String,
        /// Where the blob is in the source.
        path: String,
        /// Its digest.
        expected: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// A file of the disk's content cannot be written.
    #[error("cannot write {file} into the working folder beside {}", disk.display())]
    Write {
        /// The file, as it will be on the disk.
        file: String,
        /// The disk that is being made.
        disk: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// How the names of working folders for `disk` start.
#[must_use]
pub fn prefix(disk: &Path) -> String {
    format!(".{}.pack-", disk.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes working folders that a killed pack of the same disk left in `folder`. What cannot be removed stays: it hinders nothing.
fn remove_left(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix);
        if ours && File::open(entry.path()).is_ok_and(|left| left.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A working folder beside the disk that is being made, hidden, with the disk's content below [`Stage::root`].
#[derive(Debug)]
pub struct Stage {
    work: TempDir,
    disk: PathBuf,
    /// Held while this process works in the folder: what is not held was left by one that was killed.
    _held: File,
}

impl Stage {
    /// Makes the working folder beside `disk`.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn new(disk: &Path, folder: &Path) -> Result<Self, StageError> {
        let prefix = prefix(disk);
        remove_left(folder, &prefix);
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(folder).and_then(|work| {
            let held = File::open(work.path())?;
            held.try_lock()?;
            let root = work.path().join(ROOT);
            let folders = Algorithm::ALL.map(|algorithm| root.join("blobs").join(algorithm.name()));
            for folder in folders.iter().chain([&root.join("localregistry")]) {
                DirBuilder::new().recursive(true).mode(OPEN_FOLDER_MODE).create(folder)?;
            }
            Ok((work, held))
        });
        let (work, held) = made.map_err(|source| StageError::Folder { folder: folder.to_owned(), source })?;
        Ok(Self { work, disk: disk.to_owned(), _held: held })
    }

    /// The folder with the disk's content.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.work.path().join(ROOT)
    }

    /// A path for the disk while it is made, on the file system of its later path.
    #[must_use]
    pub fn unfinished_disk(&self) -> PathBuf {
        self.work.path().join("disk")
    }

    /// Copies every blob of `contents` out of its source, on all processors, and holds each against its digest and size.
    ///
    /// # Errors
    /// [`StageError`], of the first blob in the order of work that fails.
    pub fn copy(
        &self,
        contents: &Contents,
        sources: &[Source],
        bar: &ProgressBar,
        interrupt: &Interrupt,
    ) -> Result<(), StageError> {
        // The largest first, so that no processor is left with a long one at the end.
        let mut work: Vec<&Wanted> = contents.blobs.iter().collect();
        work.sort_by_key(|wanted| std::cmp::Reverse(wanted.size));
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<(usize, StageError)>> = Mutex::new(None);
        let worker = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(wanted) = work.get(number) else { return };
                let Some(source) = sources.get(wanted.source) else { return };
                if let Err(error) = self.copy_one(wanted, source, bar, interrupt) {
                    // No more is begun.
                    next.store(work.len(), Ordering::Relaxed);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    if failure.as_ref().is_none_or(|(before, _)| number < *before) {
                        *failure = Some((number, error));
                    }
                    return;
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, NonZero::get).min(work.len());
        thread::scope(|scope| {
            (1..workers).for_each(|_| drop(scope.spawn(worker)));
            worker();
        });
        interrupt.check()?;
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn copy_one(&self, wanted: &Wanted, source: &Source, bar: &ProgressBar, interrupt: &Interrupt) -> Result<(), StageError> {
        let layout_path = wanted.digest.blob_path();
        let (path, image, source_path) = (source.tree.place(&layout_path), wanted.image.clone(), source.path.clone());
        let (expected, size) = (wanted.digest, wanted.size);
        let mut hasher = Hasher::new(expected.algorithm());
        let mut found = 0_u64;
        let copied = self.write(&layout_path, |file| {
            let mut reader = source.tree.open(&layout_path).map_err(Fault::Read)?.reader.take(size.saturating_add(1));
            let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK).saturating_add(1))];
            loop {
                interrupt.check_io().map_err(Fault::Read)?;
                let count = reader.read(&mut buffer).map_err(Fault::Read)?;
                if count == 0 {
                    return Ok(());
                }
                let part = buffer.get(..count).unwrap_or_default();
                hasher.update(part);
                file.write_all(part).map_err(Fault::Write)?;
                found = found.saturating_add(count as u64);
                bar.inc(count as u64);
            }
        });
        match copied {
            Err(Fault::Read(source)) => return Err(StageError::Read { source_path, image, path, size, source }),
            Err(Fault::Write(source)) => return Err(self.write_error(&layout_path, source)),
            Ok(()) if found != size => return Err(StageError::Size { source_path, image, path, expected: size, found }),
            Ok(()) => {}
        }
        let found = hasher.finish();
        if found != expected {
            return Err(StageError::Digest { source_path, image, path, expected, found });
        }
        Ok(())
    }

    /// Writes the files beside the blobs: `oci-layout`, `index.json`, the catalog. Then closes the folders.
    ///
    /// # Errors
    /// [`StageError::Write`].
    pub fn describe(&self, contents: &Contents) -> Result<(), StageError> {
        let invalid = |file: &str| {
            let file = file.to_owned();
            move |error: oci_spec::OciSpecError| self.write_error(&file, io::Error::other(error))
        };
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build().map_err(invalid("oci-layout"))?;
        let layout = layout.to_string().map_err(invalid("oci-layout"))?;
        let index = index::json(contents).map_err(|error| self.write_error("index.json", error.into()))?;
        for (path, content) in
            [("oci-layout", layout.as_bytes()), ("index.json", index.as_slice()), (catalog::PATH, &contents.catalog.encode())]
        {
            let written = self.write(path, |file| file.write_all(content).map_err(Fault::Write));
            written.map_err(|fault| self.write_error(path, fault.into_inner()))?;
        }
        self.close().map_err(|error| self.write_error("its folders", error))
    }

    /// Makes a file of the disk's content, with the mode that it has there.
    fn write(&self, path: &str, fill: impl FnOnce(&mut File) -> Result<(), Fault>) -> Result<(), Fault> {
        let path = self.root().join(path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(Fault::Write)?;
        fill(&mut file)?;
        // Not when it is made: the umask would have a say.
        file.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(Fault::Write)
    }

    fn write_error(&self, file: &str, source: io::Error) -> StageError {
        StageError::Write { file: file.to_owned(), disk: self.disk.clone(), source }
    }

    /// Gives the folders the modes that they have on the disk, the innermost first; a folder for blobs that stayed empty goes.
    fn close(&self) -> io::Result<()> {
        for folder in self.folders() {
            if fs::read_dir(&folder)?.next().is_none() {
                fs::remove_dir(&folder)?;
            } else {
                fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE))?;
            }
        }
        Ok(())
    }

    fn folders(&self) -> [PathBuf; 5] {
        let root = self.root();
        let blobs = root.join("blobs");
        let [sha256, sha512] = Algorithm::ALL.map(|algorithm| blobs.join(algorithm.name()));
        [sha256, sha512, blobs, root.join("localregistry"), root]
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A folder must be open for its files to be removed, unless by root. What fails here fails again, and visibly, there.
        for folder in self.folders().iter().rev() {
            let _ = fs::set_permissions(folder, Permissions::from_mode(OPEN_FOLDER_MODE));
        }
    }
}

/// On which side a copy failed.
enum Fault {
    Read(io::Error),
    Write(io::Error),
}

impl Fault {
    fn into_inner(self) -> io::Error {
        match self {
            Self::Read(error) | Self::Write(error) => error,
        }
    }
}
