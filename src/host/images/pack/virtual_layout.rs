//! An image layout that is nowhere: one manifest made here, and content that lies in files all over the machine. What enters are
//! files; what leaves is a [`Tree`]. Content is read, never copied.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Cursor};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use serde::Serialize;

use crate::disk::layout::{Identity, OpenFile, Tree};
use crate::oci::Digest;

/// A manifest of an image or artifact, its fields in the order in which Docker writes them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2, of both kinds.
    pub schema_version: u8,
    /// Its own type.
    pub media_type: &'static str,
    /// What an artifact is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// A descriptor, its fields in the order in which Docker writes them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Type of the content.
    pub media_type: Cow<'static, str>,
    /// Size of the content in bytes.
    pub size: u64,
    /// Digest of the content.
    pub digest: String,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<&'static str, String>,
}

impl Descriptor {
    /// A descriptor without annotations.
    #[must_use]
    pub fn new(media_type: impl Into<Cow<'static, str>>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), size, digest: digest.to_string(), annotations: BTreeMap::new() }
    }
}

/// Where a blob's content is.
#[derive(Debug)]
pub enum Place {
    /// Here.
    Held(Vec<u8>),
    /// In a file.
    File(PathBuf),
}

/// A layout of one image without a name.
#[derive(Debug)]
pub struct Made {
    index: Vec<u8>,
    blobs: HashMap<String, Place>,
}

impl Made {
    /// The layout of the image with this manifest, and with `blobs`.
    ///
    /// # Errors
    /// Never: such a manifest is always JSON.
    pub fn new(manifest: &Manifest, blobs: impl IntoIterator<Item = (Digest, Place)>) -> serde_json::Result<Self> {
        let content = serde_json::to_vec(manifest)?;
        let digest = Digest::sha256_of(&content);
        let root = Descriptor::new(manifest.media_type, digest, content.len() as u64);
        let index = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": [root] }))?;
        let blobs = blobs.into_iter().chain([(digest, Place::Held(content))]);
        Ok(Self { index, blobs: blobs.map(|(digest, place)| (digest.blob_path(), place)).collect() })
    }
}

impl Tree for Made {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match (path, self.blobs.get(path)) {
            ("oci-layout", _) => Ok(held(br#"{"imageLayoutVersion":"1.0.0"}"#)),
            ("index.json", _) => Ok(held(&self.index)),
            (_, Some(Place::Held(content))) => Ok(held(content)),
            (_, Some(Place::File(file))) => content(file),
            (_, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn display_path(&self, path: &str) -> String {
        match self.blobs.get(path) {
            Some(Place::File(file)) => file.display().to_string(),
            _ => path.to_owned(),
        }
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let Some(Place::File(file)) = self.blobs.get(path) else { return None };
        identity(file)
    }
}

/// A folder whose symbolic links may lead out of it, as those of Bazel's rules do. Only for what the user's own build made.
#[derive(Debug)]
pub struct Linked(pub PathBuf);

impl Tree for Linked {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        content(&self.0.join(path))
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        identity(&self.0.join(path))
    }
}

/// Content that is in memory.
#[must_use]
pub fn held(content: &[u8]) -> OpenFile<'_> {
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

/// Opens a regular file and gives its size in bytes. A FIFO in its place does not hold up who opens it.
///
/// # Errors
/// As of opening a file; also where it is no regular one.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = File::from(open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((file, metadata.len()))
}
