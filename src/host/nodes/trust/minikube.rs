//! Files for `~/.minikube` (minikube, "File Sync" and "Certificates"): `files` is copied to the node's root, and the node trusts
//! the CAs in `certs`. minikube writes dockerd's config itself, so that needs flags of `minikube start`.

use super::{Bundle, FileTree, containerd, containers, docker, under};
use crate::oci::upstreams::DOCKER_HUB;

/// `files`, `certs` and `flags`, which has one flag per line.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let mut tree = under("files/etc/containerd/certs.d", containerd::certs(bundle));
    tree.extend(under("files/etc/containers", containers::files(bundle)));
    let docker = docker::files(bundle).into_iter().filter(|(path, _)| path.starts_with("certs.d/"));
    tree.extend(under("files/etc/docker", docker.collect()));
    tree.extend(bundle.ca.clone().map(|ca| ("certs/localregistry.pem".to_owned(), ca)));
    tree.insert("flags".to_owned(), flags(bundle));
    tree
}

fn flags(bundle: &Bundle) -> String {
    let mirrored = bundle.mirrored().filter(|host| *host == DOCKER_HUB);
    let mirror = mirrored.map(|_| format!("--registry-mirror={}\n", bundle.url()));
    let plain = bundle.addresses().filter(|_| bundle.ca.is_none()).map(|address| format!("--insecure-registry={address}\n"));
    mirror.chain(plain).collect()
}
