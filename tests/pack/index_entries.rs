//! Entries of `index.json` that are not simply an image with a name: what other tools leave there, list twice, or tell apart by
//! annotations.

use std::fs;

use localregistry::disk::catalog;
use localregistry::disk::layout::Directory;
use localregistry::oci::{Digest, media_type};
use localregistry::registry::content::store;
use serde_json::{Value, json};
use testing::http::get;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, PROGRAM, text};
use testing::serve::Serving;
use testing::server::Server;
use testing::upstream::{Images, Upstream};

/// Prints the result as JSON.
fn json_of(bench: &Bench, arguments: &[&str]) -> Value {
    let output = bench.command(&[&["--json", "--quiet"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A manifest for a platform, as an index lists it.
fn for_platform(layout: &Layout, architecture: &str) -> (Stored, Value) {
    let manifest = layout.manifest(&[architecture.as_bytes()]);
    let mut descriptor = manifest.descriptor(media_type::OCI_MANIFEST);
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    (manifest, descriptor)
}

fn index_of(layout: &Layout, entries: &[Value]) -> Stored {
    layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries}))
}

/// Packs the layout. Checks that `serve` and the guest would serve the same of it, and that `inspect` and `trust` see the same.
fn packed(bench: &Bench, layout: &str) -> Vec<(String, String)> {
    bench.pack(&[layout]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let loaded = store::read_catalog(&Directory::open(&bench.path(layout)).unwrap(), false).unwrap();
    assert!(loaded.catalog.encode() == disk.files[catalog::PATH], "the catalog");
    let [plain, packed] = [layout, "disk.erofs"].map(|of| json_of(bench, &["inspect", "--verify", of]));
    assert_eq!((&plain["images"], &plain["totals"]), (&packed["images"], &packed["totals"]));
    let trusted = |of: &str| {
        json_of(bench, &["trust", "--endpoint", "http://r.test:5000", "--format", "env", "--disk", of, "-o", "trust"]);
        fs::read_to_string(bench.path("trust/images.txt")).unwrap()
    };
    assert_eq!(trusted(layout), trusted("disk.erofs"));
    disk.images()
}

/// skopeo and buildah leave the old manifest in the index, without a name, if a name is written again.
#[test]
fn old_manifest_without_its_name_is_left_out_and_reported() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let old = layout.image("", b"old");
    let new = layout.image("test/a:1", b"new");
    let other = layout.image("test/b:1", b"other");
    layout.name(old, media_type::OCI_MANIFEST, "");
    let signature = layout.artifact("application/x.signature", new, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, "");
    // The same content under a name is not left over.
    layout.name(other, media_type::OCI_MANIFEST, "");
    let folder = bench.layout("layout", &layout);
    let digest = |stored: Stored| stored.digest.to_string();
    let expected = [
        ("test/a:1".to_owned(), digest(new)),
        (format!("test/a@{}", signature.digest), digest(signature)),
        ("test/b:1".to_owned(), digest(other)),
    ];
    assert_eq!(packed(&bench, "layout"), expected);
    assert!(!bench.extract("disk.erofs").files.contains_key(&old.digest.blob_path()));

    let output = bench.command(&["pack", "layout", "-o", "disk.erofs", "--json"]).output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["left_over"], json!([{"source": "layout", "digest": digest(old)}]));
    let line = format!("index.json: {} is no named image and belongs to none; it is left out\n", old.digest);
    assert!(text(&output.stderr).contains(&format!("\nlayout: {line}")), "{}", text(&output.stderr));
    let serving = Serving::start(&folder, tempfile::tempdir().unwrap(), &["--tls", "off"]);
    assert_eq!(serving.ready["left_over"], json!([digest(old)]));
    let inspected = bench.command(&["inspect", "layout", "--json"]).output().unwrap();
    assert!(text(&inspected.stderr).contains(&line));
    assert_eq!(serde_json::from_slice::<Value>(&inspected.stdout).unwrap()["left_over"], json!([digest(old)]));

    // The exported layout does not list what is not exported.
    json_of(&bench, &["inspect", "layout", "--export", "exported"]);
    assert!(!bench.path("exported").join(old.digest.blob_path()).exists());
    assert_eq!(packed(&bench, "exported"), expected);
}

/// A signature of the old manifest would be served beside a subject that is not on the disk.
#[test]
fn what_belongs_only_to_an_old_manifest_is_left_out_with_it() {
    for (name, others) in [("", 0), ("", 1), ("x/y=", 0)] {
        let bench = Bench::default();
        let mut layout = Layout::default();
        let old = layout.image("", b"old");
        let signature = layout.artifact("application/x.signature", old, b"signed");
        layout.name(signature, media_type::OCI_MANIFEST, "");
        let stamp = layout.artifact("application/x.stamp", signature, b"stamped");
        layout.name(stamp, media_type::OCI_MANIFEST, "");
        let attachment = layout.manifest(&[b"by its tag"]);
        layout.name(attachment, media_type::OCI_MANIFEST, &format!("sha256-{}.sig", old.digest.hex()));
        let new = layout.image("test/a:1", b"new");
        let kept = layout.artifact("application/x.signature", new, b"signed");
        layout.name(kept, media_type::OCI_MANIFEST, "");
        for _ in 0..others {
            layout.image("test/b:1", b"other");
        }
        bench.layout("layout", &layout);
        let source = format!("{name}layout");
        let named = if name.is_empty() { vec!["pack", &source] } else { vec!["pack", "--name", &source] };
        let result = json_of(&bench, &[&*named, &["-o", "disk.erofs"]].concat());
        let left_over =
            [old, signature, stamp, attachment].map(|one| json!({"source": "layout", "digest": one.digest.to_string()}));
        assert_eq!(result["left_over"], json!(left_over));
        let disk = bench.extract("disk.erofs");
        for (stored, is_there) in
            [(old, false), (signature, false), (stamp, false), (attachment, false), (new, true), (kept, true)]
        {
            assert_eq!(disk.files.contains_key(&stored.digest.blob_path()), is_there, "{name} {others}");
        }
        if name.is_empty() {
            packed(&bench, "layout");
        }
    }
}

#[test]
fn first_of_many_entries_that_are_left_out_are_named_and_the_others_counted() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/a:1", b"a");
    for number in 0..27 {
        layout.image("", format!("old {number}").as_bytes());
    }
    bench.layout("layout", &layout);
    let more = "left out for the same reason: 17 more; `localregistry inspect --json` lists all of them";
    for (arguments, prefix) in
        [(&["pack", "layout", "-o", "disk.erofs", "--json"][..], "layout: "), (&["inspect", "layout", "--json"], "")]
    {
        let output = bench.command(arguments).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(stderr.matches("is no named image and belongs to none").count(), 10, "{stderr}");
        assert!(stderr.contains(&format!("\n{prefix}{more}\n")), "{stderr}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["left_over"].as_array().unwrap().len(), 27);
    }
}

#[test]
fn faults_of_what_is_left_out_do_not_end_a_pack() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/a:1", b"a");
    let old = layout.image("", b"old");
    let document = layout.blob(b"{\"spdxVersion\": \"SPDX-2.3\"}");
    layout.name(document, "application/spdx+json", "test/a:document");
    let folder = bench.layout("layout", &layout);
    fs::remove_file(folder.join(Digest::sha256_of(b"old").blob_path())).unwrap();
    let left_over = |bench: &Bench| json_of(bench, &["pack", "layout", "-o", "disk.erofs"])["left_over"].clone();
    let both = [old, document].map(|one| json!({"source": "layout", "digest": one.digest.to_string()}));
    assert_eq!(left_over(&bench), json!(both));
    packed(&bench, "layout");
    let old_content = fs::read(folder.join(old.digest.blob_path())).unwrap();
    for (whole, name) in
        [(&old_content[..], old.digest.to_string()), (b"{\"spdxVersion\": \"SPDX-2.3\"}", "test/a:document".to_owned())]
    {
        // What is damaged or missing may have been a signature.
        let digest = Digest::sha256_of(whole);
        let path = digest.blob_path();
        fs::write(folder.join(&path), vec![b'x'; whole.len()]).unwrap();
        let found = Digest::sha256_of(&vec![b'x'; whole.len()]);
        bench.refused(&["layout"], &format!("cannot pack layout: image {name}: {path} has the content of {found}"));
        fs::write(folder.join(&path), whole).unwrap();
    }
    assert_eq!(left_over(&bench), json!(both));
}

/// A damage of a blob; `None` removes it.
type Damage = fn(&[u8]) -> Option<Vec<u8>>;

/// A signature of which nobody can tell what it signs must not be served as if there were none.
#[test]
fn missing_or_damaged_manifest_without_a_name_is_a_fault_for_every_command() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let image = layout.image("test/a:1", b"a");
    layout.image("test/b:1", b"b");
    let signature = layout.artifact("application/x.signature", image, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, "");
    let listed = layout.artifact("application/x.stamp", image, b"stamped");
    let plain = layout.manifest(&[b"the layer that is missing"]);
    let index = index_of(&layout, &[plain, listed].map(|one| one.descriptor(media_type::OCI_MANIFEST)));
    layout.name(index, media_type::OCI_INDEX, "");
    let folder = bench.layout("layout", &layout);
    let layer = folder.join(Digest::sha256_of(b"the layer that is missing").blob_path());
    let run = |arguments: &[&str]| {
        let output = bench.command(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let trust = ["trust", "--endpoint", "http://r.test:5000", "--format", "env", "--disk", "layout", "-o", "trust"];
    let commands = [
        &["pack", "layout", "-o", "disk.erofs"][..],
        &["inspect", "layout"],
        &["inspect", "layout", "--verify"],
        &["inspect", "layout", "--export", "exported"],
        &["diff", "layout", "layout"],
        &trust,
        &["serve", "layout", "--listen", "127.0.0.1:0", "--cert", "none", "--key", "none"],
    ];
    let damages: [(&str, Damage); 4] = [
        ("no JSON", |whole| Some([b"x", &whole[1..]].concat())),
        ("other JSON", |whole| Some(text(whole).replace("subject", "Subject").replace("manifests", "Manifests").into())),
        ("shorter", |whole| Some(whole[1..].to_vec())),
        ("missing", |_| None),
    ];
    // The index refers to the image by what it lists, so that it is left out only without that.
    for (stored, root, what) in
        [(signature, signature, "without a name"), (index, index, "without a name"), (listed, index, "of its index")]
    {
        let path = folder.join(stored.digest.blob_path());
        let whole = fs::read(&path).unwrap();
        for (damage, of) in damages {
            let content = of(&whole).filter(|content| *content != whole);
            match &content {
                Some(content) => fs::write(&path, content).unwrap(),
                None if damage == "missing" => fs::remove_file(&path).unwrap(),
                None => continue,
            }
            // A fault of what is left out hides none that counts.
            let layer_content = fs::read(&layer).unwrap();
            if stored.digest == listed.digest {
                fs::remove_file(&layer).unwrap();
            }
            for command in commands {
                let before = bench.everything();
                let (status, said) = run(command);
                let expected = if command[0] == "diff" { 2 } else { 1 };
                assert_eq!(status, Some(expected), "{damage} {command:?}: {said}");
                assert!(said.contains(&stored.digest.hex()), "{damage} {command:?}: {said}");
                assert!(bench.everything() == before, "{damage} {command:?}");
            }
            fs::write(&layer, layer_content).unwrap();
            let read = |allow_missing| store::read_catalog(&Directory::open(&folder).unwrap(), allow_missing);
            // The guest hashes only what is no manifest.
            assert!(damage == "other JSON" || read(false).is_err(), "{damage}");
            if damage == "missing" {
                let (_, said) = run(commands[0]);
                let expected = format!("image {}: cannot read manifest {what} {}", root.digest, stored.digest.blob_path());
                assert!(said.contains(&expected) && said.contains("--allow-missing"), "{said}");
                let (_, said) = run(&["inspect", "layout"]);
                assert!(
                    said.contains(
                        "is missing; index.json lists it without the name of an image, and it may be a signature of one\n"
                    ),
                    "{said}"
                );
                let left_out = format!("layout: index.json: {} is no named image", root.digest);
                for command in [&commands[0], &commands[4], &commands[5]] {
                    let (status, said) = run(&[*command, &["--allow-missing"]].concat());
                    assert!(status == Some(0) && said.contains(&left_out), "{command:?}: {said}");
                }
                fs::remove_file(bench.path("disk.erofs")).unwrap();
                fs::remove_dir_all(bench.path("trust")).unwrap();
                assert!(read(true).unwrap().left_over.iter().any(|one| one.digest == root.digest));
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    packed(&bench, "layout");
}

/// oras and zot list every manifest of an index beside the index.
#[test]
fn manifests_that_a_listed_index_holds_belong_to_it() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let mut roots = Vec::new();
    for (name, architectures) in [("ghcr.io/org/app:v1", ["amd64", "arm64"]), ("ghcr.io/org/other:v1", ["s390x", "riscv64"])] {
        let children = architectures.map(|architecture| for_platform(&layout, architecture).1);
        let index = index_of(&layout, &children);
        children.into_iter().for_each(|child| layout.list(child));
        layout.name(index, media_type::OCI_INDEX, name);
        roots.push((name.to_owned(), index.digest.to_string()));
    }
    bench.layout("layout", &layout);
    assert_eq!(packed(&bench, "layout"), roots);
    assert_eq!(json_of(&bench, &["pack", "layout", "-o", "disk.erofs"]).get("left_over"), None);

    // The index by its tag alone, or without any name.
    for (name, as_given, tag) in [("v1", "x/y", "v1"), ("", "x/y", "latest"), ("", "x/y:2", "2")] {
        let (mut layout, bench) = (Layout::default(), Bench::default());
        let children = ["amd64", "arm64"].map(|architecture| for_platform(&layout, architecture).1);
        let index = index_of(&layout, &children);
        layout.name(index, media_type::OCI_INDEX, name);
        children.into_iter().for_each(|child| layout.list(child));
        bench.layout("layout", &layout);
        bench.pack(&["--name", &format!("{as_given}=layout")]);
        assert_eq!(bench.extract("disk.erofs").images(), [(format!("x/y:{tag}"), index.digest.to_string())]);
    }
}

/// BuildKit's attestation beside the manifest that it is about.
#[test]
fn attestation_belongs_to_what_it_attests() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let image = layout.image("v1", b"a");
    let attestation = layout.manifest(&[b"attestation"]);
    let mut descriptor = attestation.descriptor(media_type::OCI_MANIFEST);
    descriptor["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.digest.to_string(),
    });
    layout.list(descriptor);
    bench.layout("layout", &layout);
    bench.pack(&["--name", "x/y=layout"]);
    let attested = format!("x/y@{}", attestation.digest);
    let images = [("x/y:v1".to_owned(), image.digest.to_string()), (attested, attestation.digest.to_string())];
    assert_eq!(bench.extract("disk.erofs").images(), images);
}

#[test]
fn name_files_all_tags_of_a_layout() {
    let bench = Bench::default();
    let (mut tags, mut named) = (Layout::default(), Layout::default());
    tags.image("", b"left over");
    let one = tags.image("v1", b"1").digest.to_string();
    let two = tags.image("v2", b"2").digest.to_string();
    bench.layout("tags", &tags);
    for (name, layer) in [("a/a:v1", &b"1"[..]), ("a/a:v2", b"2"), ("", b"left over")] {
        named.image(name, layer);
    }
    bench.layout("named", &named);
    for layout in ["tags", "named"] {
        bench.pack(&["--name", &format!("registry.test:5000/x/y={layout}")]);
        let names = ["v1", "v2"].map(|tag| format!("registry.test:5000/x/y:{tag}"));
        let expected = [(names[0].clone(), one.clone()), (names[1].clone(), two.clone())];
        assert_eq!(bench.extract("disk.erofs").images(), expected, "{layout}");
    }
    bench.refused(
        &["--name", "x/y:1=named"],
        "cannot pack named: --name x/y:1: it holds 2 images (a/a:v1, a/a:v2); one image, or one without a name, is expected; give each a layout of its own",
    );
}

/// A layout as apko, jam and go-containerregistry write it: `index.json` is the index of the image.
struct Flat {
    bench: Bench,
    /// Digest of `index.json`.
    index: String,
    amd64: String,
    attestation: Digest,
}

fn flat() -> Flat {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let (amd64, descriptor) = for_platform(&layout, "amd64");
    layout.list(descriptor);
    layout.list(for_platform(&layout, "arm64").1);
    let attestation = layout.manifest(&[b"attestation"]);
    let mut descriptor = attestation.descriptor(media_type::OCI_MANIFEST);
    descriptor["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    descriptor["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd64.digest.to_string(),
    });
    layout.list(descriptor);
    let content = fs::read(bench.layout("flat", &layout).join("index.json")).unwrap();
    let index = Digest::sha256_of(&content).to_string();
    Flat { bench, index, amd64: amd64.digest.to_string(), attestation: attestation.digest }
}

#[test]
fn index_json_of_platforms_becomes_an_image_by_name() {
    let Flat { bench, index, amd64, attestation } = flat();
    bench.pack(&["--name", "x/y:1=flat"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    // The index keeps its bytes, and so the digest under which it was published.
    assert_eq!(disk.images(), [("x/y:1".to_owned(), index.clone())]);
    assert_eq!(disk.blob(&index), fs::read(bench.path("flat/index.json")).unwrap());
    assert!(disk.files.contains_key(&attestation.blob_path()));
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    for reference in ["1", &index, &amd64] {
        assert_eq!(get(server.plain, &format!("/v2/x/y/manifests/{reference}")).status, 200, "{reference}");
    }
    // In a list and in an archive, too.
    bench.file("images.textproto", b"images { repository: 'x/y' tag: '1' path: 'flat' }");
    bench.pack(&["--spec", "images.textproto"]);
    assert_eq!(bench.extract("disk.erofs").images(), [("x/y:1".to_owned(), index.clone())]);
    bench.file("flat.tar", &testing::pack::archive_of(&bench.path("flat")));
    bench.pack(&["--name", "x/y:1=flat.tar"]);
    assert_eq!(bench.extract("disk.erofs").images(), [("x/y:1".to_owned(), index.clone())]);
    let unnamed = format!(
        "cannot pack flat: index.json: {index} has no repository name in org.opencontainers.image.ref.name or \
         io.containerd.image.name; give it one with --name"
    );
    bench.refused(&["flat"], &unnamed);
    let nothing = "image {} has nothing for linux/s390x, only for linux/amd64, linux/arm64";
    let nothing = nothing.replace("{}", &index);
    bench.refused(&["--platform", "linux/s390x", "--name", "x/y:1=flat"], &format!("cannot pack flat: {nothing}"));
}

#[test]
fn serve_says_how_to_name_images_without_tags() {
    let Flat { bench, amd64, .. } = flat();
    let mut command = bench.command(&["serve", "flat", "--listen", "127.0.0.1:0", "--tls", "off"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said).unwrap();
    let address = said.strip_prefix("serving images at http://").and_then(|rest| rest.split_whitespace().next()).unwrap();
    let expected = " by digest only, as image@DIGEST, because flat gives none of them a tag; \
                    `localregistry pack --name REPOSITORY:TAG=flat -o DISK` does\n";
    assert_eq!(said, format!("serving images at http://{address}{expected}"));
    assert_eq!(get(address.parse().unwrap(), &format!("/v2/image/manifests/{amd64}")).status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// `inspect` lists a manifest without a tag as an image too.
#[test]
fn serve_counts_tags_and_requests() {
    let (bench, _, manifest) = testing::pack::hello(b"layer");
    let mut command = bench.command(&["serve", "layout", "--listen", "127.0.0.1:0", "--tls", "off"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said).unwrap();
    let address = said.strip_prefix("serving 1 tagged image at http://").unwrap().trim_end();
    let served = get(address.parse().unwrap(), &format!("/v2/test/hello/manifests/{}", manifest.digest));
    assert_eq!(served.status, 200);
    let process = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let expected = format!("served 1 request, {} bytes", served.body.len());
    assert!(text(&output.stderr).lines().any(|line| line == expected), "{output:?}");
}

/// Only entries without names, one for each platform, are an index: two images of one platform are two images.
#[test]
fn other_entries_without_names_are_no_index() {
    let bench = Bench::default();
    for (folder, extra) in [("alike", json!({"os": "linux", "architecture": "amd64"})), ("plain", Value::Null)] {
        let mut layout = Layout::default();
        let (first, descriptor) = for_platform(&layout, "amd64");
        layout.list(descriptor);
        let second = layout.manifest(&[b"another"]);
        let mut descriptor = second.descriptor(media_type::OCI_MANIFEST);
        if !extra.is_null() {
            descriptor["platform"] = extra;
        }
        layout.list(descriptor);
        bench.layout(folder, &layout);
        let both = format!("{}, {}", first.digest, second.digest);
        bench.refused(
            &["--name", &format!("x/y:1={folder}")],
            &format!(
                "cannot pack {folder}: --name x/y:1: it holds 2 images ({both}); one image, or one without a name, is expected; give each a layout of its own"
            ),
        );
    }
    // Releases of Windows are platforms of their own.
    let mut layout = Layout::default();
    for release in ["10.0.17763.1", "10.0.20348.1"] {
        let manifest = layout.manifest(&[release.as_bytes()]);
        let mut descriptor = manifest.descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "windows", "architecture": "amd64", "os.version": release});
        layout.list(descriptor);
    }
    let index = Digest::sha256_of(&fs::read(bench.layout("windows", &layout).join("index.json")).unwrap());
    bench.pack(&["--name", "x/y:1=windows"]);
    assert_eq!(bench.extract("disk.erofs").images(), [("x/y:1".to_owned(), index.to_string())]);
}

/// BuildKit's cache lists layers, and other indexes list documents: they are served as blobs.
#[test]
fn index_may_list_content_that_is_no_manifest() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let (layer, config) = (layout.blob(b"a layer"), layout.blob(b"{\"layers\":[]}"));
    let cache = index_of(
        &layout,
        &[
            layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
            config.descriptor("application/vnd.buildkit.cacheconfig.v0"),
        ],
    );
    layout.name(cache, media_type::OCI_INDEX, "x/cache:1");
    let document = layout.blob(b"{\"spdxVersion\": \"SPDX-2.3\"}");
    let image = layout.manifest(&[b"image"]);
    let mut for_linux = image.descriptor(media_type::OCI_MANIFEST);
    for_linux["platform"] = json!({"os": "linux"});
    let documented = index_of(&layout, &[for_linux, document.descriptor("application/spdx+json")]);
    layout.name(documented, media_type::OCI_INDEX, "x/documented:1");
    let folder = bench.layout("layout", &layout);
    let names = [("x/cache:1", cache), ("x/documented:1", documented)];
    assert_eq!(packed(&bench, "layout"), names.map(|(name, index)| (name.to_owned(), index.digest.to_string())));
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    for (repository, kind, of, status) in [
        ("cache", "manifests", cache, 200),
        ("cache", "blobs", layer, 200),
        ("cache", "blobs", config, 200),
        ("cache", "manifests", config, 404),
        ("documented", "manifests", image, 200),
        ("documented", "blobs", document, 200),
        ("documented", "manifests", document, 404),
    ] {
        let target = format!("/v2/x/{repository}/{kind}/{}", of.digest);
        assert_eq!(get(server.plain, &target).status, status, "{target}");
    }
    // Such content is verified, and missed if it is not there.
    fs::write(folder.join(document.digest.blob_path()), b"{\"spdxVersion\": \"SPDX-2.2\"}").unwrap();
    let (path, found) = (document.digest.blob_path(), Digest::sha256_of(b"{\"spdxVersion\": \"SPDX-2.2\"}"));
    bench.refused(
        &["layout"],
        &format!("cannot pack layout: image x/documented:1: {path} has the content of {found}; {} is expected", document.digest),
    );
    fs::remove_file(folder.join(&path)).unwrap();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: something that an image names is missing (with --allow-missing, the rest is packed): \
             image x/documented:1: cannot read content of its index {path}, of {} bytes: No such file or directory (os error 2)",
            document.size
        ),
    );
}

#[test]
fn content_that_an_index_lists_is_pulled_as_a_blob() {
    let bench = Bench::default();
    let layout = Layout::default();
    let layer = layout.blob(b"a layer");
    let cache = index_of(&layout, &[layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")]);
    let images = Images::new(&layout, &[("1", &cache.digest.to_string())]);
    let upstream = Upstream::start(move |request| images.answer(request));
    let name = format!("{}/x/cache:1", upstream.address);
    bench.pack(&["--pull", &name]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    assert_eq!(disk.images(), [(name, cache.digest.to_string())]);
    assert!(disk.files.contains_key(&layer.digest.blob_path()));
    let asked: Vec<String> = upstream.targets().into_iter().filter(|target| target.contains(&layer.digest.hex())).collect();
    assert_eq!(asked, [format!("/v2/x/cache/blobs/{}", layer.digest)]);
}

/// What `cosign save` writes: one image without a name, and what belongs to it, by the annotation `kind`.
#[test]
fn layout_of_cosign_save_is_packed_with_its_signatures() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let index = index_of(&layout, &["amd64", "arm64"].map(|architecture| for_platform(&layout, architecture).1));
    let [signatures, attestations] = [&b"signatures"[..], b"attestations"].map(|layer| layout.manifest(&[layer]));
    for (stored, media_type, kind) in [
        (index, media_type::OCI_INDEX, "imageIndex"),
        (signatures, media_type::OCI_MANIFEST, "sigs"),
        (attestations, media_type::OCI_MANIFEST, "atts"),
    ] {
        let mut descriptor = stored.descriptor(media_type);
        descriptor["annotations"] = json!({"kind": format!("dev.cosignproject.cosign/{kind}")});
        layout.list(descriptor);
    }
    let folder = bench.layout("layout", &layout);
    let tag = |end: &str| format!("sha256-{}.{end}", index.digest.hex());
    let expected = [
        ("x/y:1".to_owned(), index.digest.to_string()),
        (format!("x/y:{}", tag("att")), attestations.digest.to_string()),
        (format!("x/y:{}", tag("sig")), signatures.digest.to_string()),
    ];
    for name in ["x/y:1", "x/y:1 --tag 2"] {
        let (name, further) = name.split_once(' ').unwrap_or((name, ""));
        let named = format!("{name}=layout");
        bench.pack(&[&["--name", named.as_str()][..], &further.split_whitespace().collect::<Vec<_>>()].concat());
        assert_eq!(bench.extract("disk.erofs").images(), expected);
    }
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: index.json: {} has no repository name in org.opencontainers.image.ref.name or \
             io.containerd.image.name; give it one with --name",
            index.digest
        ),
    );
    let server = Server::start(&folder);
    for reference in [index.digest.to_string(), tag("sig"), tag("att")] {
        assert_eq!(get(server.plain, &format!("/v2/image/manifests/{reference}")).status, 200, "{reference}");
    }
}

#[test]
fn images_of_cosign_save_are_counted_without_what_belongs_to_them() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let images = [&b"1"[..], b"2"].map(|layer| layout.manifest(&[layer]));
    for image in images {
        let signatures = layout.artifact("application/x.signature", image, b"signed");
        for (stored, kind) in [(image, "image"), (signatures, "sigs")] {
            let mut descriptor = stored.descriptor(media_type::OCI_MANIFEST);
            descriptor["annotations"] = json!({"kind": format!("dev.cosignproject.cosign/{kind}")});
            layout.list(descriptor);
        }
    }
    bench.layout("layout", &layout);
    let [one, two] = images.map(|image| image.digest);
    for name in ["x/y", "x/y:9"] {
        bench.refused(
            &["--name", &format!("{name}=layout")],
            &format!(
                "cannot pack layout: --name {name}: it holds 2 images ({one}, {two}); one image, or one without a name, is expected; give \
                 each a layout of its own"
            ),
        );
    }
}

/// A kind that a later version adds. Alone under its name, it is what the name names.
#[test]
fn unknown_kind_does_not_claim_the_name_of_an_image() {
    for prefix in ["dev.hauler", "dev.cosignproject.cosign"] {
        let bench = Bench::default();
        let mut layout = Layout::default();
        let image = layout.manifest(&[b"image"]);
        let bundle = layout.artifact("application/x.bundle", image, b"bundle");
        let [note, other] = [&b"note"[..], b"other"].map(|layer| layout.manifest(&[layer]));
        for (stored, kind, name) in [
            (bundle, "bundles", "test/a:1"),
            (image, "image", "test/a:1"),
            (note, "notes/of/1", "test/a:1"),
            (other, "notes", "test/b:1"),
        ] {
            let mut descriptor = stored.descriptor(media_type::OCI_MANIFEST);
            descriptor["annotations"] = json!({"kind": format!("{prefix}/{kind}"), "org.opencontainers.image.ref.name": name});
            layout.list(descriptor);
        }
        bench.layout("layout", &layout);
        let mut expected = [
            ("test/a:1".to_owned(), image.digest.to_string()),
            (format!("test/a@{}", bundle.digest), bundle.digest.to_string()),
            (format!("test/a@{}", note.digest), note.digest.to_string()),
            ("test/b:1".to_owned(), other.digest.to_string()),
        ];
        expected.sort();
        assert_eq!(packed(&bench, "layout"), expected, "{prefix}");
    }
}

/// What hauler writes: the image and all that belongs to it have one name. Before version 2 it wrote cosign's kinds.
#[test]
fn hauler_store_is_packed_with_its_signatures() {
    for prefix in ["dev.hauler", "dev.cosignproject.cosign"] {
        let bench = Bench::default();
        let mut layout = Layout::default();
        let add = |stored: Stored, kind: &str, path: &str| {
            let mut descriptor = stored.descriptor(media_type::OCI_MANIFEST);
            descriptor["annotations"] = json!({
                "kind": format!("{prefix}/{kind}"), "org.opencontainers.image.ref.name": path,
                "io.containerd.image.name": format!("registry.test/{path}"),
            });
            descriptor
        };
        let mut expected = Vec::new();
        let mut listed = Vec::new();
        for path in ["team/app:1", "team/tool:2"] {
            let (name, tag) = path.split_once(':').unwrap();
            let image = layout.manifest(&[path.as_bytes()]);
            let referrer = layout.artifact("application/vnd.dev.sigstore.bundle.v0.3+json", image, path.as_bytes());
            listed.push(add(image, "image", path));
            listed.push(add(referrer, &format!("referrers/{}", referrer.digest.hex()), path));
            expected.push((format!("registry.test/{name}:{tag}"), image.digest.to_string()));
            expected.push((format!("registry.test/{name}@{}", referrer.digest), referrer.digest.to_string()));
            for (kind, end) in [("sigs", "sig"), ("atts", "att"), ("sboms", "sbom")] {
                let attached = layout.manifest(&[path.as_bytes(), kind.as_bytes()]);
                listed.push(add(attached, kind, path));
                let name = format!("registry.test/{name}:sha256-{}.{end}", image.digest.hex());
                expected.push((name, attached.digest.to_string()));
            }
        }
        // A chart or a file has a name below hauler/ and no other annotation.
        let chart = layout.manifest(&[b"chart"]);
        listed.push(json!({
            "mediaType": media_type::OCI_MANIFEST, "digest": chart.digest.to_string(), "size": chart.size,
            "annotations": {"kind": format!("{prefix}/image"), "org.opencontainers.image.ref.name": "hauler/chart:1.0.0"},
        }));
        expected.push(("hauler/chart:1.0.0".to_owned(), chart.digest.to_string()));
        // The order says nothing.
        listed.into_iter().rev().for_each(|descriptor| layout.list(descriptor));
        bench.layout("store", &layout);
        expected.sort();
        assert_eq!(packed(&bench, "store"), expected, "{prefix}");
        let server = Server::start(&bench.path("disk.erofs.extracted"));
        let image = &expected.iter().find(|(name, _)| name == "registry.test/team/app:1").unwrap().1;
        let referrers = get(server.plain, &format!("/v2/registry.test/team/app/referrers/{image}")).json();
        assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1);
    }
}

/// Listed children, old manifests and signatures are no images for `--platform`, and a signature never becomes that of another manifest.
#[test]
fn platform_is_taken_of_named_images_only() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.list(for_platform(&layout, "s390x").1);
    let children = ["amd64", "arm64"].map(|architecture| for_platform(&layout, architecture));
    let listed = children.clone().map(|(_, child)| child);
    let index = index_of(&layout, &listed);
    listed.into_iter().for_each(|child| layout.list(child));
    let signatures = layout.manifest(&[b"signatures"]);
    for (stored, media_type, kind) in
        [(index, media_type::OCI_INDEX, "imageIndex"), (signatures, media_type::OCI_MANIFEST, "sigs")]
    {
        let mut descriptor = stored.descriptor(media_type);
        descriptor["annotations"] =
            json!({"kind": format!("dev.hauler/{kind}"), "org.opencontainers.image.ref.name": "test/app:1"});
        layout.list(descriptor);
    }
    bench.layout("layout", &layout);
    for (kept, left_out) in [(0, 1), (1, 0)] {
        bench.pack(&["layout", "--platform", ["linux/amd64", "linux/arm64"][kept]]);
        let disk = bench.extract("disk.erofs");
        disk.assert_blobs();
        assert!(disk.files.contains_key(&children[kept].0.digest.blob_path()));
        assert!(!disk.files.contains_key(&children[left_out].0.digest.blob_path()));
        let named = |name: &&String| **name != "test/app:1" && **name != format!("test/app:sha256-{}.sig", index.digest.hex());
        assert_eq!(disk.names().iter().find(named), None, "{:?}", disk.names());
        assert!(disk.names().contains(&"test/app:1".to_owned()));
    }
}

/// A signature of nothing that is there belongs to no image.
#[test]
fn attachment_without_its_image_is_left_out() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/a:1", b"a");
    layout.image("test/b:1", b"b");
    let signatures = layout.manifest(&[b"signatures"]);
    let mut descriptor = signatures.descriptor(media_type::OCI_MANIFEST);
    descriptor["annotations"] = json!({"kind": "dev.cosignproject.cosign/sigs"});
    layout.list(descriptor);
    bench.layout("layout", &layout);
    let names: Vec<String> = packed(&bench, "layout").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["test/a:1", "test/b:1"]);
    let left_over = &json_of(&bench, &["pack", "layout", "-o", "disk.erofs"])["left_over"];
    assert_eq!(left_over[0]["digest"], signatures.digest.to_string());
}

#[test]
fn image_with_fewer_layers_than_its_config_names_is_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let (one, two) = (layout.blob(b"one"), layout.blob(b"two"));
    let diff_ids = [one, two].map(|layer| layer.digest.to_string());
    let config =
        layout.json(&json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}));
    let layer = |stored: Stored| stored.descriptor("application/vnd.oci.image.layer.v1.tar");
    let mut image = |name: &str, layers: &[Value]| {
        let manifest = layout.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": layers,
        }));
        layout.name(manifest, media_type::OCI_MANIFEST, name);
        manifest
    };
    image("test/whole:1", &[layer(one), layer(two)]);
    let cut = image("test/cut:1", &[layer(one)]);
    bench.layout("layout", &layout);
    let (manifest, config) = (cut.digest.blob_path(), config.digest.blob_path());
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: image test/cut:1: {manifest} has 1 layers, and its config {config} has 2 in rootfs.diff_ids; \
             no client can unpack it, so make the image again"
        ),
    );
}

/// The command line reads the same text that the message gives.
#[test]
fn left_over_entries_of_an_archive_are_named_by_the_archive() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let old = layout.image("", b"old");
    layout.image("test/a:1", b"a");
    bench.file("a.tar", &testing::pack::archive_of(layout.write()));
    let mut command = testing::program(PROGRAM);
    command.current_dir(bench.path("")).args(["pack", "a.tar", "-o", "disk.erofs"]);
    let said = text(&command.output().unwrap().stderr);
    assert!(said.contains(&format!("a.tar: index.json: {} is no named image", old.digest)), "{said}");
}
