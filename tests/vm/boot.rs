//! The appliance as users have it: a packed disk in a VM under TCG, real clients, and each way in which a boot can fail.

use std::fs;
use std::path::Path;

use localregistry::proto::event;
use nix::sys::signal::Signal;
use serde_json::Value;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM};
use testing::vm::{self, Containerd, Vm, skopeo, succeed};

fn big_layer() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Packs the sample image and an image with several layers.
fn disk(bench: &Bench) -> std::path::PathBuf {
    succeed(testing::program(PROGRAM).args(["--quiet", "sample", "--output"]).arg(bench.path("sample")));
    let mut layout = Layout::default();
    let image = layout.manifest(&[&big_layer(), b"small", b""]);
    layout.name(image, localregistry::oci::media_type::OCI_MANIFEST, "docker.io/library/layers:1");
    bench.layout("layers", &layout);
    bench.pack(&["sample", "layers"]);
    bench.path("disk.erofs")
}

fn manifest_digest(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn real_clients_pull_over_tls_and_the_image_runs() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let vm = Vm::boot(&disk, &["--trust", "trust", "--trust-host", "other.test", "--san", "registry.test"]);
    assert_eq!((&vm.ready["images"], vm.ready["endpoint"].as_str().unwrap()), (&2.into(), &*format!("https://{}", vm.address)));

    // Each name is in the trust files and in the certificate.
    let port = vm.address.rsplit_once(':').unwrap().1;
    for name in ["other.test", "registry.test"] {
        assert!(vm.path(&format!("trust/podman/certs.d/{name}:{port}/ca.crt")).exists(), "{name}");
        let (resolve, url) = (format!("{name}:{port}:127.0.0.1"), format!("https://{name}:{port}/v2/"));
        let mut curl = testing::program("curl");
        curl.args(["--silent", "--fail", "--resolve", &resolve, "--cacert"]).arg(vm.path("trust/ca.crt")).arg(url);
        assert_eq!(succeed(&mut curl), "{}");
    }
    assert_eq!(vm.ready["names"], serde_json::json!(["registry.test", "other.test"]));

    // An emulated server chooses ChaCha20-Poly1305, which its processor runs fastest, and leaves AES to clients that have nothing else.
    let digest = Layout::default().blob(&big_layer()).digest;
    let blob = format!("https://{}/v2/docker.io/library/layers/blobs/{digest}", vm.address);
    for (arguments, cipher) in [
        (&["--tlsv1.3"][..], "TLSv1.3 / TLS_CHACHA20_POLY1305_SHA256"),
        (&["--tls-max", "1.2"], "TLSv1.2 / ECDHE-ECDSA-CHACHA20-POLY1305"),
        (&["--tlsv1.3", "--tls13-ciphers", "TLS_AES_128_GCM_SHA256"], "TLSv1.3 / TLS_AES_128_GCM_SHA256"),
    ] {
        let mut curl = testing::program("curl");
        let curl = curl.args(["--silent", "--verbose", "--fail", "--cacert"]).arg(vm.path("ca.crt")).args(arguments).arg(&blob);
        let pulled = curl.output().unwrap();
        let said = String::from_utf8_lossy(&pulled.stderr);
        assert!(pulled.status.success() && said.contains(&format!("SSL connection using {cipher}")), "{cipher}: {said}");
        assert!(pulled.stdout == big_layer(), "{cipher}");
    }

    // skopeo pulls both images byte for byte.
    for (image, source) in [("test/hello:latest", "sample"), ("docker.io/library/layers:1", "layers")] {
        assert!(vm.serves(image, &bench.path(source)) >= 3, "manifest, config and layers");
        assert_eq!(manifest_digest(&vm.path(source)), manifest_digest(&bench.path(source)), "{image}");
    }

    // containerd pulls, compares and runs the image.
    let containerd = Containerd::start();
    let pulled = containerd.pull(&vm.address, "test/hello:latest", &vm.path("ca.crt"));
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let name = format!("{}/test/hello:latest", vm.address);
    let listed = succeed(&mut containerd.ctr(&["images", "list"]));
    let digest = manifest_digest(&bench.path("sample"));
    assert!(listed.lines().any(|line| line.contains(&name) && line.contains(&digest)), "{listed}");
    let said = succeed(&mut containerd.ctr(&["run", "--rm", &name, "hello"]));
    assert_eq!(said, concat!("hello from localregistry ", env!("CARGO_PKG_VERSION"), "\n"));

    // Neither client trusts another appliance's CA.
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::create_dir(vm.path("wrong")).unwrap();
    fs::write(vm.path("wrong/ca.crt"), other.cert.pem()).unwrap();
    let from = format!("docker://{}/test/hello:latest", vm.address);
    let refused = skopeo(&["copy", "--src-cert-dir", "wrong", &from, "oci:refused"], vm.dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("x509: certificate signed by unknown authority"), "{said}");
    assert!(!vm.path("refused/index.json").exists());
    let fresh = Containerd::start();
    let refused = fresh.pull(&vm.address, "test/hello:latest", &vm.path("wrong/ca.crt"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("x509: certificate signed by unknown authority"), "{said}");

    // The log names every pull, and the machine ends gracefully.
    let digest_of_tag = digest;
    let ended = vm.shut_down();
    let by = |agent: &str| -> Vec<String> {
        let requests = ended.requests();
        let theirs = requests.iter().filter(|request| request.user_agent.starts_with(agent) && request.status == 200);
        theirs.map(|request| format!("{} {} {}", request.method, request.endpoint, request.digest)).collect()
    };
    assert!(by("skopeo").contains(&format!("GET manifest {digest_of_tag}")), "{:?}", by("skopeo"));
    assert!(by("containerd").contains(&format!("HEAD manifest {digest_of_tag}")), "{:?}", by("containerd"));
    assert!(ended.requests().iter().all(|request| request.peer.starts_with("10.0.2.") && request.complete));
    // The log also names the clients that refused the CA, by the alert that Go's clients send.
    let refused = ended.events.iter().filter_map(|event| match event {
        event::Event::Warning(warning) if warning.code == "TLS_REFUSED" => warning.tls_refused.clone(),
        _ => None,
    });
    let refused: Vec<_> = refused.collect();
    assert!(
        refused.iter().all(|refused| refused.peer.starts_with("10.0.2.") && refused.alert == "bad_certificate"),
        "{refused:?}"
    );
    assert!(refused.iter().map(|refused| refused.count).sum::<u32>() >= 2, "{refused:?}");
    let done = ended.done();
    assert_eq!((done.status, done.code.as_str(), done.dropped_events), (0, "", 0));
    assert_eq!(usize::try_from(done.requests).unwrap(), ended.requests().len());
}

#[test]
fn static_address_with_a_provided_certificate_and_plain_http_serves() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let given = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::create_dir(bench.path("certs")).unwrap();
    fs::write(bench.path("certs/ca.crt"), given.cert.pem()).unwrap();
    fs::write(bench.path("key.pem"), given.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (bench.path("certs/ca.crt").display().to_string(), bench.path("key.pem").display().to_string());
    let set = "interfaces=[{\"addresses\":[\"10.0.2.15/24\"],\"gateway\":\"10.0.2.2\"}]";
    let vm = Vm::boot(&disk, &["--tls", "provided", "--cert", &cert, "--key", &key, "--set", set]);
    let image = format!("docker://{}/test/hello:latest", vm.address);
    let certs = bench.path("certs").display().to_string();
    let digest = succeed(&mut skopeo(&["inspect", "--cert-dir", &certs, "--format", "{{.Digest}}", &image], vm.dir.path()));
    assert_eq!(digest.trim(), manifest_digest(&bench.path("sample")));
    assert_eq!(fs::read_to_string(vm.path("ca.crt")).unwrap().replace('\r', ""), given.cert.pem().replace('\r', ""));
    let ended = vm.stop(Signal::SIGINT);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);

    let plain = Vm::boot(&disk, &["--tls", "off", "--set", set]);
    assert_eq!(testing::http::get(plain.address.parse().unwrap(), "/v2/").status, 200);
    assert!(!plain.path("ca.crt").exists(), "without TLS there is no CA");
    plain.shut_down();

    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(bench.path("key.pem"), other.signing_key.serialize_pem()).unwrap();
    let ended = vm::fails(&disk, &["--tls", "provided", "--cert", &cert, "--key", &key]);
    assert_eq!((ended.status, ended.events.len()), (Some(13), 0), "{}", ended.stderr);
    assert!(ended.stderr.contains("the given certificate chain and key do not go together"), "{}", ended.stderr);
}

#[test]
fn failed_boots_report_the_cause() {
    let bench = Bench::default();
    let path = disk(&bench);
    let disk = fs::read(&path).unwrap();
    // `run` checks what it can see of a disk without a kernel and refuses bad ones, so here QEMU gets another disk.
    fs::create_dir(bench.path("bad")).unwrap();
    let bad = vm::qemu_changed(&bench.path("bad"), "args=(\"${@/disk.erofs/broken.erofs}\")");
    let other = vm::qemu_changed(&bench.path(""), "args=(\"${@/serial=localregistry/serial=other}\")");
    let broken = bench.path("broken.erofs");
    let half = disk.len() / 2 / 4096 * 4096;
    let blocks = u64::from(u32::from_le_bytes(disk[1024 + 36..1024 + 40].try_into().unwrap()));
    let truncated = format!(
        "/dev/vda (serial \"localregistry\") has {half} bytes; its erofs file system has {}: copy the disk again",
        blocks << disk[1024 + 12]
    );
    let cases: [(&[&str], Vec<u8>, &str, &str); 5] = [
        (
            &["--qemu", &other],
            disk.clone(),
            "NO_DISK",
            "no disk with the serial \"localregistry\" after 5 s; virtio disks found: vda (\"other\"); give QEMU \
             -device virtio-blk-pci,serial=localregistry",
        ),
        (
            &["--qemu", &bad],
            vec![0; 1 << 20],
            "BAD_DISK",
            "/dev/vda (serial \"localregistry\"), 1048576 bytes, has no known file system; expected EROFS, ext4 or squashfs, as \
             `localregistry pack` makes",
        ),
        (
            &["--qemu", &bad],
            corrupt(disk.clone()),
            "BAD_DISK",
            "/dev/vda (serial \"localregistry\") is damaged, or the kernel lacks its file system: cannot mount /dev/vda on /disks/vda \
             (type erofs, MS_RDONLY|MS_NOSUID|MS_NODEV|MS_NOEXEC, options \"\"): EBADMSG: Not a data message",
        ),
        (&["--qemu", &bad], disk[..half].to_vec(), "TRUNCATED", &truncated),
        (&["--set", "hostname=-"], disk, "BAD_CONFIG", "fw_cfg opt/localregistry/config: hostname is \"-\"; expected"),
    ];
    for (arguments, content, code, message) in cases {
        fs::write(&broken, content).unwrap();
        let ended = vm::fails(&path, arguments);
        assert_eq!(ended.status, Some(3), "{code}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("FATAL code={code} ")) && ended.stderr.contains(message), "{}", ended.stderr);
        assert_eq!((ended.done().status, ended.done().code.as_str()), (1, code));
        match code {
            // The message ends with the list of all keys.
            "BAD_CONFIG" => assert!(ended.done().reason.starts_with(message), "{}", ended.done().reason),
            _ => assert_eq!(ended.done().reason, message),
        }
    }
}

/// A superblock that is recognised but has a wrong checksum, so that the kernel refuses it.
fn corrupt(mut disk: Vec<u8>) -> Vec<u8> {
    disk[1024 + 4] ^= 0xff;
    disk
}

#[test]
fn init_that_dies_causes_a_kernel_panic() {
    let bench = Bench::default();
    let disk = disk(&bench);
    // With this argument the init prints its version and returns, which PID 1 must not do.
    let version = vm::qemu_changed(&bench.path(""), "args=(\"${@/panic=-1/panic=-1 -- --version}\")");
    let ended = vm::fails(&disk, &["--qemu", &version]);
    assert_eq!(ended.status, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("Kernel panic - not syncing: Attempted to kill init!"), "{}", ended.stderr);
    assert!(ended.events.is_empty());
}

#[test]
fn guest_that_powers_off_without_a_report_exits_7() {
    let bench = Bench::default();
    let disk = disk(&bench);
    let noop = bench.path("noop").display().to_string();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/noop.c");
    succeed(testing::program("musl-gcc").args(["-static", "-Os", "-s", "-o", &noop, source]));
    let ended = vm::fails(&disk, &["--init", &noop]);
    assert_eq!(ended.status, Some(7), "{}", ended.stderr);
    let said = "localregistry: the guest powered off before the registry was ready\n";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
}
