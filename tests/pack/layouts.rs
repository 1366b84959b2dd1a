//! Every command that reads a layout finds the same images with the same content, whatever the layout holds and however its images
//! are named.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use localregistry::disk::catalog;
use localregistry::disk::layout::Directory;
use localregistry::oci::{Algorithm, media_type};
use localregistry::registry::content::store;
use serde_json::{Value, json};
use testing::environment::every_case;
use testing::http::get;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, PROGRAM, text};
use testing::serve::Serving;
use testing::server::Server;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const REPOSITORIES: [&str; 4] = ["test/hello", "docker.io/library/busybox", "registry.test:5000/a/b", "quay.io/x/y"];

/// Pseudorandom numbers from a seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn is(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A generated manifest or index.
#[derive(Clone, Copy)]
struct Made {
    stored: Stored,
    media_type: &'static str,
}

/// Generates a layout.
struct Making {
    layout: Layout,
    numbers: Numbers,
    made: Vec<Made>,
}

impl Making {
    /// Unique content, which some images share.
    fn content(&mut self) -> Vec<u8> {
        let size = self.numbers.below(3000);
        let first = u8::try_from(self.numbers.below(12)).unwrap();
        (0..size).map(|at| first.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0])).collect()
    }

    fn blob(&mut self) -> Stored {
        let (content, long) = (self.content(), self.numbers.below(4) == 0);
        self.layout.blob_by(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &content)
    }

    fn json(&mut self, value: &Value, media_type: &'static str) -> Made {
        let content = serde_json::to_vec(value).unwrap();
        let algorithm = if self.numbers.below(4) == 0 { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let made = Made { stored: self.layout.blob_by(algorithm, &content), media_type };
        self.made.push(made);
        made
    }

    /// Adds a plain image.
    fn image(&mut self) -> Made {
        let config = self.layout.json(&json!({"architecture": "amd64", "os": "linux"}));
        let layers: Vec<Value> = (0..=self.numbers.below(2)).map(|_| self.blob().descriptor(LAYER)).collect();
        let docker = self.numbers.below(4) == 0;
        let media_type = if docker { media_type::DOCKER_MANIFEST } else { media_type::OCI_MANIFEST };
        let image = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(media_type::OCI_CONFIG), "layers": layers,
        });
        self.json(&image, media_type)
    }

    /// Adds an artifact that refers to a generated manifest.
    fn referrer(&mut self) -> Made {
        let made = self.made.clone();
        let subject = self.numbers.one(&made);
        let (empty, layer) = (self.layout.blob(b"{}"), self.blob());
        let artifact = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": "application/x.signature",
            "config": empty.descriptor("application/vnd.oci.empty.v1+json"),
            "layers": [layer.descriptor("application/octet-stream")], "subject": subject.stored.descriptor(subject.media_type),
        });
        self.json(&artifact, media_type::OCI_MANIFEST)
    }

    fn index(&mut self, of: &[Made]) -> Made {
        let manifests: Vec<Value> = of.iter().map(|one| one.stored.descriptor(one.media_type)).collect();
        self.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}), media_type::OCI_INDEX)
    }

    /// Adds an entry of any kind to `index.json`.
    fn anything(&mut self) -> Made {
        match self.numbers.below(6) {
            0 | 1 => self.image(),
            2 => self.referrer(),
            3 => {
                let signatures = [self.referrer(), self.referrer()];
                self.index(&signatures)
            }
            4 => {
                let platforms = [self.image(), self.image()];
                self.index(&platforms)
            }
            _ => {
                let inner = [self.image(), self.referrer()];
                let outer = [self.index(&inner), self.image()];
                self.index(&outer)
            }
        }
    }

    /// An entry with a name from `repositories` or without one, in one of the ways in which tools write it.
    fn entry(&mut self, number: usize, repositories: &[&str]) {
        let made = if number == 0 || self.numbers.is() {
            self.anything()
        } else {
            let made = self.made.clone();
            self.numbers.one(&made)
        };
        let (repository, subject) = (self.numbers.one(repositories), self.made[0].stored.digest);
        let signature = format!("{}.sig", subject.to_string().replace(':', "-"));
        let name = match self.numbers.below(if number == 0 { 2 } else { 8 }) {
            0 | 1 => format!("{repository}:v{number}"),
            2 => format!("{repository}@{}", made.stored.digest),
            // A tag has room for a SHA-256 digest, but not for a longer one.
            3 if signature.len() <= 128 => signature,
            4 if signature.len() <= 128 => format!("{repository}:{signature}"),
            5 => format!("tag{number}"),
            _ => String::new(),
        };
        self.layout.name(made.stored, made.media_type, &name);
    }
}

/// A layout with one or several repositories.
fn layout(seed: u64) -> Layout {
    let mut making =
        Making { layout: Layout::default(), numbers: Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), made: Vec::new() };
    making.image();
    let repositories = &REPOSITORIES[..if making.numbers.is() { 1 } else { 1 + making.numbers.below(3) }];
    for number in 0..2 + making.numbers.below(8) {
        making.entry(number, repositories);
    }
    making.layout.write();
    making.layout
}

/// The catalog that `serve` and the guest build for a layout without one.
fn served(folder: &Path, lenient: bool) -> Vec<u8> {
    store::read_catalog(&Directory::open(folder).unwrap(), lenient).unwrap().catalog.encode()
}

/// Everything that a server returns for a layout: each repository's tags, manifests, blobs and referrers, by path.
fn given(server: &Server, layout: &Path) -> Vec<(String, u16, Option<String>, Vec<u8>)> {
    let mut digests = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let blobs = fs::read_dir(layout.join("blobs").join(algorithm)).into_iter().flatten();
        digests.extend(blobs.map(|blob| format!("{algorithm}:{}", text(blob.unwrap().file_name().as_encoded_bytes()))));
    }
    digests.sort();
    let repositories = get(server.plain, "/v2/_catalog").json();
    let mut paths = vec!["/v2/_catalog".to_owned()];
    for repository in repositories["repositories"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()) {
        let tags = get(server.plain, &format!("/v2/{repository}/tags/list")).json();
        paths.push(format!("/v2/{repository}/tags/list"));
        let tags = tags["tags"].as_array().unwrap();
        paths.extend(tags.iter().map(|tag| format!("/v2/{repository}/manifests/{}", tag.as_str().unwrap())));
        for kind in ["manifests", "blobs", "referrers"] {
            paths.extend(digests.iter().map(|digest| format!("/v2/{repository}/{kind}/{digest}")));
        }
    }
    let answer = |path: String| {
        let found = get(server.plain, &path);
        let kind = found.header("content-type").map(str::to_owned);
        (path, found.status, kind, found.body)
    };
    paths.into_iter().map(answer).collect()
}

fn run(bench: &Bench, arguments: &[&str]) -> String {
    let output = bench.command(&[&["--quiet"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(|error| format!("{error}: ")).collect()
}

/// The images that `inspect` shows.
fn inspected(bench: &Bench, disk: &str) -> Value {
    serde_json::from_str::<Value>(&run(bench, &["--json", "inspect", disk, "--verify"])).unwrap()["images"].take()
}

/// The names that `trust` writes for nodes.
fn trusted(bench: &Bench, disk: &str) -> String {
    run(bench, &["trust", "--endpoint", "http://registry.test:5000", "--format", "env", "--disk", disk, "-o", "trust"]);
    fs::read_to_string(bench.path("trust/images.txt")).unwrap()
}

/// Referrers, indexes of signatures, plain images, bare tags and cosign's tags, sha512, nested indexes, and duplicate names.
#[test]
fn every_command_finds_the_same_images_in_any_layout() {
    let (mut packed, mut refused, mut filed, mut left_over) = (0, 0, 0, 0);
    let seeds = if every_case() { 120_usize } else { 40 };
    for seed in 0..seeds {
        let layout = layout(seed as u64);
        let bench = Bench::default();
        let folder = bench.layout("layout", &layout);
        let output = bench.command(&["--quiet", "pack", "layout", "-o", "disk.erofs"]).output().unwrap();
        if !output.status.success() {
            let said = text(&output.stderr);
            if said.contains(": the tag is claimed by ") {
                let error = store::read_catalog(&Directory::open(&folder).unwrap(), false).unwrap_err();
                assert!(chain(&error).contains(": the tag is claimed by "), "seed {seed}: {error}");
                for command in [&["inspect", "layout"][..], &["inspect", "layout", "--verify"], &["diff", "layout", "layout"]] {
                    let output = bench.command(command).output().unwrap();
                    let said = text(&output.stderr);
                    assert!(
                        !output.status.success() && said.contains(": the tag is claimed by "),
                        "seed {seed}: {command:?}: {said}"
                    );
                }
                continue;
            }
            // Otherwise `pack` refuses such a layout only because of a tag without a repository.
            assert!(said.contains(" has no repository name in org.opencontainers.image.ref.name or "), "seed {seed}: {said}");
            let images = inspected(&bench, "layout");
            assert!(images.as_array().unwrap().iter().any(|image| image["repository"] == "image"), "seed {seed}: {images}");
            refused += 1;
            continue;
        }
        packed += 1;
        let disk = bench.extract("disk.erofs");
        assert!(served(&folder, false) == disk.files[catalog::PATH], "seed {seed}: the catalog");
        let shown: Value = serde_json::from_str(&run(&bench, &["--json", "inspect", "layout"])).unwrap();
        left_over += shown["left_over"].as_array().map_or(0, Vec::len);
        let images = inspected(&bench, "layout");
        assert_eq!(images, inspected(&bench, "disk.erofs"), "seed {seed}");
        filed += images.as_array().unwrap().iter().filter(|image| image["tag"].is_null()).count();
        assert!(run(&bench, &["diff", "layout", "disk.erofs"]).starts_with("0 removed, 0 added, 0 changed, "), "seed {seed}");
        assert_eq!(trusted(&bench, "layout"), trusted(&bench, "disk.erofs"), "seed {seed}");
        if seed % 4 == 0 {
            let (plain, packed) = (Server::start(&folder), Server::start(&bench.path("disk.erofs.extracted")));
            let (plain, packed) = (given(&plain, &folder), given(&packed, &folder));
            assert!(plain.iter().filter(|(_, status, ..)| *status == 200).count() > 3);
            for (plain, packed) in plain.iter().zip(&packed) {
                assert!(plain == packed, "seed {seed}: {} {} and {} {}", plain.0, plain.1, packed.0, packed.1);
            }
            assert_eq!(plain.len(), packed.len());
        }
    }
    let found = (packed, refused, filed, left_over);
    assert!(packed >= seeds / 2 && refused >= seeds / 24 && filed >= seeds / 3 && left_over >= seeds / 6, "{found:?}");
}

/// A plain image and an index of signatures in one repository: a client that requests referrers finds them.
#[test]
fn signatures_outside_the_index_are_served() {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:1", b"layer");
    layout.image("test/other:1", b"other");
    let signature = layout.artifact("application/x.signature", image, b"signed");
    let signatures = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [signature.descriptor(media_type::OCI_MANIFEST)],
    }));
    layout.name(signatures, media_type::OCI_INDEX, "");
    let server = Server::start(layout.write());
    let found = get(server.plain, &format!("/v2/test/hello/referrers/{}", image.digest)).json();
    assert_eq!(found["manifests"][0]["digest"], signature.digest.to_string());
    for digest in [signature.digest, signatures.digest] {
        assert_eq!(get(server.plain, &format!("/v2/test/hello/manifests/{digest}")).status, 200);
        assert_eq!(get(server.plain, &format!("/v2/test/other/manifests/{digest}")).status, 404);
    }
}

/// Tags for which `pack` wants a repository are served in the repository `image`, and nodes are configured for it. What has no name at
/// all is left over.
#[test]
fn images_without_a_repository_are_served_as_image() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/a:1", b"a");
    layout.image("test/b:1", b"b");
    let tagged = layout.image("v1", b"tagged");
    let bare = layout.image("", b"bare");
    let folder = bench.layout("layout", &layout);
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: index.json: {} has no repository name in org.opencontainers.image.ref.name or \
             io.containerd.image.name; give it one with --name",
            tagged.digest
        ),
    );
    let server = Server::start(&folder);
    for (reference, status) in [("v1".to_owned(), 200), (bare.digest.to_string(), 404)] {
        assert_eq!(get(server.plain, &format!("/v2/image/manifests/{reference}")).status, status, "{reference}");
    }
    let images = ["image:v1", "test/a:1", "test/b:1"].map(|image| format!("registry.test:5000/{image}\n")).concat();
    assert_eq!(trusted(&bench, "layout"), images);
}

/// Layouts that lack layers and manifests of indexes: `serve --allow-missing` serves what `pack --allow-missing` packs.
#[test]
fn serve_and_pack_treat_allow_missing_alike() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let image = layout.image("test/image:1", b"the layer that is missing");
    let (there, gone) = (layout.manifest(&[b"there"]), layout.manifest(&[b"gone"]));
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [there.descriptor(media_type::OCI_MANIFEST), gone.descriptor(media_type::OCI_MANIFEST)],
    }));
    layout.name(index, media_type::OCI_INDEX, "test/index:1");
    // It refers to a manifest that is missing, and is packed with the index all the same.
    let signature = layout.artifact("application/x.signature", gone, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, "");
    let folder = bench.layout("layout", &layout);
    let layer = layout.blob(b"the layer that is missing");
    for missing in [layer.digest, gone.digest] {
        fs::remove_file(folder.join(missing.blob_path())).unwrap();
    }

    let output = testing::program(PROGRAM).args(["serve", "--listen", "127.0.0.1:0"]).arg(&folder).output().unwrap();
    let expected = format!(
        "localregistry: cannot serve {}: blob {} is missing; it is part of test/index:1; `localregistry inspect --verify` lists all \
         faults; --allow-missing takes the rest\n",
        folder.display(),
        gone.digest
    );
    assert_eq!((text(&output.stderr), output.status.code()), (expected, Some(1)));

    let lacks = |image: &str, digest, size| format!("image {image}: {digest}, of {size} bytes, is missing and left out");
    let warnings = [lacks("test/image:1", layer.digest, 25), lacks("test/index:1", gone.digest, gone.size)];
    let warnings: Vec<&str> = warnings.iter().map(String::as_str).collect();
    let packed: Value = serde_json::from_str(&bench.pack_warned(&["--json", "--allow-missing", "layout"], &warnings)).unwrap();
    let disk = bench.extract("disk.erofs");
    assert!(served(&folder, true) == disk.files[catalog::PATH]);
    let serving = Serving::start(&folder, tempfile::tempdir().unwrap(), &["--tls", "off", "--allow-missing"]);
    assert_eq!(serving.ready["missing"], packed["missing"]);
    assert_eq!(serving.ready["missing"].as_array().unwrap().len(), 2);
    let address = serving.address().parse().unwrap();
    for (path, status) in [
        (format!("test/image/manifests/{}", image.digest), 200),
        (format!("test/image/blobs/{}", layer.digest), 404),
        ("test/index/manifests/1".to_owned(), 200),
        (format!("test/index/manifests/{}", there.digest), 200),
        (format!("test/index/manifests/{}", gone.digest), 404),
    ] {
        assert_eq!(get(address, &format!("/v2/{path}")).status, status, "{path}");
    }
    let found = get(address, &format!("/v2/test/index/referrers/{}", gone.digest)).json();
    assert_eq!(found["manifests"][0]["digest"], signature.digest.to_string());
    let trust = ["trust", "--endpoint", "http://registry.test:5000", "--disk", "layout", "-o", "trust", "--allow-missing"];
    run(&bench, &trust);
    let names = fs::read_to_string(bench.path("trust/images.txt")).unwrap();
    let names: BTreeSet<String> = names.lines().map(str::to_owned).collect();
    assert_eq!(names, ["registry.test:5000/test/image:1", "registry.test:5000/test/index:1"].map(str::to_owned).into());
}
