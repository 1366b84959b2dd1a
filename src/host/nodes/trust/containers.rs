//! Files of the library that podman, skopeo, buildah and CRI-O share (containers/image, containers-registries.conf(5) and
//! containers-certs.d(5)), for `/etc/containers`. A mirror there is always followed by the host itself: instead, each upstream's
//! location is rewritten to the registry, and then nothing else is ever asked.

use super::text::quoted;
use super::{Bundle, Tree};

/// Read after most others; what is read later wins.
const CONF: &str = "registries.conf.d/50-localregistry.conf";

/// `certs.d` and `registries.conf.d`.
pub(crate) fn files(bundle: &Bundle) -> Tree {
    let folders: Vec<String> = bundle.addresses().map(|address| format!("certs.d/{address}")).collect();
    let mut tree = bundle.certificates(folders.iter().map(String::as_str));
    tree.insert(CONF.to_owned(), conf(bundle));
    tree
}

fn conf(bundle: &Bundle) -> String {
    let insecure = if bundle.ca.is_some() { "" } else { "insecure = true\n" };
    let own = bundle.addresses().map(|address| format!("[[registry]]\nlocation = {}\n{insecure}", quoted(address)));
    let mirrored = bundle.mirrored().map(|host| {
        let location = quoted(&format!("{}/{host}", bundle.address()));
        format!("[[registry]]\nprefix = {}\nlocation = {location}\n{insecure}", quoted(host))
    });
    own.chain(mirrored).collect::<Vec<_>>().join("\n")
}
