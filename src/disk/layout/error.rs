//! What can be wrong with a layout, each with the file and the image that it is wrong in.

use std::io;

use super::{CONTAINERD_NAME, REF_NAME};
use crate::oci::graph::{MAX_DEPTH, MAX_MANIFESTS};
use crate::oci::{Digest, MAX_MANIFEST_SIZE, ManifestError, NameError};

/// What messages call the manifest or index that is an image itself.
pub(crate) const ROOT: &str = "manifest";

/// Why a layout cannot be served. Paths are those within the layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A file that every layout has cannot be read.
    #[error("cannot read {path}; an OCI image layout with oci-layout, index.json and blobs/ is expected")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file is not the JSON that the specification asks for.
    #[error("{path} is not the JSON of an image layout")]
    Json {
        /// The file.
        path: String,
        /// Where it stops being one.
        #[source]
        cause: serde_json::Error,
    },
    /// A layout of another version.
    #[error("oci-layout gives imageLayoutVersion {0:?}; 1.0.0 is expected")]
    Version(String),
    /// A name in an annotation that is none.
    #[error("index.json: annotation {annotation} names an image {name:?}")]
    Name {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        name: String,
        /// Why it is no name.
        #[source]
        cause: NameError,
    },
    /// No name at all, where one is needed.
    #[error("index.json: {digest} has no repository name in {REF_NAME} or {CONTAINERD_NAME}; give it one with --name")]
    Unnamed {
        /// The manifest without a name.
        digest: Digest,
    },
    /// A blob is missing or cannot be read.
    #[error("image {image}: cannot read {what} {path}, of {size} bytes")]
    Blob {
        /// The image that names it.
        image: String,
        /// What it is in the image.
        what: &'static str,
        /// Its path in the layout.
        path: String,
        /// Its size as described, in bytes.
        size: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A blob is longer or shorter than described.
    #[error("image {image}: {path} has {found} bytes, and its descriptor says {expected}")]
    Size {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// Bytes that the descriptor gives.
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// A manifest's content does not have the digest that names it.
    #[error("image {image}: {path} has the content of {found}")]
    Digest {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// The digest of what the file holds.
        found: Digest,
    },
    /// A manifest that is none.
    #[error("image {image}: {path} is expected to be a manifest")]
    Manifest {
        /// The image that names it.
        image: String,
        /// Its path in the layout.
        path: String,
        /// Why it is none.
        #[source]
        cause: ManifestError,
    },
    /// A manifest over [`MAX_MANIFEST_SIZE`].
    #[error("image {image}: manifest {digest} has {size} bytes; at most {MAX_MANIFEST_SIZE} are served")]
    TooLarge {
        /// The image that names it.
        image: String,
        /// The manifest.
        digest: Digest,
        /// Its size as described, in bytes.
        size: u64,
    },
    /// Indexes within indexes without end.
    #[error("image {image}: indexes are nested deeper than {MAX_DEPTH}, at {digest}")]
    Depth {
        /// The image.
        image: String,
        /// The index where the limit was passed.
        digest: Digest,
    },
    /// More manifests than anybody builds.
    #[error("image {image}: it has more than {MAX_MANIFESTS} manifests")]
    TooMany {
        /// The image.
        image: String,
    },
    /// Two manifests claim one tag.
    #[error("image {image}: the tag is claimed by {first} and by {second}; one manifest for each tag is expected")]
    Conflict {
        /// The image.
        image: String,
        /// The manifest that had it first.
        first: Box<Digest>,
        /// The other.
        second: Box<Digest>,
    },
}

impl LayoutError {
    /// Whether content is missing that an image can be served without: not the image's own manifest.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Blob { what, cause, .. } if *what != ROOT && cause.kind() == io::ErrorKind::NotFound)
    }
}
