//! Faults of a layout. Each names its file, and the image that needs the file.

use std::io;

use super::{CONTAINERD_NAME, Misnamed, REF_NAME};
use crate::oci::graph::{MAX_DEPTH, MAX_MANIFESTS};
use crate::oci::{Digest, MAX_MANIFEST_SIZE, ManifestError};

/// What messages call the root of an image.
pub(super) const ROOT: &str = "manifest";

/// Why a layout cannot be packed or served. Paths are relative to the layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Cannot read a file that every layout has.
    #[error("cannot read {path}; an OCI image layout with oci-layout, index.json and blobs/ is expected")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file is not the JSON that the specification requires.
    #[error("{path} is not the JSON of an image layout")]
    Json {
        /// The file.
        path: String,
        /// The JSON error.
        #[source]
        cause: serde_json::Error,
    },
    /// The layout has another version.
    #[error("oci-layout gives imageLayoutVersion {0:?}; 1.0.0 is expected")]
    Version(String),
    /// An annotation does not hold the name of an image.
    #[error("index.json: {0}; give it another name with --name")]
    Name(Box<Misnamed>),
    /// An image has no repository.
    #[error("index.json: {digest} has no repository name in {REF_NAME} or {CONTAINERD_NAME}; give it one with --name")]
    Unnamed {
        /// The image's root.
        digest: Digest,
    },
    /// Cannot read a blob.
    #[error("image {image}: cannot read {what} {path}, of {size} bytes")]
    Blob {
        /// The image that names it.
        image: String,
        /// Its role in the image.
        what: &'static str,
        /// Its path in the layout.
        path: String,
        /// Its size in its descriptor, in bytes.
        size: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A blob's size differs from its descriptor.
    #[error("image {image}: {path} has {found} bytes, and its descriptor says {expected}")]
    Size {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// The size in the descriptor, in bytes.
        expected: u64,
        /// The size of the file, in bytes.
        found: u64,
    },
    /// A manifest's content does not match its digest.
    #[error("image {image}: {path} has the content of {found}")]
    Digest {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// The digest of the file's content.
        found: Digest,
    },
    /// A blob is not a manifest where one is expected.
    #[error("image {image}: {path} is expected to be a manifest")]
    Manifest {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// Why it is not a manifest.
        #[source]
        cause: ManifestError,
    },
    /// An image has fewer layers than its config names.
    #[error(
        "image {image}: {path} has {layers} layers, and its config {config} has {diff_ids} in rootfs.diff_ids; no client can unpack it, so \
         make the image again"
    )]
    Layers {
        /// The image that names it.
        image: String,
        /// Path of the manifest in the layout.
        path: String,
        /// Number of layers in the manifest.
        layers: usize,
        /// Path of the config in the layout.
        config: String,
        /// Number of layers in the config.
        diff_ids: usize,
    },
    /// A manifest is larger than [`MAX_MANIFEST_SIZE`].
    #[error("image {image}: manifest {digest} has {size} bytes; at most {MAX_MANIFEST_SIZE} are served")]
    TooLarge {
        /// The image that names it.
        image: String,
        /// The manifest.
        digest: Digest,
        /// Its size in its descriptor, in bytes.
        size: u64,
    },
    /// Indexes are nested deeper than [`MAX_DEPTH`].
    #[error("image {image}: indexes are nested deeper than {MAX_DEPTH}, at {digest}")]
    Depth {
        /// The image.
        image: String,
        /// The manifest beyond the limit.
        digest: Digest,
    },
    /// The image has more than [`MAX_MANIFESTS`] manifests.
    #[error("image {image}: it has more than {MAX_MANIFESTS} manifests")]
    TooMany {
        /// The image.
        image: String,
    },
    /// The images share their content in a way that multiplies it ([`max_named`](crate::oci::graph::max_named)).
    #[error(
        "image {image}: the images up to this one name {named} blobs, of which {distinct} are different; at most 100 images for each blob \
         are expected"
    )]
    Shared {
        /// The last image.
        image: String,
        /// Number of blobs, each counted for each image.
        named: usize,
        /// Number of different blobs.
        distinct: usize,
    },
    /// Two manifests have the same tag.
    #[error("image {image}: the tag is claimed by {first} and by {second}; one manifest for each tag is expected")]
    Conflict {
        /// The image.
        image: String,
        /// The first manifest.
        first: Box<Digest>,
        /// The other manifest.
        second: Box<Digest>,
    },
}

impl LayoutError {
    /// The fault of an entry of the index that names no image. Only an image cannot lack its root.
    pub(super) fn without_a_name(mut self) -> Self {
        if let Self::Blob { what, .. } = &mut self
            && *what == ROOT
        {
            *what = "manifest without a name";
        }
        self
    }

    /// Whether a blob is missing that an image can lack. An image cannot lack its root.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Blob { what, cause, .. } if *what != ROOT && cause.kind() == io::ErrorKind::NotFound)
    }
}
