//! Documents of a Talos machine's config, from Talos 1.12 on (Talos reference, "RegistryMirrorConfig" and "RegistryTLSConfig"):
//! `skipFallback` ends the search at the mirror.

use super::text::{block, quoted};
use super::{Bundle, Tree};

/// Every host that has no document of its own.
const OTHERS: &str = "*";

/// `registries.yaml`.
pub(crate) fn files(bundle: &Bundle) -> Tree {
    let own = bundle.addresses().map(|address| (address, bundle.url_of(address)));
    let mirrored = bundle.mirrored().chain([OTHERS]).map(|host| (host, bundle.url()));
    let mirrors = own.chain(mirrored).map(|(host, url)| {
        format!(
            "apiVersion: v1alpha1\nkind: RegistryMirrorConfig\nname: {}\nendpoints:\n  - url: {}\nskipFallback: true\n",
            quoted(host),
            quoted(&url)
        )
    });
    let trusted = bundle.ca.iter().flat_map(|ca| {
        bundle.addresses().map(|address| {
            let (name, ca) = (quoted(address), block(ca, 2));
            format!("apiVersion: v1alpha1\nkind: RegistryTLSConfig\nname: {name}\nca: |-\n{ca}")
        })
    });
    Tree::from([("registries.yaml".to_owned(), mirrors.chain(trusted).collect::<Vec<_>>().join("---\n"))])
}
