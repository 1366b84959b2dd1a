//! Layouts whose `index.json` is itself the index of an image for several platforms, as apko, jam and go-containerregistry's layout
//! writer make them: its entries have platforms and no names.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use crate::disk::layout::{self, Tree};
use crate::host::images::virtual_layout::Overlay;
use crate::oci::{Algorithm, MAX_MANIFEST_SIZE, Manifest};

/// The operating system in entries that are not for a platform, such as BuildKit's attestations.
const UNKNOWN: &str = "unknown";

/// The layout with one entry, for that index, if `index.json` is one. The index keeps its bytes, and so its digest. Every other layout
/// stays unchanged.
pub fn as_image(tree: Box<dyn Tree + Send + Sync>) -> Box<dyn Tree + Send + Sync> {
    let Some((content, media_type)) = flat_index(tree.as_ref()) else { return tree };
    let digest = Algorithm::Sha256.digest_of(&content);
    let entry = json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    Box::new(Overlay { tree, files: HashMap::from([("index.json".to_owned(), index), (digest.blob_path(), content)]) })
}

/// The content and media type of an `index.json` that has at least two entries, none with a name, and one for each platform.
fn flat_index(tree: &dyn Tree) -> Option<(Vec<u8>, String)> {
    let content = tree.open("index.json").and_then(|file| file.read_all(MAX_MANIFEST_SIZE)).ok()?;
    let index = Manifest::parse(&content).ok()?;
    let entries = layout::entries(tree).ok()?;
    let described: Value = serde_json::from_slice(&content).ok()?;
    let mut platforms = HashSet::new();
    let is_part = |(entry, described): (&layout::IndexEntry, &Value)| match &entry.descriptor.platform {
        _ if entry.has_name() => false,
        // The platform as it stands there, because of fields such as os.version.
        Some(platform) if platform.os != UNKNOWN => platforms.insert(described.get("platform").map(Value::to_string)),
        other => other.is_some() || entry.attests.is_some() || !entry.is_manifest(),
    };
    let all_are_parts = entries.len() > 1 && entries.iter().zip(described.get("manifests")?.as_array()?).all(is_part);
    (all_are_parts && !platforms.is_empty()).then_some((content, index.media_type))
}
