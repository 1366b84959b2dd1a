//! An image layout that exists only in memory: one generated manifest, and blobs that are files anywhere on this machine.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Cursor};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::retry_on_intr;
use serde::Serialize;

use crate::disk::layout::{Directory, Identity, OpenFile, REF_NAME, Tree, check_holes};
use crate::oci::Digest;

/// Content of the file `oci-layout` (OCI image layout specification).
pub const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A manifest to write. The fields are in Docker's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewManifest {
    /// Always 2.
    pub schema_version: u8,
    /// Media type of the manifest.
    pub media_type: &'static str,
    /// Type of an artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Descriptor of the config.
    pub config: NewDescriptor,
    /// Descriptors of the layers, the lowest first.
    pub layers: Vec<NewDescriptor>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A descriptor to write. The fields are in Docker's order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewDescriptor {
    /// Media type of the content.
    pub media_type: Cow<'static, str>,
    /// Size of the content in bytes.
    pub size: u64,
    /// Digest of the content.
    pub digest: String,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<&'static str, String>,
}

impl NewDescriptor {
    /// A descriptor without annotations.
    #[must_use]
    pub fn new(media_type: impl Into<Cow<'static, str>>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), size, digest: digest.to_string(), annotations: BTreeMap::new() }
    }
}

/// The content of a blob.
#[derive(Debug)]
pub enum BlobContent {
    /// In memory.
    Memory(Vec<u8>),
    /// In a file.
    File(PathBuf),
}

/// A layout of one image.
#[derive(Debug)]
pub struct VirtualLayout {
    index: Vec<u8>,
    blobs: HashMap<String, BlobContent>,
}

impl VirtualLayout {
    /// The layout of one image with this manifest and these blobs.
    ///
    /// # Errors
    /// Fails only if serialization fails, which it does not for these types.
    pub fn new(manifest: &NewManifest, blobs: impl IntoIterator<Item = (Digest, BlobContent)>) -> serde_json::Result<Self> {
        Self::named(manifest, None, blobs)
    }

    /// As [`VirtualLayout::new`], and the image has the name `name` there.
    ///
    /// # Errors
    /// As [`VirtualLayout::new`].
    pub fn named(
        manifest: &NewManifest,
        name: Option<&str>,
        blobs: impl IntoIterator<Item = (Digest, BlobContent)>,
    ) -> serde_json::Result<Self> {
        let content = serde_json::to_vec(manifest)?;
        let digest = Digest::sha256_of(&content);
        let mut root = NewDescriptor::new(manifest.media_type, digest, content.len() as u64);
        root.annotations.extend(name.map(|name| (REF_NAME, name.to_owned())));
        let index = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [root] }))?;
        let blobs = blobs.into_iter().chain([(digest, BlobContent::Memory(content))]);
        Ok(Self { index, blobs: blobs.map(|(digest, place)| (digest.blob_path(), place)).collect() })
    }
}

impl Tree for VirtualLayout {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match (path, self.blobs.get(path)) {
            ("oci-layout", _) => Ok(in_memory(OCI_LAYOUT)),
            ("index.json", _) => Ok(in_memory(&self.index)),
            (_, Some(BlobContent::Memory(content))) => Ok(in_memory(content)),
            (_, Some(BlobContent::File(file))) => content(file),
            (_, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn display_path(&self, path: &str) -> String {
        match self.blobs.get(path) {
            Some(BlobContent::File(file)) => file.display().to_string(),
            _ => path.to_owned(),
        }
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let Some(BlobContent::File(file)) = self.blobs.get(path) else { return None };
        identity(file)
    }
}

/// A layout with some files replaced or added.
pub struct Overlay {
    /// The layout.
    pub tree: Box<dyn Tree + Send + Sync>,
    /// The files by path.
    pub files: HashMap<String, Vec<u8>>,
}

impl Tree for Overlay {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        self.files.get(path).map_or_else(|| self.tree.open(path), |content| Ok(in_memory(content)))
    }

    fn display_path(&self, path: &str) -> String {
        self.tree.display_path(path)
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        self.tree.identity(path)
    }
}

/// A folder whose symbolic links may lead out of it, as in the output of Bazel's rules. Only for trusted build output.
#[derive(Debug)]
pub struct UnconfinedDir(pub PathBuf);

impl Tree for UnconfinedDir {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        content(&self.0.join(path)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Directory::open(&self.0).ok().and_then(|folder| folder.dangling_link(path)).unwrap_or(error)
            }
            _ => error,
        })
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        identity(&self.0.join(path))
    }
}

/// Content in memory.
#[must_use]
pub fn in_memory(content: &[u8]) -> OpenFile<'_> {
    OpenFile { reader: Box::new(Cursor::new(content)), size: content.len() as u64 }
}

fn content(path: &Path) -> io::Result<OpenFile<'static>> {
    let (file, size) = open_regular(path)?;
    Ok(OpenFile { reader: Box::new(file), size })
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Identity { device: metadata.dev(), inode: metadata.ino(), at: 0 })
}

/// Opens a regular file that is not nearly all holes, and returns its size in bytes. Does not block on a FIFO.
///
/// # Errors
/// Fails if the file cannot be opened, is not a regular file, or is nearly all holes.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = File::from(retry_on_intr(|| open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()))?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check_holes(&file, metadata.len())?;
    Ok((file, metadata.len()))
}
