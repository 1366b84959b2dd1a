//! Media types of manifests, configs and layers.

use http::HeaderValue;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// OCI image index (image specification, "Image Index").
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest (image specification, "Image Manifest").
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI artifact manifest. Version 1.1 of the specification dropped it before its release; such manifests still exist.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// The empty descriptor's content, `{}` (image specification, "Guidance for an Empty Descriptor").
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker manifest list (distribution, "Image Manifest V2, Schema 2").
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Start of the media types of Docker's schema 1, with and without a signature.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, a tar archive.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, a tar archive compressed with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, compressed with zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Whether `text` can be the value of the header `Content-Type`, in which a manifest's type is sent: visible ASCII, spaces and tabs.
#[must_use]
pub fn is_header_value(text: &str) -> bool {
    !text.is_empty() && HeaderValue::from_str(text).is_ok()
}

/// Deserializes a media type. `null` and an empty text are none, as in Go.
///
/// # Errors
/// Fails if it cannot be sent in a header.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    match text.as_deref().filter(|text| !is_header_value(text)) {
        Some(wrong) => Err(D::Error::custom(format!("the media type {wrong:?} has characters that no media type has"))),
        None => Ok(text),
    }
}

/// As [`optional`], with an empty text for none.
///
/// # Errors
/// As [`optional`].
pub fn or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    optional(deserializer).map(Option::unwrap_or_default)
}

/// Whether content of this type lists manifests.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// The media type in a `Content-Type`, without parameters and in lower case: media types are compared without regard to case (RFC 9110,
/// section 8.3.1).
#[must_use]
pub fn of_header(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether the manifests endpoint serves content of this type.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    is_index(media_type) || matches!(media_type, OCI_MANIFEST | OCI_ARTIFACT | DOCKER_MANIFEST)
}

/// Whether an index's entry of this type is a manifest. Other entries are content of their own, such as the layers in BuildKit's cache
/// or an SBOM (image specification, "Image Index": unknown media types must not be an error). An entry without a type, or of Docker's
/// schema 1, counts as a manifest, so that it is reported if it cannot be served.
#[must_use]
pub fn is_manifest_entry(media_type: &str) -> bool {
    media_type.is_empty() || is_manifest(media_type) || media_type.starts_with(DOCKER_SCHEMA1)
}

/// Whether content of this type is the config of a container image.
#[must_use]
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether a layer of this type is non-distributable (image specification, "Non-Distributable Layers"). Docker calls such layers foreign.
#[must_use]
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}
