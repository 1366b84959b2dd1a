//! `localregistry pack` with bad lists, files and flags. Each is refused with one message that names the position of the fault, and
//! the output path and its folder stay unchanged.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use localregistry::oci::{Digest, media_type};
use serde_json::json;
use testing::layout::Layout;
use testing::pack::{Bench, archive_of, blob, gzip, hello, text};

#[test]
fn lists_that_break_the_schema_are_refused() {
    let bench = Bench::default();
    let one = "one of path, config, artifact, pull and chart is expected";
    for (list, message) in [
        ("images {\n  path: \"x\"\n  size: 7\n}", "3:3: field 'size' not found for message 'localregistry.v1.Image'"),
        ("\nimages { name: \"a\" path: 7 }", "2:26: expected a string, but found '7'"),
        ("images { name: \"a\" }", &format!("1:1: it has none of path, config, artifact, pull and chart; {one}")),
        ("# both\n  images { name: \"a\" path: \"x\" config { } }", &format!("2:3: it has both path and config; {one}")),
        (
            "images { path: \"\\033[2J\" tag: \"\\033[2J\" }",
            "1:1: tag \"\\u{1b}[2J\": a tag has at most 128 letters, digits and _ . -, and starts with none of . -",
        ),
    ] {
        bench.file("list.textproto", list.as_bytes());
        bench.refused(&["--spec", "list.textproto"], &format!("list.textproto:{message}"));
    }
    bench.refused(&["--spec", "missing"], "cannot read missing: No such file or directory (os error 2)");
    fs::File::create(bench.path("large")).unwrap().set_len((64 << 20) + 1).unwrap();
    bench.refused(&["--spec", "large"], "cannot read large: it is larger than 67108864 bytes");
    fs::remove_file(bench.path("large")).unwrap();
    bench.file("list.textproto", b"images { path: 'no/layout' }");
    bench.refused(
        &["--spec", "list.textproto"],
        "cannot pack list.textproto:1:1: no/layout: cannot read it: No such file or directory (os error 2)",
    );
}

#[test]
fn malformed_digest_files_are_refused() {
    let bench = Bench::default();
    let hex = Digest::sha256_of(b"config").hex();
    bench.file("config", b"config");
    bench.file("list.textproto", b"\nimages { name: 'test/hello' config { file_path: 'config' digest_path: 'config.sha256' } }");
    let list = &["--spec", "list.textproto"];
    let refused = |fault: &str| {
        let expected = "64 lower-case hexadecimal digits of a SHA-256 digest and nothing else are expected";
        bench.refused(list, &format!("cannot pack list.textproto:2:1: config.sha256 {fault}; {expected}"));
    };
    for (content, fault) in [
        (format!("sha256:{hex}"), "starts with \"sha256:\""),
        (format!("{hex}\n"), "ends with a newline or space"),
        (hex.to_uppercase(), "has upper-case digits"),
        ("hello".to_owned(), "holds \"hello\""),
        (String::new(), "is empty"),
    ] {
        bench.file("config.sha256", content.as_bytes());
        refused(fault);
    }
    fs::remove_file(bench.path("config.sha256")).unwrap();
    bench.refused(
        list,
        "cannot pack list.textproto:2:1: cannot read digest file config.sha256: No such file or directory (os error 2)",
    );
    assert!(testing::program("mkfifo").arg(bench.path("config.sha256")).status().unwrap().success());
    let mut command = bench.command(&["--quiet", "pack", "-o", "disk.erofs", "--spec", "list.textproto"]);
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot pack list.textproto:2:1: cannot read digest file config.sha256: it is not a regular file\n"
    );
    fs::remove_file(bench.path("config.sha256")).unwrap();

    // The digest of other content.
    let other = Digest::sha256_of(b"other");
    bench.file("config.sha256", other.hex().as_bytes());
    bench.refused(
        list,
        &format!(
            "cannot pack list.textproto:2:1: image test/hello:latest: config has the content of {}; {other} is expected",
            Digest::sha256_of(b"config")
        ),
    );
    fs::remove_file(bench.path("config")).unwrap();
    bench.refused(list, "cannot pack list.textproto:2:1: cannot read config config: No such file or directory (os error 2)");
}

#[test]
fn artifacts_must_be_regular_files() {
    let bench = Bench::default();
    fs::create_dir(bench.path("folder")).unwrap();
    for (file, fault) in [
        ("missing", "cannot read file missing: No such file or directory (os error 2)"),
        ("folder", "cannot read file folder: it is not a regular file"),
    ] {
        bench.refused(&["--artifact", &format!("test/x:1={file}")], &format!("cannot pack {file}: {fault}"));
    }
}

#[test]
fn indexes_without_the_platform_are_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let platform = |architecture: &str, variant: Option<&str>| {
        let mut descriptor = layout.manifest(&[architecture.as_bytes()]).descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        descriptor
    };
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [platform("amd64", None), platform("arm", Some("v7"))],
    }));
    layout.name(index, media_type::OCI_INDEX, "test/multi:1");
    bench.layout("layout", &layout);
    for platform in ["linux/s390x", "linux/arm/v6", "windows/amd64"] {
        bench.refused(
            &["layout", "--platform", platform],
            &format!("cannot pack layout: image test/multi:1 has nothing for {platform}, only for linux/amd64, linux/arm/v7"),
        );
    }
}

#[test]
fn tag_that_conflicts_with_an_every_tag_image_is_refused() {
    let bench = Bench::default();
    let (mut one, mut all) = (Layout::default(), Layout::default());
    let first = one.image("test/hello:v1", b"one").digest;
    let second = all.image("", b"all").digest;
    bench.layout("one", &one);
    bench.layout("all", &all);
    bench.file("list", b"images { name: 'test/hello' path: 'all' }");
    let end = "one manifest for each tag is expected, or --replace, which takes that of the later source";
    bench.refused(
        &["--spec", "list", "one"],
        &format!("image test/hello:v1: the tag is claimed by {second} in list:1:1: all and by {first} in one; {end}"),
    );
}

#[test]
fn missing_non_distributable_layer_is_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let layer = layout.blob(b"not for you");
    let config = layout.blob(b"{}");
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config.descriptor(media_type::DOCKER_CONFIG),
        "layers": [layer.descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")],
    }));
    layout.name(manifest, media_type::DOCKER_MANIFEST, "test/windows:1");
    let folder = bench.layout("layout", &layout);
    fs::remove_file(folder.join(layer.digest.blob_path())).unwrap();
    bench.refused(
        &["layout"],
        &format!(
            "cannot pack layout: something that an image names is missing (with --allow-missing, the rest is packed): image \
             test/windows:1: cannot read non-distributable layer {}, of 11 bytes: No such file or directory (os error 2)",
            layer.digest.blob_path()
        ),
    );
    // Only layers may be missing.
    fs::remove_file(folder.join(manifest.digest.blob_path())).unwrap();
    bench.refused(
        &["layout", "--allow-missing"],
        &format!(
            "cannot pack layout: image test/windows:1: cannot read manifest {}, of {} bytes: No such file or directory (os error 2)",
            manifest.digest.blob_path(),
            manifest.size
        ),
    );
}

#[test]
fn damaged_blob_is_refused_even_if_another_source_has_it() {
    let bench = Bench::default();
    let (mut a, mut b) = (Layout::default(), Layout::default());
    a.image("test/a:1", b"shared");
    b.image("test/b:1", b"shared");
    let (a, b) = (bench.layout("a", &a), bench.layout("b", &b));
    let expected = Digest::sha256_of(b"shared");
    let found = Digest::sha256_of(b"Shared");
    for (damaged, image) in [(&a, "test/a:1"), (&b, "test/b:1")] {
        let path = damaged.join(blob(b"shared"));
        fs::write(&path, b"Shared").unwrap();
        let name = damaged.file_name().unwrap().to_str().unwrap();
        let message = format!("image {image}: {} has the content of {found}; {expected} is expected", blob(b"shared"));
        bench.refused(&["a", "b"], &format!("cannot pack {name}: {message}"));
        bench.file(&format!("{name}.tar"), &archive_of(damaged));
        fs::write(&path, b"shared").unwrap();
        let other = if name == "a" { "b" } else { "a" };
        bench.refused(&[&format!("{name}.tar"), other], &format!("cannot pack {name}.tar: {message}"));
    }
}

#[test]
fn circular_and_too_deep_indexes_are_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let nest = |child: serde_json::Value| {
        let index = layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [child]}));
        index.descriptor(media_type::OCI_INDEX)
    };
    let mut descriptor = layout.manifest(&[b"layer"]).descriptor(media_type::OCI_MANIFEST);
    let manifest = descriptor["digest"].as_str().unwrap().to_owned();
    for _ in 0..9 {
        descriptor = nest(descriptor);
    }
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    let size = descriptor["size"].as_u64().unwrap() as usize;
    layout.name(testing::layout::Stored { digest, size }, media_type::OCI_INDEX, "test/deep:1");
    bench.layout("deep", &layout);
    bench.refused(&["deep"], &format!("cannot pack deep: image test/deep:1: indexes are nested deeper than 8, at {manifest}"));
    bench.refused(
        &["deep", "--platform", "linux/amd64"],
        &format!("cannot pack deep: image test/deep:1: indexes are nested deeper than 8, at {manifest}"),
    );

    // Digests rule out real cycles, so an index in this one is damaged.
    let mut circle = Layout::default();
    let claimed = Digest::sha256_of(b"an index that lists itself");
    let listed = json!({"mediaType": media_type::OCI_INDEX, "digest": claimed.to_string(), "size": 190});
    let mut content = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [listed]}).to_string();
    let size = content.len();
    content = content.replace("\"size\":190", &format!("\"size\":{size}"));
    circle.name(testing::layout::Stored { digest: claimed, size: content.len() }, media_type::OCI_INDEX, "test/circle:1");
    let folder = bench.layout("circle", &circle);
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join(claimed.blob_path()), &content).unwrap();
    for flags in [&["circle"][..], &["circle", "--platform", "linux/amd64"]] {
        bench.refused(
            flags,
            &format!(
                "cannot pack circle: image test/circle:1: {} has the content of {}",
                claimed.blob_path(),
                Digest::sha256_of(content.as_bytes())
            ),
        );
    }
}

#[test]
fn disk_inside_its_own_source_is_refused() {
    let (bench, layout, _) = hello(b"a layer");
    bench.file("file", b"content");
    bench.file("list", b"images { path: 'layout' }");
    std::os::unix::fs::symlink(&layout, bench.path("link")).unwrap();
    for (arguments, message) in [
        (
            &["layout", "-o", "layout/disk"][..],
            "cannot write layout/disk: it is in the source layout; a path outside of it is expected",
        ),
        (&["layout", "-o", "link/disk"], "cannot write link/disk: it is in the source layout; a path outside of it is expected"),
        (
            &["link", "-o", "layout/blobs/disk"],
            "cannot write layout/blobs/disk: it is in the source link; a path outside of it is expected",
        ),
        (&["--artifact", "a=file", "-o", "file"], "cannot write file: it is the source file as well"),
        (&["--spec", "list", "-o", "list"], "cannot write list: it is the source list as well"),
        (
            &["--spec", "list", "-o", "layout/x"],
            "cannot write layout/x: it is in the source layout; a path outside of it is expected",
        ),
        (&["layout", "-o", "new/"], "cannot write new/: it is the path of a folder; the path of a file is expected"),
        (&["layout", "-o", "layout/"], "cannot write layout/: it is there already and not a regular file"),
        (&["layout", "-o", ".."], "cannot write ..: it is there already and not a regular file"),
    ] {
        let before = bench.everything();
        let output = bench.command(&[&["-q", "pack"], arguments].concat()).output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"));
        assert_eq!((output.status.code(), bench.everything()), (Some(1), before));
    }
}

#[test]
fn paths_are_escaped_in_messages() {
    let (bench, layout, _) = hello(b"a layer");
    let odd = "od\u{1b}[31md\n";
    fs::rename(layout, bench.path(odd)).unwrap();
    let output = bench.command(&["pack", odd, "-o", "\u{7}disk"]).output().unwrap();
    assert!(output.status.success());
    for said in [text(&output.stderr), text(&output.stdout)] {
        assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
    }
    assert!(text(&output.stderr).starts_with("reading od\\u{1b}[31md\\n\n"), "{}", text(&output.stderr));
    let missing = std::ffi::OsStr::from_bytes(b"no\x1b\xff");
    let output = bench.command(&["-q", "pack", "-o", "disk"]).arg(missing).output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot pack no\\u{1b}\u{fffd}: cannot read it: No such file or directory (os error 2)\n"
    );
}

#[test]
fn contradictory_flags_exit_2() {
    let bench = Bench::default();
    for (arguments, message) in [
        (&["--base", "x", "y"][..], "error: the following required arguments were not provided:"),
        (
            &["--platform", "arm", "x"],
            "error: invalid value 'arm' for '--platform <PLATFORM>': a platform has the form os/architecture or os/architecture/variant, in lower case: linux/amd64, linux/arm/v7",
        ),
        (
            &["--tag", "a b", "x"],
            "error: invalid value 'a b' for '--tag <TAG>': a tag has at most 128 letters, digits and _ . -, and starts with none of . -",
        ),
        (
            &["--upstream", "a b", "x"],
            "error: invalid value 'a b' for '--upstream <HOST>': a registry's host is a DNS name or an address, with an optional port",
        ),
        (
            &["--artifact", "x"],
            "error: invalid value 'x' for '--artifact <REF=FILE[:media/type]>': REF=FILE[:media/type] is expected",
        ),
    ] {
        let output = bench.command(&[&["pack", "-o", "d"], arguments].concat()).output().unwrap();
        assert_eq!(text(&output.stderr).lines().next(), Some(message));
        assert_eq!(output.status.code(), Some(2));
    }
    let version = bench.command(&["pack", "--version"]).output().unwrap();
    assert_eq!(text(&version.stdout), concat!("localregistry ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn scratch_folder_failure_is_reported_without_its_random_name() {
    let (bench, _, _) = hello(b"a layer");
    let output = bench.command(&["-q", "pack", "layout", "-o", "/proc/disk"]).output().unwrap();
    assert_eq!(
        text(&output.stderr),
        "localregistry: cannot make a working folder in /proc: No such file or directory (os error 2)\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// What other tools write, or call by other names: the message says what it is and what to do.
#[test]
fn what_is_mistaken_for_a_source_is_named_with_its_remedy() {
    let (bench, layout, _) = hello(b"content");
    let archive = archive_of(&layout);
    // skopeo copy to dir:, and podman save --format docker-dir.
    let directory = bench.path("a dir");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    fs::write(directory.join("manifest.json"), "{}").unwrap();
    fs::create_dir_all(bench.path("old/repositories-of")).unwrap();
    bench.file("old/repositories", br#"{"app": {"1": "aa"}}"#);
    bench.file("old.tar", &archive_of(&bench.path("old")));
    bench.file("once.tgz", &gzip(&archive));
    bench.file("twice.tgz", &gzip(&gzip(&archive)));
    bench.file("nothing.tgz", &gzip(b""));
    let tar = |name: &str, folder: &str| {
        let made = testing::program("tar").current_dir(bench.path(".")).args(["-cf", name, folder]).status().unwrap();
        assert!(made.success());
    };
    tar("above.tar", "layout");
    fs::create_dir(bench.path("saved")).unwrap();
    bench.file("saved/manifest.json", b"[]");
    tar("saved.tar", "saved");
    let blob = format!("layout/{}", blob(b"content"));
    for (source, message) in [
        (
            "a dir",
            "it is a folder as skopeo's dir: and podman save --format docker-dir write it, not an image layout; make one with `skopeo \
             copy --all dir:'a dir' oci:LAYOUT:NAME`, and pack that",
        ),
        (
            "old.tar",
            "it is a docker save archive of the old form, with repositories and without manifest.json; load it into a Docker that reads \
             it, and save it again",
        ),
        ("twice.tgz", "it is compressed twice; decompress it once"),
        ("nothing.tgz", "the compressed file holds nothing; a tar archive is expected"),
        ("above.tar", "the archive has layout/index.json, and it is expected at the root: unpack it, and pack the folder layout"),
        (
            "saved.tar",
            "the archive has saved/manifest.json, and it is expected at the root: unpack it, and make the archive again with tar -C saved \
             -c .",
        ),
        ("layout/index.json", "it is part of the image layout layout; pack that folder"),
        ("layout/oci-layout", "it is part of the image layout layout; pack that folder"),
        ("layout/blobs", "it is part of the image layout layout; pack that folder"),
        (&blob, "it is part of the image layout layout; pack that folder"),
        ("docker://quay.io/org/app:1", "there is no such file; an image in a registry is packed with --pull quay.io/org/app:1"),
    ] {
        bench.refused(&[source], &format!("cannot pack {source}: {message}"));
    }
    for (source, transport) in [
        ("oci:layout:v1", "oci:"),
        ("oci-archive:once.tgz", "oci-archive:"),
        ("docker-archive:saved.tar:app:1", "docker-archive:"),
        ("dir:a", "dir:"),
        ("containers-storage:localhost/app", "containers-storage:"),
    ] {
        let message = format!(
            "cannot pack {source}: there is no such file; \"{transport}\" is how skopeo and podman say what follows. Give the path alone, and \
             the name as in --name NAME=PATH"
        );
        bench.refused(&[source], &message);
    }
    // A file of such a name is one.
    fs::copy(bench.path("once.tgz"), bench.path("oci:once")).unwrap();
    bench.pack(&["oci:once"]);
}
