//! The content of the simulated disks, and what the server must answer to a request for it. All of it is computed here, and nothing by the
//! code under test.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::disk::catalog;
use crate::disk::layout::Directory;
use crate::oci::Digest;
use crate::registry::content::store::{Disk, read_catalog};

pub const DISKS: usize = 3;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Sizes of the layers by disk: around those of pages, of chunks and of what is sent from a file at once. Two disks have one in common.
const LAYERS: [&[usize]; DISKS] = [&[0, 1, 4097, 70_001, 300_000], &[512, 70_001, 131_073], &[9000, 1_100_000]];

/// The byte at `at` of the layer of this size: no two layers, and no two places of one, look alike.
fn byte(size: usize, at: usize) -> u8 {
    let mut word = (((size as u64) << 32) | (at as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 29)).to_le_bytes()[at % 8]
}

pub struct Blob {
    pub digest: Digest,
    pub bytes: Vec<u8>,
    /// The disks that have it.
    pub disks: Vec<usize>,
}

/// A repository of one disk, with one image.
pub struct Repository {
    pub name: String,
    pub disk: usize,
    pub tag: String,
    /// Numbers of blobs: the manifest is the first.
    pub blobs: Vec<usize>,
}

pub struct Library {
    folder: TempDir,
    pub blobs: Vec<Blob>,
    pub repositories: Vec<Repository>,
    /// The disk of each file of a blob.
    pub disk_of_inode: HashMap<u64, usize>,
}

/// The content of all simulations.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(Library::create)
}

impl Library {
    fn create() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut library = Self { folder, blobs: Vec::new(), repositories: Vec::new(), disk_of_inode: HashMap::new() };
        for (disk, sizes) in LAYERS.into_iter().enumerate() {
            let config = library.put(disk, format!(r#"{{"architecture":"amd64","os":"linux","author":"{disk}"}}"#).into_bytes());
            let mut blobs = vec![config];
            blobs.extend(sizes.iter().map(|size| library.put(disk, (0..*size).map(|at| byte(*size, at)).collect())));
            let descriptor = |blob: &usize, media_type: &str| {
                let Blob { digest, bytes, .. } = &library.blobs[*blob];
                json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
            };
            let layers: Vec<Value> =
                blobs[1..].iter().map(|blob| descriptor(blob, "application/vnd.oci.image.layer.v1.tar")).collect();
            let config = descriptor(&config, "application/vnd.oci.image.config.v1+json");
            let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
            let manifest = library.put(disk, serde_json::to_vec(&manifest).unwrap());
            blobs.insert(0, manifest);
            let (name, tag) = (format!("registry.test/image{disk}"), format!("v{disk}"));
            let Blob { digest, bytes, .. } = &library.blobs[manifest];
            let entry = json!({
                "mediaType": MANIFEST, "digest": digest.to_string(), "size": bytes.len(),
                "annotations": {"org.opencontainers.image.ref.name": format!("{name}:{tag}")},
            });
            let index = json!({"schemaVersion": 2, "manifests": [entry]});
            fs::write(library.path(disk).join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
            fs::write(library.path(disk).join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
            // As `pack` does, so that a disk is opened fast.
            let loaded = read_catalog(&Directory::open(&library.path(disk)).unwrap(), false).unwrap();
            let catalog = library.path(disk).join(catalog::PATH);
            fs::create_dir_all(catalog.parent().unwrap()).unwrap();
            fs::write(catalog, loaded.catalog.encode()).unwrap();
            library.repositories.push(Repository { name, disk, tag, blobs });
        }
        library
    }

    pub fn path(&self, disk: usize) -> PathBuf {
        self.folder.path().join(disk.to_string())
    }

    /// Writes a blob to the disk. Returns its number.
    fn put(&mut self, disk: usize, bytes: Vec<u8>) -> usize {
        let digest = Digest::sha256_of(&bytes);
        let path = self.path(disk).join(digest.blob_path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &bytes).unwrap();
        self.disk_of_inode.insert(fs::metadata(path).unwrap().ino(), disk);
        if let Some(blob) = self.blobs.iter().position(|blob| blob.digest == digest) {
            self.blobs[blob].disks.push(disk);
            return blob;
        }
        self.blobs.push(Blob { digest, bytes, disks: vec![disk] });
        self.blobs.len() - 1
    }

    pub fn open(&self, disk: usize) -> Disk {
        Disk::open(&self.path(disk), format!("simulated {disk}")).unwrap()
    }
}

/// A request, and what must come back.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    status: u16,
    body: Expected,
    /// The disks that must be sound for this response.
    pub disks: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Expected {
    /// These ranges of a blob: several are parts of a multipart body.
    Ranges(usize, Vec<Range<usize>>),
    Text(String),
    Error,
    Nothing,
}

impl Expected {
    fn whole(blob: usize) -> Self {
        Self::Ranges(blob, std::iter::once(0..library().blobs[blob].bytes.len()).collect())
    }
}

/// A response as far as it has arrived.
#[derive(Debug, Default)]
pub struct Received {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Whether the protocol says that this is all.
    pub is_complete: bool,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The length of the body by the head.
    pub fn announced(&self) -> Option<usize> {
        self.header("content-length").parse().ok()
    }
}

fn wanted(method: &'static str, path: String, status: u16, body: Expected) -> Wanted {
    Wanted { method, path, headers: Vec::new(), status, body, disks: Vec::new() }
}

impl Wanted {
    /// Some request.
    pub fn any(rng: &mut fastrand::Rng) -> Self {
        let library = library();
        match rng.u8(0..24) {
            0 => wanted("GET", "/v2/".into(), 200, Expected::Text("{}".into())),
            1 => wanted("GET", "/v2/registry.test/nothing/manifests/latest".into(), 404, Expected::Error),
            2 => {
                let missing = Digest::sha256_of(&rng.u64(..).to_le_bytes());
                let repository = &library.repositories[rng.usize(..DISKS)];
                wanted("GET", format!("/v2/{}/blobs/{missing}", repository.name), 404, Expected::Error)
            }
            3 => wanted("DELETE", "/v2/registry.test/image0/manifests/v0".into(), 405, Expected::Error),
            4 => wanted("GET", "/v2/registry.test/image0/blobs/sha256:7".into(), 400, Expected::Error),
            5 => {
                let Repository { name, disk, tag, .. } = &library.repositories[rng.usize(..DISKS)];
                let text = format!(r#"{{"name":"{name}","tags":["{tag}"]}}"#);
                let list = wanted("GET", format!("/v2/{name}/tags/list"), 200, Expected::Text(text));
                // No file is read, but the disk must be there.
                Self { disks: vec![*disk], ..list }
            }
            6..12 => {
                let repository = &library.repositories[rng.usize(..DISKS)];
                let manifest = repository.blobs[0];
                let by_tag = rng.bool();
                let reference = if by_tag { repository.tag.clone() } else { library.blobs[manifest].digest.to_string() };
                Self::content(rng, format!("/v2/{}/manifests/{reference}", repository.name), manifest)
            }
            _ => {
                let repository = &library.repositories[rng.usize(..DISKS)];
                let blob = repository.blobs[rng.usize(..repository.blobs.len())];
                Self::content(rng, format!("/v2/{}/blobs/{}", repository.name, library.blobs[blob].digest), blob)
            }
        }
    }

    /// A whole blob of about a hundred chunks.
    pub fn largest() -> Self {
        let library = library();
        let blob = library.blobs.iter().position(|blob| blob.bytes.len() == 1_100_000).unwrap();
        let path = format!("/v2/{}/blobs/{}", library.repositories[2].name, library.blobs[blob].digest);
        let body = Expected::whole(blob);
        Self { disks: vec![2], ..wanted("GET", path, 200, body) }
    }

    /// The length of the body.
    pub fn len(&self) -> usize {
        match &self.body {
            Expected::Ranges(_, ranges) => ranges.iter().map(Range::len).sum(),
            _ => 0,
        }
    }

    /// Content as a whole or in ranges, with or without conditions (RFC 9110, sections 13 and 14).
    fn content(rng: &mut fastrand::Rng, path: String, blob: usize) -> Self {
        let Blob { digest, bytes, disks } = &library().blobs[blob];
        let (size, method) = (bytes.len(), if rng.u8(0..6) == 0 { "HEAD" } else { "GET" });
        let whole = Expected::whole(blob);
        let mut this = Self { disks: disks.clone(), ..wanted(method, path, 200, whole) };
        let (own, other) = (format!("\"{digest}\""), format!("\"{}\"", Digest::sha256_of(b"other")));
        let mut are_ranges_ignored = method == "HEAD" || size == 0;
        match rng.u8(0..12) {
            0 => {
                this.headers.push(("if-none-match", format!("{other}, W/{own}")));
                return Self { status: 304, body: Expected::Nothing, ..this };
            }
            1 => this.headers.push(("if-none-match", other)),
            2 => {
                this.headers.push(("if-match", other));
                return Self { status: 412, body: Expected::Error, ..this };
            }
            3 => this.headers.push(("if-match", own)),
            4 => this.headers.push(("if-range", own)),
            5 => {
                this.headers.push(("if-range", other));
                are_ranges_ignored = true;
            }
            _ => {}
        }
        let count = match rng.u8(0..8) {
            0..3 => return this,
            3..6 => 1,
            _ => rng.usize(2..6),
        };
        let (mut specs, mut ranges) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let start = rng.usize(0..=size + size / 8);
            match rng.u8(0..4) {
                0 => {
                    specs.push(format!("{start}-"));
                    ranges.push(start..size);
                }
                1 => {
                    specs.push(format!("-{}", start + 1));
                    ranges.push(size.saturating_sub(start + 1)..size);
                }
                _ => {
                    let end = start + rng.usize(0..=size / 4);
                    specs.push(format!("{start}-{end}"));
                    ranges.push(start..(end + 1).min(size));
                }
            }
        }
        this.headers.push(("range", format!("bytes={}", specs.join(","))));
        ranges.retain(|range| range.start < range.end);
        if !are_ranges_ignored {
            match ranges.len() {
                0 => (this.status, this.body) = (416, Expected::Error),
                count if count > 1 && ranges.iter().map(Range::len).sum::<usize>() > size => {}
                _ => (this.status, this.body) = (206, Expected::Ranges(blob, ranges)),
            }
        }
        this
    }

    /// Checks a response, or the part of it that has arrived. If `must_succeed`, it must be there as a whole, and must not say that a disk
    /// has failed or is not there.
    /// If the disk `has_wrong_bytes`, the client learns so only from a response that is cut.
    pub fn check(&self, received: &Received, must_succeed: bool, has_wrong_bytes: bool) -> Result<(), String> {
        let Received { status, body, is_complete, .. } = received;
        let fail = |why: &str| {
            let (len, head) = (body.len(), &received.headers);
            Err(format!("{why}: {self:?} got {status} with {len} bytes, complete: {is_complete}, {head:?}"))
        };
        if must_succeed && !is_complete {
            return fail("the response is cut");
        }
        let announced = received.announced();
        if *is_complete && self.method != "HEAD" && *status != 304 && announced != Some(body.len()) {
            return fail("a complete body has another length than announced");
        }
        if *status != self.status {
            let is_allowed = !must_succeed && !self.disks.is_empty() && (*status == 500 || *status == 404);
            return if is_allowed { self.check_error(received) } else { fail("wrong status") };
        }
        let (expected, content_range) = match &self.body {
            Expected::Nothing => (Vec::new(), String::new()),
            Expected::Error => return self.check_error(received),
            Expected::Text(text) => (text.clone().into_bytes(), String::new()),
            Expected::Ranges(blob, ranges) => {
                let Blob { bytes, digest, .. } = &library().blobs[*blob];
                if received.header("docker-content-digest") != digest.to_string() {
                    return fail("wrong digest");
                }
                match ranges.as_slice() {
                    [range] if *status == 206 => {
                        (bytes[range.clone()].to_vec(), format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len()))
                    }
                    [range] => (bytes[range.clone()].to_vec(), String::new()),
                    ranges => {
                        let media_type = if self.path.contains("/manifests/") { MANIFEST } else { "application/octet-stream" };
                        (multipart(received, media_type, bytes, ranges), String::new())
                    }
                }
            }
        };
        if received.header("content-range") != content_range {
            return fail("wrong Content-Range");
        }
        if *status != 304 && announced != Some(expected.len()) {
            return fail("wrong Content-Length");
        }
        if self.method == "HEAD" {
            return if body.is_empty() { Ok(()) } else { fail("a body after HEAD") };
        }
        if !has_wrong_bytes && !expected.starts_with(body) || *is_complete && *body != expected {
            return fail("WRONG BYTES");
        }
        Ok(())
    }

    fn check_error(&self, received: &Received) -> Result<(), String> {
        let has_errors = |body: &[u8]| serde_json::from_slice::<Value>(body).is_ok_and(|body| body["errors"].is_array());
        if received.is_complete && self.method != "HEAD" && !has_errors(&received.body) {
            return Err(format!("not an error of the specification: {self:?} got {received:?}"));
        }
        Ok(())
    }

    /// Whether a response to this must have a body.
    pub fn has_body(&self, status: u16) -> bool {
        self.method != "HEAD" && status != StatusCode::NOT_MODIFIED
    }
}

/// The body with these ranges (RFC 9110, section 14.6), between the boundaries that the head names.
fn multipart(received: &Received, media_type: &str, bytes: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    let boundary = received.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap_or("none");
    let mut body = Vec::new();
    for (number, range) in ranges.iter().enumerate() {
        let line_end = if number == 0 { "" } else { "\r\n" };
        let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
        let head = format!("{line_end}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&bytes[range.clone()]);
    }
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    body
}
