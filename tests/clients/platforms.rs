//! Real clients pull from a disk that `pack --platform` made: by the tag and by the digest of the index, which stays. Nothing that they ask
//! for is missing, except a platform that is left out.

use std::fs;
use std::path::Path;
use std::process::Command;

use localregistry::proto::Request;
use testing::cri;
use testing::docker::Dockerd;
use testing::podman::podman;
use testing::private::privately;
use testing::registries::{GREETING, Registries};
use testing::vm::{Containerd, skopeo, succeed};

/// The image by its tag and by the digest of its index.
fn names(registries: &Registries) -> [String; 2] {
    let Registries { address, images, .. } = registries;
    [format!("{address}/test/multi:1"), format!("{address}/test/multi@{}", images.index.digest)]
}

/// Asserts that every request of this client was answered, and that it asked for the index and its manifest.
fn assert_all_answered(registries: &mut Registries, agent: &str) {
    let requests = registries.requests();
    let of_client = requests.iter().filter(|request| request.user_agent.starts_with(agent));
    let refused: Vec<&Request> = of_client.clone().filter(|request| request.status >= 400).collect();
    assert!(refused.is_empty() && requests.iter().all(|request| request.left_out.is_empty()), "{refused:#?}");
    let wanted = [registries.images.index.digest.to_string(), registries.images.amd64.clone()];
    let asked = |digest: &String| of_client.clone().any(|request| request.endpoint == "manifest" && request.digest == *digest);
    assert!(wanted.iter().all(asked), "{requests:#?}");
}

/// Asserts that the command fails because the registry does not know the manifest, and that its event says which platform it is for.
fn assert_left_out(registries: &mut Registries, command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(!output.status.success() && said.contains("manifest unknown"), "{command:?}: {said}");
    let requests = registries.requests();
    let refused: Vec<&Request> = requests.iter().filter(|request| request.status == 404).collect();
    assert!(!refused.is_empty() && refused.iter().all(|request| request.left_out == "linux/arm64"), "{refused:#?}");
}

#[test]
fn podman_pulls_by_tag_and_by_index_digest() {
    privately(|| {
        let mut registries = Registries::of_one_platform();
        let folder = registries.path("");
        for image in names(&registries) {
            succeed(&mut podman(&folder, &["pull", "--quiet", "--cert-dir", "certs", &image]));
            let run = ["run", "--rm", "--network", "host", "--ulimit", "nofile=1024", "--ulimit", "nproc=1024"];
            assert_eq!(
                succeed(&mut podman(&folder, &[&run[..], &["--log-driver", "none", &image]].concat())),
                GREETING,
                "{image}"
            );
            succeed(&mut podman(&folder, &["rmi", "--all", "--force"]));
        }
        assert_all_answered(&mut registries, "containers/");
    });
}

#[test]
fn podman_is_told_that_its_platform_is_left_out() {
    privately(|| {
        let mut registries = Registries::of_one_platform();
        let image = format!("{}/test/multi:1", registries.address);
        let mut pull = podman(&registries.path(""), &["pull", "--cert-dir", "certs", "--arch", "arm64", &image]);
        assert_left_out(&mut registries, &mut pull);
    });
}

#[test]
fn skopeo_copies_the_index_without_what_is_left_out() {
    privately(|| {
        let mut registries = Registries::of_one_platform();
        let [_, image] = names(&registries);
        let copy = ["copy", "--quiet", "--preserve-digests", "--src-cert-dir", "certs", "--multi-arch"];
        let from = format!("docker://{image}");
        succeed(&mut skopeo(&[&copy[..], &["index-only", &from, "dir:index"]].concat(), &registries.path("")));
        let copied = fs::read(registries.path("index/manifest.json")).unwrap();
        let index = fs::read(registries.images.layout.path().join(registries.images.index.digest.blob_path())).unwrap();
        assert!(copied == index);
        let mut all = skopeo(&[&copy[..], &["all", &from, "dir:all"]].concat(), &registries.path(""));
        assert_left_out(&mut registries, &mut all);
    });
}

#[test]
fn containerd_pulls_by_tag_and_by_index_digest() {
    privately(|| {
        let mut registries = Registries::of_one_platform();
        let containerd = Containerd::start_with_cri();
        containerd.host(&registries.address, &registries.address, &registries.ca());
        for image in names(&registries) {
            succeed(&mut containerd.fetch(&["images", "pull"], &image));
            let listed = succeed(&mut containerd.ctr(&["images", "list", &format!("name=={image}")]));
            assert!(listed.contains(&registries.images.index.digest.to_string()), "{listed}");
            assert_eq!(succeed(&mut containerd.ctr(&["run", "--rm", &image, "hello"])), GREETING);
            succeed(&mut containerd.ctr(&["images", "remove", &image]));
            assert_eq!(cri::pull(&containerd.socket(), &image), Ok(registries.images.config.clone()));
        }
        assert_all_answered(&mut registries, "containerd/");
    });
}

#[test]
fn dockerd_pulls_by_tag_and_by_index_digest() {
    privately(|| {
        let mut registries = Registries::of_one_platform();
        let trusted = Path::new("/etc/docker/certs.d").join(&registries.address);
        fs::create_dir_all(&trusted).unwrap();
        fs::copy(registries.ca(), trusted.join("ca.crt")).unwrap();
        let dockerd = Dockerd::start(&[], None);
        for image in names(&registries) {
            succeed(&mut dockerd.docker(&["pull", "--quiet", &image]));
            assert_eq!(succeed(&mut dockerd.docker(&["run", "--rm", "--network", "host", &image])), GREETING, "{image}");
            succeed(&mut dockerd.docker(&["image", "prune", "--all", "--force"]));
        }
        assert_all_answered(&mut registries, "docker/");
    });
}
