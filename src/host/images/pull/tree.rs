//! A pulled image as an image layout: its own index, and blobs in the store that all pulled images share.

use std::io;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::store::Store;
use crate::disk::layout::{LEFT_OUT, OpenFile, REF_NAME, Tree};
use crate::host::images::platforms::SelectedPlatforms;
use crate::host::images::virtual_layout::{OCI_LAYOUT, in_memory};
use crate::oci::{Digest, ImageName, Repository, Tag, media_type};

/// A signature, referrer or list of referrers that could not be looked up in the registry, or not be pulled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct FailedLookup {
    /// The image.
    pub image: String,
    /// What was looked up: the referrers of a digest, a tag, or a manifest.
    pub what: String,
    /// Why it failed.
    pub why: String,
}

/// A manifest listed in the index.
#[derive(Debug, Clone)]
pub struct ListedManifest {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Media type that it was served with.
    pub media_type: String,
    /// Repository and tag. `None` for a referrer, which is found by its subject.
    pub name: Option<(Repository, Option<Tag>)>,
    /// What is left out below it.
    pub left_out: Vec<Digest>,
}

impl ListedManifest {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.size});
        if let Some((repository, tag)) = &self.name {
            let name = ImageName::new(repository.clone(), tag.clone(), self.digest);
            descriptor["annotations"] = json!({ REF_NAME: name.to_string() });
        }
        if !self.left_out.is_empty() {
            let left_out: Vec<String> = self.left_out.iter().map(ToString::to_string).collect();
            descriptor["annotations"][LEFT_OUT] = left_out.join(" ").into();
        }
        descriptor
    }
}

/// The layout of one pulled image.
#[derive(Debug, Clone)]
pub struct PulledLayout {
    store: Arc<Store>,
    index: String,
    /// Which platforms of the image were selected.
    pub selected: Option<SelectedPlatforms>,
    /// What could not be looked up.
    pub failed_lookups: Vec<FailedLookup>,
}

impl PulledLayout {
    /// The layout with these manifests in its index.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        listed: &[ListedManifest],
        selected: Option<SelectedPlatforms>,
        failed_lookups: Vec<FailedLookup>,
    ) -> Self {
        let manifests: Vec<Value> = listed.iter().map(ListedManifest::descriptor).collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        Self { store, index: index.to_string(), selected, failed_lookups }
    }
}

impl Tree for PulledLayout {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match path {
            "oci-layout" => Ok(in_memory(OCI_LAYOUT)),
            "index.json" => Ok(in_memory(self.index.as_bytes())),
            blob => self.store.blobs().open(blob),
        }
    }
}
