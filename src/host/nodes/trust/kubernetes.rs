//! The ConfigMap that tells tools in a cluster where its registry is (KEP-1755, `localRegistryHosting.v1`).

use super::{Bundle, FileTree};
use crate::host::support::quote::{block, quoted};

/// `local-registry-hosting.yaml`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let address = bundle.address();
    FileTree::from([("local-registry-hosting.yaml".to_owned(), hosting(address, address))])
}

/// The ConfigMap of a registry. Nodes and tools outside of the cluster reach it at `nodes`, containers at `inside`.
pub(crate) fn hosting(nodes: &str, inside: &str) -> String {
    let (nodes, inside) = (quoted(nodes), quoted(inside));
    let hosting = block(&format!("host: {nodes}\nhostFromContainerRuntime: {nodes}\nhostFromClusterNetwork: {inside}\n"), 4);
    format!(
        "apiVersion: v1\n\
         kind: ConfigMap\n\
         metadata:\n\
         \x20 name: local-registry-hosting\n\
         \x20 namespace: kube-public\n\
         data:\n\
         \x20 localRegistryHosting.v1: |\n{hosting}"
    )
}
