//! Disks in a VM: several as one registry, hot-plugged ones, and each way in which disks can fail the boot.

use std::fs;
use std::io::Read;
use std::path::Path;

use localregistry::proto;
use localregistry::proto::event::Event;
use prost::Message;
use serde_json::json;
use testing::certificates;
use testing::disks::{MIB, address, begin, blob, manifest, noise, pack, throttle, warned};
use testing::http::{self, get};
use testing::layout::Layout;
use testing::pack::{Bench, hello};
use testing::qmp::{self, Qmp};
use testing::vm::{self, Vm, succeed};
use testing::wait::until;

/// The next event about disks.
fn changed(vm: &Vm) -> proto::Disks {
    vm.event("a change of the disks", |event| if let Event::Disks(disks) = event { Some(disks.clone()) } else { None })
}

/// A disk that is plugged into a slot of the running machine.
pub fn plug(qmp: &mut Qmp, slot: &str, file: &Path, serial: &str) {
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

/// Makes QEMU provide slots for hot-plugged disks.
pub fn slots(names: &[&str]) -> Vec<String> {
    let port = |(at, name): (usize, &&str)| {
        ["--qemu-arg=-device".to_owned(), format!("--qemu-arg=pcie-root-port,id=port-{name},chassis={0},slot={0}", at + 8)]
    };
    names.iter().enumerate().flat_map(port).collect()
}

#[test]
fn several_disks_form_one_registry_and_are_hot_plugged() {
    let bench = Bench::default();
    let shared = noise(1, MIB);
    let big = noise(2, 48 * MIB);
    // Both have the layer and one identical image.
    let (labelled, one) = pack(&bench, "one", "test/one:1", &shared, &["--fs", "ext4", "--label", "images"]);
    let (second, two) = pack(&bench, "two", "docker.io/test/two:1", &shared, &["--label", "second"]);
    let (third, three) = pack(&bench, "three", "quay.io/test/three:1", &big, &[]);
    let (same, _) = pack(&bench, "same", "test/one:1", &shared, &[]);
    let (conflicting, other) = pack(&bench, "conflicting", "test/one:1", b"other", &[]);
    fs::write(bench.path("zeros"), vec![0; MIB]).unwrap();

    let socket = bench.path("qmp");
    let set = r#"disks=[{"label":"images"},{"label":"second"},{"serial":"more-*"}]"#;
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
    let first =
        [r#"/dev/vda (serial "localregistry", label "images")"#, r#"/dev/vdb (serial "localregistry-1", label "second")"#];
    assert_eq!((ready.images, ready.disks.as_slice()), (2, &first.map(str::to_owned)[..]));
    assert_eq!(ready.blobs, 3, "a manifest, a config and a layer on both disks");
    let digest = |response: &http::Response| response.header("docker-content-digest").unwrap_or_default().to_owned();
    assert_eq!(digest(&manifest(&vm, "test/one:1")), one.digest.to_string());
    assert_eq!(digest(&manifest(&vm, "docker.io/test/two:1")), two.digest.to_string());
    for name in ["test/one", "docker.io/test/two"] {
        assert!(get(address(&vm), &blob(name, &shared)).body == shared, "{name}");
    }

    // A new disk is served without a restart.
    assert_eq!(manifest(&vm, "quay.io/test/three:1").status, 404);
    plug(&mut qmp, "good", &third, "more-3");
    let added = changed(&vm);
    let name = r#"/dev/vdc (serial "more-3")"#;
    assert_eq!((added.added.as_str(), added.removed.as_str(), added.images), (name, "", 3));
    assert_eq!(added.disks, [first[0], first[1], name]);
    assert_eq!(digest(&manifest(&vm, "quay.io/test/three:1")), three.digest.to_string());
    assert_eq!(get(address(&vm), "/healthz").status, 200);

    // Disks that cannot be served change nothing.
    let here = |name: &str| format!(r#"/dev/vdd (serial "{name}")"#);
    let as_before = "; this disk is not served, and nothing else changes";
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
                "{}, 1048576 bytes, has no known file system; expected EROFS, ext4 or squashfs, as `localregistry pack` makes{as_before}",
                here("more-5")
            ),
        ),
        (
            &same,
            "else",
            "DISK_IGNORED",
            format!(
                "{} was attached; expected one with the label \"images\", or with the label \"second\", or with the serial \"more-*\"{as_before}",
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
    // An identical image is no conflict.
    plug(&mut qmp, "bad", &same, "more-6");
    assert_eq!((changed(&vm).images, manifest(&vm, "test/one:1").status), (3, 200));

    // A disk is unplugged while it is read: that response is cut, and the others continue.
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

    // The disk is plugged in again.
    plug(&mut qmp, "good", &third, "more-3");
    assert_eq!(changed(&vm).images, 3);
    assert!(get(address(&vm), &blob("quay.io/test/three", &big)).body == big);
    let ended = vm.shut_down();
    for line in [format!("{name} was added: 3 images in all\n"), format!("{name} was removed: 2 images in all\n")] {
        assert!(ended.stderr.contains(&line), "{line} is missing in {}", ended.stderr);
    }
    let cut = ended.requests().into_iter().filter(|request| !request.complete).count();
    assert_eq!(cut, 1, "the one whose disk went");
}

#[test]
fn boots_that_fail_because_of_disks_report_the_cause() {
    let (bench, _, image) = hello(b"layer");
    bench.pack(&["layout"]);
    let disk = bench.path("disk.erofs");
    let missing = "after 1 s; virtio disks found: vda (\"localregistry\")";
    let (other, conflicting) = pack(&bench, "other", "test/hello:latest", b"other", &[]);

    // A catalog of a future version.
    succeed(testing::program("fsck.erofs").arg(format!("--extract={}", bench.path("tree").display())).arg(&disk));
    let catalog = bench.path("tree/localregistry/catalog.binpb");
    let mut columns = proto::Catalog::decode(fs::read(&catalog).unwrap().as_slice()).unwrap();
    columns.version = 2;
    fs::write(&catalog, columns.encode_to_vec()).unwrap();
    // `run` refuses such disks, so QEMU gets them in place of another.
    let make = |name: &str, tree: &str| {
        succeed(testing::program("mkfs.erofs").arg("--quiet").arg(bench.path(name)).arg(bench.path(tree)));
        let folder = bench.path(&format!("{name}.qemu"));
        fs::create_dir(&folder).unwrap();
        vm::qemu_changed(&folder, &format!("args=(\"${{@/disk.erofs/{name}}}\")"))
    };
    let newer = make("newer.erofs", "tree");
    // A plain layout with a truncated manifest.
    let mut layout = Layout::default();
    let cut = layout.image("test/cut:1", b"layer");
    bench.layout("cut", &layout);
    let manifest = bench.path("cut").join(cut.digest.blob_path());
    let content = fs::read(&manifest).unwrap();
    fs::write(&manifest, &content[..content.len() - 7]).unwrap();
    let plain = make("cut.erofs", "cut");

    let other = other.display().to_string();
    let cases: [(Vec<&str>, &str, String); 6] = [
        (
            vec!["--set", r#"disks=[{"label":"images"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            format!("no disk with the label \"images\" {missing}; pack one with --label images, or give QEMU another -device virtio-blk-pci"),
        ),
        (
            vec!["--set", r#"disks=[{"path":"/dev/vdb"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            format!("no disk /dev/vdb {missing}; give QEMU another -device virtio-blk-pci"),
        ),
        (
            vec!["--set", r#"disks=[{"serial":"a"},{"serial":"b"}]"#, "--disk-wait", "1"],
            "NO_DISK",
            "no disk with the serial \"b\" after 1 s; virtio disks found: vda (\"a\"); give QEMU -device \
             virtio-blk-pci,serial=b"
                .to_owned(),
        ),
        (
            vec![&other],
            "DISK_CONFLICT",
            format!(
                "the disks cannot be served together: the tag test/hello:latest is {} on /dev/vda (serial \"localregistry\"), and {} \
                 on /dev/vdb (serial \"localregistry-1\"); expected the same, or it on one of them",
                image.digest, conflicting.digest
            ),
        ),
        (
            vec!["--qemu", &newer],
            "BAD_DISK",
            "/dev/vda (serial \"localregistry\"): localregistry/catalog.binpb: the catalog is of version 2, and this program reads \
             version 1; pack the disk again with this version"
                .to_owned(),
        ),
        (
            vec!["--qemu", &plain],
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
    for (arguments, code, message) in cases {
        let ended = vm::fails(&disk, &arguments);
        assert_eq!(ended.status, Some(3), "{code}: {}", ended.stderr);
        let done = ended.done();
        assert_eq!((done.status, done.code.as_str()), (1, code), "{}", done.reason);
        assert_eq!(done.reason, message);
        assert!(ended.stderr.contains(&format!("FATAL code={code} {}", done.reason)), "{}", ended.stderr);
    }
}

#[test]
fn boot_waits_only_for_expected_disks() {
    let bench = Bench::default();
    let (first, _) = pack(&bench, "first", "test/first:1", b"first", &[]);
    let (late, _) = pack(&bench, "late", "test/late:1", b"late", &[]);
    let (later, _) = pack(&bench, "later", "quay.io/test/later:1", b"later", &[]);
    let (socket, console) = (bench.path("qmp"), bench.path("console"));
    let set = r#"disks=[{"path":"/dev/vda"},{"serial":"late"},{"serial":"later","optional":true}]"#;
    let own = ["--set", set, "--set", "trace=true", "--disk-wait", "120", "--console"].map(str::to_owned);
    let arguments = [&own[..], &[console.display().to_string()], &qmp::arguments(&socket), &slots(&["late", "later"])].concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (vm, mut qmp) = std::thread::scope(|scope| {
        let plugged = scope.spawn(|| {
            let mut qmp = Qmp::connect(&socket);
            // From here on, the boot waits for it.
            until("the config", || fs::read_to_string(&console).is_ok_and(|text| text.contains("step config at")));
            plug(&mut qmp, "late", &late, "late");
            qmp
        });
        (Vm::boot(&first, &arguments), plugged.join().unwrap())
    });
    let ready = vm.event("ready", |event| if let Event::Ready(ready) = event { Some(ready.clone()) } else { None });
    assert_eq!(ready.disks, [r#"/dev/vda (serial "localregistry")"#, r#"/dev/vdb (serial "late")"#]);
    let client = certificates::client(&ready.ca_pem, &rustls::version::TLS13, None);
    let status = |path: &str| certificates::send(address(&vm), &client, "GET", path, &[]).unwrap().status;
    let manifests = ["/v2/test/first/manifests/1", "/v2/test/late/manifests/1", "/v2/quay.io/test/later/manifests/1"];
    assert_eq!(manifests.map(status), [200, 200, 404]);
    // A client that believes it is talking to quay.io gets a certificate for that name once a disk has images of it.
    assert!(certificates::shake(address(&vm), &client, "quay.io").is_err());
    plug(&mut qmp, "later", &later, "later");
    assert_eq!(changed(&vm).added, r#"/dev/vdc (serial "later")"#);
    assert_eq!(manifests.map(status), [200, 200, 200]);
    certificates::shake(address(&vm), &client, "quay.io").unwrap();
    vm.shut_down();
}

#[test]
fn hanging_disk_fails_the_boot() {
    let bench = Bench::default();
    let (disk, _) = pack(&bench, "images", "test/hello:1", b"layer", &[]);
    let (late, _) = pack(&bench, "late", "test/late:1", b"late", &[]);
    let (socket, console) = (bench.path("qmp"), bench.path("console"));
    let set = r#"disks=[{"serial":"localregistry"},{"serial":"late"}]"#;
    let own = ["--set", set, "--set", "trace=true", "--disk-wait", "120", "--console"].map(str::to_owned);
    let arguments = [&own[..], &[console.display().to_string()], &qmp::arguments(&socket), &slots(&["late"])].concat();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut qmp = Qmp::connect(&socket);
            // The kernel knows the first disk, and the guest waits for the other.
            until("the config", || fs::read_to_string(&console).is_ok_and(|text| text.contains("step config at")));
            throttle(&mut qmp, 1);
            plug(&mut qmp, "late", &late, "late");
        });
        vm::fails(&disk, &arguments)
    });
    assert_eq!(ended.status, Some(3), "{}", ended.stderr);
    let reason = "/dev/vda (serial \"localregistry\") did not respond within 30 s; the host has stopped it or is overloaded";
    let done = ended.done();
    assert_eq!((done.status, done.code.as_str(), done.reason.as_str()), (1, "DISK_HUNG", reason));
    assert!(ended.stderr.contains(&format!("FATAL code=DISK_HUNG {reason}")), "{}", ended.stderr);
}
