//! The disk's `index.json`: one descriptor for each image, in order of their names. Pure, and the same bytes each time.

use std::collections::BTreeMap;

use serde::Serialize;

use super::image_set::Contents;
use crate::disk::layout::{EVERY_TAG, REF_NAME};
use crate::oci::media_type;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
    annotations: BTreeMap<&'static str, &'a str>,
}

/// The file.
///
/// # Errors
/// Never: it is always JSON.
pub fn json(contents: &Contents) -> serde_json::Result<Vec<u8>> {
    let mut manifests = Vec::with_capacity(contents.images.len());
    for (name, image) in &contents.images {
        let catalog = &contents.catalog;
        let repository = catalog.repository(image.repository.as_str());
        let blob = repository.and_then(|repository| catalog.blob_in(repository, &image.digest)).and_then(|id| catalog.blob(id));
        let Some(blob) = blob else { continue };
        let every_tag = image.every_tag.then_some((EVERY_TAG, "true"));
        manifests.push(Entry {
            media_type: blob.manifest.unwrap_or_default(),
            digest: image.digest.to_string(),
            size: blob.size,
            annotations: every_tag.into_iter().chain([(REF_NAME, name.as_str())]).collect(),
        });
    }
    serde_json::to_vec(&Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests })
}
