//! The blobs and manifests that the cases request.

use std::fs::File;
use std::sync::LazyLock;

use bytes::Bytes;
use localregistry::oci::{Digest, media_type};
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::json;

use testing::layout::{Layout, Stored};

/// Sizes of blobs in bytes: around the server's read sizes (1 KiB, 128 KiB), around the largest cached manifest (16 KiB), and up
/// to several chunks. The order is ascending, so that a failure shrinks to the smallest blob.
const SIZES: [usize; 24] = [
    0, 1, 2, 1023, 1024, 1025, 2048, 5000, 16_383, 16_384, 16_385, 65_536, 100_000, 131_071, 131_072, 131_073, 200_003, 262_143,
    262_144, 262_145, 300_017, 393_217, 700_001, 1_500_000,
];
/// Size in bytes of the largest blob.
const LARGEST: usize = (3 << 20) + 7;

/// Random bytes, made once for all tests. None is zero: over plain HTTP/1.1 the server has zeros in the place of a file's bytes until the
/// kernel sends these.
static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 8 << 20];
    proptest::prelude::Rng::fill_bytes(&mut TestRng::deterministic_rng(RngAlgorithm::ChaCha), &mut bytes);
    bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = 0xa5);
    bytes
});

/// A blob or manifest to request.
#[derive(Debug)]
pub struct Target {
    pub path: String,
    pub content: Bytes,
    pub digest: Digest,
    pub media_type: &'static str,
}

/// A layout and its targets.
pub struct Content {
    pub layout: Layout,
    pub targets: Vec<Target>,
}

impl Content {
    /// Creates blobs of random bytes, and manifests of a few KiB, of more than the cache takes, and of several chunks.
    pub fn new() -> Self {
        let mut rest = RANDOM.as_slice();
        let mut random = |size: usize| rest.split_off(..size).unwrap().to_vec();
        let mut layout = Layout::default();
        let blobs: Vec<Vec<u8>> = SIZES.into_iter().chain([LARGEST]).map(&mut random).collect();
        let config = layout.json(&json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}));
        let layers: Vec<_> =
            blobs.iter().map(|blob| layout.blob(blob).descriptor("application/vnd.oci.image.layer.v1.tar")).collect();
        let mut targets: Vec<Target> = blobs
            .into_iter()
            .map(|content| {
                let digest = Digest::sha256_of(&content);
                Target::new(format!("blobs/{digest}"), content, digest, "application/octet-stream")
            })
            .collect();
        for (tag, note) in [("small", 100), ("unkept", 20_000), ("large", 300_000)] {
            let note: String = random(note).iter().map(|byte| char::from(b' ' + byte % 64)).collect();
            let manifest = serde_json::to_vec(&json!({
                "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": layers,
                "config": config.descriptor(media_type::OCI_CONFIG), "annotations": {"note": note},
            }))
            .unwrap();
            let stored: Stored = layout.blob(&manifest);
            layout.name(stored, media_type::OCI_MANIFEST, &format!("test/ranges:{tag}"));
            for (path, media_type) in [
                (format!("manifests/{tag}"), media_type::OCI_MANIFEST),
                (format!("manifests/{}", stored.digest), media_type::OCI_MANIFEST),
                (format!("blobs/{}", stored.digest), "application/octet-stream"),
            ] {
                targets.push(Target::new(path, manifest.clone(), stored.digest, media_type));
            }
        }
        layout.write();
        let content = Self { layout, targets };
        // Only pages that are already written to the disk can be evicted.
        content.targets.iter().for_each(|target| content.file(target).sync_all().unwrap());
        content
    }

    /// The number of targets.
    pub const fn count() -> usize {
        SIZES.len() + 1 + 3 * 3
    }

    /// The index of the largest blob among the targets.
    pub const fn largest() -> usize {
        SIZES.len()
    }

    /// Evicts the file of a target from the page cache, so that the server reads it from the disk.
    pub fn evict(&self, target: &Target) {
        rustix::fs::fadvise(self.file(target), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    fn file(&self, target: &Target) -> File {
        File::open(self.layout.path().join(target.digest.blob_path())).unwrap()
    }
}

impl Target {
    fn new(path: String, content: Vec<u8>, digest: Digest, media_type: &'static str) -> Self {
        Self { path: format!("/v2/test/ranges/{path}"), content: content.into(), digest, media_type }
    }

    /// The entity tag that the server documents: the quoted digest.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.digest)
    }
}
