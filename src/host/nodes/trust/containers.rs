//! Files of the library in podman, skopeo, buildah and CRI-O (containers/image, containers-registries.conf(5) and
//! containers-certs.d(5)) for `/etc/containers`. Its mirrors always fall back to the upstream host. Instead, each upstream's
//! location is rewritten to the registry, so that no other server is asked.

use std::iter;

use super::{Bundle, FileTree};
use crate::host::support::quote::quoted;
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

fn conf(bundle: &Bundle) -> String {
    let insecure = if bundle.ca.is_some() { "" } else { "insecure = true\n" };
    let own = bundle.addresses().map(|address| format!("[[registry]]\nlocation = {}\n{insecure}", quoted(address)));
    let spelled =
        bundle.mirrored().flat_map(|host| iter::once(host).chain(aliases(host).iter().copied()).map(move |alias| (alias, host)));
    let mirrored = spelled.map(|(prefix, host)| {
        let location = quoted(&format!("{}/{host}", bundle.address()));
        format!("[[registry]]\nprefix = {}\nlocation = {location}\n{insecure}", quoted(prefix))
    });
    own.chain(mirrored).collect::<Vec<_>>().join("\n")
}
