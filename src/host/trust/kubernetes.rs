//! The ConfigMap by which a cluster tells tools where its registry is (KEP-1755, `localRegistryHosting.v1`).

use super::text::{block, quoted};
use super::{Bundle, Tree};

/// `local-registry-hosting.yaml`.
pub(super) fn files(bundle: &Bundle) -> Tree {
    let address = quoted(bundle.address());
    let hosting = block(&format!("host: {address}\nhostFromContainerRuntime: {address}\nhostFromClusterNetwork: {address}\n"), 4);
    let yaml = format!(
        "apiVersion: v1\n\
         kind: ConfigMap\n\
         metadata:\n\
         \x20 name: local-registry-hosting\n\
         \x20 namespace: kube-public\n\
         data:\n\
         \x20 localRegistryHosting.v1: |\n{hosting}"
    );
    Tree::from([("local-registry-hosting.yaml".to_owned(), yaml)])
}
