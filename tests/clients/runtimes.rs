//! Real clients with their own stores pull from `localregistry serve` over TLS: a multi-platform image, which they run, and an
//! image of docker.io through a mirror. A client that trusts another CA pulls nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use localregistry::proto::Request;
use serde_json::Value;
use testing::cri;
use testing::docker::Dockerd;
use testing::podman;
use testing::private::{ADDRESS, privately};
use testing::registries::{GREETING, Images, Registries, blob, refused};
use testing::vm::{Containerd, Vm, skopeo, succeed};

/// Checks the client of these requests and that each response was complete. Returns them as `METHOD endpoint repository
/// reference`.
fn requests_of(requests: &[Request], agent: &str) -> Vec<String> {
    for request in requests {
        assert!(request.user_agent.starts_with(agent) && request.complete && request.status == 200, "{request:?}");
    }
    requests.iter().map(|one| format!("{} {} {} {}", one.method, one.endpoint, one.repository, one.reference)).collect()
}

#[test]
fn skopeo_copies_all_platforms_an_artifact_and_through_a_mirror() {
    privately(|| {
        let mut registries = Registries::default();
        registries.mirror();
        let copy = |arguments: &[&str], from: &str, to: &str| {
            let copy = ["--registries-conf", "mirror.conf", "copy", "--quiet", "--preserve-digests", "--src-cert-dir", "certs"];
            skopeo(&[&copy, arguments, &[from, to]].concat(), &registries.path(""))
        };
        let images = &registries.images;
        let here = |name: &str| format!("docker://{}/{name}", registries.address);
        succeed(&mut copy(&["--all"], &here("test/multi:1"), "oci:all:1"));
        let index: Value = serde_json::from_slice(&fs::read(registries.path("all/index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], images.index.digest.to_string());
        let copied = fs::read_dir(registries.path("all/blobs/sha256")).unwrap().map(|entry| entry.unwrap().file_name());
        let copied: Vec<_> = copied.collect();
        assert_eq!(copied.len(), 6, "the index, two manifests, two configs and a layer: {copied:?}");
        for name in copied {
            let name = Path::new("blobs/sha256").join(name);
            assert!(fs::read(registries.path("all").join(&name)).unwrap() == fs::read(images.layout.path().join(&name)).unwrap());
        }

        succeed(&mut copy(&[], &here("test/multi:artifact"), "dir:artifact"));
        let manifest = fs::read(registries.path("artifact/manifest.json")).unwrap();
        assert_eq!(manifest, fs::read(blob(images.layout.path(), &images.artifact.digest.to_string())).unwrap());
        // A referrer is found by the digest of its subject, and pulled by its own.
        let signature = images.signature.digest.to_string();
        let found = registries.get(&format!("/v2/test/multi/referrers/{}", images.artifact.digest)).json();
        assert_eq!(found["manifests"][0]["digest"], signature);
        assert_eq!(
            (&found["manifests"][0]["artifactType"], &found["manifests"][1]),
            (&"application/x.signature".into(), &Value::Null)
        );
        succeed(&mut copy(&[], &here(&format!("test/multi@{signature}")), "dir:signature"));
        assert_eq!(
            fs::read(registries.path("signature/manifest.json")).unwrap(),
            fs::read(blob(images.layout.path(), &signature)).unwrap()
        );

        succeed(&mut copy(&["--all"], "docker://docker.io/library/hello:1", "oci:hello:1"));
        let index: Value = serde_json::from_slice(&fs::read(registries.path("hello/index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], images.index.digest.to_string());

        refused(&mut copy(&[], &format!("docker://{}/test/multi:1", registries.untrusted()), "oci:refused"));
        assert!(!registries.path("refused").join("index.json").exists());

        let amd64 = images.amd64.clone();
        let requests: Vec<Request> =
            registries.requests().into_iter().filter(|request| request.endpoint != "referrers").collect();
        let requests = requests_of(&requests, "skopeo/");
        assert_eq!(requests[..2], ["GET base  ", "GET manifest test/multi 1"]);
        assert!(requests.contains(&format!("GET manifest test/multi {amd64}")), "{requests:?}");
        assert!(requests.contains(&"GET manifest docker.io/library/hello 1".to_owned()), "{requests:?}");
    });
}

/// The requests of clients on containers/image for one image by its index.
fn by_path(images: &Images, repository: &str, tag: &str) -> Vec<String> {
    vec![
        "GET base  ".to_owned(),
        format!("GET manifest {repository} {tag}"),
        format!("GET manifest {repository} {}", images.amd64),
        format!("GET blob {repository} {}", images.config),
    ]
}

/// podman with a private store and the mirror.
fn podman(folder: &Path, arguments: &[&str]) -> Command {
    with_mirror(podman::podman(folder, arguments))
}

fn with_mirror(mut command: Command) -> Command {
    command.env("CONTAINERS_REGISTRIES_CONF", "mirror.conf");
    command
}

/// Pulls an image with podman, compares it, and runs it on the host's network within this process's limits.
fn pull_and_run(folder: &Path, images: &Images, image: &str) {
    succeed(&mut podman(folder, &["pull", "--quiet", "--cert-dir", "certs", image]));
    let listed = succeed(&mut podman(folder, &["image", "inspect", "--format", "{{.Digest}} {{.Id}}", image]));
    assert_eq!(listed, format!("{} {}\n", images.index.digest, images.config.strip_prefix("sha256:").unwrap()), "{image}");
    let run =
        ["run", "--rm", "--network", "host", "--ulimit", "nofile=1024", "--ulimit", "nproc=1024", "--log-driver", "none", image];
    assert_eq!(succeed(&mut podman(folder, &run)), GREETING, "{image}");
}

#[test]
fn podman_pulls_and_runs() {
    privately(|| {
        let mut registries = Registries::default();
        registries.mirror();
        pull_and_run(&registries.path(""), &registries.images, &format!("{}/test/multi:1", registries.address));
        pull_and_run(&registries.path(""), &registries.images, "docker.io/library/hello:1");
        let image = format!("{}/test/multi:1", registries.untrusted());
        refused(&mut podman(&registries.path(""), &["pull", "--cert-dir", "certs", &image]));
        let artifact = format!("{}/test/multi:artifact", registries.address);
        no_image(&mut podman(&registries.path(""), &["pull", "--cert-dir", "certs", &artifact]), NO_ARTIFACTS);

        let mut expected = by_path(&registries.images, "test/multi", "1");
        expected.push("GET manifest test/multi artifact".to_owned());
        expected.extend(by_path(&registries.images, "docker.io/library/hello", "1"));
        let requests = requests_of(&registries.requests(), "containers/");
        assert!(expected.iter().all(|one| requests.contains(one)), "{requests:#?}");
    });
}

#[test]
fn buildah_pulls() {
    privately(|| {
        let mut registries = Registries::default();
        registries.mirror();
        for image in [&*format!("{}/test/multi:1", registries.address), "docker.io/library/hello:1"] {
            let buildah = || with_mirror(podman::with_store("buildah", &registries.path("")));
            succeed(buildah().args(["pull", "--quiet", "--cert-dir", "certs", image]));
            let listed = succeed(buildah().args(["images", "--no-trunc", "--format", "{{.Name}}:{{.Tag}} {{.Digest}} {{.ID}}"]));
            let (index, config) = (registries.images.index.digest.to_string(), registries.images.config.as_str());
            let line = [image, &index, config];
            assert!(listed.lines().any(|one| one.split_whitespace().eq(line)), "{listed}");
        }
        let image = format!("{}/test/multi:1", registries.untrusted());
        refused(with_mirror(podman::with_store("buildah", &registries.path(""))).args(["pull", "--cert-dir", "certs", &image]));
        let artifact = format!("{}/test/multi:artifact", registries.address);
        let mut pull = with_mirror(podman::with_store("buildah", &registries.path("")));
        no_image(pull.args(["pull", "--cert-dir", "certs", &artifact]), NO_ARTIFACTS);

        let mut expected = by_path(&registries.images, "test/multi", "1");
        expected.push("GET manifest test/multi artifact".to_owned());
        expected.extend(by_path(&registries.images, "docker.io/library/hello", "1"));
        let requests = requests_of(&registries.requests(), "Buildah/");
        assert!(expected.iter().all(|one| requests.contains(one)), "{requests:#?}");
    });
}

/// The message of this podman and buildah for an artifact. They fetch the manifest, and support only images.
const NO_ARTIFACTS: &str = "unsupported image-specific operation on artifact with type \"application/vnd.oci.empty.v1+json\"";

/// The message of dockerd.
const NO_MEDIA_TYPE: &str = "unsupported media type application/vnd.oci.empty.v1+json";

/// Asserts that the client rejects the artifact with this message.
fn no_image(command: &mut Command, words: &str) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(words), "{command:?}: {said}");
}

/// The first requests of containerd for one image by its index: no `/v2/`, and HEAD before GET.
fn by_head(images: &Images, repository: &str, tag: &str) -> [String; 3] {
    let get = |digest: &str| format!("GET manifest {repository} {digest}");
    [format!("HEAD manifest {repository} {tag}"), get(&images.index.digest.to_string()), get(&images.amd64)]
}

#[test]
fn containerd_pulls_an_image_an_artifact_and_through_a_mirror() {
    privately(|| {
        let mut registries = Registries::default();
        let containerd = Containerd::start();
        let Images { index, artifact, layout, .. } = &registries.images;
        // The mirror is used with `ns=docker.io`. Without it, the name means another image.
        containerd.host("docker.io", &registries.address, &registries.ca());
        succeed(&mut containerd.fetch(&["images", "pull"], "docker.io/library/hello:1"));
        containerd.host(&registries.address, &registries.address, &registries.ca());
        let image = format!("{}/test/multi:1", registries.address);
        succeed(&mut containerd.fetch(&["images", "pull"], &image));
        for image in ["docker.io/library/hello:1", &image] {
            let listed = succeed(&mut containerd.ctr(&["images", "list", &format!("name=={image}")]));
            assert!(listed.contains(&index.digest.to_string()), "{listed}");
            assert_eq!(succeed(&mut containerd.ctr(&["run", "--rm", image, "hello"])), GREETING);
        }

        // Nothing is unpacked.
        succeed(&mut containerd.fetch(&["content", "fetch"], &format!("{}/test/multi:artifact", registries.address)));
        // And the referrer.
        let by_digest = format!("{}/test/multi@{}", registries.address, registries.images.signature.digest);
        succeed(&mut containerd.fetch(&["content", "fetch"], &by_digest));
        for digest in [artifact.digest.to_string(), registries.images.signature.digest.to_string()] {
            let stored = succeed(&mut containerd.ctr(&["content", "get", &digest]));
            assert_eq!(stored.as_bytes(), fs::read(blob(layout.path(), &digest)).unwrap());
        }

        let other = registries.untrusted();
        containerd.host(&other, &other, &registries.ca());
        refused(&mut containerd.fetch(&["images", "pull"], &format!("{other}/test/multi:1")));

        let expected = by_head(&registries.images, "docker.io/library/hello", "1");
        let requests = requests_of(&registries.requests(), "containerd/");
        assert_eq!(requests[..3], expected, "{requests:#?}");
        assert!(requests.contains(&"HEAD manifest test/multi 1".to_owned()), "{requests:#?}");
        assert!(requests.contains(&"HEAD manifest test/multi artifact".to_owned()), "{requests:#?}");
    });
}

/// Pulls without running: that would need a network plugin and a pause image.
#[test]
fn containerd_pulls_for_kubernetes() {
    privately(|| {
        let mut registries = Registries::default();
        let containerd = Containerd::start_with_cri();
        containerd.host("docker.io", &registries.address, &registries.ca());
        assert_eq!(cri::pull(&containerd.socket(), "docker.io/library/hello:1"), Ok(registries.images.config.clone()));
        containerd.host(&registries.address, &registries.address, &registries.ca());
        let image = format!("{}/test/multi:1", registries.address);
        assert_eq!(cri::pull(&containerd.socket(), &image), Ok(registries.images.config.clone()));
        let listed = succeed(&mut containerd.ctr(&["--namespace", "k8s.io", "images", "list", &format!("name=={image}")]));
        assert!(listed.contains(&registries.images.index.digest.to_string()), "{listed}");
        // The plugin pulls an artifact and then rejects it, because it has nothing to run.
        let artifact = cri::pull(&containerd.socket(), &format!("{}/test/multi:artifact", registries.address)).unwrap_err();
        assert!(artifact.contains("mismatched image rootfs and manifest layers"), "{artifact}");

        let other = registries.untrusted();
        containerd.host(&other, &other, &registries.ca());
        let refused = cri::pull(&containerd.socket(), &format!("{other}/test/multi:1")).unwrap_err();
        assert!(refused.contains("x509: certificate signed by unknown authority"), "{refused}");

        let expected = by_head(&registries.images, "docker.io/library/hello", "1");
        let requests = requests_of(&registries.requests(), "containerd/");
        assert_eq!(requests[..3], expected, "{requests:#?}");
        assert!(requests.contains(&"HEAD manifest test/multi 1".to_owned()), "{requests:#?}");
        assert!(requests.contains(&"HEAD manifest test/multi artifact".to_owned()), "{requests:#?}");
    });
}

/// The first requests of dockerd for one image by its index.
fn by_dockerd(images: &Images, repository: &str, tag: &str) -> Vec<String> {
    [&["GET base  ".to_owned()], &by_head(images, repository, tag)[..]].concat()
}

/// Pulls an image, compares it and runs it on the host's network.
fn docker_pulls_and_runs(dockerd: &Dockerd, images: &Images, image: &str) {
    succeed(&mut dockerd.docker(&["pull", "--quiet", image]));
    let format = "{{index .RepoDigests 0}} {{.Id}}";
    let listed = succeed(&mut dockerd.docker(&["image", "inspect", "--format", format, image]));
    assert!(listed.ends_with(&format!("@{} {}\n", images.index.digest, images.config)), "{listed}");
    assert_eq!(succeed(&mut dockerd.docker(&["run", "--rm", "--network", "host", image])), GREETING, "{image}");
}

#[test]
fn dockerd_pulls_and_runs_from_a_registry_and_a_mirror() {
    privately(|| {
        let mut registries = Registries::default();
        for address in [&registries.address, &registries.untrusted()] {
            let folder = Path::new("/etc/docker/certs.d").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::copy(registries.ca(), folder.join("ca.crt")).unwrap();
        }
        let dockerd = Dockerd::start(&["--registry-mirror", &format!("https://{}", registries.address)], None);
        docker_pulls_and_runs(&dockerd, &registries.images, &format!("{}/test/multi:1", registries.address));
        succeed(&mut dockerd.docker(&["image", "prune", "--all", "--force"]));
        docker_pulls_and_runs(&dockerd, &registries.images, "mirrored:1");
        refused(&mut dockerd.docker(&["pull", &format!("{}/test/multi:1", registries.untrusted())]));
        no_image(&mut dockerd.docker(&["pull", &format!("{}/test/multi:artifact", registries.address)]), NO_MEDIA_TYPE);

        let requests = requests_of(&registries.requests(), "docker/");
        // On connections of their own: the first two are logged as they end.
        let sorted = |mut requests: Vec<String>| {
            requests.sort();
            requests
        };
        let expected = by_dockerd(&registries.images, "test/multi", "1");
        assert_eq!(sorted(requests[..4].to_vec()), sorted(expected.to_vec()), "{requests:#?}");
        // The first image made the digest known, and its removal removed the content.
        let head = "HEAD manifest docker.io/library/mirrored 1".to_owned();
        let config = format!("GET blob docker.io/library/mirrored {}", registries.images.config);
        assert!(requests.contains(&head) && requests.contains(&config), "{requests:#?}");
        assert!(requests.contains(&"HEAD manifest test/multi artifact".to_owned()), "{requests:#?}");
    });
}

/// The name of the upstream resolves to this registry, which issues a certificate when dockerd connects by that name.
#[test]
fn dockerd_pulls_from_the_upstream_itself() {
    privately(|| {
        let mut registries = Registries::default();
        let hosts = format!("{}{ADDRESS} registry-1.docker.io\n", fs::read_to_string("/etc/hosts").unwrap());
        fs::write("/etc/hosts", hosts).unwrap();
        let untrusting = Dockerd::start(&[], None);
        refused(&mut untrusting.docker(&["pull", "hello:1"]));
        let dockerd = Dockerd::start(&[], Some(&registries.ca()));
        docker_pulls_and_runs(&dockerd, &registries.images, "hello:1");
        let expected = by_dockerd(&registries.images, "docker.io/library/hello", "1");
        let requests = requests_of(&registries.requests(), "docker/");
        assert_eq!(requests[..4], expected, "{requests:#?}");
    });
}

/// The same disk in a VM: podman sees the same as with `serve`.
#[test]
fn podman_pulls_and_runs_from_a_vm() {
    privately(|| {
        let mut registries = Registries::default();
        let layout = registries.images.layout.path().display().to_string();
        registries.bench.pack(&[&layout]);
        let vm = Vm::boot(&registries.path("disk.erofs"), &[]);
        let image = format!("{}/test/multi:1", vm.address);
        registries.address = vm.address.clone();
        registries.mirror();
        // Trusting the CA of `serve`.
        refused(&mut podman(&registries.path(""), &["pull", "--cert-dir", "certs", &image]));
        fs::copy(vm.path("ca.crt"), registries.ca()).unwrap();
        pull_and_run(&registries.path(""), &registries.images, &image);
        pull_and_run(&registries.path(""), &registries.images, "docker.io/library/hello:1");

        let ended = vm.shut_down();
        let requests: Vec<Request> = ended.requests().into_iter().cloned().collect();
        let mut expected = by_path(&registries.images, "test/multi", "1");
        expected.extend(by_path(&registries.images, "docker.io/library/hello", "1"));
        let requests = requests_of(&requests, "containers/");
        assert!(expected.iter().all(|one| requests.contains(one)), "{requests:#?}");
    });
}
