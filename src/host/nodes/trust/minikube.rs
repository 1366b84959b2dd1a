//! Files for `~/.minikube` (minikube, "File Sync" and "Certificates"): what is below `files` comes to the node's root, what is in
//! `certs` to the authorities that it trusts. dockerd's own config is minikube's: for it there are flags of `minikube start`.

use super::{Bundle, Tree, containerd, containers, docker, under};
use crate::registry::content::upstreams::DOCKER_HUB;

/// `files`, `certs` and `flags`, one flag a line.
pub(crate) fn files(bundle: &Bundle) -> Tree {
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
