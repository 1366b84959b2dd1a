//! Three nodes on a bridge that pull from one appliance at the same time, and eight appliances on one host. The networks are
//! private to the test.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Barrier;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use testing::child::{KilledOnDrop, pid_of, wait_until_gone};
use testing::cri;
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM, Saved, archive_of};
use testing::private::{ip, privately};
use testing::vm::{Containerd, Vm, succeed};

/// The registry's name and address in the nodes' `/etc/hosts`.
const HOSTS: &str = "127.0.0.1 localhost\n10.79.0.82 registry.test\n";
/// The image that every node pulls, and one that a single node pulls in place of its upstream.
const IMAGE: &str = "registry.test:5000/test/layers:1";
const MIRRORED: &str = "docker.io/library/base:1";

/// A node of the cluster: a network namespace with a port on the bridge, a private `/etc/hosts`, and a private containerd.
struct Node {
    address: String,
    containerd: Containerd,
}

impl Node {
    fn new(number: u8, trust: &Path) -> Self {
        let (name, address) = (format!("node{number}"), format!("10.79.0.{number}"));
        ip(&format!("netns add {name}"));
        ip(&format!("link add port{number} type veth peer name eth0 netns {name}"));
        ip(&format!("link set port{number} master br0 up"));
        for set_up in [format!("address add {address}/24 dev eth0"), "link set eth0 up".into(), "link set lo up".into()] {
            ip(&format!("-n {name} {set_up}"));
        }
        // `ip netns exec` mounts these files over /etc.
        let etc = Path::new("/etc/netns").join(&name);
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("hosts"), HOSTS).unwrap();
        let containerd = Containerd::start_with_cri_by(&["ip", "netns", "exec", &name]);
        containerd.take_hosts(&trust.join("containerd/certs.d"));
        Self { address, containerd }
    }

    /// Makes the node pull an image as a kubelet does.
    fn pull(&self, image: &str) -> Result<String, String> {
        cri::pull(&self.containerd.socket(), image)
    }
}

/// A layer of this many bytes and a few more.
fn layer(bench: &Bench, name: &str, bytes: usize) -> Vec<u8> {
    let folder = bench.path(name);
    fs::create_dir(&folder).unwrap();
    let content: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(folder.join(name), content).unwrap();
    archive_of(&folder)
}

/// A disk with both images, one with five of these layers and one with a single layer.
fn cluster_disk(bench: &Bench) {
    let sizes = [("base", 3 << 20), ("tools", 2 << 20), ("library", 700_001), ("program", 4097), ("config", 1)];
    let layers = sizes.map(|(name, bytes)| (format!("{name}.tar"), layer(bench, name, bytes)));
    let mut saved = Saved::default();
    for (name, content) in &layers {
        saved.member(name, content);
    }
    let layers: Vec<(&str, &[u8])> = layers.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    saved.image(&["test/layers:1"], &layers);
    saved.image(&[MIRRORED], &layers[..1]);
    bench.file("saved.tar", &saved.bytes());
    bench.pack(&["saved.tar"]);
}

/// Checks the log with `localregistry assert`.
fn assert_pulls(log: &Path, arguments: &[&str]) {
    succeed(testing::program(PROGRAM).args(["assert", "--quiet"]).args(arguments).arg(log));
}

#[test]
fn three_nodes_on_a_bridge_pull_at_once_with_only_the_trust_bundle() {
    privately(|| {
        let bench = Bench::default();
        cluster_disk(&bench);
        ip("link add br0 type bridge");
        ip("link set br0 up");
        let net = "bridge=br0,ip=10.79.0.82/24";
        let trust = ["--san", "registry.test", "--trust", "trust", "--trust-host", "registry.test"];
        let arguments = [&["--net", net, "--timeout", "600"], &trust[..]].concat();
        let vm = Vm::boot(&bench.path("disk.erofs"), &arguments);
        assert_eq!(vm.address, "10.79.0.82:5000");
        let bundle = vm.path("trust");
        let images = fs::read_to_string(bundle.join("images.txt")).unwrap();
        assert!(images.lines().any(|image| image == IMAGE), "{images}");
        let nodes = [11, 12, 13].map(|number| Node::new(number, &bundle));

        let (ready, of_all) = (Barrier::new(nodes.len()), &nodes);
        let configs: Vec<String> = std::thread::scope(|scope| {
            let pulls = of_all.each_ref().map(|node| {
                scope.spawn(|| {
                    ready.wait();
                    node.pull(IMAGE).unwrap_or_else(|said| panic!("{}: {said}", node.address))
                })
            });
            pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
        });

        // Every node has the whole image, each blob matches the digest in its path, and all nodes have the same.
        let content = nodes[0].containerd.content();
        assert!(content.iter().all(|(name, digest)| name == digest), "{content:?}");
        assert!(nodes.iter().all(|node| node.containerd.content() == content));
        assert!(configs.iter().all(|config| content.contains_key(config) && *config == configs[0]), "{configs:?}");
        let manifests = content.keys().filter_map(|digest| Some((digest, nodes[0].containerd.json(digest)?)));
        let (manifest, json) = { manifests }.find(|(_, json)| json["config"]["digest"] == configs[0]).unwrap();
        let layers: BTreeSet<String> =
            json["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
        let image: BTreeSet<String> = layers.iter().cloned().chain([manifest.clone(), configs[0].clone()]).collect();
        assert_eq!((layers.len(), content.into_keys().collect::<BTreeSet<_>>()), (5, image));

        // A single node pulls in place of an upstream.
        nodes[1].pull(MIRRORED).unwrap();
        let log = vm.path("events");
        for node in &nodes {
            assert_pulls(&log, &["--pulled", IMAGE, "--by", &node.address, "--times", "1"]);
        }
        assert_pulls(&log, &["--pulled", IMAGE, "--times", "3"]);
        assert_pulls(&log, &["--pulled", MIRRORED, "--by", &nodes[1].address, "--times", "1"]);
        assert_pulls(&log, &["--not-pulled", MIRRORED, "--by", &nodes[0].address]);
        drop(nodes);
        let ended = vm.shut_down();
        let served = ended.requests();
        assert!(served.iter().all(|request| request.status == 200 && request.complete), "{served:?}");
        for node in ["10.79.0.11:", "10.79.0.12:", "10.79.0.13:"] {
            let blobs = served.iter().filter(|request| request.endpoint == "blob" && request.peer.starts_with(node));
            let got: BTreeSet<String> = blobs.map(|request| request.digest.clone()).collect();
            assert!(got.is_superset(&layers), "{node} {got:?}");
        }
        assert!(!ip("-brief link").contains("lreg"), "the tap is gone");
    });
}

/// One of the appliances: a disk with a unique image, and `localregistry run` on it.
struct One {
    run: KilledOnDrop,
    ready: Value,
}

/// Starts `run` on the disk without waiting.
fn start(bench: &Bench, name: &str) -> Child {
    let mut command = bench.command(&["run", "--json", "--accel", "tcg", "--memory", "128", "--timeout", "900", "--name", name]);
    command.arg(format!("{name}.erofs")).env("XDG_RUNTIME_DIR", bench.path("runtime"));
    let stderr = fs::File::create(bench.path(&format!("{name}.log"))).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap()
}

/// Waits for the ready line.
fn ready(bench: &Bench, name: &str, mut run: KilledOnDrop) -> One {
    let mut line = String::new();
    BufReader::new(run.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said = || fs::read_to_string(bench.path(&format!("{name}.log"))).unwrap();
    let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: {error}: {}", said()));
    One { run, ready }
}

/// The repositories that the registry of `one` lists to a client that trusts only the CA of `trusted`.
fn catalog(one: &One, trusted: &One) -> Option<String> {
    let url = format!("{}/v2/_catalog", one.ready["endpoint"].as_str().unwrap());
    let curl =
        testing::program("curl").args(["--silent", "--fail", "--cacert", trusted.ready["ca"].as_str().unwrap(), &url]).output();
    let output = curl.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn eight_appliances_run_independently() {
    let bench = Bench::default();
    fs::create_dir(bench.path("runtime")).unwrap();
    let names: Vec<String> = (1..=8).map(|number| format!("one{number}")).collect();
    for name in &names {
        let mut layout = Layout::default();
        layout.image(&format!("test/{name}:1"), name.as_bytes());
        bench.layout(&format!("{name}.layout"), &layout);
        succeed(&mut bench.command(&["--quiet", "pack", &format!("{name}.layout"), "-o", &format!("{name}.erofs")]));
    }
    let started: Vec<KilledOnDrop> = names.iter().map(|name| KilledOnDrop(start(&bench, name))).collect();
    let mut all: Vec<One> = names.iter().zip(started).map(|(name, run)| ready(&bench, name, run)).collect();
    for key in ["address", "ca", "name", "run_dir", "pid", "qemu_pid"] {
        let distinct: BTreeSet<String> = all.iter().map(|one| one.ready[key].to_string()).collect();
        assert_eq!(distinct.len(), all.len(), "{key}: {distinct:?}");
    }
    let serves = |all: &[One], name: &str| {
        let one = all.iter().find(|one| one.ready["name"] == name).unwrap();
        assert_eq!(catalog(one, one).unwrap(), format!(r#"{{"repositories":["test/{name}"]}}"#));
    };
    names.iter().for_each(|name| serves(&all, name));
    for (place, one) in all.iter().enumerate() {
        let other = &all[(place + 1) % all.len()];
        assert_eq!(catalog(one, other), None, "another appliance's CA is not trusted");
    }
    let ps = || -> Vec<(String, String)> {
        let listing = succeed(bench.command(&["ps", "--json"]).env("XDG_RUNTIME_DIR", bench.path("runtime")));
        let runs = serde_json::from_str::<Value>(&listing).unwrap()["runs"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        runs.iter().map(|run| (text(&run["name"]), text(&run["state"]))).collect()
    };
    assert_eq!(ps(), names.iter().map(|name| (name.clone(), "ready".to_owned())).collect::<Vec<_>>());

    // One ends gracefully, and another's launcher is killed.
    let mut ended = all.remove(0);
    succeed(bench.command(&["stop", "one1"]).env("XDG_RUNTIME_DIR", bench.path("runtime")));
    assert_eq!(ended.run.0.wait().unwrap().code(), Some(0));
    wait_until_gone(pid_of(&ended.ready["qemu_pid"]));
    names[1..].iter().for_each(|name| serves(&all, name));
    let killed = all.remove(0);
    let qemu = pid_of(&killed.ready["qemu_pid"]);
    drop(killed);
    wait_until_gone(qemu);
    names[2..].iter().for_each(|name| serves(&all, name));
    let expected = |names: &[String], state: &str| names.iter().map(|name| (name.clone(), state.to_owned())).collect::<Vec<_>>();
    assert_eq!(ps(), [expected(&names[1..2], "dead"), expected(&names[2..], "ready")].concat());
    assert_eq!(ps(), expected(&names[2..], "ready"), "the killed run's folder is removed");

    for one in &all {
        kill(Pid::from_raw(one.run.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    }
    for one in &mut all {
        assert_eq!(one.run.0.wait().unwrap().code(), Some(0), "{}", one.ready);
        wait_until_gone(pid_of(&one.ready["qemu_pid"]));
    }
    assert_eq!(fs::read_dir(bench.path("runtime/localregistry")).unwrap().count(), 0);
}
