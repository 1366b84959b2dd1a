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

use crate::environment::{every_case, usual_umask};
use crate::erofs;
use crate::layout::{Layout, Stored};
use crate::server::Server;
use crate::vm::succeed;

pub const PROGRAM: &str = env!("PROGRAM");

/// A disk without images, which passes the checks before a boot.
pub fn empty_disk() -> Vec<u8> {
    let files: [(&str, &[u8]); 2] =
        [("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)];
    erofs::image(&[], &files.map(|(path, content)| (path, erofs::Content::Bytes(content))))
}

/// A disk of one block with an EROFS superblock and nothing else.
pub fn superblock() -> Vec<u8> {
    let mut disk = vec![0; 4096];
    disk[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    // One block of 2^12 bytes.
    disk[1036] = 12;
    disk[1060] = 1;
    disk
}

/// The temporary folder of a test.
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

    /// Copies a layout into the folder.
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

    /// `localregistry ARGUMENTS` in this folder, with this folder as the home. All tests share the cache of downloaded kernels.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = crate::program(PROGRAM);
        command.args(arguments).current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env("LOCALREGISTRY_CACHE", cache::folder("").unwrap());
        for variable in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"] {
            command.env_remove(variable);
        }
        command
    }

    /// The files that [`Self::command`] searches for credentials, as messages list them.
    pub fn credential_files(&self) -> String {
        let own = [".config/containers/auth.json", ".docker/config.json", ".dockercfg"]
            .map(|file| self.path(file).display().to_string());
        format!("/run/containers/{}/auth.json, {}", nix::unistd::getuid(), own.join(", "))
    }

    /// Runs `localregistry --quiet pack ARGUMENTS -o disk.erofs`, which must succeed and print no messages. Returns its output.
    pub fn pack(&self, arguments: &[&str]) -> String {
        self.pack_warned(arguments, &[])
    }

    /// As [`Bench::pack`], but it must print these warnings, and nothing else.
    pub fn pack_warned(&self, arguments: &[&str], warnings: &[&str]) -> String {
        let output = self.run(arguments);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        let warnings = warnings.iter().map(|warning| format!("localregistry: warning: {warning}\n")).collect::<String>();
        assert_eq!(said, warnings);
        text(&output.stdout)
    }

    /// Packs the sample image and returns the disk's path.
    pub fn sample_disk(&self) -> PathBuf {
        succeed(&mut self.command(&["--quiet", "sample", "--output", "sample"]));
        self.pack(&["sample"]);
        self.path("disk.erofs")
    }

    /// Runs `pack`, which must fail with this message and change no file, with and without an existing disk.
    pub fn refused(&self, arguments: &[&str], message: &str) {
        for old in [None, Some("the old disk")] {
            self.refused_over(old, arguments, message);
        }
    }

    /// As [`Bench::refused`], over this disk alone.
    pub(crate) fn refused_over(&self, old: Option<&str>, arguments: &[&str], message: &str) {
        let _ = fs::remove_file(self.path("disk.erofs"));
        old.into_iter().for_each(|old| fs::write(self.path("disk.erofs"), old).unwrap());
        let before = self.everything();
        let output = self.run(arguments);
        assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"));
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
        assert_eq!(self.everything(), before);
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(&[&["--quiet", "pack", "-o", "disk.erofs"], arguments].concat()).output().unwrap()
    }

    /// Every path in this folder, with the content of files.
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

    /// The content of the disk: extracted by `fsck.erofs` under `tests/run`, and by [`erofs::extract`] under `cargo test`.
    pub fn extract(&self, disk: &str) -> Extracted {
        let into = self.path(&format!("{disk}.extracted"));
        if into.exists() {
            make_writable(&into);
            fs::remove_dir_all(&into).unwrap();
        }
        if every_case() {
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

/// Lets its owner write into an extracted disk, whose folders are read-only.
pub fn make_writable(folder: &Path) {
    assert!(crate::program("chmod").arg("-R").arg("u+w").arg(folder).status().unwrap().success());
}

/// The content of a disk.
pub struct Extracted {
    /// Content by path.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Mode, size and path of each entry, sorted.
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

    /// Checks that each blob's content matches its digest.
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

/// A tar archive of members with name, type, and content or link target.
pub fn archive(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tar::Header::new_ustar();
        // The library's setter refuses names that other tools write.
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

/// Builds a `docker save` archive.
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

    /// Adds an image with these tags. Each layer has a member name and the uncompressed content that the config declares.
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

/// The layout `layout` with the image test/hello:latest, which has one layer.
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
