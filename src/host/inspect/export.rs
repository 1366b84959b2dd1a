//! Writes the image layout of a disk back out as a folder. What enters are a disk and where to write; what leaves is a folder that is
//! there whole or not at all, in which every blob has the content of its digest.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::contents::{Blob, BlobFault, Contents};
use super::verify;
use crate::disk::layout::Tree;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::workers;
use crate::oci::Algorithm;

/// Files of a layout beside its blobs.
const FILES: [&str; 2] = ["oci-layout", "index.json"];
/// Folder of the layout within the working folder.
const ROOT: &str = "layout";

/// Why nothing is exported. The target is then as it was.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something is there.
    #[error("cannot export to {}: it is there already, and is no empty folder; a new or an empty one is expected", .0.display())]
    Occupied(PathBuf),
    /// The folder cannot be written.
    #[error("cannot export to {}: cannot write {file}", folder.display())]
    Write {
        /// The target.
        folder: PathBuf,
        /// What was being written.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be read from the disk.
    #[error("cannot export to {}: cannot read {file}", folder.display())]
    Read {
        /// The target.
        folder: PathBuf,
        /// The file on the disk.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// A blob is not what it should be.
    #[error("cannot export to {}: blob {digest} {fault}", folder.display())]
    Blob {
        /// The target.
        folder: PathBuf,
        /// The blob.
        digest: crate::oci::Digest,
        /// What is wrong.
        fault: BlobFault,
    },
    /// A signal came.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Asks before the work whether `folder` is free.
///
/// # Errors
/// [`ExportError::Occupied`], and where it cannot be read.
pub fn check(folder: &Path) -> Result<(), ExportError> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(ExportError::Occupied(folder.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotADirectory => {
            Err(ExportError::Read { folder: folder.to_owned(), file: "it".to_owned(), source: error })
        }
        _ => Err(ExportError::Occupied(folder.to_owned())),
    }
}

/// Writes the layout of `contents` to `folder`, by way of a folder beside it.
///
/// # Errors
/// [`ExportError`].
pub fn export(
    tree: &(dyn Tree + Sync),
    contents: &Contents,
    folder: &Path,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<(), ExportError> {
    check(folder)?;
    let wrong = |file: &str, source| ExportError::Write { folder: folder.to_owned(), file: file.to_owned(), source };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".localregistry-export-").tempdir_in(parent);
    let work = made.map_err(|source| wrong("a working folder beside it", source))?;
    let root = work.path().join(ROOT);
    for folder in used(contents) {
        DirBuilder::new().recursive(true).create(root.join(&folder)).map_err(|source| wrong(&folder, source))?;
    }
    for file in FILES {
        let read = |source| ExportError::Read { folder: folder.to_owned(), file: file.to_owned(), source };
        let mut content = tree.open(file).map_err(read)?.reader;
        // The index has been read before, and is no larger than its reader allows.
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(read)?;
        fs::write(root.join(file), bytes).map_err(|source| wrong(file, source))?;
    }
    let mut blobs: Vec<&Blob> = contents.blobs.iter().collect();
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
    workers::each(&blobs, |blob| copy(tree, blob, &root, folder, bar, interrupt))?;
    interrupt.check()?;
    fs::rename(&root, folder).map_err(|source| wrong("it", source))
}

/// The folders for the blobs that there are.
fn used(contents: &Contents) -> Vec<String> {
    let has = |algorithm: &Algorithm| contents.blobs.iter().any(|blob| blob.digest.algorithm() == *algorithm);
    let used = Algorithm::ALL.into_iter().filter(has).map(|algorithm| format!("blobs/{}", algorithm.name()));
    // A layout without any image has the folder all the same (image layout specification, "Content").
    std::iter::once("blobs".to_owned()).chain(used).collect()
}

fn copy(
    tree: &dyn Tree,
    blob: &Blob,
    root: &Path,
    folder: &Path,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<(), ExportError> {
    let path = blob.digest.blob_path();
    let write = |source| ExportError::Write { folder: folder.to_owned(), file: path.clone(), source };
    let mut file = File::create_new(root.join(&path)).map_err(write)?;
    let mut failed = None;
    let copied = verify::hash(tree, blob, bar, interrupt, |part| {
        file.write_all(part).map_err(|error| {
            failed = Some(error);
            io::Error::other("not written")
        })
    });
    interrupt.check()?;
    if let Some(source) = failed {
        return Err(write(source));
    }
    let fault = match copied {
        Err(source) => return Err(ExportError::Read { folder: folder.to_owned(), file: path, source }),
        Ok((found, _)) if found != blob.size => BlobFault::Size { expected: blob.size, found },
        Ok((_, found)) if found != blob.digest => BlobFault::Content { found },
        Ok(_) => return Ok(()),
    };
    Err(ExportError::Blob { folder: folder.to_owned(), digest: blob.digest, fault })
}
