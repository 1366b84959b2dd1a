//! Writes OCI image layouts.

use std::path::Path;
use std::sync::LazyLock;

use localregistry::oci::{Algorithm, Digest, Hasher, media_type};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Content of `size` bytes (a multiple of 8) in which no 16 bytes repeat, so that bytes from a wrong offset are noticed.
pub fn content(size: usize) -> Vec<u8> {
    // Made once, because many tests use all of it.
    static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| counted(LARGEST));
    if size < 1 << 20 { counted(size) } else { LARGE[..size].to_vec() }
}

/// The largest [`content`] in bytes.
const LARGEST: usize = 64 << 20;

fn counted(size: usize) -> Vec<u8> {
    let mut content = vec![0; size / 8 * 8];
    for (number, bytes) in (0_u64..).zip(content.as_chunks_mut::<8>().0) {
        *bytes = number.to_le_bytes();
    }
    content
}

pub struct Layout {
    pub dir: TempDir,
    index: Vec<Value>,
}

/// Digest and size of a stored blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: usize,
}

impl Stored {
    pub fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest.to_string(), "size": self.size})
    }
}

impl Default for Layout {
    fn default() -> Self {
        crate::environment::usual_umask();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, index: Vec::new() }
    }
}

impl Layout {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn blob(&self, content: &[u8]) -> Stored {
        self.blob_by(Algorithm::Sha256, content)
    }

    pub fn blob_by(&self, algorithm: Algorithm, content: &[u8]) -> Stored {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        let digest = hasher.finish();
        let path = self.path().join(digest.blob_path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        Stored { digest, size: content.len() }
    }

    pub fn json(&self, value: &Value) -> Stored {
        self.blob(&serde_json::to_vec(value).unwrap())
    }

    /// Writes an image manifest with these layers and does not list it in the index.
    pub fn manifest(&self, layers: &[&[u8]]) -> Stored {
        let config = self.json(&json!({"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}));
        let layers: Vec<Value> =
            layers.iter().map(|layer| self.blob(layer).descriptor("application/vnd.oci.image.layer.v1.tar")).collect();
        self.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "config": config.descriptor(media_type::OCI_CONFIG), "layers": layers,
        }))
    }

    /// Writes an artifact that refers to `subject` and does not list it in the index.
    pub fn artifact(&self, artifact_type: &str, subject: Stored, content: &[u8]) -> Stored {
        let empty = self.blob(b"{}");
        let layer = self.blob(content);
        self.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": artifact_type,
            "config": empty.descriptor("application/vnd.oci.empty.v1+json"),
            "layers": [layer.descriptor("application/octet-stream")],
            "subject": subject.descriptor(media_type::OCI_MANIFEST),
            "annotations": {"made-by": "test"},
        }))
    }

    /// Lists this descriptor in the index.
    pub fn list(&mut self, descriptor: Value) {
        self.index.push(descriptor);
    }

    /// Lists a manifest in the index, with this name unless it is empty.
    pub fn name(&mut self, stored: Stored, media_type: &str, name: &str) -> &mut Self {
        let mut descriptor = stored.descriptor(media_type);
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        self.index.push(descriptor);
        self
    }

    /// Writes and lists an image with one layer.
    pub fn image(&mut self, name: &str, layer: &[u8]) -> Stored {
        let manifest = self.manifest(&[layer]);
        self.name(manifest, media_type::OCI_MANIFEST, name);
        manifest
    }

    /// A layout with the image `test/hello:latest`, and this image.
    pub fn hello() -> (Self, Stored) {
        let mut layout = Self::default();
        let image = layout.image("test/hello:latest", b"layer");
        layout.write();
        (layout, image)
    }

    /// A layout with the image `test/hello:latest`, whose layer is larger than the socket buffers. Returns the layer and its
    /// content.
    pub fn large() -> (Self, Stored, Vec<u8>) {
        let mut layout = Self::default();
        let content = content(LARGEST);
        layout.image("test/hello:latest", &content);
        let layer = layout.blob(&content);
        (layout, layer, content)
    }

    /// Writes `index.json`.
    pub fn write(&self) -> &Path {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": self.index});
        std::fs::write(self.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        self.path()
    }
}
