//! Documents of a Talos machine config, from Talos 1.12 (Talos reference, "RegistryMirrorConfig" and "RegistryTLSConfig").
//! `skipFallback` disables the fallback to the upstream host.

use super::{Bundle, FileTree};
use crate::host::support::quote::{block, quoted};

/// Talos' entry for hosts without a document.
const OTHERS: &str = "*";

/// `registries.yaml`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
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
    FileTree::from([("registries.yaml".to_owned(), mirrors.chain(trusted).collect::<Vec<_>>().join("---\n"))])
}
