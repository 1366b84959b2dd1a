//! Reads the output of `localregistry deploy`: objects and images.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use localregistry::oci::Digest;
use serde_json::Value;

use crate::pack::PROGRAM;

/// The static `localregistry` that `tests/run` builds.
pub fn static_server() -> PathBuf {
    let target = Path::new(PROGRAM).parent().unwrap().parent().unwrap();
    let path = target.join("x86_64-unknown-linux-musl/debug/localregistry");
    let build = "cargo build --target x86_64-unknown-linux-musl --no-default-features --features host --bin localregistry";
    assert!(path.exists(), "{} is not there: {build}", path.display());
    path
}

/// The output folder of `localregistry deploy`.
pub struct Deployed(pub PathBuf);

/// An image in the output's layout.
pub struct Image {
    /// The field `config` of the image's configuration.
    pub start: Value,
    /// The files of each layer by absolute path. Paths of folders end with a slash.
    pub layers: Vec<BTreeMap<String, Entry>>,
}

/// A file of a layer.
pub struct Entry {
    pub user: u64,
    pub group: u64,
    pub mode: u32,
    pub content: Vec<u8>,
}

impl Deployed {
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// The object of this kind in the file.
    pub fn object(&self, file: &str, kind: &str) -> Value {
        let objects: Vec<Value> = serde_saphyr::from_multiple(&self.text(file)).unwrap();
        objects.into_iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("{file} has no {kind}"))
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        let digest: Digest = digest.parse().unwrap();
        let content = fs::read(self.0.join("images").join(digest.blob_path())).unwrap();
        assert_eq!(Digest::sha256_of(&content), digest);
        content
    }

    fn json(&self, digest: &Value) -> Value {
        serde_json::from_slice(&self.blob(digest.as_str().unwrap())).unwrap()
    }

    /// The image with this name.
    pub fn image(&self, name: &Value) -> Image {
        let index: Value = serde_json::from_str(&self.text("images/index.json")).unwrap();
        let named = |one: &&Value| one["annotations"]["org.opencontainers.image.ref.name"] == *name;
        let found = index["manifests"].as_array().unwrap().iter().find(named);
        let manifest = self.json(&found.unwrap_or_else(|| panic!("no image {name}: {index}"))["digest"]);
        let config = self.json(&manifest["config"]["digest"]);
        let layers = manifest["layers"].as_array().unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(layers.len(), diff_ids.len());
        let layers = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
            let mut archive = self.blob(layer["digest"].as_str().unwrap());
            if layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip" {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&archive[..]).read_to_end(&mut plain).unwrap();
                archive = plain;
            }
            assert_eq!(*diff_id, Digest::sha256_of(&archive).to_string());
            entries(&archive)
        });
        Image { layers: layers.collect(), start: config["config"].clone() }
    }
}

fn entries(archive: &[u8]) -> BTreeMap<String, Entry> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        let (user, group) = (header.uid().unwrap(), header.gid().unwrap());
        let (mode, time) = (header.mode().unwrap(), header.mtime().unwrap());
        assert_eq!(time, 0);
        let path = format!("/{}", entry.path().unwrap().display());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(found.insert(path, Entry { user, group, mode, content }).is_none());
    }
    found
}

impl Image {
    /// Owner, mode, size and path of every file, layer by layer.
    pub fn listing(&self) -> String {
        let of_layer = |layer: &BTreeMap<String, Entry>| {
            let line = |(path, entry): (&String, &Entry)| {
                format!("{}:{} {:04o} {} {path}\n", entry.user, entry.group, entry.mode, entry.content.len())
            };
            layer.iter().map(line).collect::<String>()
        };
        self.layers.iter().map(of_layer).collect::<Vec<_>>().join("\n")
    }

    /// The content of a file.
    pub fn file(&self, path: &str) -> &[u8] {
        &self.layers.iter().rev().find_map(|layer| layer.get(path)).unwrap_or_else(|| panic!("no {path}")).content
    }
}
