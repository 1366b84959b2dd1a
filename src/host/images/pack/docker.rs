//! What `docker save` writes (Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format"), seen as an OCI
//! image layout: `manifest.json` names configs, tags and layers, and each image gets a Docker schema 2 manifest made here, so that it
//! has a digest. Layers stay as they are. Nothing is copied.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read};

use serde::Deserialize;

use super::archive::Archive;
use super::compression::{self, Compression, UnpackError};
use super::virtual_layout::{Descriptor, Manifest, held};
use crate::disk::layout::{Identity, OpenFile, REF_NAME, Tree};
use crate::host::support::interrupt::Interrupt;
use crate::oci::{Algorithm, Digest, Hasher, ImageName, NameError, Tag, media_type};

/// The file that lists the images.
pub const MANIFEST: &str = "manifest.json";
/// Largest `manifest.json` and largest config, in bytes.
const MAX_JSON: u64 = 64 << 20;

/// Why a `docker save` archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// A member is missing or cannot be read.
    #[error("image {image}: cannot read {what} {path}")]
    Member {
        /// The image that names it.
        image: String,
        /// What it is in the image.
        what: &'static str,
        /// The member.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// `manifest.json` cannot be read.
    #[error("cannot read {MANIFEST}")]
    Read(#[source] io::Error),
    /// `manifest.json` is something else.
    #[error("{MANIFEST} is not the JSON that docker save writes")]
    Manifest(#[source] serde_json::Error),
    /// A tag that is none.
    #[error("{MANIFEST}: RepoTags has {name:?}")]
    Name {
        /// As it is written.
        name: String,
        /// Why it is no name.
        source: NameError,
    },
    /// An image without tags, and no other name for it.
    #[error("image {0} has no RepoTags in {MANIFEST}; give it a name with --name")]
    Unnamed(String),
    /// A config is something else.
    #[error("image {image}: {path} is not the JSON of an image config")]
    Config {
        /// The image.
        image: String,
        /// The config.
        path: String,
        /// Where it stops being one.
        source: serde_json::Error,
    },
    /// Layers and their digests do not pair up.
    #[error("image {image}: {MANIFEST} has {layers} layers, and {config} has {digests} in rootfs.diff_ids")]
    Layers {
        /// The image.
        image: String,
        /// The config.
        config: String,
        /// Layers in manifest.json.
        layers: usize,
        /// Digests in the config.
        digests: usize,
    },
    /// Content that is not what its name or the config says.
    #[error("image {image}: {path} has the content of {found}; {expected} is expected")]
    Digest {
        /// The image.
        image: String,
        /// The member.
        path: String,
        /// The digest of what it holds.
        found: Digest,
        /// What it should be.
        expected: Digest,
    },
    /// A compressed layer is damaged.
    #[error("image {image}: layer {path}")]
    Layer {
        /// The image.
        image: String,
        /// The member.
        path: String,
        /// What is wrong with it.
        source: UnpackError,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Where a blob's content is.
#[derive(Debug)]
enum Origin {
    Made(Vec<u8>),
    Member(String),
}

/// A `docker save` archive as an image layout.
#[derive(Debug)]
pub struct Saved {
    archive: Archive,
    index: Vec<u8>,
    blobs: HashMap<String, Origin>,
}

impl Saved {
    /// Reads `manifest.json` and the configs. Layers are hashed here only where they are compressed: their digests then are in no
    /// config. `nameless` says whether images without tags are taken (they get a name later).
    ///
    /// # Errors
    /// [`DockerError`], at the first thing that is wrong.
    pub fn open(archive: Archive, nameless: bool, interrupt: &Interrupt) -> Result<Self, DockerError> {
        let content = archive.member(MANIFEST).and_then(|file| file.read_all(MAX_JSON)).map_err(DockerError::Read)?;
        let entries: Vec<Entry> = serde_json::from_slice(&content).map_err(DockerError::Manifest)?;
        let mut reading = Reading { archive: &archive, interrupt, blobs: HashMap::new(), layers: HashMap::new() };
        let mut images = Vec::new();
        for entry in &entries {
            let mut names = Vec::new();
            for name in entry.repo_tags.iter().flatten() {
                names.push(full_name(name)?);
            }
            let label = names.first().unwrap_or(&entry.config).clone();
            if names.is_empty() && !nameless {
                return Err(DockerError::Unnamed(label));
            }
            let manifest = reading.image(&label, entry)?;
            let annotations: Vec<_> = match names.is_empty() {
                true => vec![BTreeMap::new()],
                false => names.into_iter().map(|name| BTreeMap::from([(REF_NAME, name)])).collect(),
            };
            images.extend(annotations.into_iter().map(|annotations| Descriptor { annotations, ..manifest.clone() }));
        }
        let blobs = reading.blobs;
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": images }).to_string().into_bytes();
        Ok(Self { archive, index, blobs })
    }
}

impl Tree for Saved {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match (path, self.blobs.get(path)) {
            ("oci-layout", _) => Ok(held(br#"{"imageLayoutVersion":"1.0.0"}"#)),
            ("index.json", _) => Ok(held(&self.index)),
            (_, Some(Origin::Made(content))) => Ok(held(content)),
            (_, Some(Origin::Member(member))) => self.archive.member(member),
            (_, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn display_path(&self, path: &str) -> String {
        match self.blobs.get(path) {
            Some(Origin::Member(member)) => member.clone(),
            _ => path.to_owned(),
        }
    }

    fn identity(&self, path: &str) -> Option<Identity> {
        let Some(Origin::Member(member)) = self.blobs.get(path) else { return None };
        self.archive.identity(member)
    }
}

/// A name from RepoTags as it is written, with the tag that Docker means where there is none.
fn full_name(text: &str) -> Result<String, DockerError> {
    let name: ImageName = text.parse().map_err(|source| DockerError::Name { name: text.to_owned(), source })?;
    Ok(ImageName { tag: Some(name.tag.unwrap_or_else(Tag::latest)), ..name }.to_string())
}

struct Reading<'a> {
    archive: &'a Archive,
    interrupt: &'a Interrupt,
    /// Content by its path in the layout.
    blobs: HashMap<String, Origin>,
    /// Compressed layers already read, by member and diff ID: images share them.
    layers: HashMap<(String, Digest), Descriptor>,
}

impl Reading<'_> {
    /// Makes the manifest of `entry` and gives its descriptor.
    fn image(&mut self, image: &str, entry: &Entry) -> Result<Descriptor, DockerError> {
        let path = &entry.config;
        let unreadable = |source| DockerError::Member { image: image.to_owned(), what: "config", path: path.clone(), source };
        let content = self.archive.member(path).and_then(|file| file.read_all(MAX_JSON)).map_err(unreadable)?;
        let digest = Digest::sha256_of(&content);
        // Docker calls a config by its digest; other writers may call it anything.
        let name = path.rsplit('/').next().unwrap_or(path);
        let claimed = format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok();
        if let Some(expected) = claimed.filter(|claimed| *claimed != digest) {
            return Err(DockerError::Digest { image: image.to_owned(), path: path.clone(), found: digest, expected });
        }
        let config: Config = serde_json::from_slice(&content).map_err(|source| DockerError::Config {
            image: image.to_owned(),
            path: path.clone(),
            source,
        })?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != entry.layers.len() {
            let (config, layers, digests) = (path.clone(), entry.layers.len(), diff_ids.len());
            return Err(DockerError::Layers { image: image.to_owned(), config, layers, digests });
        }
        let config = self.blob(media_type::DOCKER_CONFIG, digest, content.len() as u64, Origin::Member(path.clone()));
        let mut layers = Vec::new();
        for (member, diff_id) in entry.layers.iter().zip(diff_ids) {
            layers.push(self.layer(image, member, diff_id)?);
        }
        let manifest =
            Manifest { schema_version: 2, media_type: media_type::DOCKER_MANIFEST, artifact_type: None, config, layers };
        let manifest = serde_json::to_vec(&manifest).map_err(DockerError::Manifest)?;
        let digest = Digest::sha256_of(&manifest);
        Ok(self.blob(media_type::DOCKER_MANIFEST, digest, manifest.len() as u64, Origin::Made(manifest)))
    }

    /// The descriptor of a layer. That of an uncompressed one is its diff ID, held against the content when it is packed.
    fn layer(&mut self, image: &str, member: &str, diff_id: Digest) -> Result<Descriptor, DockerError> {
        let known = (member.to_owned(), diff_id);
        if let Some(layer) = self.layers.get(&known) {
            return Ok(layer.clone());
        }
        let unreadable = |source| DockerError::Member { image: image.to_owned(), what: "layer", path: member.to_owned(), source };
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
        let layer = self.blob(kind, digest, size, Origin::Member(member.to_owned()));
        self.layers.insert(known, layer.clone());
        Ok(layer)
    }

    /// The digest of a compressed layer, whose decompressed content is held against `diff_id` at the same time.
    fn hash_compressed(
        &self,
        image: &str,
        member: &str,
        compression: Compression,
        diff_id: Digest,
    ) -> Result<Digest, DockerError> {
        let damaged = |source| DockerError::Layer { image: image.to_owned(), path: member.to_owned(), source };
        let content = self.archive.member(member).map_err(UnpackError::Read).map_err(damaged)?;
        let limit = compression::limit(content.size);
        let mut packed = Hashing { inner: content.reader, hasher: Hasher::new(Algorithm::Sha256) };
        let mut plain = Hasher::new(diff_id.algorithm());
        let mut decoder =
            compression.decoder(BufReader::with_capacity(1 << 18, &mut packed)).map_err(UnpackError::Read).map_err(damaged)?;
        let taken = |part: &[u8]| {
            plain.update(part);
            Ok(())
        };
        compression::pour(&mut decoder, limit, taken, self.interrupt).map_err(damaged)?;
        drop(decoder);
        // What may follow the compressed content is a part of the layer's bytes.
        io::copy(&mut packed, &mut io::sink()).map_err(UnpackError::Read).map_err(damaged)?;
        let found = plain.finish();
        if found != diff_id {
            let path = format!("{member}, decompressed,");
            return Err(DockerError::Digest { image: image.to_owned(), path, found, expected: diff_id });
        }
        Ok(packed.hasher.finish())
    }

    fn blob(&mut self, media_type: &'static str, digest: Digest, size: u64, origin: Origin) -> Descriptor {
        self.blobs.insert(digest.blob_path(), origin);
        Descriptor::new(media_type, digest, size)
    }
}

/// Hashes what is read through it.
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
