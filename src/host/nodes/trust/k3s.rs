//! k3s' and RKE2's files, for `/etc/rancher/k3s` (K3s, "Private Registry Configuration"). k3s asks a host itself after its mirrors
//! unless it runs with `--disable-default-registry-endpoint`, which the drop-in says, and which counts for the hosts that are listed.

use super::text::quoted;
use super::{Bundle, Tree};

/// The folder that the files are for: the CA is named by its whole path.
const FOLDER: &str = "/etc/rancher/k3s";
/// Every host that is not listed.
const OTHERS: &str = "*";
/// The CA's file.
const CA: &str = "localregistry.crt";

/// `registries.yaml`, the CA, and `config.yaml.d/localregistry.yaml`.
pub(crate) fn files(bundle: &Bundle) -> Tree {
    let mut tree = Tree::new();
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
