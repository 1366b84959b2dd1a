//! Real clients with nothing except the files of a trust bundle: they pull from the registry by its address and in place of the
//! upstreams, and never contact an upstream, although its name resolves to a listening host.

use std::fs;
use std::path::Path;
use std::process::Command;

use localregistry::oci::media_type::OCI_INDEX;
use testing::certificates::ClientAuthority;
use testing::cri;
use testing::docker::Dockerd;
use testing::internet::Upstream;
use testing::pack::{Bench, PROGRAM, text};
use testing::podman::{podman, with_store};
use testing::private::{ADDRESS, ip, privately};
use testing::process::Process;
use testing::registries::{Images, Registries};
use testing::vm::{Containerd, Vm, copy_into, succeed};

/// Runs a client, which must fail, and returns its messages.
fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?}");
    text(&output.stderr)
}

/// Checks a log with `localregistry assert`.
fn assert_pulls(log: &Path, arguments: &[&str]) {
    succeed(testing::program(PROGRAM).args(["assert", "--quiet"]).args(arguments).arg(log));
}

#[test]
fn containerd_pulls_from_the_registry_only() {
    privately(|| {
        let registries = Registries::default();
        let upstream = Upstream::start();
        let containerd = Containerd::start();
        containerd.take_hosts(&registries.trust().join("containerd/certs.d"));
        let here = format!("{}/test/multi:1", registries.address);
        for image in [here.as_str(), "docker.io/library/hello:1"] {
            succeed(&mut containerd.fetch(&["images", "pull"], image));
            let listed = succeed(&mut containerd.ctr(&["images", "list", &format!("name=={image}")]));
            assert!(listed.contains(&registries.images.index.digest.to_string()), "{listed}");
        }
        assert_pulls(registries.events(), &["--pulled", &here, "--by", ADDRESS, "--times", "1"]);
        // It is the same index under another name, so the node already has it.
        assert_pulls(registries.events(), &["--not-pulled", "docker.io/library/hello:1"]);
        // Known upstreams, one without images on the disk, and the registry itself.
        for image in ["docker.io/library/absent:1", "quay.io/some/absent:1", &format!("{}/absent:1", registries.address)] {
            let said = fails(&mut containerd.fetch(&["images", "pull"], image));
            assert!(said.contains(&format!("{image}: not found")), "{said}");
        }
        assert_eq!(upstream.connections(), 0, "no upstream was contacted");
        assert_pulls(registries.events(), &["--not-pulled", "docker.io/library/absent:1"]);
        // The counter works.
        fails(containerd.ctr(&["images", "pull"]).arg("docker.io/library/absent:1"));
        assert!(upstream.connections() > 0);
    });
}

#[test]
fn cri_plugin_pulls_from_the_registry_only() {
    privately(|| {
        let registries = Registries::default();
        let upstream = Upstream::start();
        let containerd = Containerd::start_with_cri();
        let pull = |image: &str| cri::pull(&containerd.socket(), image);
        // Before the files are installed.
        assert!(pull("docker.io/library/absent:1").is_err());
        let before = upstream.connections();
        assert!(before > 0);
        containerd.take_hosts(&registries.trust().join("containerd/certs.d"));
        for image in [&*format!("{}/test/multi:1", registries.address), "docker.io/library/hello:1"] {
            assert_eq!(pull(image), Ok(registries.images.config.clone()));
        }
        for image in ["docker.io/library/absent:1", "quay.io/some/absent:1"] {
            let said = pull(image).unwrap_err();
            assert!(said.contains(&format!("{image}: not found")), "{said}");
        }
        assert_eq!(upstream.connections(), before);
    });
}

#[test]
fn dockerd_pulls_from_the_registry_only() {
    privately(|| {
        let registries = Registries::default();
        let upstream = Upstream::start();
        let trust = registries.trust().join("docker");
        let arguments = ["--config-file".to_owned(), trust.join("daemon.json").display().to_string()];
        let arguments = arguments.each_ref().map(String::as_str);
        copy_into(&trust.join("certs.d"), Path::new("/etc/docker/certs.d"));
        // First its mirror, then Docker Hub.
        let dockerd = Dockerd::start(&arguments, None);
        fails(&mut dockerd.docker(&["pull", "absent:1"]));
        let before = upstream.connections();
        assert!(before > 0);
        drop(dockerd);

        let fragment = fs::read_to_string(trust.join("hosts")).unwrap();
        fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{fragment}")).unwrap();
        let dockerd = Dockerd::start(&arguments, None);
        let here = format!("{}/test/multi:1", registries.address);
        for image in [&*here, "mirrored:1"] {
            succeed(&mut dockerd.docker(&["pull", "--quiet", image]));
            let listed = succeed(&mut dockerd.docker(&["image", "inspect", "--format", "{{.Id}}", image]));
            assert_eq!(listed.trim(), registries.images.config, "{image}");
        }
        let said = fails(&mut dockerd.docker(&["pull", "absent:1"]));
        assert!(said.contains("dial tcp 0.0.0.0:443: connect: connection refused"), "{said}");
        assert_eq!(upstream.connections(), before);
        assert_pulls(registries.events(), &["--pulled", &here, "--by", ADDRESS, "--times", "1"]);
    });
}

/// Installs the bundle's files for the clients on containers/image.
fn install(trust: &Path, format: &str) {
    for folder in ["certs.d", "registries.conf.d"] {
        let from = trust.join(format).join(folder);
        if from.exists() {
            copy_into(&from, &Path::new("/etc/containers").join(folder));
        }
    }
}

/// Requests the image's digest but not the repository's tags, for which skopeo always contacts the upstream itself.
fn inspect(image: &str) -> Command {
    let mut command = testing::program("skopeo");
    command.args(["inspect", "--no-tags", "--format", "{{.Digest}}"]).arg(format!("docker://{image}"));
    // Hides the user's credentials.
    command.env("HOME", "/nonexistent");
    command
}

/// Pulls with podman, buildah and skopeo, by the registry's address and in place of an upstream. Also requests missing images.
fn pulls_and_misses(folder: &Path, images: &Images, address: &str) {
    let digest = images.index.digest.to_string();
    for image in [&*format!("{address}/test/multi:1"), "docker.io/library/hello:1"] {
        succeed(&mut podman(folder, &["pull", "--quiet", image]));
        let listed = succeed(&mut podman(folder, &["image", "inspect", "--format", "{{.Digest}}", image]));
        assert_eq!(listed.trim(), digest, "{image}");
        succeed(podman(folder, &["image", "rm", "--force"]).arg(image));
        succeed(with_store("buildah", folder).args(["pull", "--quiet", image]));
        let said = succeed(&mut inspect(image));
        assert_eq!(said.trim(), digest, "{image}");
    }
    for image in ["docker.io/library/absent:1", &format!("{address}/absent:1")] {
        let said = fails(&mut podman(folder, &["pull", "--quiet", image]));
        assert!(said.contains("no repository") || said.contains("name unknown"), "{said}");
        fails(with_store("buildah", folder).args(["pull", "--quiet", image]));
        fails(&mut inspect(image));
    }
}

#[test]
fn podman_buildah_and_skopeo_pull_from_the_registry_only() {
    privately(|| {
        let registries = Registries::default();
        let upstream = Upstream::start();
        fails(&mut podman(&registries.path(""), &["pull", "--quiet", "docker.io/library/absent:1"]));
        let before = upstream.connections();
        assert!(before > 0, "without the files");
        install(&registries.trust(), "podman");
        pulls_and_misses(&registries.path(""), &registries.images, &registries.address);
        assert_eq!(upstream.connections(), before);
    });
}

/// Every name in `images.txt` can be pulled by every client, also if its upstream has a port, an IPv6 address or several names.
#[test]
fn clients_pull_every_listed_name() {
    privately(|| {
        let bench = Bench::default();
        let mut images = Images::new(&bench);
        let index = images.index;
        let names = [
            "my.reg.test:5000/team/app:2",
            "localhost:5000/team/app:2",
            "reg:5000/app:1",
            "[fd00::9]:5000/team/app:2",
            "index.docker.io/team/app:2",
            "docker.io/short:1",
            "registry-1.docker.io/library/old:3",
        ];
        names.iter().for_each(|name| {
            images.layout.name(index, OCI_INDEX, name);
        });
        bench.layout("layout", &images.layout);
        bench.pack(&["layout"]);
        fs::create_dir(bench.path("certs")).unwrap();
        let (listen, certificate) = (format!("{ADDRESS}:0"), bench.path("certs/ca.crt").display().to_string());
        bench.extract("disk.erofs");
        let disk = bench.path("disk.erofs.extracted");
        let server = Process::start_with(&disk, &["--listen", &listen, "--ca-out", &certificate], None);
        let address = server.addresses[1].to_string();
        succeed(&mut bench.command(&[
            "trust",
            "--endpoint",
            &address,
            "--ca",
            "certs/ca.crt",
            "--disk",
            "disk.erofs",
            "-o",
            "trust",
        ]));
        let trust = bench.path("trust");
        install(&trust, "podman");
        let containerd = Containerd::start();
        containerd.take_hosts(&trust.join("containerd/certs.d"));
        let listed = fs::read_to_string(trust.join("images.txt")).unwrap();
        // The two images of one platform have no layers that containerd could unpack.
        let listed: Vec<&str> =
            listed.lines().filter(|name| !name.ends_with(":artifact") && !name.ends_with("library/hello:1")).collect();
        for expected in ["docker.io/library/short:1", "docker.io/team/app:2", "docker.io/library/old:3"] {
            assert!(listed.contains(&expected), "{listed:?}");
        }
        assert_eq!(listed.len(), names.len() + 2, "{listed:?}");
        for image in listed {
            succeed(&mut containerd.fetch(&["images", "pull"], image));
            succeed(&mut podman(&bench.path(""), &["pull", "--quiet", image]));
            assert_eq!(succeed(&mut inspect(image)).trim(), index.digest.to_string(), "{image}");
        }
        // As docker/hosts advises.
        copy_into(&trust.join("docker/certs.d"), Path::new("/etc/docker/certs.d"));
        let dockerd = Dockerd::start(&[], None);
        let hosts = fs::read_to_string(trust.join("docker/hosts")).unwrap();
        let advised = hosts.lines().filter_map(|line| line.split_once(": pull ")?.1.split(',').next()?.strip_suffix("/NAME"));
        let advised: Vec<String> =
            advised.map(|name| format!("{name}/{}", if name.ends_with("reg_5000") { "app:1" } else { "team/app:2" })).collect();
        assert_eq!(advised.len(), 4, "{hosts}");
        for image in advised {
            succeed(&mut dockerd.docker(&["pull", "--quiet", &image]));
        }
        for name in ["my.reg.test:5000/team/app:2", "[fd00::9]:5000/team/app:2", "docker.io/short:1"] {
            assert_pulls(&server.events, &["--pulled", name, "--by", ADDRESS]);
        }
    });
}

/// Without a CA, clients must be configured for plain HTTP.
#[test]
fn runtimes_pull_over_plain_http() {
    privately(|| {
        let registries = Registries::default();
        let upstream = Upstream::start();
        let listen = format!("{ADDRESS}:0");
        let plain = Process::start_with(registries.images.layout.path(), &["--tls", "off", "--listen", &listen], None);
        let address = plain.addresses[1].to_string();
        let mut command = registries.bench.command(&["trust", "--endpoint", &format!("http://{address}"), "--output", "trust"]);
        succeed(command.arg("--disk").arg(registries.images.layout.path()));
        let trust = registries.path("trust");
        install(&trust, "crio");
        pulls_and_misses(&registries.path(""), &registries.images, &address);

        let containerd = Containerd::start();
        containerd.take_hosts(&trust.join("containerd/certs.d"));
        for image in [&*format!("{address}/test/multi:1"), "docker.io/library/hello:1"] {
            succeed(&mut containerd.fetch(&["images", "pull"], image));
        }
        let said = fails(&mut containerd.fetch(&["images", "pull"], "docker.io/library/absent:1"));
        assert!(said.contains("docker.io/library/absent:1: not found"), "{said}");

        let fragment = fs::read_to_string(trust.join("docker/hosts")).unwrap();
        fs::write("/etc/hosts", format!("127.0.0.1 localhost\n{fragment}")).unwrap();
        let config = trust.join("docker/daemon.json").display().to_string();
        let dockerd = Dockerd::start(&["--config-file", &config], None);
        for image in [&*format!("{address}/test/multi:1"), "mirrored:1"] {
            succeed(&mut dockerd.docker(&["pull", "--quiet", image]));
        }
        assert_eq!(upstream.connections(), 0);
    });
}

/// containerd pulls by address, and skopeo by name, because image names cannot contain an IPv6 address in clients of this age.
#[test]
fn clients_pull_from_an_ipv6_address() {
    privately(|| {
        ip("-6 address add fd00::82/128 dev lo nodad");
        fs::write("/etc/hosts", "fd00::82 registry.test\n").unwrap();
        let registries = Registries::default();
        let certificate = registries.path("certs6.crt").display().to_string();
        let arguments = ["--listen", "[fd00::82]:0", "--san", "registry.test", "--ca-out", &certificate];
        let server = Process::start_with(registries.images.layout.path(), &arguments, None);
        let address = server.addresses[1].to_string();
        assert!(address.starts_with("[fd00::82]:"), "{address}");
        let named = address.replace("[fd00::82]", "registry.test");
        for (endpoint, to) in [(&address, "trust"), (&named, "named")] {
            let mut command = registries.bench.command(&["trust", "--endpoint", endpoint, "--ca", "certs6.crt", "--output", to]);
            succeed(command.arg("--disk").arg(registries.images.layout.path()));
        }
        let containerd = Containerd::start();
        containerd.take_hosts(&registries.path("trust/containerd/certs.d"));
        succeed(&mut containerd.fetch(&["images", "pull"], "docker.io/library/hello:1"));
        assert_pulls(&server.events, &["--pulled", "docker.io/library/hello:1", "--by", "fd00::82", "--times", "1"]);
        install(&registries.path("named"), "podman");
        let said = succeed(&mut inspect("docker.io/library/hello:1"));
        assert_eq!(said.trim(), registries.images.index.digest.to_string());
        assert_pulls(&server.events, &["--pulled", "docker.io/library/hello:1", "--by", "fd00::82", "--times", "2"]);
    });
}

/// Two runs in a VM with one stored CA: clients that trust the first trust the second, and the trust files of each exist when it
/// is ready.
#[test]
fn stored_ca_is_trusted_across_runs_of_the_vm() {
    privately(|| {
        let mut registries = Registries::default();
        let layout = registries.images.layout.path().display().to_string();
        registries.bench.pack(&[&layout]);
        let disk = registries.path("disk.erofs");
        let packed = fs::read(&disk).unwrap();
        let kept = registries.path("kept").display().to_string();
        let mut trusted = None;
        for _ in 0..2 {
            let vm = Vm::boot(&disk, &["--ca-dir", &kept, "--trust", "trust"]);
            assert_eq!(vm.ready["trust"], vm.path("trust").canonicalize().unwrap().display().to_string());
            let ca = fs::read_to_string(vm.path("trust/ca.crt")).unwrap();
            assert_eq!(ca, fs::read_to_string(registries.path("kept/ca.crt")).unwrap().replace('\r', ""));
            // The first run's CA, and the second's address.
            let first = trusted.get_or_insert_with(|| ca.clone()).clone();
            assert_eq!(first, ca);
            fs::write(registries.ca(), first).unwrap();
            registries.address = vm.address.clone();
            let containerd = Containerd::start();
            containerd.take_hosts(&vm.path("trust/containerd/certs.d"));
            for image in [&*format!("{}/test/multi:1", vm.address), "docker.io/library/hello:1"] {
                succeed(&mut containerd.fetch(&["images", "pull"], image));
            }
            let pulled = ["pull", "--quiet", "--cert-dir", "certs", &format!("{}/test/multi:1", vm.address)];
            succeed(&mut podman(&registries.path(""), &pulled));
            // By containerd and by podman.
            assert_pulls(&vm.path("events"), &["--pulled", "test/multi:1", "--times", "2"]);
            let key = fs::read_to_string(registries.path("kept/ca.key")).unwrap();
            let secret = key.lines().nth(1).unwrap();
            let said = fs::read_to_string(vm.path("events")).unwrap() + &fs::read_to_string(vm.path("stderr")).unwrap();
            assert!(said.contains("\"ready\"") && !said.contains(secret) && !said.contains("PRIVATE"));
            vm.shut_down();
        }
        assert!(fs::read(&disk).unwrap() == packed, "the disk is unchanged");
    });
}

#[test]
fn moved_bundle_works() {
    let bench = Bench::default();
    bench.file("ca.crt", ClientAuthority::new("a CA").pem().as_bytes());
    let arguments = ["trust", "--quiet", "--endpoint", "a.test:5000", "--ca", "ca.crt", "--format", "env", "-o", "trust"];
    assert!(bench.command(&arguments).status().unwrap().success());
    fs::rename(bench.path("trust"), bench.path("moved")).unwrap();
    let env = fs::read_to_string(bench.path("moved/env")).unwrap();
    assert!(!env.contains(&bench.path("").display().to_string()), "{env}");
    let script = "cd moved; . ./env; openssl x509 -noout -subject -in \"$LOCALREGISTRY_CA\"";
    let said = testing::program("sh").args(["-euc", script]).current_dir(bench.path("")).output().unwrap();
    assert_eq!(text(&said.stdout), "subject=CN = a CA\n", "{}", text(&said.stderr));
}
