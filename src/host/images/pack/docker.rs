//! Presents a `docker save` archive (Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format") as an OCI
//! image layout.
//!
//! `manifest.json` names configs, tags and layers. Each image gets a generated Docker schema 2 manifest, which gives it a digest.
//! Layers are neither changed nor copied.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde::Deserialize;

use super::archive::{Archive, MANIFEST};
use super::compression::{self, Compression, DecompressError};
use crate::disk::layout::{Identity, OpenFile, REF_NAME, Tree, max_expanded};
use crate::host::images::virtual_layout::{NewDescriptor, NewManifest, OCI_LAYOUT, in_memory};
use crate::host::support::interrupt::Interrupt;
use crate::oci::json::null_as_default;
use crate::oci::{Algorithm, Digest, Hasher, ImageName, NameError, Tag, media_type};

/// Largest `manifest.json` and largest config, in bytes.
const MAX_JSON: u64 = 64 << 20;
/// What messages put before the config of an image.
const IMAGE: &str = "manifest.json: image ";
/// Most names and layers that `manifest.json` lists: those of 100,000 images. Each takes some hundred bytes of memory.
const MAX_LISTED: usize = 1_000_000;

/// Why a `docker save` archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("image {image}: cannot read {what} {path}")]
    Member { image: String, what: &'static str, path: String, source: io::Error },
    #[error("cannot read {MANIFEST}")]
    Read(#[source] io::Error),
    #[error("{MANIFEST} is not the JSON that docker save writes")]
    Manifest(#[source] serde_json::Error),
    #[error("{MANIFEST} lists more than {MAX_LISTED} names and layers; split the images over several archives")]
    TooMany,
    #[error("{MANIFEST}: RepoTags has {name:?}: {cause}; give the image another name with --name")]
    Name { name: String, cause: NameError },
    #[error("image {0} has no RepoTags in {MANIFEST}; give it a name with --name")]
    Unnamed(String),
    #[error("image {image}: {path} is not the JSON of an image config")]
    Config { image: String, path: String, source: serde_json::Error },
    #[error("image {image}: {MANIFEST} has {layers} layers, and {config} has {digests} in rootfs.diff_ids")]
    Layers { image: String, config: String, layers: usize, digests: usize },
    #[error("image {image}: {path} has the content of {found}; {expected} is expected")]
    Digest { image: String, path: String, found: Digest, expected: Digest },
    #[error("image {image}: layer {path}")]
    Layer { image: String, path: String, source: DecompressError },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", expecting = "an object for each image")]
struct ManifestEntry {
    config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    repo_tags: Vec<Option<String>>,
    #[serde(default, deserialize_with = "null_as_default")]
    layers: Vec<String>,
}

impl ManifestEntry {
    /// The names in RepoTags. The ID of an image is not a name.
    fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.repo_tags.iter().flatten().map(String::as_str);
        names.filter(|name| !name.is_empty() && !ImageName::is_image_id(name))
    }
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(deserialize_with = "null_as_default")]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

/// The content of a blob: a generated manifest of the image with this config, or an archive member.
#[derive(Debug)]
enum BlobContent {
    Manifest { content: Vec<u8>, config: String },
    Member(String),
}

/// A `docker save` archive, readable as an image layout.
#[derive(Debug)]
pub struct DockerArchive {
    archive: Archive,
    index: Vec<u8>,
    blobs: HashMap<String, BlobContent>,
}

impl DockerArchive {
    /// Reads `manifest.json` and the configs. Compressed layers are hashed here, because no config has their digests. `nameless`
    /// accepts images without tags, for callers that name them later.
    ///
    /// # Errors
    /// Fails with the first error found.
    pub fn open(archive: Archive, nameless: bool, interrupt: &Interrupt) -> Result<Self, DockerError> {
        let content = archive.member(MANIFEST).and_then(|file| file.read_all(MAX_JSON)).map_err(DockerError::Read)?;
        let entries: Option<Vec<ManifestEntry>> = serde_json::from_slice(&content).map_err(DockerError::Manifest)?;
        let mut builder = ManifestBuilder {
            archive: &archive,
            interrupt,
            blobs: HashMap::new(),
            configs: HashMap::new(),
            layers: HashMap::new(),
        };
        let mut images = Vec::new();
        let listed = entries.iter().flatten().map(|entry| entry.repo_tags.len() + entry.layers.len()).sum::<usize>();
        if listed > MAX_LISTED {
            return Err(DockerError::TooMany);
        }
        let any_named = entries.iter().flatten().any(|entry| entry.names().next().is_some());
        for entry in entries.iter().flatten() {
            let label = entry.names().next().unwrap_or(&entry.config);
            if label == entry.config && !any_named && !nameless {
                return Err(DockerError::Unnamed(label.to_owned()));
            }
            let manifest = match builder.image(label, entry) {
                Err(_) if label == entry.config && any_named => builder.broken(entry),
                manifest => manifest?,
            };
            interrupt.check_io().map_err(DockerError::Read)?;
            let mut names = Vec::new();
            for name in entry.names() {
                match full_name(name, &manifest.digest) {
                    Ok(name) => names.push(name),
                    Err(wrong) if !nameless => return Err(wrong),
                    Err(_) => {}
                }
            }
            if names.is_empty() {
                // Readers of the layout know what to do with a wrong name.
                names.extend(entry.names().next().map(str::to_owned));
            }
            let annotations: Vec<_> = match names.is_empty() {
                true => vec![BTreeMap::new()],
                false => names.into_iter().map(|name| BTreeMap::from([(REF_NAME, name)])).collect(),
            };
            images.extend(annotations.into_iter().map(|annotations| NewDescriptor { annotations, ..manifest.clone() }));
        }
        let blobs = builder.blobs;
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": images }).to_string().into_bytes();
        Ok(Self { archive, index, blobs })
    }
}

impl Tree for DockerArchive {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match (path, self.blobs.get(path)) {
            ("oci-layout", _) => Ok(in_memory(OCI_LAYOUT)),
            ("index.json", _) => Ok(in_memory(&self.index)),
            (_, Some(BlobContent::Manifest { content, .. })) => Ok(in_memory(content)),
            (_, Some(BlobContent::Member(member))) => self.archive.member(member),
            (_, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn display_path(&self, path: &str) -> String {
        match self.blobs.get(path) {
            Some(BlobContent::Member(member)) => member.clone(),
            Some(BlobContent::Manifest { config, .. }) => format!("{IMAGE}{config}"),
            None => path.to_owned(),
        }
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let Some(BlobContent::Member(member)) = self.blobs.get(path) else { return None };
        self.archive.identity(member)
    }
}

/// The config of the image with this generated manifest; `None` if `tree` is no `docker save` archive.
pub fn config_of(tree: &dyn Tree, manifest: &Digest) -> Option<String> {
    tree.display_path(&manifest.blob_path()).strip_prefix(IMAGE).map(str::to_owned)
}

/// A name from RepoTags, with the tag `latest` if it has neither tag nor digest. No digest that the image had elsewhere is that of
/// `manifest`, which is generated, unless it had the same manifest there.
fn full_name(text: &str, manifest: &str) -> Result<String, DockerError> {
    let wrong = |cause| DockerError::Name { name: text.to_owned(), cause };
    let name: ImageName = text.parse().map_err(wrong)?;
    match &name.digest {
        Some(digest) if digest.to_string() != manifest => Err(wrong(NameError::OtherDigest)),
        Some(_) => Ok(text.to_owned()),
        None => Ok(ImageName { tag: Some(name.tag.unwrap_or_else(Tag::latest)), ..name }.to_string()),
    }
}

struct ManifestBuilder<'a> {
    archive: &'a Archive,
    interrupt: &'a Interrupt,
    /// Blob contents by path in the layout.
    blobs: HashMap<String, BlobContent>,
    /// Configs already read, by their offset in the archive.
    configs: HashMap<u64, Rc<ReadConfig>>,
    /// Layers already read, by their offset in the archive and their diff ID. Images share layers, some by symbolic links.
    layers: HashMap<(u64, Digest), NewDescriptor>,
}

/// What an image's manifest needs to know of its config.
struct ReadConfig {
    digest: Digest,
    size: u64,
    diff_ids: Vec<Digest>,
}

impl ManifestBuilder<'_> {
    /// Generates the manifest of `entry` and returns its descriptor.
    fn image(&mut self, image: &str, entry: &ManifestEntry) -> Result<NewDescriptor, DockerError> {
        let path = &entry.config;
        let config = self.config(image, path)?;
        let diff_ids = &config.diff_ids;
        if diff_ids.len() != entry.layers.len() {
            let (config, layers, digests) = (path.clone(), entry.layers.len(), diff_ids.len());
            return Err(DockerError::Layers { image: image.to_owned(), config, layers, digests });
        }
        let content = BlobContent::Member(path.clone());
        let descriptor = self.blob(media_type::DOCKER_CONFIG, config.digest, config.size, content);
        let mut layers = Vec::new();
        for (member, diff_id) in entry.layers.iter().zip(diff_ids) {
            layers.push(self.layer(image, member, *diff_id)?);
        }
        let manifest = NewManifest {
            schema_version: 2,
            media_type: media_type::DOCKER_MANIFEST,
            artifact_type: None,
            config: descriptor,
            layers,
            annotations: BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&manifest).map_err(DockerError::Manifest)?;
        let digest = Digest::sha256_of(&manifest);
        let size = manifest.len() as u64;
        let content = BlobContent::Manifest { content: manifest, config: path.clone() };
        Ok(self.blob(media_type::DOCKER_MANIFEST, digest, size, content))
    }

    /// The descriptor of an image without a name that cannot be read, where others have names. Its content is no manifest, so that it is
    /// left out, as by skopeo.
    fn broken(&mut self, entry: &ManifestEntry) -> NewDescriptor {
        let config = entry.config.clone();
        let content = format!("broken: {config}").into_bytes();
        let (digest, size) = (Digest::sha256_of(&content), content.len() as u64);
        self.blob(media_type::DOCKER_MANIFEST, digest, size, BlobContent::Manifest { content, config })
    }

    /// Reads a config.
    fn config(&mut self, image: &str, path: &str) -> Result<Rc<ReadConfig>, DockerError> {
        let unreadable = |source| DockerError::Member { image: image.to_owned(), what: "config", path: path.to_owned(), source };
        // Docker names a config by its digest. Other writers may use any name.
        let name = path.rsplit('/').next().unwrap_or(path);
        let claimed = format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok();
        let check = |found: Digest| match claimed.filter(|claimed| *claimed != found) {
            Some(expected) => Err(DockerError::Digest { image: image.to_owned(), path: path.to_owned(), found, expected }),
            None => Ok(()),
        };
        let at = self.archive.offset(path).map_err(unreadable)?;
        if let Some(config) = self.configs.get(&at) {
            return check(config.digest).map(|()| Rc::clone(config));
        }
        let content = self.archive.member(path).and_then(|file| file.read_all(MAX_JSON)).map_err(unreadable)?;
        let digest = Digest::sha256_of(&content);
        check(digest)?;
        let config: ImageConfig = serde_json::from_slice(&content).map_err(|source| DockerError::Config {
            image: image.to_owned(),
            path: path.to_owned(),
            source,
        })?;
        let config = Rc::new(ReadConfig { digest, size: content.len() as u64, diff_ids: config.rootfs.diff_ids });
        self.configs.insert(at, Rc::clone(&config));
        Ok(config)
    }

    /// The descriptor of a layer. The digest of an uncompressed layer is its diff ID, which is verified when the layer is packed.
    fn layer(&mut self, image: &str, member: &str, diff_id: Digest) -> Result<NewDescriptor, DockerError> {
        let unreadable = |source| DockerError::Member { image: image.to_owned(), what: "layer", path: member.to_owned(), source };
        let key = (self.archive.offset(member).map_err(unreadable)?, diff_id);
        if let Some(layer) = self.layers.get(&key) {
            return Ok(layer.clone());
        }
        let mut content = self.archive.member(member).map_err(unreadable)?;
        let mut start = [0; compression::MAGIC_LEN];
        let size = content.size;
        let compression = match content.reader.read_exact(&mut start) {
            Ok(()) => Compression::of(&start),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Compression::None,
            Err(error) => return Err(unreadable(error)),
        };
        let (kind, digest) = match compression {
            Compression::None => (media_type::DOCKER_LAYER, diff_id),
            Compression::Gzip => (media_type::DOCKER_LAYER_GZIP, self.hash_compressed(image, member, compression, diff_id)?),
            Compression::Zstd => (media_type::DOCKER_LAYER_ZSTD, self.hash_compressed(image, member, compression, diff_id)?),
        };
        let layer = self.blob(kind, digest, size, BlobContent::Member(member.to_owned()));
        self.layers.insert(key, layer.clone());
        Ok(layer)
    }

    /// Hashes a compressed layer, and verifies its decompressed content against `diff_id` in the same pass.
    fn hash_compressed(
        &self,
        image: &str,
        member: &str,
        compression: Compression,
        diff_id: Digest,
    ) -> Result<Digest, DockerError> {
        let damaged = |source| DockerError::Layer { image: image.to_owned(), path: member.to_owned(), source };
        let content = self.archive.member(member).map_err(DecompressError::Read).map_err(damaged)?;
        let limit = max_expanded(content.size);
        let mut packed = Hashing { inner: content.reader, hasher: Hasher::new(Algorithm::Sha256) };
        let mut plain = Hasher::new(diff_id.algorithm());
        let mut decoder = compression.decoder(BufReader::with_capacity(1 << 18, &mut packed), self.interrupt);
        let on_part = |part: &[u8]| {
            plain.update(part);
            Ok(())
        };
        compression::decompress_into(&mut decoder, limit, on_part, self.interrupt).map_err(damaged)?;
        drop(decoder);
        // Bytes after the compressed content also belong to the layer.
        compression::decompress_into(&mut packed, u64::MAX, |_| Ok(()), self.interrupt).map_err(damaged)?;
        let found = plain.finish();
        if found != diff_id {
            let path = format!("{member}, decompressed,");
            return Err(DockerError::Digest { image: image.to_owned(), path, found, expected: diff_id });
        }
        Ok(packed.hasher.finish())
    }

    fn blob(&mut self, media_type: &'static str, digest: Digest, size: u64, origin: BlobContent) -> NewDescriptor {
        self.blobs.insert(digest.blob_path(), origin);
        NewDescriptor::new(media_type, digest, size)
    }
}

/// A reader that hashes everything read through it.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
