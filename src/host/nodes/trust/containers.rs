//! Files of the library in podman, skopeo, buildah and CRI-O (containers/image, containers-registries.conf(5) and
//! containers-certs.d(5)) for `/etc/containers`. Its mirrors always fall back to the upstream host. Instead, each upstream's
//! location is rewritten to the registry, so that no other server is asked.

use std::iter;

use super::{Bundle, FileTree};
use crate::host::support::quote::quoted;
use crate::oci::Host;
use crate::oci::upstreams::aliases;

/// Sorts after most other files; later files override earlier ones.
const CONF: &str = "registries.conf.d/50-localregistry.conf";

/// `certs.d` and `registries.conf.d`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let folders: Vec<String> = bundle.addresses().map(|address| format!("certs.d/{address}")).collect();
    let mut tree = bundle.certificates(folders.iter().map(String::as_str));
    tree.insert(CONF.to_owned(), conf(bundle));
    tree
}

/// What these clients cannot pull. Their grammar of references has no IPv6 addresses (containers/image, `docker/reference`).
pub(crate) fn limits(bundle: &Bundle) -> Vec<String> {
    const NO_IPV6: &str = "podman, skopeo, buildah and CRI-O take no IPv6 address in the name of an image";
    let address = bundle.image_address();
    if bundle.endpoints.iter().all(Host::is_ipv6) {
        let remedy = "give the registry a DNS name (--san of run and serve, --endpoint of trust)";
        return vec![format!("{NO_IPV6}, so they pull nothing from {address}: {remedy}")];
    }
    let upstreams = bundle.mirrored_hosts().filter(|host| host.is_ipv6());
    upstreams.map(|host| format!("{NO_IPV6}: in place of {host}/NAME, pull {address}/{}/NAME", host.component())).collect()
}

fn conf(bundle: &Bundle) -> String {
    let insecure = if bundle.ca.is_some() { "" } else { "insecure = true\n" };
    let limits = limits(bundle).into_iter().map(|limit| format!("# {limit}\n"));
    let own = bundle.addresses().map(|address| format!("[[registry]]\nlocation = {}\n{insecure}", quoted(address)));
    let mirrored = bundle.mirrored_hosts().filter(|host| !host.is_ipv6()).flat_map(|host| {
        let location = quoted(&format!("{}/{}", bundle.image_address(), host.component()));
        let prefixes = iter::once(host.as_str()).chain(aliases(host.as_str()).iter().copied());
        prefixes.map(move |prefix| format!("[[registry]]\nprefix = {}\nlocation = {location}\n{insecure}", quoted(prefix)))
    });
    limits.chain(own).chain(mirrored).collect::<Vec<_>>().join("\n")
}
