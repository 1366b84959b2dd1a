//! Names of images as sources, the command line and lists write them: Docker Hub's spellings, and names that are no references.

use std::fs;

use serde_json::json;
use testing::layout::Layout;
use testing::pack::{Bench, Saved, text};
use testing::server::Server;

/// Each spelling, and the name under which the image is on the disk.
const HUB: [(&str, &str); 6] = [
    ("index.docker.io/team/app:2", "docker.io/team/app:2"),
    ("docker.io/hello:1", "docker.io/library/hello:1"),
    ("registry-1.docker.io/library/alpine:3", "docker.io/library/alpine:3"),
    ("Index.Docker.io/base:latest", "docker.io/library/base:latest"),
    ("quay.io/base:1", "quay.io/base:1"),
    ("own:1", "own:1"),
];

fn run(bench: &Bench, arguments: &[&str]) -> String {
    let output = bench.command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Wherever a name comes in, Docker Hub's images have one name, and `trust` lists that.
#[test]
fn docker_hub_has_one_name_in_every_source() {
    let mut expected: Vec<&str> = HUB.iter().map(|(_, name)| *name).collect();
    expected.sort_unstable();
    let check = |bench: &Bench, what: &str| {
        assert_eq!(bench.extract("disk.erofs").names(), expected, "{what}");
        let arguments = ["--quiet", "trust", "--endpoint", "http://r.test:5000", "--disk", "disk.erofs", "-o", "trust"];
        run(bench, &arguments);
        let listed = fs::read_to_string(bench.path("trust/images.txt")).unwrap();
        let pullable: Vec<String> = expected.iter().map(|name| name.replace("own:1", "r.test:5000/own:1")).collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), pullable, "{what}");
        let conf = fs::read_to_string(bench.path("trust/podman/registries.conf.d/50-localregistry.conf")).unwrap();
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            let entry = format!("prefix = \"{host}\"\nlocation = \"r.test:5000/docker.io\"\n");
            assert_eq!(conf.matches(&entry).count(), 1, "{what}: {conf}");
        }
    };

    let (bench, mut layout) = (Bench::default(), Layout::default());
    for (name, _) in HUB {
        layout.image(name, name.as_bytes());
    }
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    check(&bench, "annotations");

    let mut saved = Saved::default();
    for (number, (name, _)) in HUB.iter().enumerate() {
        let member = format!("{number}/layer.tar");
        saved.member(&member, name.as_bytes());
        saved.image(&[name], &[(&member, name.as_bytes())]);
    }
    let bench = Bench::default();
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["saved.tar"]);
    check(&bench, "RepoTags");

    let (bench, mut layout) = (Bench::default(), Layout::default());
    layout.image("", b"one");
    bench.layout("layout", &layout);
    let named: Vec<String> = HUB.iter().flat_map(|(name, _)| ["--name".to_owned(), format!("{name}=layout")]).collect();
    bench.pack(&named.iter().map(String::as_str).collect::<Vec<_>>());
    check(&bench, "--name");

    let entry = |(name, _): &(&str, &str)| {
        let (repository, tag) = name.rsplit_once(':').unwrap();
        format!("images {{ repository: \"{repository}\" tag: \"{tag}\" path: \"layout\" }}\n")
    };
    bench.file("list", HUB.iter().map(entry).collect::<String>().as_bytes());
    bench.pack(&["--spec", "list"]);
    check(&bench, "--spec");
}

/// Two spellings of one name with different content contradict each other, as one name does.
#[test]
fn spellings_of_one_name_cannot_have_different_images() {
    let (bench, mut layout) = (Bench::default(), Layout::default());
    let one = layout.image("docker.io/hello:1", b"one");
    let two = layout.image("index.docker.io/library/hello:1", b"two");
    bench.layout("layout", &layout);
    bench.refused(
        &["layout"],
        &format!(
            "image docker.io/library/hello:1: the tag is claimed by {} in layout and by {} in layout; one manifest for each tag is \
             expected",
            one.digest, two.digest
        ),
    );
}

/// `assert` takes every spelling of a name in the log of a server.
#[test]
fn assert_takes_every_spelling() {
    let bench = Bench::default();
    let digest = format!("sha256:{}", "0".repeat(64));
    let event = |endpoint: &str, reference: &str| {
        format!(
            "{{\"time\":1,\"request\":{{\"peer\":\"10.1.0.7:1\",\"method\":\"GET\",\"endpoint\":\"{endpoint}\",\"status\":200,\
             \"repository\":\"docker.io/library/hello\",\"reference\":\"{reference}\",\"digest\":\"{digest}\",\"bytes\":\"5\",\
             \"complete\":true}}}}\n"
        )
    };
    let done = "{\"time\":2,\"done\":{\"reason\":\"asked\",\"requests\":\"2\"}}\n";
    bench.file("log", (event("manifest", "1") + &event("blob", &digest) + done).as_bytes());
    for name in
        ["hello:1", "docker.io/hello:1", "index.docker.io/hello:1", "registry-1.docker.io/library/hello:1", "library/hello:1"]
    {
        run(&bench, &["--quiet", "assert", "--pulled", name, "--times", "1", "log"]);
    }
    for name in ["quay.io/hello:1", "docker.io/other/hello:1", "localhost/library/hello:1"] {
        run(&bench, &["--quiet", "assert", "--not-pulled", name, "log"]);
    }
}

/// Names that tools write and that are no references: what is wrong with each, and the tag in it.
const WRONG: [(&str, &str, Option<&str>); 9] = [
    ("1.0.0+build.5", TAG, None),
    ("a b", TAG, None),
    ("team/app:1.0.0+build.5", TAG, None),
    ("<none>:<none>", TAG, None),
    ("Team/App:1.0", REPOSITORY, Some("1.0")),
    ("my app:1.0", REPOSITORY, Some("1.0")),
    ("my_host.test/app:1.0", HOST, Some("1.0")),
    ("app@1.0", "a digest has the form algorithm:hex", None),
    ("@", "a digest has the form algorithm:hex", None),
];
const TAG: &str = "a tag has at most 128 letters, digits and _ . -, and starts with none of . -";
const REPOSITORY: &str = "a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /";
const HOST: &str = "a registry's host is a DNS name or an address, with an optional port";

/// A wrong name never stands in the way of `--name`, and without that the message says what is wrong with it.
#[test]
fn wrong_names_of_a_source_give_way_to_the_requested_name() {
    for (name, wrong, tag) in WRONG {
        let (bench, mut layout) = (Bench::default(), Layout::default());
        let image = layout.image(name, b"layer");
        bench.layout("layout", &layout);
        let mut saved = Saved::default();
        saved.member("layer.tar", b"layer");
        saved.image(&[name], &[("layer.tar", b"layer")]);
        bench.file("saved.tar", &saved.bytes());
        let annotation = "org.opencontainers.image.ref.name";
        bench.refused(
            &["layout"],
            &format!(
                "cannot pack layout: index.json: annotation {annotation} names an image {name:?}: {wrong}; give it another name with \
                 --name"
            ),
        );
        // A bare name in RepoTags is a repository, not a tag.
        let wrong = if name == "1.0.0+build.5" || name == "a b" { REPOSITORY } else { wrong };
        bench.refused(
            &["saved.tar"],
            &format!(
                "cannot pack saved.tar: manifest.json: RepoTags has {name:?}: {wrong}; give the image another name with --name"
            ),
        );
        for source in ["layout", "saved.tar"] {
            bench.pack(&["--name", &format!("x/y={source}")]);
            assert_eq!(bench.extract("disk.erofs").names(), [format!("x/y:{}", tag.unwrap_or("latest"))], "{name} in {source}");
            bench.pack(&["--name", &format!("x/y:2={source}")]);
            assert_eq!(bench.extract("disk.erofs").names(), ["x/y:2"], "{name} in {source}");
        }
        bench.file("list", b"images { name: \"x/y\" tag: \"3\" path: \"layout\" }");
        bench.pack(&["--spec", "list"]);
        assert_eq!(bench.extract("disk.erofs").names(), ["x/y:3"], "{name}");

        // The registry and what shows a disk know such an image by its digest.
        let digest = image.digest.to_string();
        let shown: serde_json::Value = serde_json::from_str(&run(&bench, &["--json", "inspect", "layout", "--verify"])).unwrap();
        assert_eq!((&shown["images"][0]["repository"], &shown["images"][0]["tag"]), (&"image".into(), &serde_json::Value::Null));
        assert_eq!(shown["images"][0]["digest"], digest.as_str());
        let server = Server::start(&bench.path("layout"));
        assert_eq!(testing::http::get(server.plain, &format!("/v2/image/manifests/{digest}")).status, 200, "{name}");
        run(&bench, &["inspect", "saved.tar"]);
    }
}

/// Beside good names: `--name` takes the image of the wrong one, and what has a name is no left-over.
#[test]
fn wrong_names_beside_good_ones() {
    let (bench, mut layout) = (Bench::default(), Layout::default());
    let good = layout.image("test/good:1", b"good");
    let wrong = layout.image("Wrong:1", b"wrong");
    layout.name(good, "application/vnd.oci.image.manifest.v1+json", "<none>:<none>");
    bench.layout("layout", &layout);
    let output = bench.command(&["--quiet", "pack", "layout", "-o", "disk.erofs"]).output().unwrap();
    assert!(text(&output.stderr).contains("names an image \"Wrong:1\": "), "{output:?}");
    assert_eq!((output.status.code(), bench.path("disk.erofs").exists()), (Some(1), false));
    let server = Server::start(&bench.path("layout"));
    let status = |target: &str| testing::http::get(server.plain, &format!("/v2/{target}")).status;
    assert_eq!(status("test/good/manifests/1"), 200);
    assert_eq!(status(&format!("image/manifests/{}", wrong.digest)), 200);

    // Several wrong names with tags of their own.
    let (bench, mut layout) = (Bench::default(), Layout::default());
    layout.image("App:1", b"one");
    layout.image("App:2", b"two");
    bench.layout("layout", &layout);
    bench.pack(&["--name", "test/app=layout"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["test/app:1", "test/app:2"]);

    // An archive whose image has a good name, too.
    let mut saved = Saved::default();
    saved.member("layer.tar", b"layer");
    saved.image(&["<none>:<none>", "test/app:1"], &[("layer.tar", b"layer")]);
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["--name", "x/y=saved.tar"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["x/y:1"]);

    // The second annotation counts if the first is wrong.
    let (bench, mut layout) = (Bench::default(), Layout::default());
    layout.image("test/app:1", b"one");
    let path = bench.layout("layout", &layout).join("index.json");
    let index = fs::read_to_string(&path).unwrap().replacen(
        "\"annotations\":{",
        "\"annotations\":{\"io.containerd.image.name\":\"<none>@x\",",
        1,
    );
    assert!(index.contains("<none>@x"), "{index}");
    fs::write(&path, index).unwrap();
    bench.pack(&["layout"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["test/app:1"]);
}

/// An image's ID where a name is expected, as `podman save` writes it, is no name.
#[test]
fn image_ids_are_no_names() {
    let hex = "0f".repeat(32);
    for id in [hex.clone(), format!("sha256:{hex}"), format!("sha512:{hex}{hex}")] {
        let (bench, mut layout) = (Bench::default(), Layout::default());
        let image = layout.image(&id, b"layer");
        bench.layout("layout", &layout);
        bench.refused(
            &["layout"],
            &format!(
                "cannot pack layout: index.json: {} has no repository name in org.opencontainers.image.ref.name or \
                 io.containerd.image.name; give it one with --name",
                image.digest
            ),
        );
        for (name, packed) in [("x/y", "x/y:latest"), ("x/y:2", "x/y:2")] {
            bench.pack(&["--name", &format!("{name}=layout")]);
            assert_eq!(bench.extract("disk.erofs").names(), [packed], "{id}");
        }
        // Beside a name it is left out.
        layout.image("test/app:1", b"other");
        bench.layout("two", &layout);
        let output = bench.command(&["--json", "pack", "two", "-o", "disk.erofs"]).output().unwrap();
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["left_over"][0]["digest"], image.digest.to_string());
        assert_eq!(bench.extract("disk.erofs").names(), ["test/app:1"], "{id}");
    }
}

/// A name with the digest of other content is refused, and gives way to the requested name. Its tag stays then.
#[test]
fn digest_in_a_name_is_that_of_the_image() {
    let other = format!("sha256:{}", "0".repeat(64));
    for (name, requested) in [("r/a", "x/y:latest"), ("r/a:1", "x/y:1"), ("quay.io:443/r/a", "x/y:latest")] {
        let (bench, mut layout) = (Bench::default(), Layout::default());
        let wrong = format!("{name}@{other}");
        let image = layout.image(&wrong, b"layer");
        bench.layout("layout", &layout);
        bench.refused(
            &["layout"],
            &format!(
                "cannot pack layout: index.json: annotation org.opencontainers.image.ref.name names an image {wrong:?}: the digest in it \
                 is not that of the image's manifest; give it another name with --name"
            ),
        );
        bench.pack(&["--name", "x/y=layout"]);
        assert_eq!(bench.extract("disk.erofs").names(), [requested]);
        let (bench, mut layout) = (Bench::default(), Layout::default());
        assert_eq!(layout.image("", b"layer").digest, image.digest);
        layout.name(image, "application/vnd.oci.image.manifest.v1+json", &format!("{name}@{}", image.digest));
        bench.layout("layout", &layout);
        bench.pack(&["layout"]);
        let name = if name.ends_with(":1") { name.to_owned() } else { format!("{name}@{}", image.digest) };
        let extracted = bench.extract("disk.erofs");
        assert!(extracted.names().iter().any(|found| name.starts_with(found.as_str())), "{:?}", extracted.names());
    }
}

/// Entries of a `docker save` archive without a name of an image.
#[test]
fn unnamed_images_of_docker_archives() {
    let (id, other) = ("0f".repeat(32), format!("sha256:{}", "1".repeat(64)));
    let saved = |images: &[(serde_json::Value, &[u8])]| {
        let mut saved = Saved::default();
        for (number, (tags, layer)) in images.iter().enumerate() {
            let member = format!("{number}.tar");
            saved.member(&member, layer);
            saved.image(&[], &[(&member, *layer)]);
            saved.manifest[number]["RepoTags"] = tags.clone();
        }
        let config = |entry: &serde_json::Value| entry["Config"].as_str().unwrap().to_owned();
        (saved.bytes(), saved.manifest.iter().map(config).collect::<Vec<_>>())
    };
    // Alone: what is no name counts as none.
    for tags in [json!([null]), json!([""]), json!(null), json!([id]), json!([format!("sha256:{id}")])] {
        let bench = Bench::default();
        let (archive, configs) = saved(&[(tags, b"layer")]);
        bench.file("saved.tar", &archive);
        let message =
            format!("cannot pack saved.tar: image {} has no RepoTags in manifest.json; give it a name with --name", configs[0]);
        bench.refused(&["saved.tar"], &message);
        bench.pack(&["--name", "x/y=saved.tar"]);
        assert_eq!(bench.extract("disk.erofs").names(), ["x/y:latest"]);
    }
    // A digest cannot be that of a manifest which is not in the archive, and is no reason to make up a tag.
    for (name, packed) in [(format!("a@{other}"), "x/y:latest"), (format!("quay.io/a/b:1@{other}"), "x/y:1")] {
        let bench = Bench::default();
        bench.file("saved.tar", &saved(&[(json!([name]), b"layer")]).0);
        let message = format!(
            "cannot pack saved.tar: manifest.json: RepoTags has {name:?}: the digest in it is not that of the image's manifest; give the \
             image another name with --name"
        );
        bench.refused(&["saved.tar"], &message);
        bench.pack(&["--name", "x/y=saved.tar"]);
        assert_eq!(bench.extract("disk.erofs").names(), [packed]);
    }
    // Beside a name: the same image is no left-over, and another one is left out and said.
    let bench = Bench::default();
    let (archive, configs) = saved(&[(json!(null), b"one"), (json!(["g:1"]), b"one"), (json!(null), b"two")]);
    bench.file("saved.tar", &archive);
    let output = bench.command(&["pack", "saved.tar", "-o", "disk.erofs"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stderr);
    let left_out: Vec<&str> = said.lines().filter(|line| line.contains("left out")).collect();
    let expected =
        format!("saved.tar: manifest.json: image {} has no name in RepoTags, and other images have; it is left out", configs[2]);
    assert_eq!(left_out, [expected]);
    assert_eq!(bench.extract("disk.erofs").names(), ["g:1"]);
    // One name for several images that have none.
    let (archive, configs) = saved(&[(json!(null), b"one"), (json!(null), b"two")]);
    bench.file("saved.tar", &archive);
    bench.refused(
        &["--name", "x/y=saved.tar"],
        &format!(
            "cannot pack saved.tar: --name x/y: it holds 2 images without a name ({}, {}); one is expected: `skopeo copy \
             docker-archive:FILE:@N oci:LAYOUT` takes out the one at place N of manifest.json, counted from 0",
            configs[0], configs[1]
        ),
    );
}

/// What is left out for lack of a name does no harm if it is broken, as with skopeo. It is said all the same.
#[test]
fn broken_image_without_a_name_is_left_out() {
    let bench = Bench::default();
    let archive = |layer: bool, config: bool| {
        let mut saved = Saved::default();
        saved.member("named.tar", b"named");
        saved.image(&["g:1"], &[("named.tar", b"named")]);
        if layer {
            saved.member("broken.tar", b"broken");
        }
        saved.image(&[], &[("broken.tar", b"broken")]);
        if !config {
            saved.manifest[1]["Config"] = json!("gone.json");
        }
        bench.file("saved.tar", &saved.bytes());
        saved.manifest[1]["Config"].as_str().unwrap().to_owned()
    };
    for (layer, config) in [(false, true), (true, false), (false, false)] {
        let broken = archive(layer, config);
        let output = bench.command(&["--json", "pack", "saved.tar", "-o", "disk.erofs"]).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let told =
            format!("saved.tar: manifest.json: image {broken} has no name in RepoTags, and other images have; it is left out");
        assert!(said.lines().any(|line| line == told), "{said}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["left_over"].as_array().unwrap().len(), 1, "{result}");
        assert_eq!(bench.extract("disk.erofs").names(), ["g:1"]);
        bench.pack(&["--name", "x/y=saved.tar"]);
        assert_eq!(bench.extract("disk.erofs").names(), ["x/y:1"]);
    }
    // Where no image has a name, it may be the one that is meant.
    let mut saved = Saved::default();
    saved.image(&[], &[("broken.tar", b"broken")]);
    bench.file("saved.tar", &saved.bytes());
    let output = bench.command(&["--quiet", "pack", "--name", "x/y=saved.tar", "-o", "new"]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), bench.path("new").exists()), (Some(1), false), "{said}");
    let broken = saved.manifest[0]["Config"].as_str().unwrap();
    assert!(said.starts_with(&format!("localregistry: cannot pack saved.tar: image {broken}: cannot read layer ")), "{said}");
}
