//! The one look at a disk: every command that takes a disk refuses the same damaged disks for the same reason, and writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use localregistry::disk::catalog;
use localregistry::disk::layout::Directory;
use localregistry::host::inspect::look::CheckedDisk;
use localregistry::host::support::interrupt::Interrupt;
use localregistry::oci::media_type;
use localregistry::registry::content::store;
use serde_json::{Value, json};
use testing::elf::elf;
use testing::erofs::{Content, image};
use testing::layout::{Layout, Stored};
use testing::named;
use testing::pack::{Bench, text};

/// The files of a disk, or of an image layout.
type Files = BTreeMap<String, Vec<u8>>;
/// A kind of damage, and what the messages say of it.
type Case = (&'static str, Box<dyn Fn(&mut Files)>, Told);

/// What the messages say of a kind of damage.
enum Told {
    /// Nothing: it is none.
    Fine,
    /// Nothing but by commands that read layers.
    Unread,
    /// This.
    Always(String),
    /// This, if the disk has a catalog. Without one it is no damage.
    WithCatalog(&'static str),
}
use Told::{Always, Fine, Unread, WithCatalog};

const FAULTS: &str = "; `localregistry inspect --verify` lists all faults";
const TAKEN: &str = "; --allow-missing takes the rest";

/// What the commands need besides a disk.
fn tools(bench: &Bench) {
    bench.file("static", &elf(&[(1, b"code")]));
    bench.file("kernel", b"a kernel");
    bench.file("initramfs", b"an initramfs");
}

/// Each command with a disk or folder: its arguments, its status for a damaged one, and how its message begins. If the disk is fine, it
/// fails later for another reason, or succeeds.
fn commands(disk: &str, is_folder: bool) -> Vec<(Vec<String>, i32, String)> {
    let command = |line: &str, status, verb: &str| {
        let arguments = line.replace("DISK", disk).split(' ').map(str::to_owned).collect();
        (arguments, status, format!("localregistry: cannot {verb} {disk}: "))
    };
    let mut all = vec![
        command("diff DISK good", 2, "compare"),
        command("diff good DISK", 2, "compare"),
        command("trust --endpoint http://a.test:5000 --disk DISK -o out", 1, "list the images of"),
    ];
    if is_folder {
        all.push(command("serve DISK --listen 127.0.0.1:0 --cert none --key none", 1, "serve"));
    } else {
        let boot = "--kernel kernel --initramfs initramfs --qemu ./none";
        all.push(command(&format!("run DISK {boot}"), 9, "boot"));
        all.push(command(&format!("run DISK {boot} --trust out"), 9, "boot"));
        all.push(command(&format!("run DISK {boot} --print-command"), 9, "boot"));
        let deploy = "deploy DISK -o out --registry r.test/a --host a.test --server static --kernel kernel --initramfs initramfs";
        all.push(command(deploy, 1, "deploy"));
    }
    all
}

/// Why each command refuses the disk or folder; `None` if it takes it. Those that refuse it must write nothing.
fn verdicts(bench: &Bench, disk: &str, is_folder: bool) -> Vec<(String, Option<String>)> {
    let before = bench.everything();
    let mut found = Vec::new();
    for (arguments, status, start) in commands(disk, is_folder) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = bench.command(&[&["--quiet"], arguments.as_slice()].concat()).output().unwrap();
        let said = text(&output.stderr);
        let cause = said.strip_prefix(&start).map(|cause| cause.strip_suffix('\n').unwrap());
        let cause = cause.map(|cause| cause.strip_suffix(TAKEN).unwrap_or(cause).to_owned());
        if cause.is_some() {
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(status), ""), "{arguments:?}: {said}");
            assert_eq!(bench.everything(), before, "{arguments:?}");
        } else {
            let _ = fs::remove_dir_all(bench.path("out"));
        }
        found.push((arguments.join(" "), cause));
    }
    found.push(inspected(bench, disk, &[]));
    found
}

/// The verdict of `inspect`, which lists all faults, in the form of the other commands.
fn inspected(bench: &Bench, disk: &str, flags: &[&str]) -> (String, Option<String>) {
    let output = bench.command(&[&["--quiet", "inspect", disk], flags].concat()).output().unwrap();
    let said = text(&output.stderr);
    let line = said.lines().next().unwrap_or_default();
    let listed = line.strip_prefix(&format!("{disk}: ")).map(|fault| match fault.starts_with("localregistry/catalog.binpb is") {
        true => fault.to_owned(),
        false => format!("{fault}{FAULTS}"),
    });
    let cause = listed.or_else(|| line.strip_prefix(&format!("localregistry: cannot inspect {disk}: ")).map(str::to_owned));
    assert_eq!(output.status.code(), Some(i32::from(cause.is_some())), "{said}");
    (format!("inspect {flags:?}"), cause)
}

/// Asserts that all commands agree, and returns why they refuse the disk.
fn verdict(bench: &Bench, disk: &str, is_folder: bool) -> Option<String> {
    let all = verdicts(bench, disk, is_folder);
    let distinct: BTreeSet<_> = all.iter().map(|(_, cause)| cause).collect();
    assert_eq!(distinct.len(), 1, "{disk}: {all:#?}");
    all.into_iter().next().unwrap().1
}

/// The files of a folder.
fn files(bench: &Bench, folder: &str) -> Files {
    let root = bench.path(folder);
    let all = bench.everything().into_iter().filter(|(path, _)| path.is_file());
    all.filter_map(|(path, content)| Some((path.strip_prefix(&root).ok()?.display().to_string(), content))).collect()
}

/// Writes the files as the folder `bad` and as the disk `bad.erofs`.
fn write(bench: &Bench, files: &Files) {
    let _ = fs::remove_dir_all(bench.path("bad"));
    let mut folders = BTreeSet::new();
    for (path, content) in files {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        fs::create_dir_all(bench.path("bad").join(parent)).unwrap();
        fs::write(bench.path("bad").join(path), content).unwrap();
        folders
            .extend(parent.match_indices('/').map(|(at, _)| &parent[..at]).chain([parent]).filter(|folder| !folder.is_empty()));
    }
    let folders: Vec<&str> = folders.into_iter().collect();
    let contents: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), Content::Bytes(content))).collect();
    bench.file("bad.erofs", &image(&folders, &contents));
}

/// A layout with an image, an index of two platforms with a signature, and its disk.
fn good() -> (Bench, Stored, Stored, Stored, Stored) {
    let bench = Bench::default();
    tools(&bench);
    let mut layout = Layout::default();
    let hello = layout.image("test/hello:1", b"a layer");
    let (amd, arm) = (layout.manifest(&[b"amd"]), layout.manifest(&[b"arm"]));
    let entry = |child: Stored, architecture: &str| {
        let mut entry = child.descriptor(media_type::OCI_MANIFEST);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry(amd, "amd64"), entry(arm, "arm64")],
    }));
    layout.name(index, media_type::OCI_INDEX, "docker.io/library/index:1");
    let signature = layout.artifact("application/x.signature", index, b"signed");
    layout.name(signature, media_type::OCI_MANIFEST, "");
    bench.layout("good", &layout);
    bench.pack(&["good"]);
    (bench, hello, arm, index, signature)
}

fn replaced(files: &mut Files, path: &str, from: &str, to: &str) {
    let content = String::from_utf8(files[path].clone()).unwrap();
    assert!(content.contains(from), "{content}");
    files.insert(path.to_owned(), content.replacen(from, to, 1).into_bytes());
}

#[test]
fn all_commands_refuse_the_same_damaged_disks() {
    let (bench, hello, arm, index, signature) = good();
    let packed = bench.extract("disk.erofs").files;
    let layer = testing::pack::blob(b"a layer");
    let gone = |path: &str| -> Box<dyn Fn(&mut Files)> {
        let path = path.to_owned();
        Box::new(move |files| drop(files.remove(&path).unwrap()))
    };
    let set = |path: &str, content: &[u8]| -> Box<dyn Fn(&mut Files)> {
        let (path, content) = (path.to_owned(), content.to_owned());
        Box::new(move |files| drop(files.insert(path.clone(), content.clone())))
    };
    let turned = |path: &str| -> Box<dyn Fn(&mut Files)> {
        let path = path.to_owned();
        Box::new(move |files| *files.get_mut(&path).unwrap().last_mut().unwrap() ^= 1)
    };
    let of = |stored: Stored| stored.digest.blob_path();
    let blob = |stored: Stored, fault: &str| Always(format!("blob {} {fault}", stored.digest));
    let digest = localregistry::oci::Digest::sha256_of(b"a layer");
    let manifest: Value = serde_json::from_slice(&packed[&of(hello)]).unwrap();
    let config_hex = manifest["config"]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let config = format!("blobs/sha256/{config_hex}");
    let (hello_path, hello_digest, index_digest) = (of(hello), hello.digest, index.digest);
    let cases: Vec<Case> = vec![
        ("nothing", Box::new(|_| ()), Fine),
        ("a turned byte in a layer", turned(&layer), Unread),
        ("a manifest is missing", gone(&of(hello)), blob(hello, "is missing; it is part of test/hello:1")),
        ("an index is missing", gone(&of(index)), blob(index, "is missing; it is part of docker.io/library/index:1")),
        ("a manifest of an index is missing", gone(&of(arm)), blob(arm, "is missing; it is part of docker.io/library/index:1")),
        ("a signature is missing", gone(&of(signature)), blob(signature, "is missing; it is part of ")),
        ("a layer is missing", gone(&layer), Always(format!("blob {digest} is missing; it is part of test/hello:1"))),
        ("a layer is short", set(&layer, b"a"), Always(format!("blob {digest} has 1 bytes, and 7 are expected"))),
        ("a layer is long", set(&layer, b"a layer, and more"), Always(format!("blob {digest} has 17 bytes, and 7 are expected"))),
        ("a layer is empty", set(&layer, b""), Always(format!("blob {digest} has 0 bytes, and 7 are expected"))),
        ("a turned byte in a manifest", turned(&of(hello)), blob(hello, "has the content of sha256:")),
        ("a turned byte in an index", turned(&of(index)), blob(index, "has the content of sha256:")),
        ("a turned byte in a config", turned(&config), Always(format!("blob sha256:{config_hex} has the content of sha256:"))),
        ("a short manifest", set(&of(arm), b"{}"), blob(arm, "has 2 bytes, and ")),
        ("no index.json", gone("index.json"), Always("cannot read index.json; an OCI image layout".to_owned())),
        ("index.json is no JSON", set("index.json", b"{"), Always("index.json is not the JSON of an image layout: ".to_owned())),
        ("no oci-layout", gone("oci-layout"), Always("cannot read oci-layout; an OCI image layout".to_owned())),
        (
            "another version of the layout",
            set("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#),
            Always("oci-layout gives imageLayoutVersion \"2.0.0\"; 1.0.0 is expected".to_owned()),
        ),
        (
            "a name that index.json has alone",
            Box::new(|files| replaced(files, "index.json", "test/hello:1", "test/hello:2")),
            WithCatalog("localregistry/catalog.binpb disagrees with index.json and the manifests: "),
        ),
        (
            "index.json names another manifest",
            Box::new(move |files| {
                replaced(files, "index.json", &hello_digest.to_string(), &format!("sha256:{}", "0".repeat(64)));
            }),
            Always(format!("blob sha256:{} is missing; it is part of test/hello:1", "0".repeat(64))),
        ),
        (
            "an image that index.json lacks",
            Box::new(move |files| {
                let mut index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
                let is_kept = |entry: &Value| entry["digest"] != hello_digest.to_string();
                index["manifests"].as_array_mut().unwrap().retain(is_kept);
                files.insert("index.json".to_owned(), serde_json::to_vec(&index).unwrap());
            }),
            WithCatalog("localregistry/catalog.binpb disagrees with index.json and the manifests: "),
        ),
        (
            "one tag of two manifests",
            Box::new(move |files| {
                let mut index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
                for entry in index["manifests"].as_array_mut().unwrap() {
                    if entry["digest"] == index_digest.to_string() {
                        entry["annotations"]["org.opencontainers.image.ref.name"] = json!("test/hello:1");
                    }
                }
                files.insert("index.json".to_owned(), serde_json::to_vec(&index).unwrap());
            }),
            Always("test/hello:1".to_owned()),
        ),
        ("a junk catalog", set(catalog::PATH, b"\xff\xff junk"), Always("localregistry/catalog.binpb: ".to_owned())),
        ("an empty catalog", set(catalog::PATH, b""), Always("localregistry/catalog.binpb".to_owned())),
        (
            "the catalog of another disk",
            {
                let (other, _, _) = testing::pack::hello(b"another");
                other.pack(&["layout"]);
                set(catalog::PATH, &other.extract("disk.erofs").files[catalog::PATH])
            },
            Always("localregistry/catalog.binpb disagrees with index.json and the manifests: ".to_owned()),
        ),
        ("a manifest that is none", set(&hello_path, b"[]"), blob(hello, "has 2 bytes, and ")),
    ];
    for with_catalog in [true, false] {
        for (name, damage, case) in &cases {
            let mut files = packed.clone();
            if !with_catalog {
                files.remove(catalog::PATH);
            }
            damage(&mut files);
            let told = match case {
                Always(told) => Some(told.as_str()),
                WithCatalog(told) if with_catalog => Some(*told),
                _ => None,
            };
            write(&bench, &files);
            for (disk, is_folder) in [("bad.erofs", false), ("bad", true)] {
                let found = verdict(&bench, disk, is_folder);
                let is_told = found.as_deref().map_or(told.is_none(), |found| told.is_some_and(|told| found.contains(told)));
                assert!(is_told, "{name} on {disk}, catalog {with_catalog}: {found:?}");
            }
            // Reading everything finds more, and nothing less.
            let whole = inspected(&bench, "bad.erofs", &["--verify"]).1;
            assert_eq!(whole.is_none(), told.is_none() && !matches!(case, Unread), "{name}: {whole:?}");
        }
    }
}

/// The independent computation: the verdict of each command with arbitrary bytes turned is that of the others, and what they take has
/// no fault but wrong content of blobs that they do not read.
#[test]
fn commands_agree_on_arbitrary_turned_bytes() {
    let (bench, ..) = good();
    let disk = fs::read(bench.path("disk.erofs")).unwrap();
    let folder = bench.extract("disk.erofs").files;
    let names: Vec<&String> = folder.keys().collect();
    // Offsets of bytes that are no padding.
    let used: Vec<usize> = (1024..disk.len()).filter(|at| disk[*at] != 0).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut refused, mut taken) = (0, 0);
    for round in 0..48 {
        let is_folder = round % 2 == 1;
        if is_folder {
            let mut files = folder.clone();
            let name = names[next(names.len())];
            let at = next(files[name].len());
            files.get_mut(name).unwrap()[at] ^= 1 << next(8);
            write(&bench, &files);
        } else {
            let mut bytes = disk.clone();
            bytes[used[next(used.len())]] ^= 1 << next(8);
            bench.file("bad.erofs", &bytes);
        }
        let name = if is_folder { "bad" } else { "bad.erofs" };
        let all = verdicts(&bench, name, is_folder);
        // `deploy` reads layers too.
        let distinct: BTreeSet<_> = all.iter().map(|(_, cause)| cause).collect();
        assert_eq!(distinct.len(), 1, "round {round}: {all:#?}");
        if all[0].1.is_some() {
            refused += 1;
            continue;
        }
        taken += 1;
        let output = bench.command(&["--quiet", "--json", "inspect", name, "--verify"]).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let kinds = found["faults"].as_array().unwrap().iter().filter(|fault| fault["kind"] != "content").count();
        assert_eq!(kinds, 0, "round {round}: {found}");
    }
    assert!(refused > 10 && taken > 0, "{refused} refused, {taken} taken");
}

/// `pack` makes no such disk, but other tools do. No client can unpack the image.
#[test]
fn manifest_with_fewer_layers_than_its_config_is_told() {
    let (bench, ..) = good();
    let mut layout = Layout::default();
    let config = layout.json(&json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:a", "sha256:b"]},
    }));
    let manifest = |layers: &[&[u8]]| {
        let layer = |content: &&[u8]| layout.blob(content).descriptor("application/vnd.oci.image.layer.v1.tar");
        let layers: Vec<Value> = layers.iter().map(layer).collect();
        layout.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": layers,
        }))
    };
    let (fewer, whole, more) = (manifest(&[b"one"]), manifest(&[b"one", b"two"]), manifest(&[b"one", b"two", b"three"]));
    for (name, stored) in [("test/whole:1", whole), ("test/more:1", more)] {
        layout.name(stored, media_type::OCI_MANIFEST, name);
    }
    let folder = bench.layout("layout", &layout);
    write(&bench, &files(&bench, "layout"));
    assert_eq!((verdict(&bench, "bad", true), verdict(&bench, "bad.erofs", false)), (None, None));

    layout.name(fewer, media_type::OCI_MANIFEST, "test/fewer:1");
    fs::remove_dir_all(&folder).unwrap();
    bench.layout("layout", &layout);
    let cause = format!(
        "blob {} has 1 layers, and its config {} has 2 in rootfs.diff_ids; no client can unpack it, so make the image again; it is part \
         of test/fewer:1{FAULTS}",
        fewer.digest, config.digest
    );
    let mut layout = files(&bench, "layout");
    for with_catalog in [false, true] {
        if with_catalog {
            let loaded = store::read_catalog(&Directory::open(&folder).unwrap(), false).unwrap();
            layout.insert(catalog::PATH.to_owned(), loaded.catalog.encode());
        }
        write(&bench, &layout);
        assert_eq!(verdict(&bench, "bad", true).as_ref(), Some(&cause));
        assert_eq!(verdict(&bench, "bad.erofs", false).as_ref(), Some(&cause));
        assert_eq!(inspected(&bench, "bad.erofs", &["--verify"]).1.as_ref(), Some(&cause));
    }
}

/// What `--allow-missing` permits, it permits to every command that has it.
#[test]
fn layouts_that_lack_layers_are_taken_with_a_flag() {
    let (bench, ..) = good();
    let mut layout = files(&bench, "good");
    layout.remove(&testing::pack::blob(b"a layer")).unwrap();
    write(&bench, &layout);
    let missing =
        format!("blob {} is missing; it is part of test/hello:1{FAULTS}", localregistry::oci::Digest::sha256_of(b"a layer"));
    assert_eq!(verdict(&bench, "bad", true), Some(missing));
    let run = |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = bench.command(&[&["--quiet"], arguments.as_slice()].concat()).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(run("diff bad good --allow-missing"), (Some(0), String::new()));
    assert_eq!(run("trust --endpoint http://a.test:5000 --disk bad -o out --allow-missing"), (Some(0), String::new()));
    let (status, said) = run("serve bad --listen 127.0.0.1:0 --cert none --key none --allow-missing");
    assert!(status == Some(1) && said.contains("cannot read the certificate"), "{said}");
    // A disk that `pack --allow-missing` made lacks it on purpose.
    let warned =
        format!("image test/hello:1: {}, of 7 bytes, is missing and left out", localregistry::oci::Digest::sha256_of(b"a layer"));
    bench.pack_warned(&["bad", "--allow-missing"], &[&warned]);
    fs::rename(bench.path("disk.erofs"), bench.path("bad.erofs")).unwrap();
    assert_eq!(verdict(&bench, "bad.erofs", false), None);
}

/// The look reads manifests and the catalog, and no layers.
#[test]
fn look_at_1000_images_reads_no_layer() {
    const LAYER: usize = 64 << 20;
    let bench = Bench::default();
    let (mut layout, _) = named::layout(1000);
    layout.image("test/big:1", &vec![7; LAYER]);
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    for disk in ["disk.erofs", "layout"] {
        let before = read_bytes();
        let start = Instant::now();
        let checked = CheckedDisk::open(&bench.path(disk), false, &Interrupt::default()).unwrap();
        println!("{disk}: {:?}", start.elapsed());
        assert_eq!(checked.contents.images.len(), 1001);
        assert!(read_bytes() - before < LAYER / 4, "{disk}: {} bytes", read_bytes() - before);
    }
}

/// The bytes that this thread has read.
fn read_bytes() -> usize {
    let counters = fs::read_to_string("/proc/thread-self/io").unwrap();
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}
