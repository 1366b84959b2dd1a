//! The disk, beside its later path: content verified on its way into a file system, and flushed. What enters are the united images and
//! their sources; what leaves is a whole file in a working folder. It never touches the disk's own path.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use oci_spec::OciSpecError;

use super::cache::Cache;
use super::copy::{CopyError, Copying, Counts};
use super::image_set::Contents;
use super::layout_files;
use super::mkfs::{self, Format, MkfsError};
use super::sink::{self, Target};
use super::source::Source;
use super::staging::Stage;
use super::work_dir::{self, Work};
use crate::disk::erofs::writer::{Plan, TooLarge};
use crate::disk::label::Label;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::{Report, counted};
use crate::oci::Digest;

/// Bytes of a block, in every format.
const BLOCK: u64 = 4096;
/// Folders that a disk may have.
const FOLDERS: u64 = 5;

/// Why no disk is made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No working folder.
    #[error("cannot make a working folder in {}", folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The content cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The content cannot be described.
    #[error("cannot describe the content of {}", disk.display())]
    Describe {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: OciSpecError,
    },
    /// The content is more than the file system can have.
    #[error("cannot make {}", disk.display())]
    Plan {
        /// The disk.
        disk: PathBuf,
        /// By how much.
        source: TooLarge,
    },
    /// The disk cannot be written.
    #[error("cannot make {}", disk.display())]
    Write {
        /// The disk.
        disk: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The programs for its file system fail.
    #[error("cannot make {}", disk.display())]
    Mkfs {
        /// The disk.
        disk: PathBuf,
        /// Why.
        source: MkfsError,
    },
}

/// How a disk is made.
#[derive(Debug, Clone, Copy)]
pub struct Making<'a> {
    /// The disk, for messages and the working folder's name.
    pub disk: &'a Path,
    /// Its file system.
    pub format: Format,
    /// The label of that.
    pub label: Option<&'a Label>,
    /// Blobs verified before.
    pub cache: Option<&'a Cache>,
    /// Says what is being done.
    pub report: Report,
    /// Ends it.
    pub interrupt: &'a Interrupt,
}

/// A disk that is whole, and not yet where it is to be.
#[derive(Debug)]
pub struct Made {
    /// Its size in bytes.
    pub bytes: u64,
    /// Where its content came from.
    pub counts: Counts,
    work: Work,
}

impl Made {
    /// The disk's file, which goes with this value.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        file(&self.work)
    }
}

impl Making<'_> {
    /// Makes the disk of `contents` in a working folder in `folder`.
    ///
    /// # Errors
    /// [`MakeError`]; nothing is left then.
    pub fn make(&self, contents: &Contents, sources: &[Source], folder: &Path) -> Result<Made, MakeError> {
        let disk = self.disk.to_owned();
        let work = Work::new(folder, &work_dir::prefix(self.disk))
            .map_err(|source| MakeError::Folder { folder: folder.to_owned(), source })?;
        let described = layout_files::files(contents).map_err(|source| MakeError::Describe { disk: disk.clone(), source })?;
        let blobs = contents.blobs.iter().map(|wanted| (wanted.digest.blob_path(), wanted.size));
        let others = described.iter().map(|(path, content)| ((*path).to_owned(), content.len() as u64));
        let files: Vec<(String, u64)> = blobs.chain(others).collect();
        let identity = Digest::sha256_of(&contents.catalog.encode());

        let file = file(&work);
        let write_error = |source| MakeError::Write { disk: disk.clone(), source };
        let target = match self.format {
            Format::Erofs => {
                let plan =
                    Plan::new(&files, &identity, self.label).map_err(|source| MakeError::Plan { disk: disk.clone(), source })?;
                Target::image(file.clone(), plan)
            }
            Format::Squashfs | Format::Ext4 => Stage::new(work.path().join("root")).map(Target::Folder),
        };
        let target = target.map_err(write_error)?;
        let counts = self.copy(contents, sources, &target)?;
        for (number, (path, content)) in described.iter().enumerate() {
            target.write(contents.blobs.len() + number, path, content).map_err(write_error)?;
        }
        if let Target::Folder(stage) = &target {
            stage.close().map_err(write_error)?;
            self.make_file_system(stage, &files, &identity, &file)?;
        }
        let bytes = sink::flush(&file).map_err(write_error)?;
        drop(target);
        Ok(Made { bytes, counts, work })
    }

    fn copy(&self, contents: &Contents, sources: &[Source], target: &Target) -> Result<Counts, MakeError> {
        let total = contents.catalog.blob_totals().1;
        let counted = counted(contents.blobs.len(), "blob");
        self.report.step(format!("copying and verifying {counted}, {}", HumanBytes(total)));
        let (bar, counts) = (self.report.bytes_bar("packing", total), Counts::default());
        let Self { disk, cache, interrupt, .. } = *self;
        let copied = Copying { disk, target, cache, counts: &counts, bar: &bar, interrupt }.all(&contents.blobs, sources);
        bar.finish_and_clear();
        copied?;
        if cache.is_some() {
            let (read, cached) = counts.totals();
            self.report.step(format!("read {}, and took {} from the cache", HumanBytes(read), HumanBytes(cached)));
        }
        Ok(counts)
    }

    fn make_file_system(&self, stage: &Stage, files: &[(String, u64)], identity: &Digest, image: &Path) -> Result<(), MakeError> {
        self.report.step(format!("making the file system {}", self.disk.display()));
        let bytes = files.iter().map(|(_, size)| size.next_multiple_of(BLOCK)).sum();
        let content =
            mkfs::Content { root: stage.root(), files: files.len() as u64 + FOLDERS, bytes, identity, label: self.label };
        let made = match self.format {
            Format::Ext4 => mkfs::ext4(content, image, self.interrupt),
            Format::Erofs | Format::Squashfs => mkfs::squashfs(content, image, self.interrupt),
        };
        made.map_err(|source| MakeError::Mkfs { disk: self.disk.to_owned(), source })
    }
}

fn file(work: &Work) -> PathBuf {
    work.path().join("disk")
}
