//! The output of `localregistry deploy`: images and objects match, are reproducible, and are written completely or not at all.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use localregistry::oci::{Digest, media_type};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use testing::deployed::Deployed;
use testing::elf::elf;
use testing::layout::Layout;
use testing::pack::{Bench, digest_of, text};
use testing::vm::{skopeo, succeed};
use testing::wait::until;

/// The input: fake programs and a fake kernel, and images from hosts of every form.
const FLAGS: [&str; 16] = [
    "--registry",
    "registry.example:5000/e2e/",
    "--host",
    "registry.test",
    "--host",
    "https://[fd00::1]:443",
    "--namespace",
    "e2e",
    "--node-port",
    "31000",
    "--server",
    "static",
    "--kernel",
    "vmlinux",
    "--initramfs",
    "initramfs",
];

fn bench() -> Bench {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/hello:1", b"a layer");
    layout.image("docker.io/library/busybox:1", b"another");
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    bench.file("static", &elf(&[(1, b"code")]));
    bench.file("dynamic", &elf(&[(3, b"/lib64/ld.so\0")]));
    bench.file("vmlinux", b"a kernel");
    bench.file("initramfs", b"an initramfs");
    bench
}

fn deploy(bench: &Bench, arguments: &[&str]) -> (Deployed, Value) {
    let output =
        bench.command(&[&["--quiet", "--json", "deploy", "disk.erofs", "-o", "out"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    (Deployed(bench.path("out")), serde_json::from_slice(&output.stdout).unwrap())
}

/// Asserts that the command fails with this message and status, and changes no file.
fn refused(bench: &Bench, arguments: &[&str], status: i32, message: &str) {
    let before = bench.everything();
    let output = bench.command(&[&["--quiet", "deploy"], arguments].concat()).output().unwrap();
    assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"));
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(status), ""));
    assert_eq!(bench.everything(), before);
}

fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/deploy").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    assert_eq!(found, fs::read_to_string(&path).unwrap(), "UPDATE_GOLDEN=1 writes {}", path.display());
}

#[test]
fn every_file_matches_its_golden_file() {
    let bench = bench();
    let (deployed, said) = deploy(&bench, &[&FLAGS[..], &["--tag", "v1"]].concat());
    let names =
        ["localregistry", "localregistry-disk", "localregistry-boot"].map(|name| format!("registry.example:5000/e2e/{name}:v1"));
    assert_eq!(deployed.text("images.txt"), names.join("\n") + "\n");
    assert_eq!(
        said,
        json!({
            "dir": "out", "images": names, "hosts": ["registry.test:31000", "[fd00::1]:443"], "inside": "localregistry.e2e.svc:5000",
            "trust": false,
        })
    );
    golden("kubernetes.yaml", &deployed.text("kubernetes.yaml"));
    golden("kubevirt.yaml", &deployed.text("kubevirt.yaml"));
    let disk = fs::metadata(bench.path("disk.erofs")).unwrap().len().to_string();
    let listing = names.map(|name| format!("{name}\n{}", deployed.image(&json!(name)).listing())).join("\n");
    golden("images.txt", &listing.replace(&format!(" {disk} "), " DISK "));
    let mut found: Vec<String> =
        fs::read_dir(&deployed.0).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, ["images", "images.txt", "kubernetes.yaml", "kubevirt.yaml"]);
}

#[test]
fn deployment_matches_the_server_image() {
    let bench = bench();
    let (deployed, _) = deploy(&bench, &FLAGS);
    let deployment = deployed.object("kubernetes.yaml", "Deployment");
    let service = deployed.object("kubernetes.yaml", "Service");
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    let image = deployed.image(&container["image"]);

    // The arguments replace the image's and follow its entrypoint. The server listens on every address.
    assert_eq!(image.start["Entrypoint"], json!(["/localregistry", "serve", "/images"]));
    assert_eq!((&container["command"], image.file("/localregistry")), (&Value::Null, &elf(&[(1, b"code")])[..]));
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert_eq!(json!(arguments[..2]), image.start["Cmd"]);
    let port = arguments[1].strip_prefix("0.0.0.0:").unwrap();
    assert_eq!(image.start["ExposedPorts"], json!({ format!("{port}/tcp"): {} }));
    let port: u16 = port.parse().unwrap();
    assert_eq!(container["ports"], json!([{ "name": "registry", "containerPort": port, "protocol": "TCP" }]));
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"], json!({ "path": "/healthz", "port": "registry", "scheme": "HTTPS" }));
    }
    let expected = json!([{ "name": "registry", "protocol": "TCP", "port": port, "targetPort": port, "nodePort": 31000 }]);
    assert_eq!((&service["spec"]["ports"], &service["spec"]["type"]), (&expected, &json!("NodePort")));

    // An unprivileged user without write access or capabilities.
    let context = &pod["spec"]["securityContext"];
    assert_eq!(image.start["User"], format!("{}:{}", context["runAsUser"], context["runAsGroup"]));
    assert_eq!((&context["runAsNonRoot"], &context["seccompProfile"]["type"]), (&json!(true), &json!("RuntimeDefault")));
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        })
    );
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);

    // The CA is at the path in the arguments, and the user's group can read it.
    assert_eq!(arguments[2..6], ["--ca", "/ca/tls.crt", "--key", "/ca/tls.key"]);
    assert_eq!(container["volumeMounts"], json!([{ "name": "ca", "mountPath": "/ca", "readOnly": true }]));
    assert_eq!(pod["spec"]["volumes"][0]["secret"]["defaultMode"], 0o440);
    assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "localregistry-ca");
    assert_eq!(context["fsGroup"], context["runAsGroup"]);
    let names: Vec<&str> =
        arguments[6..].chunks(2).map(|pair| if let ["--san", name] = pair { *name } else { panic!("{pair:?}") }).collect();
    let service_names = ["localregistry", "localregistry.e2e", "localregistry.e2e.svc", "localregistry.e2e.svc.cluster.local"];
    assert_eq!(names, [&service_names[..], &["registry.test", "fd00::1"]].concat());

    // Two replicas, selected by their labels.
    assert_eq!((&deployment["spec"]["replicas"], &deployment["apiVersion"]), (&json!(2), &json!("apps/v1")));
    let labels = &pod["metadata"]["labels"];
    assert_eq!((&deployment["spec"]["selector"]["matchLabels"], &service["spec"]["selector"]), (labels, labels));
    for object in [&deployment, &service] {
        assert_eq!((&object["metadata"]["name"], &object["metadata"]["namespace"]), (&json!("localregistry"), &json!("e2e")));
    }
    let map = deployed.object("kubernetes.yaml", "ConfigMap");
    assert_eq!(map["metadata"], json!({ "name": "local-registry-hosting", "namespace": "kube-public" }));
    let hosting: Value = serde_saphyr::from_str(map["data"]["localRegistryHosting.v1"].as_str().unwrap()).unwrap();
    let (nodes, inside) = ("registry.test:31000", "localregistry.e2e.svc:5000");
    assert_eq!(hosting, json!({ "host": nodes, "hostFromContainerRuntime": nodes, "hostFromClusterNetwork": inside }));
    assert!(names.contains(&inside.trim_end_matches(":5000")) && names.contains(&"registry.test"));

    // The content equals that of the disk, blob by blob.
    let disk = bench.extract("disk.erofs");
    assert_eq!(image.layers[1].keys().filter(|path| !path.ends_with('/')).count(), disk.files.len());
    for (path, content) in &disk.files {
        assert!(image.file(&format!("/images/{path}")) == content, "{path}");
    }
}

#[test]
fn virtual_machine_matches_the_boot_and_disk_images() {
    let bench = bench();
    let (deployed, _) = deploy(&bench, &FLAGS);
    let machine = deployed.object("kubevirt.yaml", "VirtualMachine");
    assert_eq!((&machine["apiVersion"], &machine["spec"]["runStrategy"]), (&json!("kubevirt.io/v1"), &json!("Always")));
    let template = &machine["spec"]["template"];
    let domain = &template["spec"]["domain"];
    let kernel = &domain["firmware"]["kernelBoot"];
    let boot = deployed.image(&kernel["container"]["image"]);
    assert_eq!(boot.file(kernel["container"]["kernelPath"].as_str().unwrap()), b"a kernel");
    assert_eq!(boot.file(kernel["container"]["initrdPath"].as_str().unwrap()), b"an initramfs");
    let names = "localregistry,localregistry.e2e,localregistry.e2e.svc,localregistry.e2e.svc.cluster.local,registry.test,fd00::1";
    // Apart from the names, the kernel arguments are those of `run` on the same board, without the one for an emulator.
    let run = include_str!("../golden/qemu-argv.txt").lines().find_map(|line| line.strip_prefix("-append ")).unwrap();
    assert!(run.contains(" noreplace-smp "), "{run}");
    let run = run.replace(" noreplace-smp ", " ");
    assert_eq!(kernel["kernelArgs"], format!("{run} localregistry.names={names}"));

    // One disk is one file in /disk, readable by QEMU's user.
    let volume = &template["spec"]["volumes"][0];
    assert_eq!(template["spec"]["volumes"].as_array().unwrap().len(), 1);
    let disk = deployed.image(&volume["containerDisk"]["image"]);
    assert_eq!(disk.layers[0].keys().collect::<Vec<_>>(), ["/disk/", "/disk/images.img"]);
    assert!(disk.file("/disk/images.img") == fs::read(bench.path("disk.erofs")).unwrap());
    for image in [&boot, &disk] {
        assert!(image.layers[0].values().all(|entry| (entry.user, entry.group) == (107, 107)));
        assert_eq!(image.start, json!({ "WorkingDir": "/" }));
    }
    // The default serial for which the guest looks (config.proto).
    let expected = json!([{ "name": volume["name"], "serial": "localregistry", "disk": { "bus": "virtio" } }]);
    assert_eq!(domain["devices"]["disks"], expected);

    let interface = &domain["devices"]["interfaces"][0];
    assert_eq!((&interface["name"], &interface["masquerade"]), (&template["spec"]["networks"][0]["name"], &json!({})));
    let service = deployed.object("kubevirt.yaml", "Service");
    assert_eq!(interface["ports"][0]["port"], service["spec"]["ports"][0]["targetPort"]);
    for probe in ["readinessProbe", "livenessProbe"] {
        let expected = json!({ "path": "/healthz", "port": service["spec"]["ports"][0]["targetPort"], "scheme": "HTTPS" });
        assert_eq!(template["spec"][probe]["httpGet"], expected);
    }
    assert_eq!(service["spec"]["selector"], template["metadata"]["labels"]);
    for kind in ["Service", "ConfigMap"] {
        assert_eq!(deployed.object("kubevirt.yaml", kind), deployed.object("kubernetes.yaml", kind));
    }
}

#[test]
fn output_is_reproducible_and_names_depend_on_content() {
    let bench = bench();
    let (_, first) = deploy(&bench, &FLAGS);
    let files = |bench: &Bench| {
        let found = bench.everything().into_iter();
        let below = found.filter_map(|(path, content)| Some((path.strip_prefix(bench.path("out")).ok()?.to_owned(), content)));
        below.collect::<Vec<_>>()
    };
    let before = files(&bench);
    fs::rename(bench.path("out"), bench.path("before")).unwrap();
    fs::create_dir(bench.path("out")).unwrap();
    assert_eq!(deploy(&bench, &FLAGS).1, first);
    assert!(files(&bench) == before);

    fs::remove_dir_all(bench.path("out")).unwrap();
    bench.file("static", &elf(&[(1, b"another")]));
    let (_, other) = deploy(&bench, &FLAGS);
    let tag = |said: &Value| said["images"][1].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    assert_ne!(tag(&other), tag(&first));
    assert!(tag(&first).len() == 12 && tag(&first).bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Each image is found by its name.
    for (number, name) in fs::read_to_string(bench.path("out/images.txt")).unwrap().lines().enumerate() {
        let (from, to) = (format!("oci:out/images:{name}"), format!("dir:pushed{number}"));
        succeed(&mut skopeo(&["copy", "--quiet", "--preserve-digests", &from, &to], &bench.path("")));
        let manifest = fs::read(bench.path(&format!("pushed{number}/manifest.json"))).unwrap();
        let digest = Digest::sha256_of(&manifest).to_string();
        assert!(fs::read_to_string(bench.path("out/images/index.json")).unwrap().contains(&digest), "{name}");
    }
    // The layout can be packed.
    bench.pack(&["out/images"]);
    assert_eq!(bench.extract("disk.erofs").names().len(), 3);
}

#[test]
fn stored_ca_adds_trust_files_and_its_key_is_not_copied() {
    let bench = bench();
    let (deployed, said) = deploy(&bench, &[&FLAGS[..], &["--ca-dir", "ca"]].concat());
    assert_eq!(said["trust"], true);
    let ca = fs::read_to_string(bench.path("ca/ca.crt")).unwrap();
    assert_eq!(deployed.text("trust/ca.crt"), ca);
    let hosts = deployed.text("trust/containerd/certs.d/docker.io/hosts.toml");
    assert!(hosts.contains("server = \"https://registry.test:31000"), "{hosts}");
    let images = deployed.text("trust/images.txt");
    assert!(images.lines().any(|image| image == "registry.test:31000/test/hello:1"), "{images}");
    let kind = deployed.text("trust/kind/kind.yaml");
    assert!(kind.contains(bench.path("out/trust/kind/certs.d").to_str().unwrap()), "{kind}");
    assert!(!bench.path("out/trust/kubernetes").exists(), "the ConfigMap is among the objects");

    let key = fs::read_to_string(bench.path("ca/ca.key")).unwrap();
    let key = key.lines().nth(1).unwrap();
    for (path, content) in bench.everything() {
        let has_it = content.windows(key.len()).any(|part| part == key.as_bytes());
        assert_eq!(has_it, path == bench.path("ca/ca.key"), "{}", path.display());
    }
}

#[test]
fn undeployable_input_is_named_and_nothing_is_written() {
    let bench = bench();
    let on = |output: &'static str| [&["disk.erofs", "-o", output], &FLAGS[..]].concat();
    let with = |flags: &[&'static str]| [&on("out")[..], flags].concat();
    let replaced =
        |old: &str, new: &'static str| on("out").into_iter().map(|one| if one == old { new } else { one }).collect::<Vec<_>>();

    bench.file("notes", b"mine");
    for taken in ["notes", "layout"] {
        refused(&bench, &on(taken), 1, &format!("{taken} exists and is not an empty folder; expected a new or an empty one"));
    }
    let gone = "No such file or directory (os error 2)";
    refused(&bench, &on("no/where"), 1, &format!("cannot write no/where: {gone}"));

    refused(&bench, &replaced("disk.erofs", "none"), 1, &format!("cannot deploy none: cannot read it: {gone}"));
    let message = "layout is not a file system image (it is a folder); pack it: `localregistry pack layout -o DISK`";
    refused(&bench, &replaced("disk.erofs", "layout"), 1, message);
    let message = "cannot deploy notes: it has no file system that is known (EROFS, squashfs, ext4), and is no archive; a disk as \
                   `localregistry pack` makes, an OCI image layout or an archive of one is expected";
    refused(&bench, &replaced("disk.erofs", "notes"), 1, message);

    refused(&bench, &replaced("static", "none"), 1, &format!("cannot read the server none: {gone}"));
    refused(&bench, &replaced("static", "notes"), 1, "notes cannot be the server: it is not an ELF file");
    let message = "dynamic cannot be the server: it is not static (it asks for /lib64/ld.so), and the image has no libraries; build \
                   this project's with `cargo build --release --target x86_64-unknown-linux-musl --no-default-features \
                   --features host --bin localregistry`";
    refused(&bench, &replaced("static", "dynamic"), 1, message);
    refused(&bench, &replaced("vmlinux", "none"), 1, &format!("cannot copy none into an image: {gone}"));
    refused(&bench, &replaced("initramfs", "layout"), 1, "cannot copy layout into an image: it is not a regular file");

    let message = "http://registry.test:31000 is plain HTTP, but the registry in the cluster serves over TLS; give only the host";
    refused(&bench, &replaced("registry.test", "http://registry.test"), 1, message);
    let message = "the certificate cannot be for the host 1.2.3:31000; expected a DNS name or an IP address";
    refused(&bench, &replaced("registry.test", "1.2.3"), 1, message);

    let message = format!("cannot use the CA: cannot create the CA's folder no/where: {gone}");
    refused(&bench, &with(&["--ca-dir", "no/where"]), 1, &message);
}

#[test]
fn corrupt_disk_is_not_deployed() {
    let bench = bench();
    let mut disk = fs::read(bench.path("disk.erofs")).unwrap();
    let at = disk.windows(7).position(|part| part == b"a layer").unwrap();
    disk[at] = b'A';
    bench.file("disk.erofs", &disk);
    let (wanted, found) = (bench.file("wanted", b"a layer"), bench.file("found", b"A layer"));
    let message = format!(
        "blob {} of the disk disk.erofs has the content of {}; `localregistry inspect --verify disk.erofs` lists all faults",
        digest_of(&wanted),
        digest_of(&found)
    );
    refused(&bench, &[&["disk.erofs", "-o", "out"], &FLAGS[..]].concat(), 1, &message);
}

#[test]
fn signal_ends_deploy_and_leaves_no_files() {
    let bench = bench();
    // A file that takes minutes to compress. A hundredth of it is stored, as less is refused.
    let initramfs = bench.file("initramfs", &vec![7; 90 << 20]);
    fs::File::options().write(true).open(initramfs).unwrap().set_len(8 << 30).unwrap();
    let names = || {
        let found = fs::read_dir(bench.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        found.collect::<BTreeSet<String>>()
    };
    let before = names();
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut command = bench.command(&[&["--quiet", "deploy", "disk.erofs", "-o", "out"], &FLAGS[..]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("a scratch folder", || names() != before || child.try_wait().unwrap().is_some());
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), format!("localregistry: interrupted by {signal}\n"));
        assert_eq!((output.status.code(), text(&output.stdout).as_str(), names()), (Some(status), "", before.clone()));
    }
}

#[test]
fn bad_flags_exit_2() {
    let bench = Bench::default();
    let with = |old: &str, new: &'static str| FLAGS.map(|one| if one == old { new } else { one }).to_vec();
    let registry = "expected a registry's host and an optional path, such as registry.example:5000/e2e";
    let namespace = "expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at the ends";
    for (flags, message) in [
        (with("registry.example:5000/e2e/", "e2e"), registry),
        (with("registry.example:5000/e2e/", "registry.example/E2E"), registry),
        (with("registry.example:5000/e2e/", ""), registry),
        (with("e2e", "e2e-"), namespace),
        (with("e2e", "E2E"), namespace),
        (with("registry.test", "a b"), "expected HOST:PORT or a URL of one"),
        (with("31000", "0"), "0 is not in 1..=65535"),
        ([&FLAGS[..], &["--tag", "-x"]].concat(), "unexpected argument '-x' found"),
        ([&FLAGS[..], &["--tag", "a:b"]].concat(), "expected 1 to 128 letters, digits, underscores, dots and hyphens"),
        (FLAGS[..14].to_vec(), "--initramfs <FILE>"),
        (FLAGS[4..].to_vec(), "--registry <HOST[/PATH]>"),
    ] {
        let output = bench.command(&[&["deploy", "disk.erofs", "-o", "out"], &flags[..]].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(said.contains(message), "{flags:?}: {said}");
        assert_eq!((output.status.code(), bench.path("out").exists()), (Some(2), false), "{flags:?}");
    }
}

/// `deploy` looks at a disk as `inspect` does: what that calls faulty is not deployed.
#[test]
fn disk_that_inspect_refuses_is_not_deployed() {
    let bench = bench();
    let mut other = Layout::default();
    other.image("test/other:1", b"of another disk");
    bench.layout("other", &other);
    succeed(&mut bench.command(&["-q", "pack", "other", "-o", "other.erofs"]));
    let catalog = "localregistry/catalog.binpb";
    bench.extract("other.erofs");
    let catalog_of_other = fs::read(bench.path("other.erofs.extracted").join(catalog)).unwrap();
    let blobs = |folder: &Path| -> Vec<_> {
        fs::read_dir(folder.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let without = |folder: &Path, start: &[u8]| {
        let gone: Vec<_> = blobs(folder).into_iter().filter(|blob| fs::read(blob).unwrap().starts_with(start)).collect();
        assert!(!gone.is_empty());
        gone.into_iter().for_each(|blob| fs::remove_file(blob).unwrap());
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let changes: [(&str, Change<'_>); 5] = [
        ("is missing", &|folder| without(folder, b"{\"")),
        ("is missing", &|folder| without(folder, b"a layer")),
        ("is missing", &|folder| fs::remove_dir_all(folder.join("blobs")).unwrap()),
        ("the catalog is not a protobuf message", &|folder| fs::write(folder.join(catalog), b"junk").unwrap()),
        ("it lacks the repository", &|folder| fs::write(folder.join(catalog), &catalog_of_other).unwrap()),
    ];
    for (fault, change) in changes {
        bench.extract("disk.erofs");
        let folder = bench.path("disk.erofs.extracted");
        succeed(testing::program("chmod").args(["-R", "u+w"]).arg(&folder));
        change(&folder);
        succeed(testing::program("mkfs.erofs").current_dir(bench.path("")).args([
            "--quiet",
            "bad.erofs",
            "disk.erofs.extracted",
        ]));
        let inspected = bench.command(&["-q", "inspect", "bad.erofs", "--verify"]).output().unwrap();
        assert_eq!(inspected.status.code(), Some(1), "{fault}");
        let deployed = bench.command(&[&["-q", "deploy", "bad.erofs", "-o", "out"], &FLAGS[..]].concat()).output().unwrap();
        let said = text(&deployed.stderr);
        assert!(deployed.status.code() == Some(1) && said.contains(fault), "{fault}: {said}");
        assert!(!bench.path("out").exists());
        fs::remove_file(bench.path("bad.erofs")).unwrap();
    }
}

#[test]
fn disk_that_leaves_out_a_platform_is_deployed() {
    let bench = bench();
    let mut layout = Layout::default();
    let manifests = ["amd64", "arm64"].map(|architecture| {
        let mut descriptor = layout.manifest(&[architecture.as_bytes()]).descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    });
    let index = layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}));
    layout.name(index, media_type::OCI_INDEX, "test/multi:1");
    bench.layout("multi", &layout);
    succeed(&mut bench.command(&["-q", "pack", "multi", "--platform", "linux/amd64", "-o", "multi.erofs"]));
    succeed(&mut bench.command(&[&["-q", "deploy", "multi.erofs", "-o", "out"], &FLAGS[..]].concat()));
    assert!(fs::read_dir(bench.path("out")).unwrap().count() > 0);
}
