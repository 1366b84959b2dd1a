//! `null` for an empty list or map, which Go programs write, means the same as the empty one, in every document that `pack` reads.

use std::fs;
use std::sync::Arc;

use localregistry::oci::media_type::{OCI_ARTIFACT, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use localregistry::oci::{Digest, Manifest};
use serde_json::{Value, json};
use testing::layout::Layout;
use testing::pack::{Bench, Saved, archive, text};
use testing::upstream::{Answer, Images, Upstream};

/// Changes a document of this kind.
type Edit<'a> = &'a dyn Fn(&str, Value) -> Value;

/// Fields that Go programs keep as maps or as pointers to a struct. A list is recognized by its value.
const MAPS: [&str; 2] = ["annotations", "labels"];
const POINTERS: [&str; 3] = ["platform", "subject", "config"];

/// A layout with an image, an index for two platforms, an artifact that refers to the image, and an artifact manifest. Returns the
/// image's digest.
fn layout(layout: &Layout, edit: Edit<'_>) -> Digest {
    let layer = layout.blob(b"layer");
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.digest.to_string()]},
        "config": {"Env": ["A=b"], "Cmd": ["/a"], "labels": {"a": "b"}}, "history": [{"created_by": "a"}],
    });
    let config = layout.json(&edit("config", config));
    let mut layer = layer.descriptor("application/vnd.oci.image.layer.v1.tar");
    layer["annotations"] = json!({"a": "b"});
    layer["urls"] = json!(["https://elsewhere.test/layer"]);
    let mut config = config.descriptor(OCI_CONFIG);
    config["annotations"] = json!({"a": "b"});
    let image = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer], "annotations": {"a": "b"},
    });
    let image = layout.json(&edit("manifest", image));
    let mut child = image.descriptor(OCI_MANIFEST);
    child["platform"] = json!({"architecture": "amd64", "os": "linux", "os.features": ["a"]});
    child["annotations"] = json!({"a": "b"});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child], "annotations": {"a": "b"}});
    let index = layout.json(&edit("index", index));
    let signature = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "test/signature", "config": layout.blob(b"{}").descriptor("application/vnd.oci.empty.v1+json"),
        "layers": [layout.blob(b"signature").descriptor("text/plain")], "subject": image.descriptor(OCI_MANIFEST), "annotations": {"a": "b"},
    });
    let signature = layout.json(&edit("signature", signature));
    let artifact = json!({"schemaVersion": 2, "mediaType": OCI_ARTIFACT, "blobs": [layer], "annotations": {"a": "b"}});
    let artifact = layout.json(&edit("artifact", artifact));
    let named = |stored: testing::layout::Stored, kind, name: &str| {
        let mut descriptor = stored.descriptor(kind);
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
        descriptor["urls"] = json!(["https://elsewhere.test/manifest"]);
        descriptor
    };
    let entries = json!([
        named(image, OCI_MANIFEST, "a/b:1"),
        named(index, OCI_INDEX, "a/b:2"),
        named(signature, OCI_MANIFEST, "a/b:3"),
        named(artifact, OCI_ARTIFACT, "a/b:4"),
    ]);
    let root = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"a": "b"}});
    fs::write(layout.path().join("index.json"), edit("index.json", root).to_string()).unwrap();
    image.digest
}

/// Runs `pack`. Returns its exit status, its messages and the names of the images, without digests and numbers.
fn packed(arguments: &[&str], bench: &Bench) -> (Option<i32>, String) {
    let output = bench.command(&[&["--quiet", "pack", "-o", "disk.erofs"], arguments].concat()).output().unwrap();
    let names = if output.status.success() { bench.extract("disk.erofs").names().join(" ") } else { String::new() };
    let said = format!("{}{names}", text(&output.stderr));
    let mut words = Vec::new();
    for word in said.split(|byte: char| !byte.is_ascii_alphanumeric()) {
        let is_digest = word.len() > 11 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        words.push(if is_digest || word.parse::<u64>().is_ok_and(|number| number > 4) { "N" } else { word });
    }
    (output.status.code(), words.join(" "))
}

fn packed_layout(edit: Edit<'_>) -> (Option<i32>, String) {
    let (made, bench) = (Layout::default(), Bench::default());
    layout(&made, edit);
    fs::rename(made.path(), bench.path("layout")).unwrap();
    packed(&["layout"], &bench)
}

/// Pulls the image and the index from a registry with the referrers API.
fn pulled(edit: Edit<'_>) -> (Option<i32>, String) {
    let made = Arc::new(Layout::default());
    let image = layout(&made, edit);
    let root: Value = serde_json::from_slice(&fs::read(made.path().join("index.json")).unwrap()).unwrap();
    let digest = |number: usize| root["manifests"][number]["digest"].as_str().unwrap().to_owned();
    let listed =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [root["manifests"][2]], "annotations": {"a": "b"}});
    let listed = edit("referrers", listed).to_string();
    let images = Images::new(&made, &[("1", &digest(0)), ("2", &digest(1))]);
    let upstream = Upstream::start(move |request| match request.target.split_once("/referrers/") {
        Some((_, subject)) if subject == image.to_string() => Answer::new(200, &[("Content-Type", OCI_INDEX)], listed.as_bytes()),
        Some(_) => Answer::new(200, &[("Content-Type", OCI_INDEX)], br#"{"schemaVersion":2,"manifests":null}"#),
        None => images.answer(request),
    });
    let host = upstream.address.to_string();
    let (status, said) = packed(&["--pull", &format!("{host}/a/b:1"), "--pull", &format!("{host}/a/b:2")], &Bench::default());
    // An image that is pulled can still be refused, such as one without the layers that its config names.
    assert!(status != Some(0) || upstream.targets().iter().any(|target| target.contains("/referrers/")));
    (status, said)
}

/// A docker archive with one image of one layer.
fn packed_docker(edit: Edit<'_>) -> (Option<i32>, String) {
    let layer = Digest::sha256_of(b"layer").to_string();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
        "config": {"labels": {"a": "b"}}, "history": [{"created_by": "a"}],
    });
    let list = json!([{
        "Config": "config.json", "RepoTags": ["a/b:1"], "Layers": ["layer.tar"],
        "LayerSources": {layer.clone(): {"mediaType": "a", "digest": layer, "size": 5, "annotations": {"a": "b"}, "urls": ["a"]}},
    }]);
    let mut saved = Saved::default();
    saved.member("config.json", edit("config", config).to_string().as_bytes());
    saved.member("layer.tar", b"layer");
    let list = edit("manifest.json", list);
    saved.manifest = list.as_array().unwrap().clone();
    let bench = Bench::default();
    bench.file("saved.tar", &saved.bytes());
    packed(&["saved.tar"], &bench)
}

/// The JSON pointers of all fields of objects in `value`, with their names and values.
fn fields(value: &Value, at: &str, found: &mut Vec<(String, String, Value)>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(number, value)| (number.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        if value.is_object() {
            found.push((pointer.clone(), name, child.clone()));
        }
        fields(child, &pointer, found);
    }
}

/// Packs with each list and map of each document replaced by `null`, and by the empty one. Both must do the same.
fn assert_null_is_empty(documents: &[&str], pack: impl Fn(Edit<'_>) -> (Option<i32>, String)) {
    let seen = std::cell::RefCell::new(Vec::new());
    let whole = pack(&|kind, document| {
        let mut all = Vec::new();
        fields(&document, "", &mut all);
        seen.borrow_mut().extend(all.into_iter().map(|field| (kind.to_owned(), field)));
        document
    });
    assert_eq!(whole.0, Some(0), "{}", whole.1);
    let mut tried = Vec::new();
    for (kind, (pointer, name, value)) in seen.into_inner() {
        let empty = match value {
            // Go reads null as an empty text, and as the version 0, which nothing compares.
            Value::String(_) if pointer.contains("/annotations/") => Some(json!("")),
            Value::Number(_) if name == "schemaVersion" => Some(json!(0)),
            Value::Array(_) => Some(json!([])),
            Value::Object(_) if MAPS.contains(&name.as_str()) => Some(json!({})),
            Value::Object(_) if POINTERS.contains(&name.as_str()) && pointer != "/config" => None,
            _ => continue,
        };
        let with = |replacement: Option<&Value>| {
            pack(&|of, mut document| {
                if of == kind {
                    match replacement {
                        Some(value) => *document.pointer_mut(&pointer).unwrap() = value.clone(),
                        None => {
                            let (parent, _) = pointer.rsplit_once('/').unwrap();
                            document.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(&name);
                        }
                    }
                }
                document
            })
        };
        assert_eq!(with(Some(&Value::Null)), with(empty.as_ref()), "{kind} {pointer}");
        tried.push(kind);
    }
    tried.dedup();
    assert_eq!(tried, documents);
}

#[test]
fn null_is_an_empty_list_or_map_in_each_document_of_a_layout() {
    assert_null_is_empty(&["config", "manifest", "index", "signature", "artifact", "index.json"], packed_layout);
}

#[test]
fn null_is_an_empty_list_or_map_in_a_docker_archive() {
    assert_null_is_empty(&["config", "manifest.json"], packed_docker);
}

#[test]
fn null_is_an_empty_list_or_map_in_the_answers_of_a_registry() {
    // The registry does not serve index.json and the artifact manifest.
    let pull = |edit: Edit<'_>| {
        pulled(&|kind, document| if matches!(kind, "index.json" | "artifact") { document } else { edit(kind, document) })
    };
    assert_null_is_empty(&["config", "manifest", "index", "signature", "referrers"], pull);
}

#[test]
fn images_without_layers_and_names_are_packed() {
    let bench = Bench::default();
    let config = br#"{"architecture":"amd64","os":"linux","config":null,"rootfs":{"type":"layers","diff_ids":null}}"#;
    let list = br#"[{"Config":"c.json","RepoTags":["a/b:1"],"Layers":null}]"#;
    let regular = tar::EntryType::Regular;
    bench.file("empty.tar", &archive(&[("c.json", regular, config), ("manifest.json", regular, list)]));
    bench.pack(&["empty.tar"]);
    let disk = bench.extract("disk.erofs");
    let (name, digest) = disk.images().remove(0);
    let manifest = Manifest::parse(disk.blob(&digest)).unwrap();
    assert_eq!((name.as_str(), manifest.blobs.len()), ("a/b:1", 1), "the config alone");
    // `docker save NAME@DIGEST` writes both files. Its index.json lists nothing.
    let list = br#"[{"Config":"c.json","RepoTags":null,"Layers":null}]"#;
    let both = |index: &[u8]| {
        archive(&[
            ("c.json", regular, config.as_slice()),
            ("manifest.json", regular, list),
            ("oci-layout", regular, br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", regular, index),
        ])
    };
    for index in [br#"{"schemaVersion":2,"manifests":null}"#.as_slice(), br#"{"schemaVersion":2,"manifests":[]}"#] {
        bench.file("both.tar", &both(index));
        bench.pack(&["--name", "x/y:1=both.tar"]);
        assert_eq!(bench.extract("disk.erofs").images(), [("x/y:1".to_owned(), digest.clone())]);
        bench.refused(
            &["both.tar"],
            "cannot pack both.tar: image c.json has no RepoTags in manifest.json; give it a name with --name",
        );
    }
}

#[test]
fn sources_of_null_hold_no_image() {
    let bench = Bench::default();
    let regular = tar::EntryType::Regular;
    let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let nothing = br#"{"schemaVersion":2,"manifests":null}"#;
    fs::create_dir(bench.path("layout")).unwrap();
    bench.file("layout/oci-layout", version);
    bench.file("layout/index.json", nothing);
    bench.file("layout.tar", &archive(&[("oci-layout", regular, version), ("index.json", regular, nothing)]));
    bench.file("saved.tar", &archive(&[("manifest.json", regular, b"null")]));
    for source in ["layout", "layout.tar", "saved.tar"] {
        bench.refused(&[source], &format!("cannot pack {source}: it holds no image"));
    }
}
