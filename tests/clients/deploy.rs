//! Runs the output of `localregistry deploy`: the server's image in podman and containerd as a pod would have it, and the VM as
//! KubeVirt would start it. Neither Kubernetes nor KubeVirt runs here.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use testing::child::KilledOnDrop;
use testing::deployed::{Deployed, static_server};
use testing::pack::Bench;
use testing::podman::podman;
use testing::private::{ADDRESS, privately};
use testing::process::Process;
use testing::vm::{Containerd, skopeo, succeed};
use testing::wait::eventually;

/// The registry from which the cluster pulls its images.
const REGISTRY: &str = "192.0.2.1:7000";

/// Deploys the sample's disk with a CA.
fn deployed(bench: &Bench, arguments: &[&str]) -> Deployed {
    bench.sample_disk();
    let server = static_server().display().to_string();
    let fixed = ["--quiet", "deploy", "disk.erofs", "-o", "out", "--registry", "192.0.2.1:7000/e2e", "--server", &server];
    succeed(&mut bench.command(&[&fixed, arguments].concat()));
    Deployed(bench.path("out"))
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Waits until the registry at `address` is healthy, for a client that trusts only this CA.
fn healthy(address: &str, ca: &Path, what: &dyn Fn() -> String) {
    let url = format!("https://{address}/healthz");
    let curl = || {
        testing::program("curl").args(["--silent", "--fail", "--cacert"]).arg(ca).arg(&url).stdin(Stdio::null()).output().unwrap()
    };
    eventually(|| if curl().status.success() { Ok(()) } else { Err(what()) });
}

/// Pulls the sample from `address`, and compares each blob with the packed one.
fn pulled(bench: &Bench, address: &str, ca: &Path, into: &str) {
    let certs = bench.path(&format!("{into}.certs"));
    fs::create_dir(&certs).unwrap();
    fs::copy(ca, certs.join("ca.crt")).unwrap();
    let (from, to) = (format!("docker://{address}/test/hello:latest"), format!("oci:{into}:latest"));
    let copy = ["copy", "--quiet", "--preserve-digests", "--src-cert-dir", certs.to_str().unwrap(), &from, &to];
    succeed(&mut skopeo(&copy, &bench.path("")));
    let blobs: Vec<PathBuf> = fs::read_dir(bench.path("sample/blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    assert_eq!(blobs.len(), 3, "manifest, config and layer");
    for blob in blobs {
        let other = bench.path(into).join("blobs/sha256").join(blob.file_name().unwrap());
        assert!(fs::read(&blob).unwrap() == fs::read(other).unwrap(), "{}", blob.display());
    }
}

/// A Secret of type `kubernetes.io/tls` as a kubelet mounts it: owned by root and the pod's group.
fn secret(bench: &Bench, group: u64) -> PathBuf {
    let folder = bench.path("secret");
    fs::create_dir(&folder).unwrap();
    for (from, to) in [("ca/ca.crt", "tls.crt"), ("ca/ca.key", "tls.key")] {
        fs::copy(bench.path(from), folder.join(to)).unwrap();
        fs::set_permissions(folder.join(to), fs::Permissions::from_mode(0o440)).unwrap();
        chown(folder.join(to), Some(0), Some(group.try_into().unwrap())).unwrap();
    }
    folder
}

/// Two replicas in different runtimes, started as the Deployment says. The cluster's registry is localregistry too.
#[test]
fn podman_and_containerd_each_run_a_replica() {
    privately(|| {
        let bench = Bench::default();
        let deployed = deployed(&bench, &["--host", ADDRESS, "--ca-dir", "ca"]);
        let deployment = deployed.object("kubernetes.yaml", "Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let (image, arguments) = (container["image"].as_str().unwrap(), words(&container["args"]));
        let context = &pod["securityContext"];
        let user = format!("{}:{}", context["runAsUser"], context["runAsGroup"]);
        let secret = secret(&bench, context["fsGroup"].as_u64().unwrap()).display().to_string();
        let mounted = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
        let ca = bench.path("out/trust/ca.crt");

        fs::create_dir(bench.path("certs")).unwrap();
        let own = bench.path("certs/ca.crt");
        let serve = ["--listen", REGISTRY, "--ca-out", own.to_str().unwrap()];
        let _registry = Process::start_with(&bench.path("out/images"), &serve, None);

        succeed(&mut podman(&bench.path(""), &["pull", "--quiet", "--cert-dir", "certs", image]));
        let volume = format!("{secret}:{mounted}:ro");
        let limits = ["--ulimit", "nofile=1024", "--ulimit", "nproc=1024", "--memory", "256m", "--log-driver", "k8s-file"];
        let rights = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"];
        let run = ["run", "--detach", "--network", "host", "--name", "replica", "--user", &user, "--volume", &volume];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        succeed(&mut podman(&bench.path(""), &[&run[..], &limits, &rights, &[image], &arguments].concat()));
        let said = || {
            let logs = podman(&bench.path(""), &["logs", "replica"]).output().unwrap();
            format!("{}{}", String::from_utf8_lossy(&logs.stdout), String::from_utf8_lossy(&logs.stderr))
        };
        let address = format!("{ADDRESS}:5000");
        healthy(&address, &ca, &said);
        pulled(&bench, &address, &ca, "from-podman");
        let state = ["inspect", "--format", "{{.State.Pid}}", "replica"];
        let pid = succeed(&mut podman(&bench.path(""), &state)).trim().to_owned();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in ["Uid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{line}: {status}");
        }

        // The other replica runs on the same network, on another port.
        let containerd = Containerd::start();
        let output = containerd.pull(REGISTRY, image.strip_prefix(&format!("{REGISTRY}/")).unwrap(), &own);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mount = format!("type=bind,src={secret},dst={mounted},options=rbind:ro");
        let log = fs::File::create(bench.path("ctr.log")).unwrap();
        // It runs as the image's user, because this client has no option for another.
        let mut run = containerd.ctr(&["run", "--net-host", "--read-only", "--mount", &mount, image, "replica"]);
        let moved: Vec<&str> = arguments.iter().map(|one| if *one == "0.0.0.0:5000" { "0.0.0.0:5001" } else { *one }).collect();
        run.args(["/localregistry", "serve", "/images"]).args(&moved);
        let mut replica = KilledOnDrop(run.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let address = format!("{ADDRESS}:5001");
        healthy(&address, &ca, &|| fs::read_to_string(bench.path("ctr.log")).unwrap());
        pulled(&bench, &address, &ca, "from-containerd");

        // Each ends gracefully when its runtime stops it.
        succeed(&mut containerd.ctr(&["tasks", "kill", "--signal", "SIGTERM", "replica"]));
        assert_eq!(replica.0.wait().unwrap().code(), Some(0), "{}", fs::read_to_string(bench.path("ctr.log")).unwrap());
        succeed(&mut podman(&bench.path(""), &["stop", "--time", "30", "replica"]));
        let code = succeed(&mut podman(&bench.path(""), &["inspect", "--format", "{{.State.ExitCode}}", "replica"]));
        assert_eq!(code, "0\n", "{}", said());
        succeed(&mut podman(&bench.path(""), &["rm", "replica"]));
    });
}

/// Starts QEMU as KubeVirt's libvirt does, as far as the guest can tell: the kernel arguments are its only settings, the disk is a
/// writable overlay, and the only virtio-serial port is that of the QEMU guest agent.
#[test]
fn machine_serves_with_only_what_kubevirt_provides() {
    let bench = Bench::default();
    let deployed = deployed(&bench, &["--host", "registry.test"]);
    let machine = deployed.object("kubevirt.yaml", "VirtualMachine");
    let spec = &machine["spec"]["template"]["spec"];
    let kernel = &spec["domain"]["firmware"]["kernelBoot"];
    let boot = deployed.image(&kernel["container"]["image"]);
    let disk = deployed.image(&spec["volumes"][0]["containerDisk"]["image"]);
    bench.file("kernel", boot.file(kernel["container"]["kernelPath"].as_str().unwrap()));
    bench.file("initrd", boot.file(kernel["container"]["initrdPath"].as_str().unwrap()));
    bench.file("images.img", disk.file("/disk/images.img"));
    let port = &spec["domain"]["devices"]["interfaces"][0]["ports"][0]["port"];
    let serial = spec["domain"]["devices"]["disks"][0]["serial"].as_str().unwrap();
    let memory = spec["domain"]["memory"]["guest"].as_str().unwrap().strip_suffix("Mi").unwrap();
    let board = spec["domain"]["machine"]["type"].as_str().unwrap();

    let forwarded = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let net = format!("user,id=net0,restrict=on,hostfwd=tcp:{forwarded}-:{port}");
    let device = format!("virtio-blk-pci,drive=images,serial={serial}");
    let mut qemu = testing::program("qemu-system-x86_64");
    qemu.current_dir(bench.path("")).args([
        "-machine",
        board,
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        memory,
        "-nodefaults",
        "-no-user-config",
    ]);
    qemu.args(["-display", "none", "-serial", "file:console", "-kernel", "kernel", "-initrd", "initrd", "-append"]);
    qemu.arg(kernel["kernelArgs"].as_str().unwrap());
    qemu.args(["-drive", "file=images.img,format=raw,if=none,id=images,snapshot=on", "-device", &device]);
    qemu.args([
        "-netdev",
        &net,
        "-device",
        "virtio-net-pci,netdev=net0",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]);
    qemu.args(["-chardev", "null,id=agent", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
    qemu.args(["-qmp", "unix:qmp,server=on,wait=off"]);
    let mut qemu = KilledOnDrop(qemu.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());

    // The events are on the console, one JSON object per line.
    let ready = loop {
        let console = fs::read(bench.path("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let whole = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let events = whole.filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
        if let Some(ready) = { events }.find_map(|event| event.get("ready").cloned()) {
            break ready;
        }
        if let Some(status) = qemu.0.try_wait().unwrap() {
            let mut said = String::new();
            qemu.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("{status}: {said}{console}");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let ca = bench.file("ca.pem", ready["caPem"].as_str().unwrap().as_bytes());
    let address = format!("127.0.0.1:{}", forwarded.port());
    let resolve = format!("registry.test:{}:127.0.0.1", forwarded.port());
    let url = format!("https://registry.test:{}/ca.crt", forwarded.port());
    let given =
        succeed(testing::program("curl").args(["--silent", "--fail", "--resolve", &resolve, "--cacert"]).arg(&ca).arg(&url));
    assert_eq!(given.replace('\r', ""), fs::read_to_string(&ca).unwrap().replace('\r', ""), "by the name of a node's host");
    healthy(&address, &ca, &String::new);
    pulled(&bench, &address, &ca, "from-machine");

    // The power button, as `virtctl stop` does.
    testing::qmp::Qmp::connect(&bench.path("qmp")).run("system_powerdown", json!({}));
    assert_eq!(qemu.0.wait().unwrap().code(), Some(0));
    let console = String::from_utf8_lossy(&fs::read(bench.path("console")).unwrap()).into_owned();
    let done = console
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok())
        .find(|event| event["done"].is_object());
    assert_eq!(done.unwrap_or_else(|| panic!("{console}"))["done"]["status"].as_u64().unwrap_or(0), 0);
}
