//! A kind cluster config that mounts containerd's folders into the node (kind, "Configuration", "Extra Mounts").

use super::{Bundle, FileTree, containerd, under};
use crate::host::support::quote::quoted;

/// The folder that containerd on the node reads.
const CERTS: &str = "/etc/containerd/certs.d";

/// `kind.yaml`, and the folder `certs.d` that it mounts.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let mut tree = under("certs.d", containerd::certs(bundle));
    tree.insert("kind.yaml".to_owned(), cluster(bundle));
    tree
}

fn cluster(bundle: &Bundle) -> String {
    let host = quoted(&format!("{}/kind/certs.d", bundle.dir));
    // The patch is for node images before kind 0.27. Later ones read this folder by default.
    format!(
        "kind: Cluster\n\
         apiVersion: kind.x-k8s.io/v1alpha4\n\
         containerdConfigPatches:\n\
         \x20 - |-\n\
         \x20   [plugins.\"io.containerd.grpc.v1.cri\".registry]\n\
         \x20     config_path = \"{CERTS}\"\n\
         nodes:\n\
         \x20 - role: control-plane\n\
         \x20   extraMounts:\n\
         \x20     - hostPath: {host}\n\
         \x20       containerPath: {CERTS}\n\
         \x20       readOnly: true\n"
    )
}
