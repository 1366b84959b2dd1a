//! The disk's `index.json`: one descriptor for each image, sorted by name. The same images give the same bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::image_set::ImageSet;
use crate::disk::layout::{EVERY_TAG, LEFT_OUT, REF_NAME};
use crate::oci::media_type;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<IndexEntry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry<'a> {
    media_type: &'a str,
    digest: String,
    size: u64,
    annotations: BTreeMap<&'static str, Cow<'a, str>>,
}

/// The content of `index.json`.
///
/// # Errors
/// Fails only if serialization fails, which it does not for these types.
pub fn json(set: &ImageSet) -> serde_json::Result<Vec<u8>> {
    let mut manifests = Vec::with_capacity(set.images.len());
    for (name, image) in &set.images {
        let catalog = &set.catalog;
        let repository = catalog.repository(image.repository.as_str());
        let blob = repository.and_then(|repository| catalog.blob_in(repository, &image.digest)).and_then(|id| catalog.blob(id));
        let Some(blob) = blob else { continue };
        let every_tag = image.every_tag.then_some((EVERY_TAG, "true".into()));
        let mut left_out: Vec<String> = image.left_out.iter().map(|blob| blob.digest.to_string()).collect();
        left_out.sort_unstable();
        let left_out = Some((LEFT_OUT, left_out.join(" ").into())).filter(|_| !left_out.is_empty());
        manifests.push(IndexEntry {
            media_type: blob.manifest.unwrap_or_default(),
            digest: image.digest.to_string(),
            size: blob.size,
            annotations: every_tag.into_iter().chain(left_out).chain([(REF_NAME, name.into())]).collect(),
        });
    }
    serde_json::to_vec(&Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests })
}
