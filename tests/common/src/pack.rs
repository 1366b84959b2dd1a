//! A temporary folder in which tests run `localregistry` with relative paths, so that its messages are predictable; and archives to
//! pack.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use localregistry::host::support::cache;
use localregistry::oci::Digest;
use serde_json::{Value, json};
use tar::EntryType;
use tempfile::TempDir;

use crate::environment::usual_umask;
use crate::erofs;
use crate::layout::{Layout, Stored};
use crate::server::Server;
use crate::vm::succeed;

pub const PROGRAM: &str = env!("PROGRAM");

/// A disk of one block with an EROFS superblock and nothing else: what a launcher can see of a disk is right.
pub fn superblock() -> Vec<u8> {
    let mut disk = vec![0; 4096];
    disk[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    // Blocks of 2^12 bytes, and one of them.
    disk[1036] = 12;
    disk[1060] = 1;
    disk
}

/// The folder.
pub struct Bench {
    dir: TempDir,
}

impl Default for Bench {
    fn default() -> Self {
        usual_umask();
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Moves a layout here.
    pub fn layout(&self, name: &str, layout: &Layout) -> PathBuf {
        let to = self.path(name);
        let copied = crate::program("cp").arg("-r").arg(layout.write()).arg(&to).status().unwrap();
        assert!(copied.success());
        to
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// `localregistry ARGUMENTS`, run here, with nobody's credentials and proxies but those that are here. The downloaded kernel is
    /// everybody's.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = crate::program(PROGRAM);
        command.args(arguments).current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env("LOCALREGISTRY_CACHE", cache::folder("").unwrap());
        command.env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Runs `localregistry --quiet pack ARGUMENTS -o disk.erofs`, which has to succeed without a word, and gives the result.
    pub fn pack(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
        text(&output.stdout)
    }

    /// Makes the sample image's disk, and gives its path.
    pub fn sample_disk(&self) -> PathBuf {
        succeed(&mut self.command(&["--quiet", "sample", "--output", "sample"]));
        self.pack(&["sample"]);
        self.path("disk.erofs")
    }

    /// Runs the same, which has to fail with this message and leave everything as it was, with an old disk there and without.
    pub fn refused(&self, arguments: &[&str], message: &str) {
        for old in [None, Some("the old disk")] {
            let _ = fs::remove_file(self.path("disk.erofs"));
            old.into_iter().for_each(|old| fs::write(self.path("disk.erofs"), old).unwrap());
            let before = self.everything();
            let output = self.run(arguments);
            assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"));
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
            assert_eq!(self.everything(), before);
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(&[&["--quiet", "pack", "-o", "disk.erofs"], arguments].concat()).output().unwrap()
    }

    /// Every path here, hidden ones too, with the content of files.
    pub fn everything(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        walk(self.dir.path(), &mut |path, metadata| {
            found.insert(path.to_owned(), if metadata.is_file() { fs::read(path).unwrap() } else { Vec::new() });
        });
        found
    }

    /// Serves the content of disk.erofs.
    pub fn serve(&self) -> Server {
        self.extract("disk.erofs");
        Server::start(&self.path("disk.erofs.extracted"))
    }

    /// The content of the disk: as `fsck.erofs` extracts it under `tests/run`, and by a reader of the tests' own under `cargo test`.
    pub fn extract(&self, disk: &str) -> Extracted {
        let into = self.path(&format!("{disk}.extracted"));
        if into.exists() {
            // Its folders are read-only, which stops everyone but root.
            assert!(crate::program("chmod").arg("-R").arg("u+w").arg(&into).status().unwrap().success());
            fs::remove_dir_all(&into).unwrap();
        }
        if std::env::var_os("LOCALREGISTRY_TESTS").is_some() {
            let fsck = crate::program("fsck.erofs")
                .arg("--preserve-perms")
                .arg(format!("--extract={}", into.display()))
                .arg(self.path(disk))
                .output()
                .unwrap();
            assert!(fsck.status.success(), "{}", text(&fsck.stderr));
        } else {
            erofs::extract(&fs::read(self.path(disk)).unwrap(), &into);
        }
        let mut files = BTreeMap::new();
        let mut listing = String::new();
        walk(&into, &mut |path, metadata| {
            let name = path.strip_prefix(&into).unwrap().display().to_string();
            let size = if metadata.is_file() { metadata.len().to_string() } else { "-".to_owned() };
            listing.push_str(&format!("{:04o} {size} /{name}\n", metadata.permissions().mode() & 0o7777));
            if metadata.is_file() {
                files.insert(name, fs::read(path).unwrap());
            }
        });
        Extracted { files, listing }
    }
}

/// What a disk holds.
pub struct Extracted {
    /// Content by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Mode, size and path of everything, in order.
    pub listing: String,
}

impl Extracted {
    /// Name and digest of each image in index.json.
    pub fn images(&self) -> Vec<(String, String)> {
        let index: Value = serde_json::from_slice(&self.files["index.json"]).unwrap();
        let manifests = index["manifests"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        manifests.iter().map(|m| (text(&m["annotations"]["org.opencontainers.image.ref.name"]), text(&m["digest"]))).collect()
    }

    /// The names alone.
    pub fn names(&self) -> Vec<String> {
        self.images().into_iter().map(|(name, _)| name).collect()
    }

    pub fn blob(&self, digest: &str) -> &[u8] {
        let digest: Digest = digest.parse().unwrap();
        &self.files[&digest.blob_path()]
    }

    pub fn json(&self, digest: &str) -> Value {
        serde_json::from_slice(self.blob(digest)).unwrap()
    }

    /// Checks that each blob's content has the digest that it is named by.
    pub fn assert_blobs(&self) {
        for (path, content) in &self.files {
            let Some(hex) = path.strip_prefix("blobs/sha256/") else { continue };
            assert_eq!(Digest::sha256_of(content).hex(), hex);
        }
    }
}

fn walk(path: &Path, each: &mut impl FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).unwrap();
    each(path, &metadata);
    if metadata.is_dir() {
        let mut entries: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| walk(entry, each));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An archive of (name, kind, content or target), names as they are given.
pub fn archive(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tar::Header::new_ustar();
        // Not by the library's setter, which refuses some names that others write.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        let data = if kind.is_file() { *content } else { b"" };
        if !kind.is_file() {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content);
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The archive of a folder, as `tar -C FOLDER -c .` makes it.
pub fn archive_of(folder: &Path) -> Vec<u8> {
    let tar = crate::program("tar").arg("-C").arg(folder).args(["-c", "."]).output().unwrap();
    assert!(tar.status.success());
    tar.stdout
}

pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// A `docker save` archive in the making: its members, and `manifest.json`.
#[derive(Default)]
pub struct Saved {
    pub members: Vec<(String, EntryType, Vec<u8>)>,
    pub manifest: Vec<Value>,
}

impl Saved {
    pub fn member(&mut self, name: &str, content: &[u8]) {
        self.members.push((name.to_owned(), EntryType::Regular, content.to_owned()));
    }

    pub fn link(&mut self, name: &str, target: &str) {
        self.members.push((name.to_owned(), EntryType::Symlink, target.as_bytes().to_owned()));
    }

    /// An image with these tags, and these layers: the member, and the uncompressed content that the config expects.
    pub fn image(&mut self, tags: &[&str], layers: &[(&str, &[u8])]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|(_, content)| Digest::sha256_of(content).to_string()).collect();
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        let name = format!("{}.json", Digest::sha256_of(config.as_bytes()).hex());
        self.member(&name, config.as_bytes());
        let members: Vec<&str> = layers.iter().map(|(member, _)| *member).collect();
        self.manifest.push(json!({"Config": name, "RepoTags": tags, "Layers": members}));
        name
    }

    pub fn bytes(&self) -> Vec<u8> {
        let manifest = serde_json::to_vec(&self.manifest).unwrap();
        let mut members: Vec<(&str, EntryType, &[u8])> =
            self.members.iter().map(|(name, kind, content)| (name.as_str(), *kind, content.as_slice())).collect();
        members.push(("manifest.json", EntryType::Regular, &manifest));
        archive(&members)
    }
}

/// The SHA-256 digest of a file.
pub fn digest_of(path: &Path) -> String {
    let mut hasher = localregistry::oci::Hasher::new(localregistry::oci::Algorithm::Sha256);
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut File::open(path).unwrap(), &mut content).unwrap();
    hasher.update(&content);
    hasher.finish().to_string()
}

/// A layout `layout` with the image test/hello:latest, whose only layer is given.
pub fn hello(layer: &[u8]) -> (Bench, PathBuf, Stored) {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let manifest = layout.image("test/hello:latest", layer);
    let path = bench.layout("layout", &layout);
    (bench, path, manifest)
}

/// The path of a blob in a layout.
pub fn blob(content: &[u8]) -> String {
    Digest::sha256_of(content).blob_path()
}
