//! A disk in a VM that fails or hangs while it is served, and a disk of a killed VM.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use localregistry::oci::Digest;
use localregistry::proto::event::Event;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testing::disks::{MIB, address, begin, blob, manifest, noise, pack, throttle, warned};
use testing::http::{self, get};
use testing::layout::Layout;
use testing::openmetrics::parse;
use testing::pack::{Bench, digest_of};
use testing::qmp::{self, Qmp};
use testing::vm::{self, Vm, succeed};
use testing::wait::until;

/// Reads the response for `path` until it or the connection ends. Returns the status and the body.
fn taken(address: SocketAddr, path: &str) -> (u16, Vec<u8>) {
    let mut stream = http::connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let head = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let status = String::from_utf8_lossy(&all[..head]).split(' ').nth(1).unwrap().parse().unwrap();
    (status, all.split_off(head))
}

/// Offset of content on a disk in bytes.
fn place(disk: &Path, content: &[u8]) -> u64 {
    let bytes = fs::read(disk).unwrap();
    bytes.windows(64).position(|window| window == &content[..64]).unwrap() as u64
}

#[test]
fn faults_of_a_disk_while_serving_are_reported() {
    let bench = Bench::default();
    // The fault of each layer.
    let names = ["good", "middle", "first", "short", "wrong", "late"];
    let layers: Vec<Vec<u8>> = (1..).zip(&names).map(|(seed, _)| noise(seed, 4 * MIB)).collect();
    let [good, middle, first, short, wrong, late] = layers.as_slice() else { panic!() };
    let mut layout = Layout::default();
    for (name, layer) in names.iter().zip(&layers) {
        layout.image(&format!("test/{name}:1"), layer);
    }
    bench.layout("images", &layout);
    bench.pack(&["images"]);
    succeed(
        testing::program("fsck.erofs").arg(format!("--extract={}", bench.path("tree").display())).arg(bench.path("disk.erofs")),
    );
    let file = |content: &[u8]| bench.path("tree").join(Digest::sha256_of(content).blob_path());
    let mut spoilt = wrong.clone();
    spoilt[3 * MIB] ^= 1;
    for (content, now) in [(short, &short[..3 * MIB]), (wrong, &spoilt)] {
        fs::remove_file(file(content)).unwrap();
        fs::write(file(content), now).unwrap();
    }
    // Another tool may leave it to root to read them.
    succeed(testing::program("chmod").args(["-R", "go="]).arg(bench.path("tree")));
    let disk = bench.path("faulty.erofs");
    succeed(testing::program("mkfs.erofs").arg("--quiet").arg(&disk).arg(bench.path("tree")));

    // Unreadable sectors.
    let bad = [place(&disk, middle) + 2 * MIB as u64, place(&disk, first)];
    let rules = bad.map(|at| format!("[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"{}\"\n", at / 512));
    fs::write(bench.path("errors"), rules.concat()).unwrap();
    let change = format!(
        "args=(\"${{@/file.driver=file,file.locking=off,file.filename=/file.driver=blkdebug,file.config={},file.image.driver=file,\
         file.image.locking=off,file.image.filename=}}\")\nargs=(\"${{args[@]/disk.erofs/faulty.erofs}}\")",
        bench.path("errors").display()
    );
    let (qemu, socket) = (vm::qemu_changed(&bench.path(""), &change), bench.path("qmp"));
    let own = ["--qemu", &qemu, "--tls", "off", "--verify", "--set", "limits.stallSeconds=6"].map(str::to_owned);
    let arguments = [&own[..], &qmp::arguments(&socket)].concat();
    // `run` would refuse the faulty disk.
    let vm = Vm::boot(&bench.path("disk.erofs"), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let at = address(&vm);
    let name = r#"/dev/vda (serial "localregistry")"#;
    let assert_reported = |code: &str, content: &[u8], what: &str| {
        assert_eq!(warned(&vm, code), format!("{} on {name}: {what}", Digest::sha256_of(content)));
    };
    let served = |name: &str, content: &[u8]| {
        let (status, body) = taken(at, &blob(&format!("test/{name}"), content));
        assert!(status == 200 && body == content, "{name}: {status}, {} bytes", body.len());
    };
    served("good", good);
    assert_eq!(manifest(&vm, "test/good:1").status, 200);

    // A read error in the middle of a blob cuts the response.
    let (status, body) = taken(at, &blob("test/middle", middle));
    assert!(status == 200 && body.len() <= 2 * MIB && middle.starts_with(&body), "{status}, {} bytes", body.len());
    assert_reported("READ_ERROR", middle, "I/O error (os error 5)");
    // A read error at the start comes before anything is sent.
    let refused = |content: &[u8], name: &str| {
        let response = get(at, &blob(name, content));
        assert_eq!((response.status, response.code().as_str()), (500, "UNKNOWN"), "{name}");
    };
    refused(first, "test/first");
    assert_reported("READ_ERROR", first, "I/O error (os error 5)");
    // A blob shorter than the catalog says.
    refused(short, "test/short");
    assert_reported("TRUNCATED", short, "the file has 3145728 bytes, and the catalog says 4194304");
    // Corrupt bytes: the response is cut before the end, and no range is sent.
    let (status, body) = taken(at, &blob("test/wrong", wrong));
    assert!(status == 200 && body.len() < wrong.len() && spoilt.starts_with(&body), "{status}, {} bytes", body.len());
    let other = format!("its bytes have the digest {}", Digest::sha256_of(&spoilt));
    assert_reported("WRONG_DIGEST", wrong, &other);
    assert_eq!(http::ranged(at, &blob("test/wrong", wrong), "bytes=0-9").status, 500);
    assert_reported("WRONG_DIGEST", wrong, &other);
    assert_eq!(http::ranged(at, &blob("test/good", good), "bytes=0-9").body, good[..10]);
    // Repeated errors are all counted, and reported ten times in ten seconds.
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

    // The disk hangs: requests that wait for it time out, and requests that do not need it are served.
    let mut qmp = Qmp::connect(&socket);
    let mut under_way = begin(at, &blob("test/late", late));
    throttle(&mut qmp, 1);
    // The throttle passes one read, and the next would wait for days.
    let mut got = Vec::new();
    let _ = under_way.read_to_end(&mut got);
    assert!(got.len() < late.len() && late.starts_with(&got), "{} bytes", got.len());
    assert_reported("DISK_HUNG", late, "the disk did not answer within 6 s");
    let response = get(at, "/healthz");
    assert_eq!((response.status, response.code().as_str()), (503, "UNAVAILABLE"));
    assert_eq!(manifest(&vm, "test/good:1").status, 200, "served from the cache");
    assert_eq!(get(at, "/v2/").status, 200);
    assert_eq!(get(at, "/v2/_catalog").json()["repositories"].as_array().unwrap().len(), names.len());
    // The disk works again.
    throttle(&mut qmp, 0);
    until("the disk is well again", || get(at, "/healthz").status == 200);
    served("late", late);
    assert!(errors("disk_hung") >= 1.0);

    let ended = vm.shut_down();
    let codes = |code: &str| ended.events.iter().filter(|event| matches!(event, Event::Warning(w) if w.code == code)).count();
    assert!((1..21).contains(&codes("TRUNCATED")), "{}", codes("TRUNCATED"));
}

#[test]
fn killed_machine_leaves_its_disk_unchanged() {
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
    assert!(rest.len() < big.len() - (64 << 10), "the response was cut");
    let ended = vm.end();
    assert_eq!(ended.status, Some(6), "{}", ended.stderr);
    assert_eq!(digest_of(&disk), before, "the disk is unchanged");

    let (vm, second) = boot();
    assert!(second == first, "the next boot serves the same");
    assert!(get(address(&vm), &blob("test/hello", &big)).body == big);
    vm.shut_down();
    assert_eq!(digest_of(&disk), before);
}
