//! OCI images from scratch: layers of files that are given one by one, and an image layout around them. What enters are files; what
//! leaves is a layout, whose `index.json` comes last. The same files give the same bytes: nothing in them is of a clock, a user or a
//! machine. Content passes through and is never held.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;

use super::pack::virtual_layout::{Descriptor, Manifest};
use crate::disk::layout::REF_NAME;
use crate::host::boot::elf::Processor;
use crate::host::support::files;
use crate::oci::media_type::{OCI_CONFIG, OCI_MANIFEST};
use crate::oci::{Algorithm, Digest, Hasher};

/// Where blobs are.
const BLOBS: &str = "blobs/sha256";
/// Type of a layer (OCI image specification, "Image Layer Filesystem Changeset").
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The same, compressed.
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// How a layer lies in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is: for what is compressed already.
    Plain,
    /// Compressed with gzip.
    Gzip,
}

/// Who has a file, as user and as group, and what may be done with it.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Number of the user and of the group.
    pub owner: u32,
    /// The file's mode.
    pub mode: u32,
}

impl Rights {
    /// A program, or a folder, of root's.
    pub const PROGRAM: Self = Self { owner: 0, mode: 0o755 };
    /// A file of root's that everybody reads.
    pub const FILE: Self = Self { owner: 0, mode: 0o644 };
}

/// What a container of an image is started with (OCI image configuration, "Properties", `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Start {
    /// User and group, `UID:GID`; empty: root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports that are listened at, such as `5000/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Nothing>,
    /// The program, and its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Its further arguments, where nobody says other ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where it is started.
    pub working_dir: &'static str,
}

/// `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Nothing {}

/// A layer that is whole.
#[derive(Debug, Clone)]
pub struct Layer {
    descriptor: Descriptor,
    /// Digest of the archive before it was compressed.
    diff_id: Digest,
}

/// An image whose blobs are written.
#[derive(Debug, Clone)]
pub struct Image {
    descriptor: Descriptor,
    /// The manifest's digest.
    pub digest: Digest,
}

/// A layout in the making.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    /// The processor that its images are for.
    processor: Processor,
    /// The manifests, named.
    manifests: Vec<Descriptor>,
    /// Size of the blobs that were written.
    bytes: u64,
}

impl Layout {
    /// A layout, of images for `processor`, in the folder `root`, which is made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(root: &Path, processor: Processor) -> io::Result<Self> {
        fs::create_dir_all(root.join(BLOBS))?;
        Ok(Self { root: root.to_owned(), processor, manifests: Vec::new(), bytes: 0 })
    }

    /// A layer of the files that `fill` adds.
    ///
    /// # Errors
    /// Those of `fill`, and as of writing files.
    pub fn layer<E: From<io::Error>>(
        &mut self,
        packing: Packing,
        fill: impl FnOnce(&mut Archive) -> Result<(), E>,
    ) -> Result<Layer, E> {
        let file = tempfile::Builder::new().prefix(".localregistry-").tempfile_in(self.root.join(BLOBS))?;
        let mut archive = Archive(tar::Builder::new(Compressing::new(file, packing)));
        fill(&mut archive)?;
        let (file, blob, diff_id) = archive.0.into_inner()?.finish()?;
        let bytes = file.as_file().metadata()?.len();
        self.keep(file, &blob)?;
        let kind = if packing == Packing::Gzip { LAYER_GZIP } else { LAYER };
        self.bytes += bytes;
        Ok(Layer { descriptor: Descriptor::new(kind, blob, bytes), diff_id })
    }

    /// An image of these layers, the lowest first, which has no name yet.
    ///
    /// # Errors
    /// As of writing files.
    pub fn image(&mut self, start: &Start, layers: &[Layer]) -> io::Result<Image> {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": self.processor.architecture(), "os": "linux", "config": start, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(OCI_CONFIG, config.to_string().as_bytes())?;
        let layers = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST, artifact_type: None, config, layers };
        let content = serde_json::to_vec(&manifest)?;
        Ok(Image { descriptor: self.blob(OCI_MANIFEST, &content)?, digest: Digest::sha256_of(&content) })
    }

    /// Names an image.
    pub fn name(&mut self, mut image: Image, name: &str) {
        image.descriptor.annotations.insert(REF_NAME, name.to_owned());
        self.manifests.push(image.descriptor);
    }

    /// Writes what names the images, and gives the size of the layout.
    ///
    /// # Errors
    /// As of writing files.
    pub fn finish(self) -> io::Result<u64> {
        let index = json!({ "schemaVersion": 2, "mediaType": crate::oci::media_type::OCI_INDEX, "manifests": self.manifests });
        let (marker, index) = (br#"{"imageLayoutVersion":"1.0.0"}"#, index.to_string());
        files::write_atomically(&self.root.join("oci-layout"), marker)?;
        files::write_atomically(&self.root.join("index.json"), index.as_bytes())?;
        Ok(self.bytes + marker.len() as u64 + index.len() as u64)
    }

    fn blob(&mut self, kind: &'static str, content: &[u8]) -> io::Result<Descriptor> {
        let digest = Digest::sha256_of(content);
        files::write_atomically(&self.root.join(digest.blob_path()), content)?;
        self.bytes += content.len() as u64;
        Ok(Descriptor::new(kind, digest, content.len() as u64))
    }

    /// Gives a file the name of its digest, and the mode that a new file has.
    fn keep(&self, file: NamedTempFile, digest: &Digest) -> io::Result<()> {
        file.as_file().sync_all()?;
        file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.persist(self.root.join(digest.blob_path())).map(|_| ()).map_err(|error| error.error)
    }
}

/// A layer in the making.
pub struct Archive(tar::Builder<Compressing>);

impl Archive {
    /// Adds a folder; those above it come first.
    ///
    /// # Errors
    /// As of writing.
    pub fn folder(&mut self, path: &str, rights: Rights) -> io::Result<()> {
        let mut header = header(tar::EntryType::Directory, rights, 0);
        self.0.append_data(&mut header, format!("{path}/"), io::empty())
    }

    /// Adds a file of `size` bytes.
    ///
    /// # Errors
    /// As of writing, and where there are fewer bytes.
    pub fn file(&mut self, path: &str, rights: Rights, size: u64, content: impl Read) -> io::Result<()> {
        let mut exact = Exact { inner: content.take(size), missing: size };
        let mut header = header(tar::EntryType::Regular, rights, size);
        self.0.append_data(&mut header, path, &mut exact)
    }
}

/// The head of a file in an archive: GNU's, which has no largest size.
fn header(kind: tar::EntryType, rights: Rights, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(rights.mode);
    header.set_uid(rights.owner.into());
    header.set_gid(rights.owner.into());
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Content of a known size: an end before it is an error, since the archive would be torn.
struct Exact<R> {
    inner: io::Take<R>,
    missing: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && self.missing > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends {} bytes too early", self.missing)));
        }
        self.missing -= count as u64;
        Ok(count)
    }
}

/// Hashes an archive and passes it on.
struct Compressing {
    archive: Hasher,
    sink: Sink,
}

enum Sink {
    Plain(Box<Hashed>),
    Gzip(Box<GzEncoder<Hashed>>),
}

impl Compressing {
    fn new(file: NamedTempFile, packing: Packing) -> Self {
        let hashed = Hashed { file: BufWriter::with_capacity(BUFFER, file), hasher: Hasher::new(Algorithm::Sha256) };
        let sink = match packing {
            Packing::Plain => Sink::Plain(Box::new(hashed)),
            // Its header then has neither a time nor a name.
            Packing::Gzip => Sink::Gzip(Box::new(GzEncoder::new(hashed, flate2::Compression::default()))),
        };
        Self { archive: Hasher::new(Algorithm::Sha256), sink }
    }

    /// The file, its digest, and that of the archive.
    fn finish(self) -> io::Result<(NamedTempFile, Digest, Digest)> {
        let hashed = match self.sink {
            Sink::Plain(hashed) => *hashed,
            Sink::Gzip(encoder) => encoder.finish()?,
        };
        let file = hashed.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, hashed.hasher.finish(), self.archive.finish()))
    }
}

impl Write for Compressing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Plain(sink) => sink.write_all(bytes)?,
            Sink::Gzip(sink) => sink.write_all(bytes)?,
        }
        self.archive.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hashed {
    file: BufWriter<NamedTempFile>,
    hasher: Hasher,
}

impl Write for Hashed {
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

    fn made(packing: Packing) -> (tempfile::TempDir, Digest) {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(folder.path(), Processor::X86).unwrap();
        let layer = layout
            .layer(packing, |archive| {
                archive.folder("disk", Rights { owner: 107, mode: 0o555 })?;
                archive.file("disk/file", Rights { owner: 107, mode: 0o444 }, 7, &b"content"[..])
            })
            .unwrap();
        let start =
            Start { entrypoint: vec!["/program".to_owned()], user: "1:2".to_owned(), working_dir: "/", ..Start::default() };
        let image = layout.image(&start, &[layer]).unwrap();
        let digest = image.digest;
        layout.name(image, "a.test/b:1");
        layout.finish().unwrap();
        (folder, digest)
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_nothing_else_is_left() {
        for packing in [Packing::Plain, Packing::Gzip] {
            let listing = |folder: &Path| {
                let blobs = fs::read_dir(folder.join(BLOBS)).unwrap().map(|blob| blob.unwrap().path());
                let mut files: Vec<(String, Vec<u8>)> =
                    blobs.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())).collect();
                files.sort();
                files
            };
            let (one, other) = (made(packing), made(packing));
            assert_eq!(one.1, other.1);
            assert_eq!(listing(one.0.path()), listing(other.0.path()));
            assert!(listing(one.0.path()).iter().all(|(name, content)| Digest::sha256_of(content).hex() == *name));
            assert_eq!(listing(one.0.path()).len(), 3, "layer, config, manifest");
        }
    }

    #[test]
    fn content_that_ends_too_early_is_an_error_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(folder.path(), Processor::X86).unwrap();
        let torn = layout.layer(Packing::Plain, |archive| archive.file("file", Rights::FILE, 9, &b"content"[..]));
        assert_eq!(torn.map(|_| ()).unwrap_err().to_string(), "it ends 2 bytes too early");
        assert_eq!(fs::read_dir(folder.path().join(BLOBS)).unwrap().count(), 0);
    }
}
