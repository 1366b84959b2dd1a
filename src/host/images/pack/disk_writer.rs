//! Writes the disk into a working folder next to its final path: verified content, in a file system, flushed. The final path is not
//! touched.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use oci_spec::OciSpecError;

use super::cache::BlobCache;
use super::copy::{BlobCopier, ByteCounts, CopyError};
use super::image_set::ImageSet;
use super::layout_files;
use super::mkfs::{self, Format, MkfsError};
use super::not_written;
use super::sink::{self, Sink};
use super::source::Source;
use super::staging::StagingDir;
use crate::disk::erofs::writer::{Plan, TooLarge};
use crate::disk::label::Label;
use crate::host::images::work_dir::{self, WorkDir};
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::{Report, counted};
use crate::oci::Digest;

/// Block size of every format, in bytes.
const BLOCK: u64 = 4096;
/// Most folders that a disk has.
const FOLDERS: u64 = 5;

/// Why the disk cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DiskWriterError {
    #[error("cannot make a working folder in {}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot describe the content of {}", disk.display())]
    Describe { disk: PathBuf, source: OciSpecError },
    #[error("cannot make {}", disk.display())]
    Plan { disk: PathBuf, source: TooLarge },
    #[error("cannot make {}", disk.display())]
    Write { disk: PathBuf, source: io::Error },
    #[error("cannot make {}", disk.display())]
    Mkfs { disk: PathBuf, source: MkfsError },
}

/// Writes one disk.
#[derive(Debug, Clone, Copy)]
pub struct DiskWriter<'a> {
    /// Final path of the disk, for messages and the working folder's name.
    pub disk: &'a Path,
    pub format: Format,
    pub label: Option<&'a Label>,
    pub cache: Option<&'a BlobCache>,
    pub report: Report,
    pub interrupt: &'a Interrupt,
}

/// A complete disk in its working folder, not yet renamed to its final path.
#[derive(Debug)]
pub struct FinishedDisk {
    /// Size of the disk in bytes.
    pub bytes: u64,
    /// Bytes read and bytes cached.
    pub counts: ByteCounts,
    work_dir: WorkDir,
}

impl FinishedDisk {
    /// Path of the disk's file, which is removed when this value is dropped.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        file(&self.work_dir)
    }
}

impl DiskWriter<'_> {
    /// Writes the disk of `set` into a working folder in `folder`.
    ///
    /// # Errors
    /// Fails with [`DiskWriterError`], and removes the working folder.
    pub fn write(&self, set: &ImageSet, sources: &[Source], folder: &Path) -> Result<FinishedDisk, DiskWriterError> {
        let disk = self.disk.to_owned();
        // Until the blobs are copied, nothing but this thread writes to the folder.
        let preparing = self.interrupt.end_at_once(not_written(self.disk));
        let work_dir = WorkDir::new(folder, &work_dir::prefix(self.disk))
            .map_err(|source| DiskWriterError::Folder { folder: folder.to_owned(), source })?;
        let layout_files =
            layout_files::layout_files(set).map_err(|source| DiskWriterError::Describe { disk: disk.clone(), source })?;
        let blobs = set.blobs.iter().map(|blob| (blob.digest.blob_path(), blob.size));
        let others = layout_files.iter().map(|(path, content)| ((*path).to_owned(), content.len() as u64));
        let files: Vec<(String, u64)> = blobs.chain(others).collect();
        let identity = Digest::sha256_of(&set.catalog.encode());

        let file = file(&work_dir);
        let write_error = |source| DiskWriterError::Write { disk: disk.clone(), source };
        let sink = match self.format {
            Format::Erofs => {
                let plan = Plan::new(&files, &identity, self.label)
                    .map_err(|source| DiskWriterError::Plan { disk: disk.clone(), source })?;
                Sink::image(file.clone(), plan)
            }
            Format::Squashfs | Format::Ext4 => StagingDir::new(work_dir.path().join("root")).map(Sink::Folder),
        };
        let sink = sink.map_err(write_error)?;
        drop(preparing);
        let counts = self.copy(set, sources, &sink)?;
        let finishing = self.interrupt.end_at_once(not_written(self.disk));
        for (number, (path, content)) in layout_files.iter().enumerate() {
            sink.write(set.blobs.len() + number, path, content).map_err(write_error)?;
        }
        drop(finishing);
        if let Sink::Folder(staging) = &sink {
            staging.close().map_err(write_error)?;
            self.make_file_system(staging, &files, &identity, &file)?;
        }
        let _finishing = self.interrupt.end_at_once(not_written(self.disk));
        let bytes = sink::sync(&file).map_err(write_error)?;
        drop(sink);
        Ok(FinishedDisk { bytes, counts, work_dir })
    }

    fn copy(&self, set: &ImageSet, sources: &[Source], sink: &Sink) -> Result<ByteCounts, DiskWriterError> {
        let total = set.catalog.blob_totals().1;
        let counted = counted(set.blobs.len(), "blob");
        self.report.step(format!("copying and verifying {counted}, {}", HumanBytes(total)));
        let (bar, counts) = (self.report.bytes_bar("packing", total), ByteCounts::default());
        let Self { disk, cache, interrupt, .. } = *self;
        let copied = BlobCopier { disk, sink, cache, counts: &counts, bar: &bar, interrupt }.copy_all(&set.blobs, sources);
        bar.finish_and_clear();
        copied?;
        if cache.is_some() {
            let (read, cached) = counts.totals();
            self.report.step(format!("read {}, and took {} from the cache", HumanBytes(read), HumanBytes(cached)));
        }
        Ok(counts)
    }

    fn make_file_system(
        &self,
        staging: &StagingDir,
        files: &[(String, u64)],
        identity: &Digest,
        image: &Path,
    ) -> Result<(), DiskWriterError> {
        self.report.step(format!("making the file system {}", self.disk.display()));
        let bytes = files.iter().map(|(_, size)| size.next_multiple_of(BLOCK)).sum();
        let content =
            mkfs::MkfsInput { root: staging.root(), files: files.len() as u64 + FOLDERS, bytes, identity, label: self.label };
        let result = match self.format {
            Format::Ext4 => mkfs::ext4(content, image, self.interrupt),
            Format::Erofs | Format::Squashfs => mkfs::squashfs(content, image, self.interrupt),
        };
        result.map_err(|source| DiskWriterError::Mkfs { disk: self.disk.to_owned(), source })
    }
}

fn file(work_dir: &WorkDir) -> PathBuf {
    work_dir.path().join("disk")
}
