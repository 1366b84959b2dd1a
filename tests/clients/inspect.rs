//! `localregistry inspect` on good disks of every form: the output, `--verify` without findings, and `--export`. Also
//! `localregistry diff`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use localregistry::oci::{Algorithm, media_type};
use serde_json::{Value, json};
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, PROGRAM, archive_of, digest_of, gzip, text};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an image for a platform and does not list it in the index.
fn image(layout: &Layout, os: &str, architecture: &str, layers: &[&[u8]]) -> Stored {
    let config = layout.json(&json!({"architecture": architecture, "os": os, "rootfs": {"type": "layers", "diff_ids": []}}));
    let layers: Vec<Value> = layers.iter().map(|layer| layout.blob(layer).descriptor(LAYER)).collect();
    layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": config.descriptor(media_type::OCI_CONFIG), "layers": layers,
    }))
}

/// Images of one and of two platforms that share a layer, an artifact that refers to one, a sha512 blob, and blobs of the sizes at
/// which file systems change their format of a file.
fn mixed() -> Layout {
    let mut layout = Layout::default();
    let sizes = [0, 1, 4095, 4096, 4097, 131_072, 3_000_001].map(|size| vec![b'x'; size]);
    let sizes: Vec<&[u8]> = sizes.iter().map(Vec::as_slice).collect();
    let hello = image(&layout, "linux", "amd64", &sizes);
    layout.name(hello, media_type::OCI_MANIFEST, "test/hello:latest").name(hello, media_type::OCI_MANIFEST, "test/hello:1");
    let platforms = [("amd64", "v3", b"a" as &[u8]), ("arm64", "", b"b")].map(|(architecture, variant, own)| {
        let mut descriptor = image(&layout, "linux", architecture, &[&[b'x'; 4097], own]).descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        descriptor
    });
    let index = layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": platforms}));
    layout.name(index, media_type::OCI_INDEX, "docker.io/library/busybox:1.36");
    let (long, config) = (layout.blob_by(Algorithm::Sha512, b"by sha512"), layout.blob(b"{}"));
    let other = layout.json(&json!({
        "schemaVersion": 2, "config": config.descriptor(media_type::OCI_CONFIG), "layers": [long.descriptor(LAYER)],
    }));
    layout.name(other, media_type::OCI_MANIFEST, "quay.io/test/long:latest");
    let signature = layout.artifact("application/vnd.test.signature", hello, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, &format!("test/hello@{}", signature.digest));
    layout
}

/// Runs `localregistry --quiet ARGUMENTS`, which must succeed without messages, and returns its output.
fn run(bench: &Bench, arguments: &[&str]) -> String {
    let output = bench.command(&[&["--quiet"], arguments].concat()).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{arguments:?}: {}: {said}", output.status);
    text(&output.stdout)
}

fn inspect(bench: &Bench, disk: &str) -> Value {
    serde_json::from_str(&run(bench, &["inspect", disk, "--json", "--verify"])).unwrap()
}

/// Runs a program in the folder.
fn make(bench: &Bench, program: &str, arguments: &[&str]) {
    let output = testing::program(program).args(arguments).current_dir(bench.path("")).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
}

#[test]
fn result_is_printed_as_text() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let output = bench.command(&["inspect", "disk.erofs", "--verify"]).output().unwrap();
    assert_eq!(text(&output.stderr), "reading disk.erofs\nverifying 20 blobs, 3.00 MiB\n");
    let size = fs::metadata(bench.path("disk.erofs")).unwrap().len();
    let expected = include_str!("../golden/inspect.txt").replacen("SIZE", &size.to_string(), 1);
    assert_eq!(text(&output.stdout), expected.replacen("DIGEST", &digest_of(&bench.path("disk.erofs")), 1));
}

#[test]
fn result_is_printed_as_json() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let mut found = inspect(&bench, "disk.erofs");
    assert_eq!(found["digest"].take(), digest_of(&bench.path("disk.erofs")));
    assert_eq!(found["bytes"].take(), fs::metadata(bench.path("disk.erofs")).unwrap().len());
    let golden: Value = serde_json::from_str(include_str!("../golden/inspect.json")).unwrap();
    assert_eq!(found, golden, "{found:#}");
}

/// Makes a disk of `layout` in every form that `pack` does not write, and returns their names and forms.
fn others(bench: &Bench, layout: &str) -> Vec<(String, &'static str)> {
    let mut made = Vec::new();
    let erofs: [&[&str]; 6] = [
        &[],
        &["-Eforce-inode-compact"],
        &["-Eforce-inode-extended"],
        &["--chunksize=4096"],
        &["--chunksize=65536", "-Eforce-chunk-indexes"],
        &["-Enosbcrc"],
    ];
    for (number, options) in erofs.into_iter().enumerate() {
        let disk = format!("{number}.erofs");
        let supported = text(&testing::program("mkfs.erofs").arg("--help").output().unwrap().stderr).contains("--chunksize");
        if supported || !options.concat().contains("chunk") {
            make(bench, "mkfs.erofs", &[&["--quiet"], options, &[disk.as_str(), layout]].concat());
            made.push((disk, "erofs"));
        }
    }
    let squashfs: [&[&str]; 6] = [
        &[],
        &["-comp", "zstd"],
        &["-comp", "xz"],
        &["-comp", "lz4"],
        &["-noI", "-noD", "-noF"],
        &["-no-fragments", "-b", "4096"],
    ];
    for (number, options) in squashfs.into_iter().enumerate() {
        let disk = format!("{number}.squashfs");
        make(bench, "mksquashfs", &[&[layout, &disk, "-quiet", "-no-progress"], options].concat());
        made.push((disk, "squashfs"));
    }
    for (number, options) in [&[] as &[&str], &["-b", "1024"], &["-t", "ext2"]].into_iter().enumerate() {
        let disk = format!("{number}.ext4");
        fs::File::create(bench.path(&disk)).unwrap().set_len(32 << 20).unwrap();
        make(bench, "mkfs.ext4", &[&["-q", "-d", layout], options, &[disk.as_str()]].concat());
        made.push((disk, "ext4"));
    }
    let tar = archive_of(&bench.path(layout));
    bench.file("disk.tar", &tar);
    bench.file("disk.tar.gz", &gzip(&tar));
    made.extend(["disk.tar", "disk.tar.gz"].map(|disk| (disk.to_owned(), "archive")));
    made.push((layout.to_owned(), "folder"));
    made
}

#[test]
fn every_form_of_disk_shows_the_same() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let packed = inspect(&bench, "disk.erofs");
    for (disk, form) in others(&bench, "layout") {
        let found = inspect(&bench, &disk);
        assert_eq!((&found["form"], &found["catalog"]), (&json!(form), &Value::Null), "{disk}");
        for key in ["images", "totals", "upstreams", "verified", "faults"] {
            assert_eq!(found[key], packed[key], "{disk}: {key}");
        }
        let digest = if form == "folder" { Value::Null } else { json!(digest_of(&bench.path(&disk))) };
        assert_eq!(found["digest"], digest, "{disk}");
        assert_eq!(run(&bench, &["diff", "disk.erofs", &disk]), "0 removed, 0 added, 0 changed, 5 the same\n", "{disk}");
    }
}

#[test]
fn export_equals_the_packed_layout() {
    let bench = Bench::default();
    let layout = bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    fs::create_dir(bench.path("empty")).unwrap();
    run(&bench, &["inspect", "disk.erofs", "--export", "exported"]);
    run(&bench, &["inspect", "disk.erofs", "--export", "empty"]);
    let content = bench.extract("disk.erofs");
    for folder in ["exported", "empty"] {
        let files = files(&bench.path(folder));
        assert_eq!(files.len(), content.files.len() - 1, "everything except the catalog");
        for path in &files {
            assert_eq!(fs::read(bench.path(folder).join(path)).unwrap(), content.files[path], "{path}");
            if path.starts_with("blobs/") {
                assert_eq!(content.files[path], fs::read(layout.join(path)).unwrap(), "{path}");
            }
        }
    }
    run(&bench, &["pack", "exported", "-o", "again.erofs"]);
    assert_eq!(digest_of(&bench.path("again.erofs")), digest_of(&bench.path("disk.erofs")));
    for (number, (disk, _)) in others(&bench, "layout").into_iter().enumerate() {
        let folder = format!("exported{number}");
        run(&bench, &["inspect", &disk, "--export", &folder]);
        assert_eq!(files(&bench.path(&folder)), files(&layout), "{disk}");
        run(&bench, &["pack", &folder, "-o", "again.erofs"]);
        assert_eq!(digest_of(&bench.path("again.erofs")), digest_of(&bench.path("disk.erofs")), "{disk}");
    }
    let left = fs::read_dir(bench.path("")).unwrap().map(|entry| text(entry.unwrap().file_name().as_encoded_bytes()));
    assert_eq!(left.filter(|name| name.starts_with('.')).count(), 0);
}

/// Paths of the files in a folder, sorted.
fn files(folder: &Path) -> Vec<String> {
    let found = testing::program("find").args([".", "-type", "f", "-printf", "%P\\n"]).current_dir(folder).output().unwrap();
    let mut files: Vec<String> = text(&found.stdout).lines().map(str::to_owned).collect();
    files.sort();
    files
}

#[test]
fn skopeo_layout_on_handmade_disks_is_shown() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let tar = archive_of(&bench.path(""));
    let manifest = image(&layout, "linux", "amd64", &[&tar]);
    layout.name(manifest, media_type::OCI_MANIFEST, "test/hello:1");
    bench.layout("layout", &layout);
    make(
        &bench,
        "skopeo",
        &["--insecure-policy", "--tmpdir", ".", "copy", "-q", "oci:layout:test/hello:1", "oci:made:test/made:2"],
    );
    // skopeo compresses layers, which results in another image.
    let index: Value = serde_json::from_slice(&fs::read(bench.path("made/index.json")).unwrap()).unwrap();
    let digest = &index["manifests"][0]["digest"];
    for (disk, _) in others(&bench, "made") {
        let found = inspect(&bench, &disk);
        let images = found["images"].as_array().unwrap();
        let expected = json!(["test/made:2", digest, ["linux/amd64"]]);
        assert_eq!(json!([images[0]["name"], images[0]["digest"], images[0]["platforms"]]), expected, "{disk}");
        assert_eq!((images.len(), found["verified"]["blobs"].as_u64()), (1, Some(3)), "{disk}");
    }
}

#[test]
fn unnamed_image_is_shown_by_the_name_that_serve_gives_it() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let manifest = image(&layout, "linux", "amd64", &[b"a layer"]);
    layout.name(manifest, media_type::OCI_MANIFEST, "").name(manifest, media_type::OCI_MANIFEST, "v1");
    bench.layout("layout", &layout);
    let found = inspect(&bench, "layout");
    let of = |key: &str| found["images"].as_array().unwrap().iter().map(|image| image[key].clone()).collect::<Vec<_>>();
    assert_eq!((of("name"), of("repository"), of("tag")), (vec![json!("image:v1")], vec![json!("image")], vec![json!("v1")]));
}

#[test]
fn every_tag_images_are_shown_and_compared() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let manifest = layout.image("test/hello:latest", b"a layer");
    bench.layout("layout", &layout);
    bench.file("list.textproto", b"images { name: 'test/hello' path: 'layout' }");
    bench.pack(&["--spec", "list.textproto"]);
    run(&bench, &["pack", "layout", "-o", "plain.erofs"]);
    let of = |disk: &str| inspect(&bench, disk)["images"].clone();
    let (every, plain) = (of("disk.erofs"), of("plain.erofs"));
    let expected = |every_tag: bool| json!(["test/hello:latest", "latest", every_tag, manifest.digest.to_string()]);
    for (found, every_tag) in [(&every, true), (&plain, false)] {
        assert_eq!(found.as_array().unwrap().len(), 1);
        assert_eq!(json!([found[0]["name"], found[0]["tag"], found[0]["every_tag"], found[0]["digest"]]), expected(every_tag));
        assert_eq!(found[0].get("label"), None);
    }
    let shown = run(&bench, &["inspect", "disk.erofs"]);
    assert!(shown.contains("\ntest/hello:*  linux/amd64  sha256:"), "{shown}");
    assert!(run(&bench, &["inspect", "plain.erofs"]).contains("\ntest/hello:latest  linux/amd64  sha256:"));

    // The same content under other names.
    let output = bench.command(&["-q", "diff", "plain.erofs", "disk.erofs"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let names: Vec<String> = text(&output.stdout).lines().map(|line| line.split("  ").next().unwrap().to_owned()).collect();
    assert_eq!(names, ["- test/hello:latest", "+ test/hello:*", "1 removed, 1 added, 0 changed, 0 the same"]);

    run(&bench, &["inspect", "disk.erofs", "--export", "exported"]);
    run(&bench, &["pack", "exported", "-o", "again.erofs"]);
    assert_eq!(digest_of(&bench.path("again.erofs")), digest_of(&bench.path("disk.erofs")));
}

#[test]
fn unprivileged_user_may_inspect_verify_and_export() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    bench.pack(&["layout"]);
    let disks: Vec<String> =
        others(&bench, "layout").into_iter().map(|(disk, _)| disk).chain(["disk.erofs".to_owned()]).collect();
    fs::copy(PROGRAM, bench.path("program")).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    for (path, mode) in [(bench.path(""), 0o755), (bench.path("out"), 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for disk in disks {
        let script = format!("./program -q inspect {disk} --verify --export out/{disk} && id -u");
        let mut command = testing::program("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script]);
        let output = command.current_dir(bench.path("")).output().unwrap();
        assert!(output.status.success(), "{disk}: {}", text(&output.stderr));
        assert!(text(&output.stdout).ends_with(&format!("exported to out/{disk}\n65534\n")), "{disk}");
    }
}

#[test]
fn colour_needs_a_terminal_and_no_no_color() {
    let bench = Bench::default();
    bench.layout("layout", &mixed());
    let on_a_terminal = |environment: &str| {
        let command = format!("stty cols 70; {environment} '{PROGRAM}' -q inspect layout");
        let output =
            testing::program("script").args(["-qec", &command, "/dev/null"]).current_dir(bench.path("")).output().unwrap();
        assert!(output.status.success());
        text(&output.stdout)
    };
    let (colour, plain) = (on_a_terminal("env -u NO_COLOR"), on_a_terminal("NO_COLOR=1"));
    assert!(colour.contains("\x1b[1mNAME"), "{colour:?}");
    assert!(!plain.contains('\x1b') && plain.contains("NAME"), "{plain:?}");
    let widths = plain.lines().skip_while(|line| !line.starts_with("NAME")).take(6).map(|line| line.trim_end().chars().count());
    assert!(widths.max().unwrap() <= 79, "{plain}");
    let elsewhere = run(&bench, &["inspect", "layout"]);
    assert!(!elsewhere.contains('\x1b'));
}

#[test]
fn diff_reports_changes_as_text_json_and_status() {
    let bench = Bench::default();
    let mut old = Layout::default();
    let (app, gone) = (old.manifest(&[b"base", b"old"]), old.manifest(&[b"base", b"gone"]));
    old.image("test/same:1", b"same");
    old.name(app, media_type::OCI_MANIFEST, "test/app:1").name(gone, media_type::OCI_MANIFEST, "test/gone:1");
    let mut new = Layout::default();
    let newer = new.manifest(&[b"base", b"newer", b"newest"]);
    new.name(newer, media_type::OCI_MANIFEST, "test/app:1");
    new.image("test/same:1", b"same");
    let added = new.image("docker.io/library/new:1", b"new");
    bench.layout("new", &new);
    bench.layout("layout", &old);
    bench.pack(&["layout"]);

    let output = bench.command(&["diff", "disk.erofs", "new"]).output().unwrap();
    let short = |stored: Stored| stored.digest.to_string().chars().take(19).collect::<String>();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), "reading disk.erofs\nreading new\n"));
    assert_eq!(
        text(&output.stdout),
        format!(
            "- test/gone:1  {}  {} B\n+ docker.io/library/new:1  {}  {} B\n\
             ~ test/app:1  {} -> {}  +2 layers of 11 B  -1 layer of 3 B\n1 removed, 1 added, 1 changed, 1 the same\n",
            short(gone),
            gone.size + 78 + 8,
            short(added),
            added.size + 78 + 3,
            short(app),
            short(newer),
        )
    );
    let output = bench.command(&["-q", "diff", "--json", "disk.erofs", "new"]).output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layer = |content: &[u8]| json!({"digest": new.blob(content).digest.to_string(), "bytes": content.len()});
    assert_eq!(
        found,
        json!({
            "a": "disk.erofs", "b": "new", "same": false, "unchanged": 1,
            "removed": [{"name": "test/gone:1", "digest": gone.digest.to_string(), "bytes": gone.size + 78 + 8}],
            "added": [{"name": "docker.io/library/new:1", "digest": added.digest.to_string(), "bytes": added.size + 78 + 3}],
            "changed": [{
                "name": "test/app:1", "from": app.digest.to_string(), "to": newer.digest.to_string(),
                "layers_added": [layer(b"newer"), layer(b"newest")], "layers_removed": [layer(b"old")],
                "bytes_added": 11, "bytes_removed": 3,
            }],
        })
    );
    assert_eq!(run(&bench, &["diff", "disk.erofs", "layout"]), "0 removed, 0 added, 0 changed, 3 the same\n");
}

#[test]
fn failed_diff_exits_2() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let manifest = layout.image("test/hello:latest", b"a layer");
    bench.layout("layout", &layout);
    let broken = bench.layout("broken", &layout);
    let mut other = Layout::default();
    other.image("test/hello:latest", b"another");
    bench.layout("other", &other);
    fs::remove_file(broken.join(manifest.digest.blob_path())).unwrap();
    let trouble = |arguments: &[&str]| {
        let output = bench.command(&[&["-q", "diff"], arguments].concat()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{arguments:?}");
        text(&output.stderr)
    };
    assert_eq!(
        trouble(&["layout", "missing"]),
        "localregistry: cannot compare missing: cannot read it: No such file or directory (os error 2)\n"
    );
    assert_eq!(
        trouble(&["broken", "other"]),
        format!(
            "localregistry: cannot compare broken: blob {} is missing; it is part of test/hello:latest; `localregistry inspect --verify` lists \
             all faults\n",
            manifest.digest
        )
    );
    assert!(trouble(&["layout"]).starts_with("error: the following required arguments were not provided:\n  <B>\n"));
    // The same image, but damaged.
    assert_eq!(trouble(&["broken", "layout"]), trouble(&["broken", "other"]));
}
