//! Writes OCI images from scratch: layers from individual files, and the image layout around them.
//!
//! The same files give the same bytes, independent of clock, user and machine. Content is streamed, never held in memory.
//! `index.json` is written last.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;

use super::virtual_layout::{NewDescriptor, NewManifest, OCI_LAYOUT};
use crate::disk::layout::REF_NAME;
use crate::host::boot::elf::Processor;
use crate::host::support::files;
use crate::oci::media_type::{OCI_CONFIG, OCI_MANIFEST};
use crate::oci::{Algorithm, Digest, Hasher};

/// Folder of the blobs.
pub const BLOBS: &str = "blobs/sha256";
/// Media type of an uncompressed layer (OCI image specification, "Image Layer Filesystem Changeset").
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of a gzip layer.
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 20;

/// Compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCompression {
    /// Uncompressed, for content that is compressed already.
    None,
    /// gzip.
    Gzip,
}

/// Owner and mode of a file.
#[derive(Debug, Clone, Copy)]
pub struct FileOwnership {
    /// ID of both user and group.
    pub owner: u32,
    /// Mode of the file.
    pub mode: u32,
}

impl FileOwnership {
    /// A program or folder of root.
    pub const PROGRAM: Self = Self { owner: 0, mode: 0o755 };
    /// A file of root that everyone can read.
    pub const FILE: Self = Self { owner: 0, mode: 0o644 };
}

/// How a container of an image is started (OCI image configuration, "Properties", `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// User and group as `UID:GID`. Empty for root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that the program listens on, such as `5000/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, EmptyObject>,
    /// The program and its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default for the further arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Working directory of the program.
    pub working_dir: &'static str,
}

/// The JSON object `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EmptyObject {}

/// A complete layer.
#[derive(Debug, Clone)]
pub struct WrittenLayer {
    descriptor: NewDescriptor,
    /// Digest of the uncompressed archive.
    diff_id: Digest,
}

/// A complete image, not yet named.
#[derive(Debug, Clone)]
pub struct WrittenImage {
    descriptor: NewDescriptor,
    /// Digest of the manifest.
    pub digest: Digest,
}

/// Writes an image layout.
#[derive(Debug)]
pub struct LayoutWriter {
    root: PathBuf,
    /// Processor of the images.
    processor: Processor,
    /// Descriptors of the named images.
    manifests: Vec<NewDescriptor>,
    /// Bytes of blobs written so far.
    bytes: u64,
}

impl LayoutWriter {
    /// Starts a layout of images for `processor` in the folder `root`, which is created if it is missing.
    ///
    /// # Errors
    /// Fails if the folder cannot be created.
    pub fn new(root: &Path, processor: Processor) -> io::Result<Self> {
        fs::create_dir_all(root.join(BLOBS))?;
        Ok(Self { root: root.to_owned(), processor, manifests: Vec::new(), bytes: 0 })
    }

    /// Writes a layer of the files that `fill` adds.
    ///
    /// # Errors
    /// Fails if `fill` fails, or a file cannot be written.
    pub fn layer<E: From<io::Error>>(
        &mut self,
        compression: LayerCompression,
        fill: impl FnOnce(&mut LayerWriter) -> Result<(), E>,
    ) -> Result<WrittenLayer, E> {
        let file = tempfile::Builder::new().prefix(".localregistry-").tempfile_in(self.root.join(BLOBS))?;
        let mut archive = LayerWriter(tar::Builder::new(LayerStream::new(file, compression)));
        fill(&mut archive)?;
        let (file, blob, diff_id) = archive.0.into_inner()?.finish()?;
        let bytes = file.as_file().metadata()?.len();
        self.keep(file, &blob)?;
        let kind = if compression == LayerCompression::Gzip { LAYER_GZIP } else { LAYER };
        self.bytes += bytes;
        Ok(WrittenLayer { descriptor: NewDescriptor::new(kind, blob, bytes), diff_id })
    }

    /// Writes an image of these layers, the lowest first.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn image(&mut self, start: &ContainerConfig, layers: &[WrittenLayer]) -> io::Result<WrittenImage> {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": self.processor.architecture(), "os": "linux", "config": start, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(OCI_CONFIG, config.to_string().as_bytes())?;
        let layers = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let manifest = NewManifest {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            artifact_type: None,
            config,
            layers,
            annotations: BTreeMap::new(),
        };
        let content = serde_json::to_vec(&manifest)?;
        Ok(WrittenImage { descriptor: self.blob(OCI_MANIFEST, &content)?, digest: Digest::sha256_of(&content) })
    }

    /// Adds an image to the index as `name`.
    pub fn name(&mut self, mut image: WrittenImage, name: &str) {
        image.descriptor.annotations.insert(REF_NAME, name.to_owned());
        self.manifests.push(image.descriptor);
    }

    /// Writes the index and returns the size of the layout in bytes.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn finish(self) -> io::Result<u64> {
        let index = json!({ "schemaVersion": 2, "mediaType": crate::oci::media_type::OCI_INDEX, "manifests": self.manifests });
        let index = index.to_string();
        files::write_atomically(&self.root.join("oci-layout"), OCI_LAYOUT)?;
        files::write_atomically(&self.root.join("index.json"), index.as_bytes())?;
        Ok(self.bytes + OCI_LAYOUT.len() as u64 + index.len() as u64)
    }

    fn blob(&mut self, kind: &'static str, content: &[u8]) -> io::Result<NewDescriptor> {
        let digest = Digest::sha256_of(content);
        files::write_atomically(&self.root.join(digest.blob_path()), content)?;
        self.bytes += content.len() as u64;
        Ok(NewDescriptor::new(kind, digest, content.len() as u64))
    }

    /// Renames a temporary file to its digest, with the mode of a regular new file.
    fn keep(&self, file: NamedTempFile, digest: &Digest) -> io::Result<()> {
        file.as_file().sync_all()?;
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(self.root.join(digest.blob_path())).map(|_| ()).map_err(|error| error.error)
    }
}

/// Adds files to a layer.
pub struct LayerWriter(tar::Builder<LayerStream>);

impl LayerWriter {
    /// Adds a folder. Its parents must be added first.
    ///
    /// # Errors
    /// Fails if the layer cannot be written.
    pub fn folder(&mut self, path: &str, ownership: FileOwnership) -> io::Result<()> {
        let mut header = header(tar::EntryType::Directory, ownership, 0);
        self.0.append_data(&mut header, format!("{path}/"), io::empty())
    }

    /// Adds a file of `size` bytes.
    ///
    /// # Errors
    /// Fails if the layer cannot be written, or `content` is shorter.
    pub fn file(&mut self, path: &str, ownership: FileOwnership, size: u64, content: impl Read) -> io::Result<()> {
        let mut exact = ExactSize { inner: content.take(size), missing: size };
        let mut header = header(tar::EntryType::Regular, ownership, size);
        self.0.append_data(&mut header, path, &mut exact)
    }
}

/// The header of a file, in GNU format, which has no size limit.
fn header(kind: tar::EntryType, ownership: FileOwnership, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(ownership.mode);
    header.set_uid(ownership.owner.into());
    header.set_gid(ownership.owner.into());
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// A reader that fails if its content is shorter than announced, which would corrupt the archive.
struct ExactSize<R> {
    inner: io::Take<R>,
    missing: u64,
}

impl<R: Read> Read for ExactSize<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && self.missing > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {} bytes too early", self.missing)));
        }
        self.missing -= count as u64;
        Ok(count)
    }
}

/// Hashes the archive and passes it on to the encoder.
struct LayerStream {
    archive: Hasher,
    sink: LayerEncoder,
}

enum LayerEncoder {
    Plain(Box<HashedFile>),
    Gzip(Box<GzEncoder<HashedFile>>),
}

impl LayerStream {
    fn new(file: NamedTempFile, compression: LayerCompression) -> Self {
        let hashed = HashedFile { file: BufWriter::with_capacity(BUFFER, file), hasher: Hasher::new(Algorithm::Sha256) };
        let sink = match compression {
            LayerCompression::None => LayerEncoder::Plain(Box::new(hashed)),
            // The gzip header gets neither a time nor a name.
            LayerCompression::Gzip => LayerEncoder::Gzip(Box::new(GzEncoder::new(hashed, flate2::Compression::default()))),
        };
        Self { archive: Hasher::new(Algorithm::Sha256), sink }
    }

    /// Returns the file, its digest, and the archive's digest.
    fn finish(self) -> io::Result<(NamedTempFile, Digest, Digest)> {
        let hashed = match self.sink {
            LayerEncoder::Plain(hashed) => *hashed,
            LayerEncoder::Gzip(encoder) => encoder.finish()?,
        };
        let file = hashed.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, hashed.hasher.finish(), self.archive.finish()))
    }
}

impl Write for LayerStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            LayerEncoder::Plain(sink) => sink.write_all(bytes)?,
            LayerEncoder::Gzip(sink) => sink.write_all(bytes)?,
        }
        self.archive.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct HashedFile {
    file: BufWriter<NamedTempFile>,
    hasher: Hasher,
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_layout(compression: LayerCompression) -> (tempfile::TempDir, Digest) {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = LayoutWriter::new(folder.path(), Processor::X86).unwrap();
        let layer = layout
            .layer(compression, |archive| {
                archive.folder("disk", FileOwnership { owner: 107, mode: 0o555 })?;
                archive.file("disk/file", FileOwnership { owner: 107, mode: 0o444 }, 7, &b"content"[..])
            })
            .unwrap();
        let start = ContainerConfig {
            entrypoint: vec!["/program".to_owned()],
            user: "1:2".to_owned(),
            working_dir: "/",
            ..ContainerConfig::default()
        };
        let image = layout.image(&start, &[layer]).unwrap();
        let digest = image.digest;
        layout.name(image, "a.test/b:1");
        layout.finish().unwrap();
        (folder, digest)
    }

    #[test]
    fn layouts_are_reproducible_and_leave_no_other_files() {
        for compression in [LayerCompression::None, LayerCompression::Gzip] {
            let listing = |folder: &Path| {
                let blobs = fs::read_dir(folder.join(BLOBS)).unwrap().map(|blob| blob.unwrap().path());
                let mut files: Vec<(String, Vec<u8>)> =
                    blobs.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect();
                files.sort();
                files
            };
            let (one, other) = (write_layout(compression), write_layout(compression));
            assert_eq!(one.1, other.1);
            assert_eq!(listing(one.0.path()), listing(other.0.path()));
            assert!(listing(one.0.path()).iter().all(|(name, content)| Digest::sha256_of(content).hex() == *name));
            assert_eq!(listing(one.0.path()).len(), 3, "layer, config, manifest");
        }
    }

    #[test]
    fn short_content_fails_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = LayoutWriter::new(folder.path(), Processor::X86).unwrap();
        let short = layout.layer(LayerCompression::None, |archive| archive.file("file", FileOwnership::FILE, 9, &b"content"[..]));
        assert_eq!(short.map(|_| ()).unwrap_err().to_string(), "it ends 2 bytes too early");
        assert_eq!(fs::read_dir(folder.path().join(BLOBS)).unwrap().count(), 0);
    }
}
