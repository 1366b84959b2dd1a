//! Archives and layouts of real tools, packed, served and pulled again with skopeo: the client gets every byte that the tool wrote.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use localregistry::oci::{Digest, media_type};
use serde_json::{Value, json};
use testing::docker::Dockerd;
use testing::layout::Layout;
use testing::pack::{Bench, Extracted, PROGRAM, Saved, archive, gzip, text};
use testing::private::privately;
use testing::serve::Serving;
use testing::vm::{skopeo, succeed};

/// A folder with the layout `sample`, whose image is real, so that tools accept it.
fn bench() -> Bench {
    let bench = Bench::default();
    succeed(testing::program(PROGRAM).args(["--quiet", "sample", "--output"]).arg(bench.path("sample")));
    // Only the index contains the name.
    let index = fs::read_to_string(bench.path("sample/index.json")).unwrap();
    let mut index: Value = serde_json::from_str(&index).unwrap();
    index["manifests"][0]["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "it"});
    fs::write(bench.path("sample/index.json"), index.to_string()).unwrap();
    bench
}

/// Packs sources, serves the disk, and pulls each image with skopeo. Returns name and digest of each, and the disk.
fn packed_and_pulled(bench: &Bench, arguments: &[&str]) -> (Vec<(String, String)>, Extracted) {
    bench.pack(arguments);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let serving = Serving::start(&bench.path("disk.erofs.extracted"), tempfile::tempdir().unwrap(), &[]);
    let images = disk.images();
    for (number, (name, digest)) in images.iter().enumerate() {
        let to = number.to_string();
        let pulled = serving.pull(name, &to, &["--quiet", "--preserve-digests", "--all"]);
        assert!(pulled.status.success(), "{name}: {}", text(&pulled.stderr));
        let manifest = fs::read(serving.pulled(&to).join("manifest.json")).unwrap();
        assert_eq!(Digest::sha256_of(&manifest).to_string(), *digest, "{name}");
        let mut blobs = BTreeSet::new();
        for entry in fs::read_dir(serving.pulled(&to)).unwrap().map(Result::unwrap) {
            let file = entry.file_name().into_string().unwrap();
            if file.len() == 64 {
                assert!(fs::read(entry.path()).unwrap() == disk.blob(&format!("sha256:{file}")), "{name}: {file}");
                blobs.insert(format!("sha256:{file}"));
            }
        }
        assert_eq!(blobs, named_by(&serde_json::from_slice(&manifest).unwrap()), "{name}");
    }
    fs::remove_dir_all(bench.path("disk.erofs.extracted")).unwrap();
    (images, disk)
}

/// The config and the layers of a manifest.
fn named_by(manifest: &Value) -> BTreeSet<String> {
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.chain([&manifest["config"]]).map(|blob| blob["digest"].as_str().unwrap().to_owned()).collect()
}

fn member(archive: &Path, name: &str) -> Vec<u8> {
    let tar = testing::program("tar").arg("-xOf").arg(archive).arg(name).output().unwrap();
    assert!(tar.status.success(), "{name}: {}", text(&tar.stderr));
    tar.stdout
}

/// The manifests in a layout's index by digest, from a folder or an archive.
fn listed(source: &Path) -> Vec<String> {
    let index = if source.is_dir() { fs::read(source.join("index.json")).unwrap() } else { member(source, "index.json") };
    let index: Value = serde_json::from_slice(&index).unwrap();
    index["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect()
}

/// Compares the config and layers of the image with the entry of the docker save archive from which it was packed.
fn assert_saved(archive: &Path, entry: usize, disk: &Extracted, digest: &str) {
    let saved: Value = serde_json::from_slice(&member(archive, "manifest.json")).unwrap();
    let manifest = disk.json(digest);
    let config = member(archive, saved[entry]["Config"].as_str().unwrap());
    assert_eq!(disk.blob(manifest["config"]["digest"].as_str().unwrap()), config);
    let layers = saved[entry]["Layers"].as_array().unwrap();
    assert_eq!(manifest["layers"].as_array().unwrap().len(), layers.len());
    for (layer, path) in manifest["layers"].as_array().unwrap().iter().zip(layers) {
        let content = member_followed(archive, path.as_str().unwrap());
        assert!(disk.blob(layer["digest"].as_str().unwrap()) == content, "{path}");
    }
}

/// A member or its link target: docker save writes a shared layer only once.
fn member_followed(archive: &Path, path: &str) -> Vec<u8> {
    let listing = testing::program("tar").arg("-tvf").arg(archive).arg(path).output().unwrap();
    match text(&listing.stdout).trim_end().split_once(" -> ") {
        Some((_, target)) => member(archive, target.trim_start_matches("../")),
        None => member(archive, path),
    }
}

#[test]
fn archives_of_skopeo_are_packed() {
    let bench = bench();
    for to in ["docker-archive:docker.tar:test/docker:1", "oci-archive:oci.tar:test/oci:1"] {
        succeed(&mut skopeo(&["--tmpdir", ".", "copy", "--quiet", "oci:sample:it", to], &bench.path("")));
    }
    let oci = listed(&bench.path("oci.tar"));
    for (archive, compressed) in [("docker.tar", "docker.tar.gz"), ("oci.tar", "oci.tar.zst")] {
        let content = fs::read(bench.path(archive)).unwrap();
        let packed = if compressed.ends_with("gz") { gzip(&content) } else { zstd::encode_all(&*content, 1).unwrap() };
        bench.file(compressed, &packed);
    }
    let (images, disk) = packed_and_pulled(
        &bench,
        &[
            "docker.tar",
            "oci.tar",
            "--name",
            "again/docker:1=docker.tar.gz",
            "--name",
            "again/oci:1=oci.tar.zst",
            "--name",
            "sample=sample",
        ],
    );
    let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["again/docker:1", "again/oci:1", "docker.io/test/docker:1", "sample:it", "test/oci:1"]);
    assert_saved(&bench.path("docker.tar"), 0, &disk, &images[2].1);
    assert_eq!(images[0].1, images[2].1);
    // skopeo wrote the layout's manifest unchanged.
    for image in [1, 3, 4] {
        assert_eq!(images[image].1, oci[0]);
    }
}

/// podman or buildah with a private store.
fn with_store(program: &str, bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = testing::podman::with_store(program, &bench.path(""));
    command.env("TMPDIR", bench.path("")).args(arguments);
    command
}

#[test]
fn layouts_and_archives_of_buildah_are_packed() {
    privately(|| {
        let bench = bench();
        let buildah = |arguments: &[&str]| succeed(&mut with_store("buildah", &bench, arguments));
        let id = buildah(&["pull", "--quiet", "oci:sample:it"]);
        for to in ["oci:layout:v1", "oci-archive:oci.tar:test/buildah:2", "docker-archive:docker.tar:test/buildah:3"] {
            buildah(&["push", "--quiet", id.trim(), to]);
        }
        let (images, disk) = packed_and_pulled(&bench, &["--name", "test/buildah=layout", "oci.tar", "docker.tar"]);
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["docker.io/test/buildah:3", "test/buildah:2", "test/buildah:v1"]);
        assert_saved(&bench.path("docker.tar"), 0, &disk, &images[0].1);
        assert_eq!([&images[1].1], *listed(&bench.path("oci.tar")).iter().collect::<Vec<_>>());
        assert_eq!([&images[2].1], *listed(&bench.path("layout")).iter().collect::<Vec<_>>());
    });
}

#[test]
fn every_format_of_podman_save_is_packed() {
    privately(|| {
        let bench = bench();
        let podman = |arguments: &[&str]| succeed(&mut with_store("podman", &bench, arguments));
        let id = podman(&["pull", "--quiet", "oci:sample:it"]);
        for name in ["localhost/test/a:1", "localhost/test/a:2", "docker.io/library/b:1"] {
            podman(&["tag", id.trim(), name]);
        }
        podman(&["save", "--quiet", "--output", "docker.tar", "localhost/test/a:1", "localhost/test/a:2"]);
        podman(&["save", "--quiet", "--format", "oci-archive", "--output", "oci.tar", "docker.io/library/b:1"]);
        podman(&["save", "--quiet", "--format", "oci-dir", "--output", "oci", "docker.io/library/b:1"]);
        podman(&[
            "save",
            "--quiet",
            "--multi-image-archive",
            "--output",
            "many.tar",
            "localhost/test/a:2",
            "docker.io/library/b:1",
        ]);
        let (images, disk) =
            packed_and_pulled(&bench, &["docker.tar", "oci.tar", "many.tar", "--name", "test/oci:1=oci", "--replace"]);
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["docker.io/library/b:1", "localhost/test/a:1", "localhost/test/a:2", "test/oci:1"]);
        // The archive with several images comes after that with one.
        assert_saved(&bench.path("many.tar"), 0, &disk, &images[0].1);
        assert_saved(&bench.path("docker.tar"), 0, &disk, &images[1].1);
        assert_eq!([&images[3].1], *listed(&bench.path("oci")).iter().collect::<Vec<_>>());
    });
}

/// Nodes pull the image `localhost/app` of podman and buildah as `REGISTRY/app`, and `images.txt` and `assert` use that name.
#[test]
fn podman_and_buildah_names_are_pulled_without_localhost() {
    privately(|| {
        let bench = bench();
        let run = |program: &str, arguments: &[&str]| succeed(&mut with_store(program, &bench, arguments));
        let id = run("podman", &["pull", "--quiet", "oci:sample:it"]);
        for name in ["app:1", "team/app:2", "team/tool:3"] {
            // Neither knows a registry for the name, so both add localhost/.
            run("podman", &["tag", id.trim(), name]);
        }
        run("podman", &["save", "--quiet", "--output", "docker.tar", "app:1", "team/app:2"]);
        run("podman", &["save", "--quiet", "--format", "oci-archive", "--output", "oci.tar", "team/tool:3"]);
        run("buildah", &["tag", id.trim(), "built:4"]);
        run("buildah", &["push", "--quiet", "built:4", "oci-archive:built.tar:localhost/built:4"]);
        bench.pack(&["docker.tar", "oci.tar", "built.tar"]);
        let disk = bench.extract("disk.erofs");
        let packed: Vec<String> = disk.images().into_iter().map(|(name, _)| name).collect();
        assert_eq!(packed, ["localhost/app:1", "localhost/built:4", "localhost/team/app:2", "localhost/team/tool:3"]);

        let serving = Serving::start(&bench.path("disk.erofs.extracted"), tempfile::tempdir().unwrap(), &["--events", "events"]);
        let (address, certs) = (serving.address(), serving.folder.path().display().to_string());
        for (name, tag) in [("app", "1"), ("built", "4"), ("team/app", "2"), ("team/tool", "3")] {
            let image = format!("{address}/{name}:{tag}");
            run("podman", &["pull", "--quiet", "--cert-dir", &certs, &image]);
            assert_eq!(run("podman", &["image", "inspect", "--format", "{{.Id}}", &image]), id);
            for asked in [format!("{name}:{tag}"), image, format!("localhost/{name}:{tag}")] {
                let mut assert = testing::program(PROGRAM);
                assert.args(["assert", "--pulled", &asked, "--times", "1"]).arg(serving.folder.path().join("events"));
                assert_eq!(succeed(&mut assert), format!("{asked} was pulled once\n"));
            }
        }
        let ca = serving.folder.path().join("ca.crt");
        let trust = ["trust", "--quiet", "--endpoint", &address, "--disk", "disk.erofs", "-o", "trust", "--ca"];
        succeed(bench.command(&trust).arg(&ca));
        let listed = fs::read_to_string(bench.path("trust/images.txt")).unwrap();
        let expected = ["app:1", "built:4", "team/app:2", "team/tool:3"].map(|name| format!("{address}/{name}\n")).concat();
        assert_eq!(listed, expected);
    });
}

#[test]
fn archive_of_docker_save_with_several_images_is_packed() {
    privately(|| {
        let bench = bench();
        succeed(&mut skopeo(
            &["--tmpdir", ".", "copy", "--quiet", "oci:sample:it", "docker-archive:in.tar:hello:1"],
            &bench.path(""),
        ));
        let dockerd = Dockerd::start(&[], None);
        let docker = |arguments: &[&str]| succeed(dockerd.docker(arguments).current_dir(bench.path("")));
        docker(&["load", "--quiet", "--input", "in.tar"]);
        docker(&["tag", "hello:1", "quay.io/test/other:2"]);
        // A second image with the same layer and one more.
        bench.file("more", b"more");
        docker(&["create", "--name", "made", "hello:1"]);
        docker(&["cp", "more", "made:/more"]);
        docker(&["commit", "made", "test/more:3"]);
        docker(&["save", "--output", "saved.tar", "hello:1", "quay.io/test/other:2", "test/more:3"]);
        let (images, disk) = packed_and_pulled(&bench, &["saved.tar", "--upstream", "docker.io"]);
        let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["docker.io/library/hello:1", "docker.io/test/more:3", "quay.io/test/other:2"]);
        assert_eq!(images[0].1, images[2].1);
        let saved: Value = serde_json::from_slice(&member(&bench.path("saved.tar"), "manifest.json")).unwrap();
        for (entry, image) in saved.as_array().unwrap().iter().enumerate() {
            let more = image["RepoTags"].to_string().contains("more");
            assert_saved(&bench.path("saved.tar"), entry, &disk, &images[usize::from(more)].1);
        }
    });
}

/// A folder with the layouts `first` and `second`, whose images `it` differ and are real, so that tools accept them.
fn two_images() -> Bench {
    let bench = Bench::default();
    for (folder, content) in [("first", b"first"), ("second", b"other")] {
        let mut layout = Layout::default();
        let tar = archive(&[("content", tar::EntryType::Regular, content)]);
        let config = layout.json(&json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256_of(&tar).to_string()]},
        }));
        let layer = layout.blob(&gzip(&tar)).descriptor("application/vnd.oci.image.layer.v1.tar+gzip");
        let manifest = layout.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": [layer],
        }));
        layout.name(manifest, media_type::OCI_MANIFEST, "it");
        bench.layout(folder, &layout);
    }
    bench
}

/// The digests in a layout's index without a name.
fn unnamed(layout: &Path) -> Vec<Digest> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let is_unnamed = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"].is_null();
    let unnamed = index["manifests"].as_array().unwrap().iter().filter(is_unnamed);
    unnamed.map(|entry| entry["digest"].as_str().unwrap().parse().unwrap()).collect()
}

/// A name that is written twice leaves an entry without a name in the index.
#[test]
fn layouts_in_which_skopeo_and_buildah_wrote_a_name_twice_are_packed() {
    privately(|| {
        let bench = two_images();
        let buildah = |arguments: &[&str]| succeed(&mut with_store("buildah", &bench, arguments));
        let images = ["first", "second"].map(|folder| buildah(&["pull", "--quiet", &format!("oci:{folder}:it")]));
        let write = |tool: &str, image: usize, name: &str| match tool {
            "skopeo" => {
                let from = format!("oci:{}:it", ["first", "second"][image]);
                let to = format!("oci:{tool}:{name}");
                succeed(&mut skopeo(&["--tmpdir", ".", "copy", "--quiet", &from, &to], &bench.path("")))
            }
            _ => buildah(&["push", "--quiet", images[image].trim(), &format!("oci:{tool}:{name}")]),
        };
        for tool in ["skopeo", "buildah"] {
            for (image, name) in [(0, "test/a:1"), (1, "test/b:1"), (1, "test/a:1")] {
                write(tool, image, name);
            }
            write(tool, 0, "test/a:2");
            write(tool, 1, "test/a:2");
            let old = unnamed(&bench.path(tool));
            assert_eq!(old.len(), 1, "{tool}");
            let (images, disk) = packed_and_pulled(&bench, &[tool]);
            let names: Vec<&str> = images.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["test/a:1", "test/a:2", "test/b:1"], "{tool}");
            assert!(images.iter().all(|(_, digest)| *digest == images[0].1), "{tool}");
            assert!(!disk.files.contains_key(&old[0].blob_path()), "{tool}");
        }
    });
}

/// The index of a layout whose `index.json` is the image, with the digest under which it was published.
#[test]
fn index_json_that_is_an_image_is_pulled_as_that_image() {
    let bench = two_images();
    let mut layout = Layout::default();
    for (folder, platform) in
        [("first", json!({"os": "linux", "architecture": "amd64"})), ("second", json!({"os": "linux", "architecture": "arm64"}))]
    {
        let index: Value = serde_json::from_slice(&fs::read(bench.path(folder).join("index.json")).unwrap()).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry.as_object_mut().unwrap().remove("annotations");
        entry["platform"] = platform;
        layout.list(entry);
        for blob in fs::read_dir(bench.path(folder).join("blobs/sha256")).unwrap() {
            layout.blob(&fs::read(blob.unwrap().path()).unwrap());
        }
    }
    bench.layout("flat", &layout);
    bench.pack(&["--name", "test/flat:1=flat"]);
    bench.extract("disk.erofs");
    let serving = Serving::start(&bench.path("disk.erofs.extracted"), tempfile::tempdir().unwrap(), &[]);
    let index = fs::read(bench.path("flat/index.json")).unwrap();
    for (to, reference) in [("tag", "test/flat:1".to_owned()), ("digest", format!("test/flat@{}", Digest::sha256_of(&index)))] {
        let pulled = serving.pull(&reference, to, &["--quiet", "--preserve-digests", "--all"]);
        assert!(pulled.status.success(), "{}", text(&pulled.stderr));
        assert_eq!(fs::read(serving.pulled(to).join("manifest.json")).unwrap(), index);
    }
    let mut pulled = testing::program("skopeo");
    pulled
        .args(["--override-arch", "arm64", "--insecure-policy"])
        .args(["copy", "--quiet", "--src-cert-dir"])
        .arg(serving.folder.path());
    pulled.arg(format!("docker://{}/test/flat:1", serving.address())).arg(format!("dir:{}", serving.pulled("arm64").display()));
    succeed(&mut pulled);
    let manifest = fs::read(serving.pulled("arm64").join("manifest.json")).unwrap();
    assert_eq!(Digest::sha256_of(&manifest).to_string(), listed(&bench.path("second"))[0]);
}

#[test]
fn archives_and_layouts_of_skopeo_are_packed_together() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let layer = bench.file("content", b"of a layer");
    let tar = testing::program("tar").args(["-C"]).arg(bench.path("")).args(["-c", "content"]).output().unwrap().stdout;
    let diff_id = Digest::sha256_of(&tar).to_string();
    let config = layout.json(&json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }));
    let blob = layout.blob(&gzip(&tar));
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
        "layers": [blob.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }));
    layout.name(manifest, media_type::OCI_MANIFEST, "test/hello:1");
    bench.layout("layout", &layout);
    fs::remove_file(layer).unwrap();
    for to in ["docker-archive:docker.tar:test/docker:1", "oci-archive:oci.tar:test/oci:1", "oci:bare:v1"] {
        let skopeo = testing::program("skopeo")
            .args(["--insecure-policy", "--tmpdir", ".", "copy", "--quiet", "oci:layout:test/hello:1", to])
            .current_dir(bench.path(""))
            .output()
            .unwrap();
        assert!(skopeo.status.success(), "{}", text(&skopeo.stderr));
    }
    fs::write(bench.path("docker.tar.zst"), zstd::encode_all(fs::File::open(bench.path("docker.tar")).unwrap(), 1).unwrap())
        .unwrap();
    bench.pack(&["layout", "docker.tar", "oci.tar", "--name", "test/bare=bare", "--name", "test/zstd:2=docker.tar.zst"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    // skopeo writes the full name of an image on Docker Hub.
    let docker = disk.images()[0].1.clone();
    let oci = manifest.digest.to_string();
    let expected = [
        ("docker.io/test/docker:1", &docker),
        ("test/bare:v1", &oci),
        ("test/hello:1", &oci),
        ("test/oci:1", &oci),
        ("test/zstd:2", &docker),
    ];
    assert_eq!(disk.images(), expected.map(|(name, digest)| (name.to_owned(), digest.clone())));
    // skopeo decompresses layers for the format of docker save.
    assert_eq!(disk.blob(&diff_id), tar);
}

/// The remedies in the messages of `pack`, followed with skopeo: for folders of its `dir:`, and for images without a name in an archive.
#[test]
fn what_skopeo_can_take_out_is_packed() {
    let bench = Bench::default();
    let (layout, _) = Layout::hello();
    bench.layout("layout", &layout);
    let copy = |from: &str, to: &str| {
        let mut copy = testing::program("skopeo");
        succeed(copy.args(["copy", "--quiet", "--insecure-policy", "--all", from, to]).current_dir(bench.path("")));
    };
    copy("oci:layout:test/hello:latest", "dir:folder");
    bench.refused(
        &["folder"],
        "cannot pack folder: it is a folder as skopeo's dir: and podman save --format docker-dir write it, not an image layout; make one \
         with `skopeo copy --all dir:folder oci:LAYOUT:NAME`, and pack that",
    );
    copy("dir:folder", "oci:again:test/hello:latest");
    bench.pack(&["again"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["test/hello:latest"]);

    let mut saved = Saved::default();
    for layer in ["one.tar", "two.tar"] {
        let content = archive(&[(layer, tar::EntryType::Regular, layer.as_bytes())]);
        saved.member(layer, &content);
        saved.image(&[], &[(layer, &content)]);
    }
    bench.file("saved.tar", &saved.bytes());
    let refused = bench.command(&["--quiet", "pack", "--name", "x/y=saved.tar", "-o", "disk"]).output().unwrap();
    let said = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("`skopeo copy docker-archive:FILE:@N oci:LAYOUT` takes out"),
        "{said}"
    );
    copy("docker-archive:saved.tar:@1", "oci:second");
    bench.pack(&["--name", "x/y:2=second"]);
    let disk = bench.extract("disk.erofs");
    let [(name, digest)] = disk.images().try_into().unwrap();
    let config = disk.json(&digest)["config"]["digest"].as_str().unwrap().to_owned();
    // skopeo writes the config anew.
    let second = archive(&[("two.tar", tar::EntryType::Regular, b"two.tar")]);
    assert_eq!(name, "x/y:2");
    assert_eq!(disk.json(&config)["rootfs"]["diff_ids"], json!([Digest::sha256_of(&second).to_string()]));
}
