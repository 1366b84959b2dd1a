//! Files of k3s and RKE2 for `/etc/rancher/k3s` (K3s, "Private Registry Configuration"). k3s falls back to the host itself after
//! its mirrors, unless it runs with `--disable-default-registry-endpoint`. The drop-in sets this flag, which applies to the listed
//! hosts.

use super::{Bundle, FileTree};
use crate::host::support::quote::quoted;

/// The folder on the node. The CA is referred to by its absolute path.
const FOLDER: &str = "/etc/rancher/k3s";
/// k3s' entry for all other hosts.
const OTHERS: &str = "*";
/// The CA's file name.
const CA: &str = "localregistry.crt";

/// `registries.yaml`, the CA, and `config.yaml.d/localregistry.yaml`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let mut tree = FileTree::new();
    tree.insert("registries.yaml".to_owned(), registries(bundle));
    tree.insert("config.yaml.d/localregistry.yaml".to_owned(), "disable-default-registry-endpoint: true\n".to_owned());
    tree.extend(bundle.ca.clone().map(|ca| (CA.to_owned(), ca)));
    tree
}

fn registries(bundle: &Bundle) -> String {
    let own = bundle.addresses().map(|address| (address, bundle.url_of(address)));
    let mirrored = bundle.mirrored().chain([OTHERS]).map(|host| (host, bundle.url()));
    let mut yaml = "mirrors:\n".to_owned();
    for (host, url) in own.chain(mirrored) {
        yaml.push_str(&format!("  {}:\n    endpoint:\n      - {}\n", quoted(host), quoted(&url)));
    }
    if bundle.ca.is_some() {
        yaml.push_str("configs:\n");
        for address in bundle.addresses() {
            let file = quoted(&format!("{FOLDER}/{CA}"));
            yaml.push_str(&format!("  {}:\n    tls:\n      ca_file: {file}\n", quoted(address)));
        }
    }
    yaml
}
