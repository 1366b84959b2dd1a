//! Manifests and indexes, parsed as far as packing and serving need: which content they name.
//!
//! Nothing is written from these types. A manifest's digest is that of its bytes, so the bytes are kept as they are.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Descriptor, json, media_type};

/// Size in bytes of the largest manifest that is packed and served (distribution specification, "Pushing Manifests": at least 4 MiB).
pub const MAX_MANIFEST_SIZE: u64 = 4 << 20;

/// A parsed manifest of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The field `mediaType`, or the type that the other fields imply.
    pub media_type: String,
    /// Whether the content has the field `mediaType`.
    pub has_media_type: bool,
    /// The manifests of an index.
    pub manifests: Vec<Descriptor>,
    /// The config (if any) and layers of an image, the blobs of an artifact, or what an index lists beside manifests.
    pub blobs: Vec<Descriptor>,
    /// The manifest that this one refers to, as a signature does.
    pub subject: Option<Descriptor>,
    /// `artifactType`, or the config's media type (distribution specification, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// The manifest's own annotations.
    pub annotations: HashMap<String, String>,
}

/// Why content is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON of a manifest.
    #[error("it is not the JSON of a manifest")]
    Json(#[from] serde_json::Error),
    /// Both `layers` and `manifests`: image and index at once (CVE-2021-41190).
    #[error("it has both \"layers\" and \"manifests\": it is an image and an index at once")]
    Ambiguous,
    /// There is no `manifests`, `layers`, `blobs` or `config`.
    #[error("it has none of \"manifests\", \"layers\", \"config\"")]
    Empty,
    /// `mediaType` does not fit the other fields.
    #[error("its mediaType is {0:?}, but its fields are those of another type")]
    Kind(String),
    /// Docker's schema 1. Its layers have no descriptors.
    #[error("it is a Docker schema 1 manifest; pull and save the image again with a current tool")]
    Schema1,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(deserialize_with = "json::null_as_default")]
    schema_version: u64,
    #[serde(default, deserialize_with = "media_type::optional")]
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "json::texts")]
    annotations: HashMap<String, String>,
}

impl Manifest {
    /// Parses a manifest or an index.
    ///
    /// # Errors
    /// Fails if `content` is neither.
    pub fn parse(content: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(content)?;
        if raw.schema_version == 1 && raw.media_type.as_deref() != Some(media_type::OCI_ARTIFACT) {
            return Err(ManifestError::Schema1);
        }
        let image = raw.layers.is_some() || raw.config.is_some();
        let shape = match (raw.manifests.is_some(), image, raw.blobs.is_some()) {
            (true, true, _) => return Err(ManifestError::Ambiguous),
            (true, false, _) => media_type::OCI_INDEX,
            (false, true, _) => media_type::OCI_MANIFEST,
            (false, false, true) => media_type::OCI_ARTIFACT,
            (false, false, false) => empty_shape(content, raw.media_type.as_deref())?,
        };
        let has_media_type = raw.media_type.is_some();
        let media_type = raw.media_type.unwrap_or_else(|| shape.to_owned());
        if media_type::is_manifest(&media_type) && media_type::is_index(&media_type) != media_type::is_index(shape) {
            return Err(ManifestError::Kind(media_type));
        }
        let listed = raw.manifests.unwrap_or_default().into_iter();
        let (manifests, others): (Vec<_>, Vec<_>) = listed.partition(|entry| media_type::is_manifest_entry(&entry.media_type));
        let config_type = raw.config.as_ref().map(|config| config.media_type.clone());
        Ok(Self {
            media_type,
            has_media_type,
            manifests,
            blobs: raw.config.into_iter().chain(raw.layers.or(raw.blobs).unwrap_or_default()).chain(others).collect(),
            subject: raw.subject,
            artifact_type: raw.artifact_type.filter(|artifact_type| !artifact_type.is_empty()).or(config_type),
            annotations: raw.annotations,
        })
    }

    /// The config of a container image. An artifact has none.
    #[must_use]
    pub fn config(&self) -> Option<&Descriptor> {
        self.blobs.first().filter(|first| media_type::is_config(&first.media_type) && !media_type::is_index(&self.media_type))
    }
}

/// The type of a manifest that lists nothing. An artifact manifest may have no blobs, and an empty index may leave its list out.
/// Otherwise the list is there and is `null`, so its name decides.
fn empty_shape(content: &[u8], declared: Option<&str>) -> Result<&'static str, ManifestError> {
    match declared {
        Some(media_type::OCI_ARTIFACT) => return Ok(media_type::OCI_ARTIFACT),
        Some(declared) if media_type::is_index(declared) => return Ok(media_type::OCI_INDEX),
        _ => {}
    }
    let fields: Map<String, Value> = serde_json::from_slice(content)?;
    let lists = [("layers", media_type::OCI_MANIFEST), ("manifests", media_type::OCI_INDEX), ("blobs", media_type::OCI_ARTIFACT)];
    lists.into_iter().find(|(list, _)| fields.contains_key(*list)).map(|(_, shape)| shape).ok_or(ManifestError::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str =
        r#"{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;

    fn parse(json: &str) -> Result<Manifest, String> {
        Manifest::parse(json.replace("$D", D).as_bytes()).map_err(|error| match error {
            ManifestError::Json(cause) => cause.to_string(),
            other => other.to_string(),
        })
    }

    #[test]
    fn images_indexes_and_artifacts_are_parsed() {
        let image = parse(r#"{"schemaVersion":2,"config":$D,"layers":[$D,$D],"subject":$D}"#).unwrap();
        assert_eq!((image.media_type.as_str(), image.blobs.len(), image.subject.is_some()), (media_type::OCI_MANIFEST, 3, true));
        assert_eq!(image.artifact_type.as_deref(), Some("m"));
        let index = parse(&format!(r#"{{"schemaVersion":2,"manifests":[$D,{}]}}"#, D.replace("\"m\"", "\"\""))).unwrap();
        // An entry of another type is content.
        assert_eq!((index.media_type.as_str(), index.manifests.len(), index.blobs.len()), (media_type::OCI_INDEX, 1, 1));
        let artifact =
            parse(&format!(r#"{{"schemaVersion":2,"mediaType":"{}","blobs":[$D]}}"#, media_type::OCI_ARTIFACT)).unwrap();
        assert_eq!(artifact.blobs.len(), 1);
    }

    #[test]
    fn media_types_that_no_header_can_have_are_refused() {
        let bad = r#"application/x\u0001y"#;
        for json in [
            r#"{"schemaVersion":2,"mediaType":"$B","layers":[]}"#,
            r#"{"schemaVersion":2,"layers":[{"mediaType":"$B","digest":"","size":0}]}"#,
        ] {
            let error = parse(&json.replace("$B", bad)).unwrap_err();
            assert!(
                error.starts_with(r#"the media type "application/x\u{1}y" has characters that no media type has"#),
                "{error}"
            );
        }
        let empty = parse(r#"{"schemaVersion":2,"mediaType":"","layers":[]}"#).unwrap();
        assert_eq!((empty.media_type.as_str(), empty.has_media_type), (media_type::OCI_MANIFEST, false));
    }

    #[test]
    fn ambiguous_and_empty_manifests_are_refused() {
        for (json, expected) in [
            (r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, ManifestError::Ambiguous.to_string()),
            (r#"{"schemaVersion":2}"#, ManifestError::Empty.to_string()),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, ManifestError::Schema1.to_string()),
            (
                &format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media_type::OCI_MANIFEST),
                ManifestError::Kind(media_type::OCI_MANIFEST.to_owned()).to_string(),
            ),
        ] {
            assert_eq!(parse(json).unwrap_err(), expected);
        }
        let wrong = parse(r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../x","size":1}]}"#).unwrap_err();
        assert!(wrong.contains("a sha256 digest has 64 hexadecimal digits, not \"sha256:../x\""), "{wrong}");
    }
}
