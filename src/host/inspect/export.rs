//! Exports the image layout of a disk to a folder. The folder appears only when it is complete, and every blob is verified.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::Value;

use super::contents::{Blob, BlobFault, Contents};
use super::verify;
use crate::disk::layout::Tree;
use crate::host::support::files::TemporaryDir;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::workers;
use crate::oci::{Algorithm, Digest};

/// Files of a layout other than blobs.
const FILES: [&str; 2] = ["oci-layout", "index.json"];
/// The layout's folder within the temporary folder.
const ROOT: &str = "layout";

/// Why the layout is not exported. The target folder is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The target exists and is not an empty folder.
    #[error("cannot export to {}: it exists and is not an empty folder; expected a new or an empty one", .0.display())]
    Occupied(PathBuf),
    /// The folder cannot be written.
    #[error("cannot export to {}: cannot write {file}", folder.display())]
    Write {
        /// The target.
        folder: PathBuf,
        /// The file that could not be written.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A file cannot be read from the disk.
    #[error("cannot export to {}: cannot read {file}", folder.display())]
    Read {
        /// The target.
        folder: PathBuf,
        /// The file on the disk.
        file: String,
        /// The cause.
        source: io::Error,
    },
    /// A blob is damaged.
    #[error("cannot export to {}: blob {digest} {fault}", folder.display())]
    Blob {
        /// The target.
        folder: PathBuf,
        /// The blob.
        digest: Digest,
        /// What is wrong.
        fault: BlobFault,
    },
    /// Interrupted by a signal.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Checks that `folder` is missing or empty. Call it before long work.
///
/// # Errors
/// Fails if the folder has content or cannot be read.
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

/// Exports the layout of `contents` to `folder`, through a temporary folder next to it.
///
/// # Errors
/// Fails without changing `folder`.
pub fn export(
    tree: &(dyn Tree + Sync),
    contents: &Contents,
    folder: &Path,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<(), ExportError> {
    check(folder)?;
    let write_error = |file: &str, source| ExportError::Write { folder: folder.to_owned(), file: file.to_owned(), source };
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = TemporaryDir::new_in(parent, ".localregistry-export-");
    let temporary = temporary.map_err(|source| write_error("a temporary folder next to it", source))?;
    let root = temporary.path().join(ROOT);
    for folder in blob_folders(contents) {
        DirBuilder::new().recursive(true).create(root.join(&folder)).map_err(|source| write_error(&folder, source))?;
    }
    for file in FILES {
        let read = |source| ExportError::Read { folder: folder.to_owned(), file: file.to_owned(), source };
        let mut content = tree.open(file).map_err(read)?.reader;
        // Bounded: the index has been read before, within its reader's limit.
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(read)?;
        if file == "index.json" && !contents.left_over.is_empty() {
            bytes = without(&bytes, &contents.left_over).map_err(|error| read(error.into()))?;
        }
        fs::write(root.join(file), bytes).map_err(|source| write_error(file, source))?;
    }
    let mut blobs: Vec<&Blob> = contents.blobs.iter().collect();
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
    workers::each(&blobs, |blob| copy(tree, blob, &root, folder, bar, interrupt))?;
    interrupt.check()?;
    fs::rename(&root, folder).map_err(|source| write_error("it", source))
}

/// The index without the entries of these digests, whose content is not exported.
fn without(index: &[u8], left_over: &[Digest]) -> serde_json::Result<Vec<u8>> {
    let mut index: Value = serde_json::from_slice(index)?;
    let left_over: HashSet<String> = left_over.iter().map(ToString::to_string).collect();
    let digest = |entry: &Value| entry.get("digest").and_then(Value::as_str).map(str::to_owned);
    let is_kept = |entry: &Value| digest(entry).is_none_or(|digest| !left_over.contains(&digest));
    if let Some(entries) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        entries.retain(is_kept);
    }
    serde_json::to_vec(&index)
}

/// The folders of the blobs, one for each digest algorithm in use.
fn blob_folders(contents: &Contents) -> Vec<String> {
    let has = |algorithm: &Algorithm| contents.blobs.iter().any(|blob| blob.digest.algorithm() == *algorithm);
    let used = Algorithm::ALL.into_iter().filter(has).map(|algorithm| format!("blobs/{}", algorithm.name()));
    // Required even in a layout without images (image layout specification, "Content").
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
    let mut write_failure = None;
    let copied = verify::hash(tree, blob, bar, interrupt, |part| {
        file.write_all(part).map_err(|error| {
            write_failure = Some(error);
            io::Error::other("not written")
        })
    });
    interrupt.check()?;
    if let Some(source) = write_failure {
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
