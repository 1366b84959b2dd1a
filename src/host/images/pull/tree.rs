//! What was pulled of one image, seen as an image layout: the blobs that all pulled images share, and an index of its own.

use std::io::{self, Cursor};
use std::sync::Arc;

use serde_json::{Value, json};

use super::store::Store;
use crate::disk::layout::{OpenFile, REF_NAME, Tree};
use crate::oci::{Digest, ImageName, Repository, Tag, media_type};

/// A manifest that the index lists.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The media type that it was served with.
    pub media_type: String,
    /// Its name; none for what refers to another manifest and is found by that.
    pub name: Option<(Repository, Option<Tag>)>,
}

impl Listed {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.size});
        if let Some((repository, tag)) = &self.name {
            let name = ImageName::new(repository.clone(), tag.clone(), self.digest);
            descriptor["annotations"] = json!({ REF_NAME: name.to_string() });
        }
        descriptor
    }
}

/// The layout.
#[derive(Debug, Clone)]
pub struct Pulled {
    store: Arc<Store>,
    index: String,
}

impl Pulled {
    /// A layout of these manifests.
    #[must_use]
    pub fn new(store: Arc<Store>, listed: &[Listed]) -> Self {
        let manifests: Vec<Value> = listed.iter().map(Listed::descriptor).collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        Self { store, index: index.to_string() }
    }
}

impl Tree for Pulled {
    fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
        match path {
            "oci-layout" => Ok(text(r#"{"imageLayoutVersion":"1.0.0"}"#)),
            "index.json" => Ok(text(&self.index)),
            blob => self.store.blobs().open(blob),
        }
    }
}

fn text(text: &str) -> OpenFile<'_> {
    OpenFile { size: text.len() as u64, reader: Box::new(Cursor::new(text.as_bytes())) }
}
