//! Small sources that claim much: each reader is bounded in time and memory by what its source stores, and ends after a signal.
//!
//! The program runs with a limit of processor time and of memory, which the former readers exceeded many times over. No test waits for
//! the limit.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use std::time::Duration;

use localregistry::oci::Digest;
use localregistry::oci::media_type::{OCI_CONFIG, OCI_MANIFEST};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testing::elf::elf;
use testing::erofs::{Content, image};
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, Saved, gzip, hello, text};

/// Processor time of the program, in seconds.
const SECONDS: u32 = 60;
/// Data of the program, in KiB.
const MEMORY: u32 = 400 << 10;

/// Runs `localregistry ARGUMENTS` with these limits.
fn limited(bench: &Bench, arguments: &[&str]) -> Output {
    let mut shell = testing::program("sh");
    shell.args(["-c", "ulimit -t \"$0\" && ulimit -d \"$1\" && shift && exec \"$@\"", &SECONDS.to_string(), &MEMORY.to_string()]);
    shell.arg(PROGRAM).args(arguments).current_dir(bench.path(".")).output().unwrap()
}

/// Asserts that the program says this, exits 1, and writes no file.
fn refused(bench: &Bench, arguments: &[&str], message: &str) {
    // The files themselves are too large to be read.
    let listed = || testing::program("find").arg(bench.path(".")).output().unwrap().stdout;
    let before = listed();
    let output = limited(bench, &[&["--quiet"], arguments].concat());
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), (message, Some(1)), "{}", output.status);
    assert_eq!(text(&listed()), text(&before));
}

/// The files of a layout with one image, whose layer has this digest and size: its index and its manifests, by path.
fn documents(digest: &Digest, size: u64) -> Vec<(String, Vec<u8>)> {
    let config = b"{}".to_vec();
    let descriptor = |kind: &str, content: &[u8]| json!({"mediaType": kind, "digest": Digest::sha256_of(content).to_string(), "size": content.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &config),
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.to_string(), "size": size}],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(OCI_MANIFEST, &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "a/b:1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index),
        (Digest::sha256_of(&manifest).blob_path(), manifest),
        (Digest::sha256_of(&config).blob_path(), config),
    ]
}

const FOLDERS: [&str; 3] = ["blobs", "blobs/sha256", "localregistry"];

/// An EROFS image with these files and a layer.
fn disk(documents: &[(String, Vec<u8>)], more: (&str, Content<'_>)) -> Vec<u8> {
    let files = documents.iter().map(|(path, content)| (path.as_str(), Content::Bytes(content)));
    image(&FOLDERS, &files.chain([more]).collect::<Vec<_>>())
}

#[test]
fn layer_of_holes_is_not_hashed() {
    let (bench, digest) = (Bench::default(), Digest::sha256_of(b"not of zeros"));
    let path = digest.blob_path();
    // Within the bound, holes are read as zeros.
    for (size, fault) in [
        (1 << 20, format!("has the content of {}", Digest::sha256_of(&vec![0; 1 << 20]))),
        (
            8 << 40,
            format!(
                "cannot be read: it is damaged: {path} has {} bytes, far more than are stored; at most 1077428224 are expected",
                8_u64 << 40
            ),
        ),
    ] {
        let disk = disk(&documents(&digest, size), (&path, Content::Holes(size)));
        assert_eq!(disk.len(), 36 << 10);
        bench.file("disk", &disk);
        let message = format!("disk: blob {digest} {fault}; it is part of a/b:1\nlocalregistry: disk has 1 fault\n");
        refused(&bench, &["inspect", "disk", "--verify"], &message);
    }
    // The other commands do not read it, and refuse its size.
    let cause = format!(
        "blob {digest} cannot be read: it is damaged: {path} has {} bytes, far more than are stored; at most 1077428224 are expected; it is \
         part of a/b:1",
        8_u64 << 40
    );
    let listed = format!("disk: {cause}\nlocalregistry: disk has 1 fault\n");
    refused(&bench, &["inspect", "disk"], &listed);
    refused(&bench, &["inspect", "disk", "--export", "out"], &listed);
    let trust = ["trust", "--endpoint", "http://a.test:5000", "--disk", "disk", "-o", "out"];
    let faults = "`localregistry inspect --verify` lists all faults";
    refused(&bench, &trust, &format!("localregistry: cannot list the images of disk: {cause}; {faults}\n"));
}

#[test]
fn documents_of_holes_are_not_held_in_memory() {
    let (bench, layer) = (Bench::default(), Digest::sha256_of(b"layer"));
    let mut files = documents(&layer, 5);
    files.push((layer.blob_path(), b"layer".to_vec()));
    let holes = |path: &str, size: u64| {
        let files: Vec<_> = files.iter().filter(|(known, _)| known != path).cloned().collect();
        bench.file("disk", &disk(&files, (path, Content::Holes(size))));
    };
    let damaged = |path: &str, size: u64, stored: u64| {
        format!("it is damaged: {path} has {size} bytes, far more than are stored; at most {stored} are expected")
    };
    holes("localregistry/catalog.binpb", 1 << 30);
    let bytes = fs::metadata(bench.path("disk")).unwrap().len();
    let output = limited(&bench, &["inspect", "disk"]);
    let said = text(&output.stderr);
    assert!(said.contains(&damaged("localregistry/catalog.binpb", 1 << 30, bytes)), "{said}");
    assert_eq!(output.status.code(), Some(1));
    for path in ["index.json", "oci-layout"] {
        holes(path, 4000 << 20);
        let bytes = fs::metadata(bench.path("disk")).unwrap().len();
        let output = limited(&bench, &["inspect", "disk"]);
        let said = text(&output.stderr);
        assert!(said.contains(&damaged(path, 4000 << 20, bytes)), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn folder_whose_chunks_name_one_block_is_refused() {
    let bench = Bench::default();
    let layer = Digest::sha256_of(b"layer");
    let mut files = documents(&layer, 5);
    files.retain(|(path, _)| !path.starts_with("blobs/"));
    let mut files: Vec<(&str, Content<'_>)> =
        files.iter().map(|(path, content)| (path.as_str(), Content::Bytes(content))).collect();
    // Block 2 holds the entries of the root. The directory has eight chunks, and claims the size of the whole file.
    files.push(("blobs/sha256", Content::Repeated(8 * 4096, 2)));
    let mut disk = image(&["blobs"], &files);
    disk.resize(64 << 10, 0);
    bench.file("disk", &disk);
    let output = limited(&bench, &["inspect", "disk"]);
    let said = text(&output.stderr);
    assert!(said.contains("is a directory with names out of order"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn sparse_files_of_folders_and_sparse_disks_are_refused() {
    let (bench, digest) = (Bench::default(), Digest::sha256_of(b"not of zeros"));
    let size = 8 << 40;
    for (path, content) in documents(&digest, size) {
        let path = bench.path("layout").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let layer = digest.blob_path();
    File::create(bench.path("layout").join(&layer)).unwrap().set_len(size).unwrap();
    let holes = format!(
        "it is a sparse file of {size} bytes, and 0 of them are stored, far less than is usual; if that is intended, copy it with cp \
         --sparse=never"
    );
    bench.file("list", b"images { path: \"layout\" }");
    let cannot_read = format!("image a/b:1: cannot read layer or config {layer}, of {size} bytes: {holes}");
    for (arguments, label) in [(&["layout"][..], "layout"), (&["--spec", "list"], "list:1:1: layout")] {
        let message = format!("localregistry: cannot pack {label}: {cannot_read}\n");
        refused(&bench, &[&["pack", "-o", "disk.erofs"], arguments].concat(), &message);
    }
    let fault =
        format!("layout: blob {digest} cannot be read: {holes}; it is part of a/b:1\nlocalregistry: layout has 1 fault\n");
    refused(&bench, &["inspect", "layout", "--verify"], &fault);
    // The file of a disk may be sparse too.
    let file = File::create(bench.path("disk")).unwrap();
    file.set_len(size).unwrap();
    refused(&bench, &["inspect", "disk"], &format!("localregistry: cannot inspect disk: it is not a disk: {holes}\n"));
}

#[test]
fn files_of_holes_are_refused_before_they_are_read() {
    let (bench, _, _) = hello(b"layer");
    let packed = bench.command(&["--quiet", "pack", "layout", "-o", "disk"]).output().unwrap();
    assert_eq!(packed.status.code(), Some(0), "{}", text(&packed.stderr));
    bench.file("static", &elf(&[(1, b"code")]));
    bench.file("kernel", b"a kernel");
    File::create(bench.path("hole")).unwrap().set_len(8 << 40).unwrap();
    let holes = format!(
        "it is a sparse file of {} bytes, and 0 of them are stored, far less than is usual; if that is intended, copy it with cp \
         --sparse=never",
        8_u64 << 40
    );
    let deploy = ["deploy", "disk", "-o", "new", "--registry", "r.test/a", "--host", "a.test", "--server", "static", "--kernel"];
    for (arguments, status, what, cause) in [
        (&["pack", "--artifact", "a/b:1=hole", "-o", "new"][..], 1, "cannot read file hole", &*holes),
        (&["pack", "--chart", "hole", "-o", "new"], 1, "cannot read it", &holes),
        (&["pack", "hole", "-o", "new"], 1, "cannot pack hole", &holes),
        (&["pack", "--spec", "hole", "-o", "new"], 1, "hole", "it is larger than "),
        (&[&deploy[..], &["hole", "--initramfs", "kernel"]].concat(), 1, "cannot copy hole into an image", &holes),
        (&[&deploy[..], &["kernel", "--initramfs", "hole"]].concat(), 1, "cannot copy hole into an image", &holes),
        (&["kernel", "--kernel", "hole", "-o", "new"], 1, "cannot read the kernel hole", "it is larger than 536870912 bytes"),
        (&["initramfs", "--init", "hole", "-o", "new"], 1, "cannot read the init hole", "it is larger than 268435456 bytes"),
        (&["events", "hole"], 1, "cannot read the events in hole", &holes),
        (&["events", "--follow", "hole"], 1, "cannot read the events in hole", &holes),
        (&["assert", "--pulled", "a:1", "hole"], 2, "cannot read the events in hole", &holes),
    ] {
        let output = limited(&bench, &[&["--quiet"], arguments].concat());
        let said = text(&output.stderr);
        assert!(said.contains(&format!("{what}: ")) && said.contains(cause), "{arguments:?}: {said}");
        assert_eq!((output.status.code(), said.lines().count()), (Some(status), 1), "{arguments:?}: {said}");
        assert!(!bench.path("new").exists(), "{arguments:?}");
    }
    // The signature beside a chart.
    fs::rename(bench.path("hole"), bench.path("web-1.tgz.prov")).unwrap();
    bench.file("web-1.tgz", &chart_package());
    let output = limited(&bench, &["--quiet", "pack", "--chart", "web-1.tgz", "-o", "new"]);
    let said = text(&output.stderr);
    assert!(said.contains(&format!("cannot read its provenance web-1.tgz.prov: {holes}")), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn large_file_that_is_no_chart_is_refused_at_its_start() {
    let bench = Bench::default();
    // As sparse as is still read.
    File::create(bench.path("large")).unwrap().set_len(1 << 30).unwrap();
    let mut shell = testing::program("sh");
    shell.args(["-c", "ulimit -t 1 && exec \"$@\"", "sh", PROGRAM, "--quiet", "pack", "--chart", "large", "-o", "new"]);
    let output = shell.current_dir(bench.path(".")).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("it is no Helm chart") && said.ends_with("invalid gzip header\n"), "{}: {said}", output.status);
    assert_eq!(output.status.code(), Some(1));
    assert!(!bench.path("new").exists());
}

/// The smallest package of a chart.
fn chart_package() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let metadata = b"apiVersion: v2\nname: web\nversion: 1.0.0\n";
    let mut header = tar::Header::new_gnu();
    header.set_size(metadata.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "web/Chart.yaml", &metadata[..]).unwrap();
    gzip(&archive.into_inner().unwrap())
}

#[test]
fn layer_behind_many_names_is_decompressed_once() {
    let bench = Bench::default();
    let plain = vec![0; 32 << 20];
    let mut saved = Saved::default();
    saved.member("layer.tar", &gzip(&plain));
    let digest = Digest::sha256_of(&plain).to_string();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest]}}).to_string();
    saved.member("config.json", config.as_bytes());
    for number in 0..500 {
        saved.link(&format!("{number}/layer.tar"), "../layer.tar");
        let tag = format!("a/b:{number}");
        saved.manifest.push(json!({"Config": "config.json", "RepoTags": [tag], "Layers": [format!("{number}/layer.tar")]}));
    }
    bench.file("saved.tar", &saved.bytes());
    let output = limited(&bench, &["pack", "saved.tar", "-o", "disk.erofs", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((summary["images"].as_u64(), summary["blobs"].as_u64()), (Some(500), Some(3)));
}

#[test]
fn config_of_many_images_is_parsed_once() {
    let bench = Bench::default();
    let history: Vec<Value> = (0..60_000).map(|number| json!({"created_by": format!("step {number}")})).collect();
    let rootfs = json!({"type": "layers", "diff_ids": []});
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": rootfs, "history": history}).to_string();
    let mut saved = Saved::default();
    saved.member("config.json", config.as_bytes());
    saved.manifest =
        (0..5000).map(|number| json!({"Config": "config.json", "RepoTags": [format!("a/b:{number}")], "Layers": []})).collect();
    bench.file("saved.tar", &saved.bytes());
    let output = limited(&bench, &["pack", "saved.tar", "-o", "disk.erofs"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn list_of_a_million_layers_is_refused() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    let list = |layers: usize| vec!["l"; layers];
    saved.manifest = vec![
        json!({"Config": "c", "RepoTags": ["a:1"], "Layers": list(600_000)}),
        json!({"Config": "c", "Layers": list(400_000)}),
    ];
    bench.file("saved.tar", &saved.bytes());
    let message = "manifest.json lists more than 1000000 names and layers; split the images over several archives";
    refused(&bench, &["pack", "saved.tar", "-o", "disk.erofs"], &format!("localregistry: cannot pack saved.tar: {message}\n"));
}

#[test]
fn archive_of_long_links_is_checked_in_one_pass() {
    let bench = Bench::default();
    let mut builder = tar::Builder::new(Vec::new());
    let target = "a/".repeat(2048);
    for number in 0..3000 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        // The first has a long target, to which the others lead: each would be followed through 2,048 components.
        let (name, target) = if number == 0 { ("long".to_owned(), target.as_str()) } else { (format!("link{number}"), "long") };
        builder.append_link(&mut header, name, target).unwrap();
    }
    bench.file("links.tar", &builder.into_inner().unwrap());
    let message = "the archive has neither index.json (an OCI image layout) nor manifest.json (docker save) at its root";
    refused(&bench, &["inspect", "links.tar"], &format!("localregistry: cannot inspect links.tar: {message}\n"));
}

#[test]
fn images_that_multiply_their_content_are_refused() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let config = layout.blob(b"{}").descriptor(OCI_CONFIG);
    let layers: Vec<Value> =
        (0..1000).map(|number| layout.blob(format!("{number}").as_bytes()).descriptor("text/plain")).collect();
    // 1,002 blobs for each image. Beyond 100,000 and 100 for each of the different ones, there are too many.
    let images = (1..).find(|images: &usize| images * 1002 > 100_000 + 100 * (images + 1001)).unwrap();
    let annotations = json!({"number": "NUMBER"});
    let image = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers, "annotations": annotations,
    });
    let image = image.to_string();
    for number in 0..images + 10 {
        let image = layout.blob(image.replace("NUMBER", &number.to_string()).as_bytes());
        layout.name(image, OCI_MANIFEST, &format!("a/b:{number}"));
    }
    bench.layout("layout", &layout);
    let message = format!(
        "image a/b:{}: the images up to this one name {} blobs, of which {} are different; at most 100 images for each blob are expected",
        images - 1,
        images * 1002,
        images + 1001
    );
    refused(&bench, &["pack", "layout", "-o", "disk.erofs"], &format!("localregistry: cannot pack layout: {message}\n"));
    refused(&bench, &["inspect", "layout"], &format!("localregistry: cannot inspect layout: {message}\n"));
}

#[test]
fn commands_end_after_a_signal_while_they_decompress() {
    let bench = Bench::default();
    let mut saved = Saved::default();
    saved.member("zeros", &vec![0; 64 << 20]);
    bench.file("saved.tar.gz", &gzip(&saved.bytes()));
    for arguments in [
        &["inspect", "saved.tar.gz"][..],
        &["pack", "saved.tar.gz", "-o", "disk.erofs"],
        &["diff", "saved.tar.gz", "saved.tar.gz"],
    ] {
        let mut child = bench.command(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "reading saved.tar.gz");
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15), "{arguments:?}");
        assert!(lines.last().unwrap().unwrap().contains("interrupted by SIGTERM"));
        assert_eq!(bench.everything().len(), 2, "the folder and the archive");
    }
}

/// Starts `localregistry ARGUMENTS` with this limit of processor time in seconds, sends it SIGTERM once `is_time`, and returns what it
/// says. It ends by the signal, and not by the limit.
fn ended(bench: &Bench, seconds: u32, arguments: &[&str], is_time: impl Fn(u32) -> bool) -> String {
    let mut shell = testing::program("sh");
    shell.args(["-c", "ulimit -t \"$0\" && exec \"$@\"", &seconds.to_string(), PROGRAM, "--quiet"]);
    let child = shell.args(arguments).current_dir(bench.path(".")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !is_time(child.id()) {
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{arguments:?}: {} {}", output.status, text(&output.stderr));
    text(&output.stderr)
}

/// A layout whose index lists one image under this many names.
fn many_names(bench: &Bench, folder: &str, names: usize) {
    fs::create_dir_all(bench.path(folder).join("blobs/sha256")).unwrap();
    let documents = documents(&Digest::sha256_of(b"layer"), 5);
    for (path, content) in &documents {
        bench.file(&format!("{folder}/{path}"), content);
    }
    bench.file(&format!("{folder}/{}", Digest::sha256_of(b"layer").blob_path()), b"layer");
    let index: Value = serde_json::from_slice(&documents[1].1).unwrap();
    let entry = index["manifests"][0].to_string();
    let entries = (0..names).map(|number| entry.replace("a/b:1", &format!("a/b:{number}"))).collect::<Vec<_>>().join(",");
    bench.file(&format!("{folder}/index.json"), format!("{{\"schemaVersion\":2,\"manifests\":[{entries}]}}").as_bytes());
}

#[test]
fn commands_end_after_a_signal_while_a_library_parses() {
    let bench = Bench::default();
    bench.file("spec", "images { path: \"layout\" }\n".repeat(2_000_000).as_bytes());
    many_names(&bench, "layout", 250_000);
    let before = bench.everything().into_keys().collect::<Vec<_>>();
    // Processor time, in hundredths of a second, after which a command is parsing. Each needs many times the limit.
    let has_used = |process, least| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let used = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        used.map(|ticks| ticks.parse::<u32>().unwrap()).sum::<u32>() > least
    };
    for (arguments, least, message) in [
        (&["pack", "--spec", "spec", "-o", "new"][..], 100, "new is not written: "),
        (&["pack", "layout", "-o", "new"], 30, "new is not written: "),
        (&["inspect", "layout"], 30, ""),
        (&["diff", "layout", "layout"], 30, ""),
        (&["trust", "--endpoint", "http://a:1", "--disk", "layout", "-o", "trust"], 30, ""),
        (&["serve", "layout", "--tls", "off", "--listen", "127.0.0.1:0"], 30, ""),
    ] {
        let said = ended(&bench, 5, arguments, |process| has_used(process, least));
        assert_eq!(said, format!("localregistry: {message}interrupted by SIGTERM\n"));
        assert_eq!(bench.everything().into_keys().collect::<Vec<_>>(), before, "{arguments:?}");
    }
}

#[test]
fn no_working_folder_is_left_after_a_signal() {
    let bench = Bench::default();
    many_names(&bench, "layout", 20_000);
    bench.file("disk", b"the old disk");
    let before = bench.everything();
    let has_folder = |_| {
        let names = fs::read_dir(bench.path(".")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().any(|name| name.starts_with(".disk.pack-"))
    };
    let said = ended(&bench, SECONDS, &["pack", "layout", "-o", "disk"], has_folder);
    assert_eq!(said, "localregistry: disk is not written: interrupted by SIGTERM\n");
    assert_eq!(bench.everything(), before);
}
