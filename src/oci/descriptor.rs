//! Descriptors: what an index or manifest says of content it names.

use std::collections::HashMap;

use serde::Deserialize;

use super::json::null_as_default;
use super::{Digest, Platform};

/// A descriptor (image specification, "Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Annotations. In an index they often hold the image's name.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: HashMap<String, String>,
    /// Artifact type of a manifest.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Platform of a manifest in an index.
    #[serde(default)]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor with the required fields only.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let (annotations, artifact_type, platform) = (HashMap::new(), None, None);
        Self { media_type: media_type.to_owned(), digest, size, annotations, artifact_type, platform }
    }
}
