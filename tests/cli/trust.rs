//! `localregistry trust`: the exact files for every runtime, read by parsers of their formats, and the refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use localregistry::host::nodes::trust::{Bundle, FileTree, TrustFormat, tree};
use serde_json::{Value, json};
use testing::certificates::ClientAuthority;
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::refused::command;

const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\nAAAA\n-----END CERTIFICATE-----\n";

fn bundle(endpoints: &[&str], ca: Option<&str>, upstreams: &[&str]) -> Bundle {
    let images = ["docker.io/library/busybox:1.36", "registry.k8s.io/pause:3.9", "test/hello:latest"];
    Bundle {
        endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
        ca: ca.map(str::to_owned),
        upstreams: upstreams.iter().map(|host| host.parse().unwrap()).collect(),
        images: images.iter().map(|image| image.parse().unwrap()).collect(),
        dir: "/srv/it's trust".to_owned(),
    }
}

/// The bundles whose files are in tests/golden/trust.
fn bundles() -> [(&'static str, Bundle); 4] {
    let upstreams = ["docker.io", "registry.k8s.io"];
    [
        ("tls", bundle(&["10.1.0.82:5000", "registry.test:5000"], Some(CA), &upstreams)),
        ("plain", bundle(&["10.1.0.82:5000"], None, &upstreams)),
        ("ipv6", bundle(&["[fd00::1]:443"], Some(CA), &upstreams)),
        ("alone", bundle(&["registry.test"], Some(CA), &[])),
    ]
}

fn listing(tree: &FileTree) -> String {
    tree.iter().map(|(path, content)| format!("=== {path}\n{content}")).collect()
}

#[test]
fn every_file_matches_its_golden_file() {
    for (name, bundle) in bundles() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/trust/{name}.txt"));
        let found = listing(&tree(&bundle, &[TrustFormat::All]));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &found).unwrap();
        }
        assert_eq!(found, fs::read_to_string(&path).unwrap(), "UPDATE_GOLDEN=1 writes {}", path.display());
    }
}

/// An image that podman named `localhost/NAME` is listed as the registry's `NAME`, if clients get it by that name.
#[test]
fn localhost_names_are_listed_as_clients_pull_them() {
    let names = [
        "docker.io/library/web:1",
        "e2e/app:1",
        "localhost/e2e/app:2",
        "localhost/library/web:1",
        "localhost/quay.io/tool:1",
        "localhost/tool:1",
    ];
    let images = names.iter().map(|name| name.parse().unwrap()).collect();
    let bundle = Bundle { images, ..bundle(&["10.1.0.82:443"], Some(CA), &["docker.io", "localhost", "quay.io"]) };
    let tree = tree(&bundle, &[TrustFormat::All]);
    let listed = "docker.io/library/web:1\n10.1.0.82:443/e2e/app:1\nlocalhost/e2e/app:2\nlocalhost/library/web:1\n\
                  localhost/quay.io/tool:1\n10.1.0.82:443/tool:1\n";
    assert_eq!(tree["images.txt"], listed);
    assert!(tree["containerd/certs.d/localhost/hosts.toml"].contains("server = \"https://10.1.0.82:443\""));
    // A name with the registry's address is unchanged: dockerd pulls REGISTRY/NAME.
    let hosts = "# dockerd falls back to Docker Hub after its mirror: disable the name.\n0.0.0.0 registry-1.docker.io index.docker.io\n10.1.0.82 quay.io\n";
    assert_eq!(tree["docker/hosts"], hosts);
    assert!(!tree.contains_key("docker/certs.d/localhost/ca.crt"));
}

/// Upstreams whose host cannot be a component of a path as it is.
#[test]
fn ports_and_ipv6_addresses_of_upstreams_are_spelled_as_path_components() {
    let hosts = ["my.reg.test:5000", "localhost:5000", "[fd00::9]:5000", "quay.io"];
    let images = hosts.iter().map(|host| format!("{host}/team/app:1").parse().unwrap()).collect();
    let bundle = Bundle { images, ..bundle(&["[fd00::1]:5000", "r.test:5000"], Some(CA), &hosts) };
    let files = tree(&bundle, &[TrustFormat::All]);
    let ipv6 = "r.test:5000/fd00--9.ipv6-literal.net_5000";
    assert_eq!(
        toml(&files, "podman/registries.conf.d/50-localregistry.conf"),
        json!({ "registry": [
            { "location": "[fd00::1]:5000" },
            { "location": "r.test:5000" },
            { "prefix": "localhost:5000", "location": "r.test:5000/localhost_5000" },
            { "prefix": "my.reg.test:5000", "location": "r.test:5000/my.reg.test_5000" },
            { "prefix": "quay.io", "location": "r.test:5000/quay.io" },
        ]})
    );
    let said = "podman, skopeo, buildah and CRI-O take no IPv6 address in the name of an image";
    let comment = format!("# {said}: in place of [fd00::9]:5000/NAME, pull {ipv6}/NAME\n");
    assert!(files["crio/registries.conf.d/50-localregistry.conf"].starts_with(&comment));
    assert_eq!(
        files["docker/hosts"],
        format!(
            "# dockerd has no mirrors for [fd00::9]:5000: pull {ipv6}/NAME\n\
             # dockerd has no mirrors for localhost:5000: pull r.test:5000/localhost_5000/NAME\n\
             # dockerd has no mirrors for my.reg.test:5000: pull r.test:5000/my.reg.test_5000/NAME\n\
             # dockerd has no mirrors for quay.io: pull r.test:5000/quay.io/NAME, or serve on an address with port 443\n"
        )
    );
    assert_eq!(
        files["images.txt"],
        format!("my.reg.test:5000/team/app:1\nlocalhost:5000/team/app:1\n{ipv6}/team/app:1\nquay.io/team/app:1\n")
    );
    assert!(files["containerd/certs.d/[fd00::9]_5000_/hosts.toml"].contains("server = \"https://[fd00::1]:5000\""));

    // A registry that has no other address, and what the command says.
    let bench = Bench::default();
    let trust = |upstream: &str, format: &str| {
        let arguments =
            ["trust", "--endpoint", "http://[fd00::1]:5000", "--upstream", upstream, "--format", format, "-o", "trust"];
        let output = bench.command(&arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stderr)
    };
    let own = format!(
        "{said}, so they pull nothing from [fd00::1]:5000: give the registry a DNS name (--san of run and serve, --endpoint of trust)\n"
    );
    assert_eq!(trust("quay.io", "crio,podman"), own);
    assert_eq!(trust("[fd00::9]", "all"), own);
    assert_eq!(trust("[fd00::9]", "containerd"), "");
}

fn toml(tree: &FileTree, path: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(&tree[path]).unwrap()).unwrap()
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn hosts_toml_parses_as_containerd_parses_it() {
    for (name, bundle) in bundles() {
        let tree = tree(&bundle, &[TrustFormat::All]);
        let url = |host: &str| format!("{}://{host}", if bundle.ca.is_some() { "https" } else { "http" });
        let first = bundle.endpoints[0].to_string();
        let mut servers = BTreeMap::from([("_default".to_owned(), url(&first))]);
        servers.extend(bundle.upstreams.iter().map(|host| (host.to_string(), url(&first))));
        for endpoint in bundle.endpoints.iter().map(ToString::to_string) {
            servers.insert(endpoint.clone(), url(&endpoint));
            if let Some((host, port)) = endpoint.rsplit_once(':') {
                servers.insert(format!("{host}_{port}_"), url(&endpoint));
            }
        }
        for place in ["containerd", "kind", "minikube/files/etc/containerd"] {
            let found =
                tree.keys().filter_map(|path| path.strip_prefix(place)?.strip_prefix("/certs.d/")?.strip_suffix("/hosts.toml"));
            assert_eq!(found.collect::<Vec<_>>(), servers.keys().collect::<Vec<_>>(), "{name} {place}");
            for (folder, server) in &servers {
                let mut how = json!({ "capabilities": ["pull", "resolve"] });
                if bundle.ca.is_some() {
                    how["ca"] = json!("ca.crt");
                    assert_eq!(tree[&format!("{place}/certs.d/{folder}/ca.crt")], CA);
                }
                let mut expected = how.clone();
                expected["server"] = json!(server);
                // containerd 1.6 cannot read a host table with an IPv6 address in its name, and needs an empty one.
                expected["host"] = if server.contains('[') { json!({}) } else { json!({ server: how }) };
                assert_eq!(toml(&tree, &format!("{place}/certs.d/{folder}/hosts.toml")), expected);
            }
        }
    }
}

#[test]
fn registries_conf_is_valid_toml() {
    let conf = "registries.conf.d/50-localregistry.conf";
    for (name, expected) in [
        (
            "tls",
            json!([
                { "location": "10.1.0.82:5000" }, { "location": "registry.test:5000" },
                { "prefix": "docker.io", "location": "10.1.0.82:5000/docker.io" },
                { "prefix": "registry-1.docker.io", "location": "10.1.0.82:5000/docker.io" },
                { "prefix": "index.docker.io", "location": "10.1.0.82:5000/docker.io" },
                { "prefix": "registry.k8s.io", "location": "10.1.0.82:5000/registry.k8s.io" },
            ]),
        ),
        (
            "plain",
            json!([
                { "location": "10.1.0.82:5000", "insecure": true },
                { "prefix": "docker.io", "location": "10.1.0.82:5000/docker.io", "insecure": true },
                { "prefix": "registry-1.docker.io", "location": "10.1.0.82:5000/docker.io", "insecure": true },
                { "prefix": "index.docker.io", "location": "10.1.0.82:5000/docker.io", "insecure": true },
                { "prefix": "registry.k8s.io", "location": "10.1.0.82:5000/registry.k8s.io", "insecure": true },
            ]),
        ),
        ("alone", json!([{ "location": "registry.test" }])),
    ] {
        let (_, bundle) = bundles().into_iter().find(|(known, _)| *known == name).unwrap();
        let tree = tree(&bundle, &[TrustFormat::All]);
        for place in ["podman", "crio", "minikube/files/etc/containers"] {
            assert_eq!(toml(&tree, &format!("{place}/{conf}")), json!({ "registry": expected }), "{name} {place}");
        }
    }
}

#[test]
fn yaml_files_are_valid_yaml() {
    let [(_, tls), (_, plain), (_, ipv6), _] = bundles();
    let (files, plain, ipv6) =
        (tree(&tls, &[TrustFormat::All]), tree(&plain, &[TrustFormat::All]), tree(&ipv6, &[TrustFormat::All]));
    let mirror = |url: &str| json!({ "endpoint": [url] });
    let (first, second) = ("https://10.1.0.82:5000", "https://registry.test:5000");
    let trusted = json!({ "tls": { "ca_file": "/etc/rancher/k3s/localregistry.crt" } });
    assert_eq!(
        yaml(&files["k3s/registries.yaml"]),
        json!({
            "mirrors": {
                "10.1.0.82:5000": mirror(first), "registry.test:5000": mirror(second),
                "docker.io": mirror(first), "registry.k8s.io": mirror(first), "*": mirror(first),
            },
            "configs": { "10.1.0.82:5000": trusted, "registry.test:5000": trusted },
        })
    );
    assert_eq!(yaml(&plain["k3s/registries.yaml"])["mirrors"]["docker.io"], mirror("http://10.1.0.82:5000"));
    assert_eq!(yaml(&plain["k3s/registries.yaml"]).get("configs"), None);
    assert_eq!(yaml(&files["k3s/config.yaml.d/localregistry.yaml"]), json!({ "disable-default-registry-endpoint": true }));

    let documents: Vec<Value> = serde_saphyr::from_multiple(&files["talos/registries.yaml"]).unwrap();
    let talos = |name: &str, url: &str| {
        json!({
            "apiVersion": "v1alpha1", "kind": "RegistryMirrorConfig", "name": name,
            "endpoints": [{ "url": url }], "skipFallback": true,
        })
    };
    let trusting =
        |name: &str| json!({ "apiVersion": "v1alpha1", "kind": "RegistryTLSConfig", "name": name, "ca": CA.trim_end() });
    assert_eq!(
        documents,
        [
            talos("10.1.0.82:5000", first),
            talos("registry.test:5000", second),
            talos("docker.io", first),
            talos("registry.k8s.io", first),
            talos("*", first),
            trusting("10.1.0.82:5000"),
            trusting("registry.test:5000"),
        ]
    );

    let cluster = yaml(&files["kind/kind.yaml"]);
    let mounts = json!([{
        "hostPath": "/srv/it's trust/kind/certs.d", "containerPath": "/etc/containerd/certs.d", "readOnly": true,
    }]);
    assert_eq!(cluster["nodes"], json!([{ "role": "control-plane", "extraMounts": mounts }]));
    let patch: toml::Table = toml::from_str(cluster["containerdConfigPatches"][0].as_str().unwrap()).unwrap();
    assert_eq!(
        serde_json::to_value(patch).unwrap(),
        json!({ "plugins": { "io.containerd.grpc.v1.cri": { "registry": { "config_path": "/etc/containerd/certs.d" } } } })
    );

    let map = yaml(&ipv6["kubernetes/local-registry-hosting.yaml"]);
    assert_eq!(map["metadata"], json!({ "name": "local-registry-hosting", "namespace": "kube-public" }));
    let hosting = yaml(map["data"]["localRegistryHosting.v1"].as_str().unwrap());
    let address = "[fd00::1]:443";
    assert_eq!(hosting, json!({ "host": address, "hostFromContainerRuntime": address, "hostFromClusterNetwork": address }));
}

#[test]
fn daemon_json_is_valid_json() {
    let [(_, tls), (_, plain), (_, ipv6), (_, alone)] =
        bundles().map(|(name, bundle)| (name, tree(&bundle, &[TrustFormat::Docker])));
    let daemon = |tree: &FileTree| serde_json::from_str::<Value>(&tree["docker/daemon.json"]).unwrap();
    assert_eq!(daemon(&tls), json!({ "registry-mirrors": ["https://10.1.0.82:5000"] }));
    let insecure = json!({ "registry-mirrors": ["http://10.1.0.82:5000"], "insecure-registries": ["10.1.0.82:5000"] });
    assert_eq!(daemon(&plain), insecure);
    assert_eq!(daemon(&alone), json!({}));
    assert!(
        ipv6["docker/hosts"].contains("\nfd00::1 registry.k8s.io\n"),
        "HTTPS's own port: its name can be given to the registry"
    );
    assert_eq!(ipv6["docker/certs.d/registry.k8s.io/ca.crt"], CA);
}

/// A shell reads back the written values.
#[test]
fn env_file_is_read_by_a_shell() {
    let [(_, tls), (_, plain), ..] = bundles();
    let bench = Bench::default();
    for (bundle, expected) in [
        (tls, "https://10.1.0.82:5000|10.1.0.82:5000|ca.crt|docker.io registry.k8s.io"),
        (plain, "http://10.1.0.82:5000|10.1.0.82:5000||docker.io registry.k8s.io"),
    ] {
        let env = bench.file("env", tree(&bundle, &[TrustFormat::Env])["env"].as_bytes());
        let names = ["ENDPOINT", "ADDRESS", "CA", "UPSTREAMS"].map(|name| format!("$LOCALREGISTRY_{name}"));
        let script = format!(". \"$1\"; printf %s \"{}\"", names.join("|"));
        let said = testing::program("sh").args(["-euc", &script, "sh"]).arg(env).output().unwrap();
        assert_eq!((text(&said.stdout).as_str(), text(&said.stderr).as_str()), (expected, ""));
    }
}

/// A folder with a CA, a layout and a packed disk of it.
fn bench() -> Bench {
    let bench = Bench::default();
    let mut layout = Layout::default();
    layout.image("test/hello:latest", b"one");
    layout.image("docker.io/library/busybox:1.36", b"two");
    layout.image("registry.k8s.io/pause:3.9", b"three");
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    bench.file("ca.crt", ClientAuthority::new("a CA").pem().as_bytes());
    bench
}

fn trust(bench: &Bench, arguments: &[&str]) -> Output {
    bench.command(&[&["trust", "--quiet"], arguments].concat()).output().unwrap()
}

fn written(folder: &Path) -> FileTree {
    let mut tree = FileTree::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                tree.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    tree
}

#[test]
fn files_are_written_from_a_disk_a_layout_or_a_ready_line() {
    let bench = bench();
    let dir = bench.path("trust");
    let ca = text(&fs::read(bench.path("ca.crt")).unwrap()).replace('\r', "");
    let expected =
        Bundle { dir: dir.display().to_string(), ..bundle(&["10.1.0.82:5000"], Some(&ca), &["docker.io", "registry.k8s.io"]) };
    let expected = tree(&expected, &[TrustFormat::All]);
    assert_eq!(
        expected["images.txt"],
        "docker.io/library/busybox:1.36\nregistry.k8s.io/pause:3.9\n10.1.0.82:5000/test/hello:latest\n"
    );
    let endpoint = ["--endpoint", "10.1.0.82:5000", "--ca", "ca.crt"];
    for disk in ["disk.erofs", "layout"] {
        let output = trust(&bench, &[&endpoint[..], &["--disk", disk, "-o", "trust"]].concat());
        assert_eq!(text(&output.stderr), "");
        assert_eq!(text(&output.stdout), format!("trust: {} files for https://10.1.0.82:5000\n", expected.len()));
        assert_eq!(written(&dir), expected, "{disk}");
    }
    // Nodes use another address with the same port.
    bench.file("ready.json", br#"{"endpoint":"https://127.0.0.1:5000","address":"127.0.0.1:5000","ca":"ca.crt","images":3}"#);
    let ready = ["--ready", "ready.json", "--endpoint", "10.1.0.82", "--disk", "disk.erofs", "-o", "trust"];
    assert!(trust(&bench, &ready).status.success());
    assert_eq!(written(&dir), expected);
    // Only some formats, without a disk: files of the other formats are removed.
    let some = ["--upstream", "docker.io", "--format", "podman,env", "--json", "-o", "trust"];
    let output = trust(&bench, &[&endpoint[..], &some].concat());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let files =
        ["ca.crt", "env", "images.txt", "podman/certs.d/10.1.0.82:5000/ca.crt", "podman/registries.conf.d/50-localregistry.conf"];
    assert_eq!(said, json!({ "dir": dir.display().to_string(), "files": files }));
    assert_eq!(written(&dir).keys().collect::<Vec<_>>(), files);
    assert_eq!(fs::read_to_string(dir.join("images.txt")).unwrap(), "");
}

/// The host folders in one format of a bundle, without containerd's alternative spelling.
fn hosts(trust: &FileTree, folder: &str) -> Vec<String> {
    let paths = trust.keys().filter_map(|path| path.strip_prefix(folder)?.strip_suffix("/ca.crt"));
    paths.filter(|host| !host.ends_with('_')).map(str::to_owned).collect()
}

#[test]
fn every_endpoint_and_name_of_a_ready_line_gets_an_entry() {
    let bench = bench();
    let ready = json!({
        "endpoint": "https://127.0.0.1:35155", "endpoints": ["https://127.0.0.1:35155", "https://10.1.0.82:5000"],
        "further": ["http://127.0.0.1:8080"], "names": ["registry.test", "fd00::82", "*.example.test"], "ca": "ca.crt",
    });
    bench.file("ready.json", ready.to_string().as_bytes());
    assert!(trust(&bench, &["--ready", "ready.json", "-o", "trust"]).status.success());
    let files = written(&bench.path("trust"));
    let own =
        ["10.1.0.82:5000", "127.0.0.1:35155", "[fd00::82]:35155", "[fd00::82]:5000", "registry.test:35155", "registry.test:5000"];
    for folder in ["podman/certs.d/", "crio/certs.d/", "docker/certs.d/", "minikube/files/etc/docker/certs.d/"] {
        assert_eq!(hosts(&files, folder), own, "{folder}");
    }
    for folder in ["containerd/certs.d/", "kind/certs.d/"] {
        assert_eq!(hosts(&files, folder), [&own[..2], &own[2..4], &["_default"], &own[4..]].concat(), "{folder}");
    }
    let mirrors = yaml(&files["k3s/registries.yaml"])["mirrors"].clone();
    assert!(own.iter().all(|host| mirrors[host]["endpoint"] == json!([format!("https://{host}")])), "{mirrors}");
    assert!(files["env"].contains("LOCALREGISTRY_ADDRESS='127.0.0.1:35155'\n"), "the first endpoint is the one for mirrors");

    // Nodes reach the registry at other hosts: those, and the names.
    let endpoints = ["--endpoint", "a.test", "--endpoint", "b.test:443"];
    assert!(trust(&bench, &[&endpoints[..], &["--ready", "ready.json", "-o", "trust"]].concat()).status.success());
    let files = written(&bench.path("trust"));
    assert_eq!(
        hosts(&files, "podman/certs.d/"),
        [&own[2..4], &["a.test:35155", "a.test:5000", "b.test:443"], &own[4..]].concat()
    );

    bench.file("ready.json", br#"{"endpoints":["https://0.0.0.0:5000"],"ca":"ca.crt"}"#);
    let refused = trust(&bench, &["--ready", "ready.json", "-o", "trust"]);
    let message = "localregistry: ready.json has no usable endpoint: expected HOST:PORT or a URL of one: ";
    assert!(text(&refused.stderr).starts_with(message), "{}", text(&refused.stderr));
}

/// `run` and `serve` with a certificate that lacks a name. QEMU does not exist and is not started.
#[test]
fn certificate_without_a_needed_name_is_refused() {
    let bench = bench();
    let given = rcgen::generate_simple_self_signed(["registry.test".to_owned(), "10.1.0.82".to_owned()]).unwrap();
    bench.file("cert.pem", given.cert.pem().as_bytes());
    bench.file("key.pem", given.signing_key.serialize_pem().as_bytes());
    bench.file("kernel", b"not really");
    bench.file("initramfs", b"not really");
    let before = bench.everything();
    let certificate = ["--cert", "cert.pem", "--key", "key.pem"];
    let run = |arguments: &[&str]| {
        let boot = ["disk.erofs", "--qemu", "./no-such-qemu"];
        let output = command(&bench, &[&boot[..], &certificate, arguments].concat()).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    for (arguments, name) in [
        (&["--trust", "t", "--trust-host", "other.test"][..], "other.test"),
        (&["--trust", "t", "--trust-host", "registry.test", "--trust-host", "10.1.0.83:443"], "10.1.0.83"),
        (&["--trust", "t", "--trust-host", "[fd00::82]:5000"], "fd00::82"),
        (&["--san", "other.test"], "other.test"),
        (&["--set", "names=registry.test,other.test"], "other.test"),
    ] {
        let message =
            format!("localregistry: the certificate cert.pem is not valid for {name}; use one that is, or leave the name out\n");
        assert_eq!(run(arguments), (Some(13), message), "{arguments:?}");
    }
    // With the certificate's names, `run` gets as far as QEMU.
    let own = ["--trust", "t", "--trust-host", "registry.test", "--san", "10.1.0.82"];
    let (status, said) = run(&own);
    assert!(status == Some(8) && said.contains("./no-such-qemu is not installed"), "{said}");

    let serve =
        [&["serve", "layout", "--listen", "127.0.0.1:0", "--san", "registry.test", "--san", "other.test"], &certificate[..]];
    let output = bench.command(&serve.concat()).output().unwrap();
    let message =
        "localregistry: the certificate cert.pem is not for other.test (--san); give one with that name, or leave the name out\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), message));
    assert_eq!(bench.everything(), before);
}

#[test]
fn several_disks_are_combined_or_refused() {
    let bench = bench();
    let (mut more, mut other) = (Layout::default(), Layout::default());
    more.image("quay.io/test/more:1", b"more");
    let second = other.image("test/hello:latest", b"other").digest;
    bench.layout("more", &more);
    bench.layout("other", &other);
    let with = |disk: &str| {
        let endpoint = ["--endpoint", "10.1.0.82:5000", "--ca", "ca.crt", "--disk", "disk.erofs", "--disk", disk];
        trust(&bench, &[&endpoint[..], &["--format", "podman", "-o", "trust"]].concat())
    };
    assert!(with("more").status.success());
    let trusted = written(&bench.path("trust"));
    let conf = &trusted["podman/registries.conf.d/50-localregistry.conf"];
    assert!(["docker.io", "quay.io", "registry.k8s.io"].iter().all(|host| conf.contains(host)), "{conf}");
    let refused = with("other");
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    let start = "localregistry: the tag test/hello:latest is sha256:";
    let end = format!(" on disk.erofs, and {second} on other; expected the same, or it on one of them\n");
    assert!(said.starts_with(start) && said.ends_with(&end), "{said}");
    assert_eq!(written(&bench.path("trust")), trusted, "the existing files stay");
}

/// A key in the CA's file is not written to any node's files.
#[test]
fn key_in_the_ca_file_is_not_copied() {
    let bench = bench();
    let mut both = fs::read(bench.path("ca.crt")).unwrap();
    both.extend(rcgen::KeyPair::generate().unwrap().serialize_pem().bytes());
    bench.file("both.pem", &both);
    let output = trust(&bench, &["--endpoint", "a.test:5000", "--ca", "both.pem", "-o", "trust"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(written(&bench.path("trust")).values().all(|content| !content.contains("PRIVATE")));
}

#[test]
fn bad_flags_exit_2_and_write_nothing() {
    let bench = bench();
    for (arguments, message) in [
        (&["-o", "t"][..], "the following required arguments were not provided:\n  <--endpoint <HOST:PORT>|--ready <FILE>>"),
        (&["--endpoint", "a.test:5000"], "the following required arguments were not provided:\n  --output <DIR>"),
        (
            &["--endpoint", "fd00::1", "-o", "t"],
            "invalid value 'fd00::1' for '--endpoint <HOST:PORT>': expected HOST:PORT or a URL of one: 10.1.0.82:5000, \
             [fd00::1]:5000, https://registry.test:5000",
        ),
        (
            &["--endpoint", "a.test/v2", "-o", "t"],
            "invalid value 'a.test/v2' for '--endpoint <HOST:PORT>': expected only a host and a port of a registry, without a path",
        ),
        (
            &["--endpoint", "a.test", "--upstream", "a b", "-o", "t"],
            "invalid value 'a b' for '--upstream <HOST>': expected a registry's host, such as docker.io or registry.k8s.io",
        ),
        (
            &["--endpoint", "a.test", "--format", "helm", "-o", "t"],
            "invalid value 'helm' for '--format <FORMAT>'\n  [possible values: all, containerd, docker, podman, crio, k3s, talos, kind, \
             minikube, kubernetes, env]",
        ),
    ] {
        let output = trust(&bench, arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with(&format!("error: {message}\n")), "{arguments:?}: {said}");
        assert!(!bench.path("t").exists());
    }
}

#[test]
fn bad_files_exit_1_and_change_nothing() {
    let bench = bench();
    bench.file("junk", b"not really");
    bench.file("empty.json", b"{}");
    fs::create_dir(bench.path("other")).unwrap();
    bench.file("other/thesis", b"mine");
    fs::create_dir(bench.path("folder")).unwrap();
    let before = bench.everything();
    let endpoint = |more: &[&'static str]| [&["--endpoint", "a.test:5000"], more].concat();
    for (arguments, message) in [
        (
            endpoint(&["-o", "t"]),
            "there is no CA for a.test:5000; give '--ca <FILE>', or the endpoint as http://a.test:5000 for plain HTTP",
        ),
        (
            vec!["--endpoint", "http://a.test:5000", "--ca", "ca.crt", "-o", "t"],
            "there is a CA for http://a.test:5000, which is plain HTTP; give only one of them",
        ),
        (endpoint(&["--ca", "none", "-o", "t"]), "cannot read none: No such file or directory (os error 2)"),
        (
            endpoint(&["--ca", "junk", "-o", "t"]),
            "junk cannot be trusted: the given CA is not PEM with one or more CERTIFICATE blocks",
        ),
        (
            vec!["--ready", "junk", "-o", "t"],
            "junk is not the output of `run --json` or `serve --json`: expected ident at line 1 column 2",
        ),
        (
            vec!["--ready", "empty.json", "-o", "t"],
            "empty.json has no usable endpoint: expected HOST:PORT or a URL of one: 10.1.0.82:5000, [fd00::1]:5000, \
             https://registry.test:5000",
        ),
        (
            endpoint(&["--ca", "ca.crt", "--disk", "none", "-o", "t"]),
            "cannot list the images of none: cannot read it: No such file or directory (os \
             error 2)",
        ),
        (
            endpoint(&["--ca", "ca.crt", "--disk", "folder", "-o", "t"]),
            "cannot list the images of folder: cannot read oci-layout; an OCI image layout with oci-layout, index.json and blobs/ \
             is expected: No such file or directory (os error 2)",
        ),
        (
            endpoint(&["--ca", "ca.crt", "--disk", "junk", "-o", "t"]),
            "cannot list the images of junk: it has no file system that is known (EROFS, \
             squashfs, ext4), and is no archive; a disk as `localregistry pack` makes, an OCI image layout or an archive of one is \
             expected",
        ),
        (
            endpoint(&["--ca", "ca.crt", "-o", "other"]),
            "other contains \"thesis\", which is not part of a trust bundle; expected an empty or missing folder, or an earlier bundle",
        ),
        (endpoint(&["--ca", "ca.crt", "-o", "junk"]), "junk exists and is not a folder"),
        (
            endpoint(&["--ca", "ca.crt", "-o", "no/where"]),
            "cannot write the trust files to no/where: No such file or directory (os error 2)",
        ),
    ] {
        let output = trust(&bench, &arguments);
        assert_eq!(text(&output.stderr), format!("localregistry: {message}\n"), "{arguments:?}");
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
        assert_eq!(bench.everything(), before);
    }
}

/// A FIFO, as a shell's `<(command)` is one, is read to its end; a file without an end is not. `signals.rs` has a FIFO without a writer.
#[test]
fn special_files_are_read_up_to_a_limit() {
    let bench = bench();
    for flags in [&["--endpoint", "a.test:5000", "--ca", "/dev/zero"][..], &["--ready", "/dev/zero"]] {
        let output = trust(&bench, &[flags, &["-o", "t"]].concat());
        let message = "localregistry: cannot read /dev/zero: it is larger than 1048576 bytes\n";
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), message));
        assert!(!bench.path("t").exists());
    }
    let fifo = bench.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let ca = fs::read(bench.path("ca.crt")).unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, &ca).unwrap());
        trust(&bench, &["--endpoint", "a.test:5000", "--ca", "fifo", "-o", "t"])
    });
    assert_eq!((output.status.code(), fs::read(bench.path("t/ca.crt")).unwrap()), (Some(0), ca), "{}", text(&output.stderr));
}
