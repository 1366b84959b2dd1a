//! Descriptors: what an index or manifest says of content it names.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};

use super::{Digest, Platform, json, media_type};

/// A descriptor (image specification, "Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default, deserialize_with = "media_type::or_empty")]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Annotations. In an index they often hold the image's name.
    #[serde(default, deserialize_with = "json::texts")]
    pub annotations: HashMap<String, String>,
    /// Artifact type of a manifest.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Platform of a manifest in an index. `None` if it lacks the architecture or the operating system, which some tools leave out or
    /// empty: then it says nothing.
    #[serde(default, deserialize_with = "complete_platform")]
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

fn complete_platform<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Platform>, D::Error> {
    #[derive(Deserialize)]
    struct Partial {
        architecture: Option<String>,
        os: Option<String>,
        variant: Option<String>,
    }
    let filled = |field: Option<String>| field.filter(|field| !field.is_empty());
    let platform = Option::<Partial>::deserialize(deserializer)?;
    Ok(platform.and_then(|Partial { architecture, os, variant }| {
        Some(Platform { architecture: filled(architecture)?, os: filled(os)?, variant: filled(variant) })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_platform_is_none() {
        let digest = Digest::sha256_of(b"");
        let platform = |platform: &str| {
            let json = format!(r#"{{"digest":"{digest}","size":0,"platform":{platform}}}"#);
            serde_json::from_str::<Descriptor>(&json).map(|descriptor| descriptor.platform.map(|platform| platform.to_string()))
        };
        for (json, expected) in [
            (r#"{"os":"linux","architecture":"amd64","variant":null}"#, Some("linux/amd64")),
            (r#"{"os":"linux","architecture":"arm","variant":"v7","os.version":"1"}"#, Some("linux/arm/v7")),
            (r#"{"os":"linux"}"#, None),
            (r#"{"os":"","architecture":""}"#, None),
            (r#"{"os":null,"architecture":"amd64"}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(platform(json).unwrap().as_deref(), expected, "{json}");
        }
        assert!(platform(r#""linux/amd64""#).is_err());
    }
}
