//! Disks in a VM: several as one, some that come and go, some that fail or hang while they serve, and every way in which they can keep
//! the machine from becoming ready.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::http::{self, get};
use common::layout::{Layout, Stored};
use common::openmetrics::parse;
use common::pack::{Bench, digest_of, hello};
use common::qmp::{self, Qmp};
use common::vm::{self, Vm, succeed};
use localregistry::oci::Digest;
use localregistry::proto::{self, event::Event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use serde_json::json;

const MIB: usize = 1 << 20;

/// Bytes that occur nowhere else on a disk, nor anywhere else among themselves.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size / 8).flat_map(word).collect()
}

/// A disk `NAME.img` with one image, whose layer is `layer`.
fn pack(bench: &Bench, name: &str, image: &str, layer: &[u8], further: &[&str]) -> (PathBuf, Stored) {
    let mut layout = Layout::default();
    let stored = layout.image(image, layer);
    bench.layout(name, &layout);
    let output = bench.path(&format!("{name}.img"));
    let mut command = bench.command(&["--quiet", "pack", name, "-o"]);
    succeed(command.arg(&output).args(further));
    (output, stored)
}

fn manifest(vm: &Vm, image: &str) -> http::Response {
    let (name, tag) = image.split_once(':').unwrap();
    get(address(vm), &format!("/v2/{name}/manifests/{tag}"))
}

fn address(vm: &Vm) -> SocketAddr {
    vm.address.parse().unwrap()
}

fn blob(name: &str, content: &[u8]) -> String {
    format!("/v2/{name}/blobs/{}", Digest::sha256_of(content))
}

/// The next change of the disks.
fn changed(vm: &Vm) -> proto::Disks {
    vm.event("a change of the disks", |event| if let Event::Disks(disks) = event { Some(disks.clone()) } else { None })
}

/// The next warning with this code.
fn warned(vm: &Vm, code: &str) -> String {
    vm.event(code, |event| match event {
        Event::Warning(warning) if warning.code == code => Some(warning.message.clone()),
        _ => None,
    })
}

/// A disk that is put into a slot of the running machine.
fn plug(qmp: &mut Qmp, slot: &str, file: &Path, serial: &str) {
    let node = json!({
        "node-name": slot, "driver": "raw", "read-only": true,
        "file": { "driver": "file", "filename": file, "locking": "off" },
    });
    qmp.run("blockdev-add", node);
    let device =
        json!({ "driver": "virtio-blk-pci", "drive": slot, "serial": serial, "bus": format!("port-{slot}"), "id": slot });
    qmp.run("device_add", device);
}

fn unplug(qmp: &mut Qmp, slot: &str) {
    qmp.run("device_del", json!({ "id": slot }));
    qmp.event("DEVICE_DELETED");
    qmp.run("blockdev-del", json!({ "node-name": slot }));
}

/// Has QEMU make slots for disks that come later.
fn slots(names: &[&str]) -> Vec<String> {
    let port = |(at, name): (usize, &&str)| {
        ["--qemu-arg=-device".to_owned(), format!("--qemu-arg=pcie-root-port,id=port-{name},chassis={0},slot={0}", at + 8)]
    };
    names.iter().enumerate().flat_map(port).collect()
}

#[test]
fn several_disks_are_one_registry_and_disks_come_and_go() {
    let bench = Bench::default();
    let shared = noise(1, MIB);
    let big = noise(2, 48 * MIB);
    // Both have the layer, and an image that is the same.
    let (labelled, one) = pack(&bench, "one", "test/one:1", &shared, &["--format", "ext4"]);
    succeed(Command::new("e2label").arg(&labelled).arg("images"));
    let (second, two) = pack(&bench, "two", "docker.io/test/two:1", &shared, &[]);
    let (third, three) = pack(&bench, "three", "quay.io/test/three:1", &big, &[]);
    let (same, _) = pack(&bench, "same", "test/one:1", &shared, &[]);
    let (conflicting, other) = pack(&bench, "conflicting", "test/one:1", b"other", &[]);
    fs::write(bench.path("zeros"), vec![0; MIB]).unwrap();

    let socket = bench.path("qmp");
    let set = r#"disks=[{"label":"images"},{"path":"/dev/vdb"},{"serial":"more-*"}]"#;
    let own = [
        second.display().to_string(),
        "--set".into(),
        set.into(),
        "--tls".into(),
        "off".into(),
        "--disk-wait".into(),
        "20".into(),
    ];
    let arguments = [&own[..], &qmp::arguments(&socket), &slots(&["good", "bad"])].concat();
    let vm = Vm::boot(&labelled, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut qmp = Qmp::connect(&socket);
    let ready = vm.event("ready", |event| if let Event::Ready(ready) = event { Some(ready.clone()) } else { None });
    let first = [r#"/dev/vda (serial "localregistry", label "images")"#, r#"/dev/vdb (serial "localregistry-1")"#];
    assert_eq!((ready.images, ready.disks.as_slice()), (2, &first.map(str::to_owned)[..]));
    assert_eq!(ready.blobs, 4, "two manifests, a config and a layer that are on both");
    let digest = |response: &http::Response| response.header("docker-content-digest").unwrap_or_default().to_owned();
    assert_eq!(digest(&manifest(&vm, "test/one:1")), one.digest.to_string());
    assert_eq!(digest(&manifest(&vm, "docker.io/test/two:1")), two.digest.to_string());
    for name in ["test/one", "docker.io/test/two"] {
        assert!(get(address(&vm), &blob(name, &shared)).body == shared, "{name}");
    }

    // One comes, and is served without a restart.
    assert_eq!(manifest(&vm, "quay.io/test/three:1").status, 404);
    plug(&mut qmp, "good", &third, "more-3");
    let added = changed(&vm);
    let name = r#"/dev/vdc (serial "more-3")"#;
    assert_eq!((added.added.as_str(), added.removed.as_str(), added.images), (name, "", 3));
    assert_eq!(added.disks, [first[0], first[1], name]);
    assert_eq!(digest(&manifest(&vm, "quay.io/test/three:1")), three.digest.to_string());
    assert_eq!(get(address(&vm), "/healthz").status, 200);

    // Those that cannot be served harm nothing.
    let here = |name: &str| format!(r#"/dev/vdd (serial "{name}")"#);
    let as_before = "; it is not served, and all else is as before";
    let refusals = [
        (
            &conflicting,
            "more-4",
            "DISK_CONFLICT",
            format!(
                "the disks cannot be served together: the tag test/one:1 is {} on {}, and {} on {}; expected the same, or it on one \
                 of them{as_before}",
                one.digest,
                first[0],
                other.digest,
                here("more-4")
            ),
        ),
        (
            &bench.path("zeros"),
            "more-5",
            "BAD_DISK",
            format!(
                "{}, 1048576 bytes: no file system known; expected EROFS, ext4 or squashfs, as `localregistry pack` makes{as_before}",
                here("more-5")
            ),
        ),
        (
            &same,
            "else",
            "DISK_IGNORED",
            format!(
                "{} came; expected one with the label \"images\", or /dev/vdb, or with the serial \"more-*\"{as_before}",
                here("else")
            ),
        ),
    ];
    for (file, serial, code, message) in refusals {
        plug(&mut qmp, "bad", file, serial);
        assert_eq!(warned(&vm, code), message);
        assert_eq!(digest(&manifest(&vm, "test/one:1")), one.digest.to_string());
        assert_eq!(manifest(&vm, "quay.io/test/three:1").status, 200);
        unplug(&mut qmp, "bad");
    }
    // The same image once more is no conflict.
    plug(&mut qmp, "bad", &same, "more-6");
    assert_eq!((changed(&vm).images, manifest(&vm, "test/one:1").status), (3, 200));

    // One goes while it is being read: that response is cut, and the others never notice.
    let mut reader = begin(address(&vm), &blob("quay.io/test/three", &big));
    let mut start = vec![0; 64 << 10];
    reader.read_exact(&mut start).unwrap();
    unplug(&mut qmp, "good");
    let removed = changed(&vm);
    assert_eq!((removed.added.as_str(), removed.removed.as_str(), removed.images), ("", name, 2));
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(start.len() + rest.len() < big.len() && big.starts_with(&start) && big[start.len()..].starts_with(&rest));
    assert_eq!(manifest(&vm, "quay.io/test/three:1").status, 404);
    assert_eq!(manifest(&vm, "test/one:1").status, 200);
    assert_eq!(get(address(&vm), "/healthz").status, 200, "of the disks that are there");

    // And comes again.
    plug(&mut qmp, "good", &third, "more-3");
    assert_eq!(changed(&vm).images, 3);
    assert!(get(address(&vm), &blob("quay.io/test/three", &big)).body == big);
    let ended = vm.stop(Signal::SIGTERM);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let cut = ended.requests().into_iter().filter(|request| !request.complete).count();
    assert_eq!(cut, 1, "the one whose disk went");
}

/// A request for `path`, whose response's head has been read.
fn begin(address: SocketAddr, path: &str) -> BufReader<TcpStream> {
    let mut stream = http::connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
    }
    reader
}

/// The body that comes for `path`, up to its end, or to the connection's; and the status.
fn taken(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let mut stream = http::connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let head = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let status = String::from_utf8_lossy(&all[..head]).split(' ').nth(1).unwrap().parse().unwrap();
    (status, all.split_off(head))
}

/// Where content lies on a disk, in bytes from its start.
fn place(disk: &Path, content: &[u8]) -> u64 {
    let bytes = fs::read(disk).unwrap();
    bytes.windows(64).position(|window| window == &content[..64]).unwrap() as u64
}

#[test]
fn faults_of_a_disk_that_serves() {
    let bench = Bench::default();
    // What becomes of each layer on the way to the disk, or from it.
    let names = ["good", "middle", "first", "short", "wrong", "late"];
    let layers: Vec<Vec<u8>> = (1..).zip(&names).map(|(seed, _)| noise(seed, 4 * MIB)).collect();
    let [good, middle, first, short, wrong, late] = layers.as_slice() else { panic!() };
    let mut layout = Layout::default();
    for (name, layer) in names.iter().zip(&layers) {
        layout.image(&format!("test/{name}:1"), layer);
    }
    bench.layout("images", &layout);
    bench.pack(&["images"]);
    succeed(Command::new("fsck.erofs").arg(format!("--extract={}", bench.path("tree").display())).arg(bench.path("disk.erofs")));
    let file = |content: &[u8]| bench.path("tree").join(Digest::sha256_of(content).blob_path());
    let mut spoilt = wrong.clone();
    spoilt[3 * MIB] ^= 1;
    for (content, now) in [(short, &short[..3 * MIB]), (wrong, &spoilt)] {
        fs::remove_file(file(content)).unwrap();
        fs::write(file(content), now).unwrap();
    }
    let disk = bench.path("faulty.erofs");
    succeed(Command::new("mkfs.erofs").arg("--quiet").arg(&disk).arg(bench.path("tree")));

    // Sectors that cannot be read.
    let bad = [place(&disk, middle) + 2 * MIB as u64, place(&disk, first)];
    let rules = bad.map(|at| format!("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"{}\"\n", at / 512));
    fs::write(bench.path("errors"), rules.concat()).unwrap();
    let change = format!(
        "args=(\"${{@/file.driver=file,file.locking=off,file.filename=/file.driver=blkdebug,file.config={},file.image.driver=file,\
         file.image.locking=off,file.image.filename=}}\")",
        bench.path("errors").display()
    );
    let (qemu, socket) = (vm::qemu_changed(&bench.path(""), &change), bench.path("qmp"));
    let own = ["--qemu", &qemu, "--tls", "off", "--verify", "--set", "limits.stallSeconds=6"].map(str::to_owned);
    let arguments = [&own[..], &qmp::arguments(&socket)].concat();
    let vm = Vm::boot(&disk, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let at = address(&vm);
    let name = r#"/dev/vda (serial "localregistry")"#;
    let told = |code: &str, content: &[u8], what: &str| {
        assert_eq!(warned(&vm, code), format!("{} on {name}: {what}", Digest::sha256_of(content)));
    };
    let served = |name: &str, content: &[u8]| {
        let (status, body) = taken(at, &blob(&format!("test/{name}"), content));
        assert!(status == 200 && body == content, "{name}: {status}, {} bytes", body.len());
    };
    served("good", good);
    assert_eq!(manifest(&vm, "test/good:1").status, 200);

    // A read error in the middle: that response is cut.
    let (status, body) = taken(at, &blob("test/middle", middle));
    assert!(status == 200 && body.len() <= 2 * MIB && middle.starts_with(&body), "{status}, {} bytes", body.len());
    told("READ_ERROR", middle, "Input/output error (os error 5)");
    // At the start: nothing was sent yet.
    let refused = |content: &[u8], name: &str| {
        let response = get(at, &blob(name, content));
        assert_eq!((response.status, response.code().as_str()), (500, "UNKNOWN"), "{name}");
    };
    refused(first, "test/first");
    told("READ_ERROR", first, "Input/output error (os error 5)");
    // Less than the catalog says.
    refused(short, "test/short");
    told("TRUNCATED", short, "the file has 3145728 bytes, and the catalog says 4194304");
    // Other bytes: cut before the end, and no part of it is sent.
    let (status, body) = taken(at, &blob("test/wrong", wrong));
    assert!(status == 200 && body.len() < wrong.len() && spoilt.starts_with(&body), "{status}, {} bytes", body.len());
    let other = format!("its bytes have the digest {}", Digest::sha256_of(&spoilt));
    told("WRONG_DIGEST", wrong, &other);
    assert_eq!(http::ranged(at, &blob("test/wrong", wrong), "bytes=0-9").status, 500);
    told("WRONG_DIGEST", wrong, &other);
    assert_eq!(http::ranged(at, &blob("test/good", good), "bytes=0-9").body, good[..10]);
    // However often: counted, and told of ten times in ten seconds.
    for _ in 0..20 {
        refused(short, "test/short");
    }
    let errors = |reason: &str| {
        let samples = parse(&String::from_utf8(get(at, "/metrics").body).unwrap());
        samples.get(&format!("localregistry_disk_errors_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!(["read_error", "truncated", "wrong_digest", "disk_hung"].map(errors), [2.0, 21.0, 2.0, 0.0]);
    served("good", good);
    assert_eq!(get(at, "/healthz").status, 200);

    // It hangs: who waits for it is sent away in time, who needs none of it is served.
    let mut qmp = Qmp::connect(&socket);
    let blocks = qmp.run("query-block", json!({}));
    let device = blocks.as_array().unwrap().iter().find_map(|block| block["qdev"].as_str()).unwrap().to_owned();
    let throttle = |qmp: &mut Qmp, rate: u32| {
        let limits = json!({
            "id": device, "bps": 0, "bps_rd": rate, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        qmp.run("block_set_io_throttle", limits);
    };
    let mut under_way = begin(at, &blob("test/late", late));
    throttle(&mut qmp, 1);
    // What passes the throttle is one read at most: the next waits for days.
    let mut got = Vec::new();
    let _ = under_way.read_to_end(&mut got);
    assert!(got.len() < late.len() && late.starts_with(&got), "{} bytes", got.len());
    told("DISK_HUNG", late, "the disk did not answer within 6 s");
    let response = get(at, "/healthz");
    assert_eq!((response.status, response.code().as_str()), (503, "UNAVAILABLE"));
    assert_eq!(manifest(&vm, "test/good:1").status, 200, "from memory");
    assert_eq!(get(at, "/v2/").status, 200);
    assert_eq!(get(at, "/v2/_catalog").json()["repositories"].as_array().unwrap().len(), names.len());
    // And well again.
    throttle(&mut qmp, 0);
    until("the disk is well again", || get(at, "/healthz").status == 200);
    served("late", late);
    assert!(errors("disk_hung") >= 1.0);

    let ended = vm.stop(Signal::SIGTERM);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    let codes = |code: &str| ended.events.iter().filter(|event| matches!(event, Event::Warning(w) if w.code == code)).count();
    assert!((1..21).contains(&codes("TRUNCATED")), "{}", codes("TRUNCATED"));
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn boots_that_their_disks_end_say_why() {
    let (bench, _, image) = hello(b"layer");
    let disk = bench.path("disk.erofs");
    let missing = "after 1 s; the virtio disks here are vda (\"localregistry\")";
    let (other, conflicting) = pack(&bench, "other", "test/hello:latest", b"other", &[]);

    // A catalog of a version to come.
    succeed(Command::new("fsck.erofs").arg(format!("--extract={}", bench.path("tree").display())).arg(&disk));
    let catalog = bench.path("tree/localregistry/catalog.binpb");
    let mut columns = proto::Catalog::decode(fs::read(&catalog).unwrap().as_slice()).unwrap();
    columns.version = 2;
    fs::write(&catalog, columns.encode_to_vec()).unwrap();
    let make = |name: &str, tree: &str| {
        succeed(Command::new("mkfs.erofs").arg("--quiet").arg(bench.path(name)).arg(bench.path(tree)));
        bench.path(name)
    };
    let newer = make("newer.erofs", "tree");
    // A plain layout, in which a manifest is cut.
    let mut layout = Layout::default();
    let cut = layout.image("test/cut:1", b"layer");
    bench.layout("cut", &layout);
    let manifest = bench.path("cut").join(cut.digest.blob_path());
    let content = fs::read(&manifest).unwrap();
    fs::write(&manifest, &content[..content.len() - 7]).unwrap();
    let plain = make("cut.erofs", "cut");

    let other = other.display().to_string();
    let cases: [(&Path, Vec<&str>, &str, String); 6] = [
        (
            &disk,
            vec!["--set", r#"disks=[{"label":"images"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            format!("no disk with the label \"images\" {missing}; give a file system the label images (mkfs.erofs -L, e2label)"),
        ),
        (
            &disk,
            vec!["--set", r#"disks=[{"path":"/dev/vdb"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            format!("no disk /dev/vdb {missing}; give QEMU another -device virtio-blk-pci"),
        ),
        (
            &disk,
            vec!["--set", r#"disks=[{"serial":"a"},{"serial":"b"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            "no disk with the serial \"b\" after 1 s; the virtio disks here are vda (\"a\"); give QEMU -device \
             virtio-blk-pci,serial=b"
                .to_owned(),
        ),
        (
            &disk,
            vec![&other],
            "DISK_CONFLICT",
            format!(
                "the disks cannot be served together: the tag test/hello:latest is {} on /dev/vda (serial \"localregistry\"), and {} \
                 on /dev/vdb (serial \"localregistry-1\"); expected the same, or it on one of them",
                image.digest, conflicting.digest
            ),
        ),
        (
            &newer,
            vec![],
            "BAD_DISK",
            "/dev/vda (serial \"localregistry\"): localregistry/catalog.binpb: the catalog is of version 2, and this program reads \
             version 1; pack the disk again with this version"
                .to_owned(),
        ),
        (
            &plain,
            vec![],
            "TRUNCATED",
            format!(
                "/dev/vda (serial \"localregistry\"): localregistry/catalog.binpb is not there, and the layout cannot be read \
                 without it: image test/cut:1: {} has {} bytes, and its descriptor says {}",
                cut.digest.blob_path(),
                cut.size - 7,
                cut.size
            ),
        ),
    ];
    for (disk, arguments, code, message) in cases {
        let ended = vm::fails(disk, &arguments);
        assert_eq!(ended.status, Some(3), "{code}: {}", ended.stderr);
        let done = ended.done();
        assert_eq!((done.status, done.code.as_str()), (1, code), "{}", done.reason);
        assert_eq!(done.reason, message);
        assert!(ended.stderr.contains(&format!("FATAL code={code} {}", done.reason)), "{}", ended.stderr);
    }
}

#[test]
fn a_machine_that_is_killed_leaves_its_disk_as_it_was() {
    let bench = Bench::default();
    let big = noise(1, 48 * MIB);
    let (disk, image) = pack(&bench, "images", "test/hello:1", &big, &[]);
    let before = digest_of(&disk);
    let boot = || {
        let vm = Vm::boot(&disk, &["--tls", "off"]);
        let lists = ["/v2/_catalog", "/v2/test/hello/tags/list"].map(|path| get(address(&vm), path).body);
        let manifest = manifest(&vm, "test/hello:1");
        assert_eq!(manifest.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
        let ready = vm.event("ready", |event| if let Event::Ready(ready) = event { Some(ready.clone()) } else { None });
        let counts = (ready.images, ready.blobs, ready.blob_bytes, ready.disks);
        (vm, (lists, manifest.body, counts))
    };
    let (vm, first) = boot();
    // In the middle of a transfer.
    let mut reader = begin(address(&vm), &blob("test/hello", &big));
    reader.read_exact(&mut vec![0; 64 << 10]).unwrap();
    let qemu = Pid::from_raw(i32::try_from(vm.ready["qemu_pid"].as_i64().unwrap()).unwrap());
    kill(qemu, Signal::SIGKILL).unwrap();
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.len() < big.len() - (64 << 10), "it was cut");
    let ended = vm.ended();
    assert_eq!(ended.status, Some(6), "{}", ended.stderr);
    assert_eq!(digest_of(&disk), before, "nothing is written");

    let (vm, second) = boot();
    assert!(second == first, "the next boot serves the same");
    assert!(get(address(&vm), &blob("test/hello", &big)).body == big);
    assert_eq!(vm.stop(Signal::SIGTERM).status, Some(0));
    assert_eq!(digest_of(&disk), before);
}
