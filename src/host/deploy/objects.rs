//! Generates the Kubernetes objects as YAML from the templates `*.yaml` in this folder. Names in braces in them are placeholders.

use crate::host::nodes::trust::kubernetes::hosting;
use crate::host::support::quote::quoted;
use crate::oci::Host;

/// The name of every object, and the label by which the Service selects its pods or VM.
pub const NAME: &str = "localregistry";
/// The registry's port in its container or VM: the guest's default port.
pub const PORT: u16 = 5000;
/// User and group ID of the server, as in other images without users (`nonroot`).
pub const USER: u32 = 65532;
/// Path of the images in the server's container.
pub const IMAGES: &str = "/images";
/// Mount point of the Secret.
const CA: &str = "/ca";
/// The Secret with the CA that signs every replica's certificate, of type `kubernetes.io/tls`.
pub const SECRET: &str = "localregistry-ca";

/// Path of the kernel in the boot image.
pub const KERNEL: &str = "/boot/vmlinux";
/// Path of the initramfs in the boot image.
pub const INITRAMFS: &str = "/boot/initramfs.cpio";
/// Memory of a VM, as `run` gives it by default.
const MEMORY: &str = "256Mi";

/// Where a registry runs in a cluster, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The namespace of all objects but the ConfigMap.
    pub namespace: String,
    /// Hosts and ports by which nodes reach the registry. Never empty; tools get the first.
    pub hosts: Vec<Host>,
    /// The port of every node that forwards to the registry.
    pub node_port: u16,
}

impl Location {
    /// Host and port by which containers of the cluster reach the registry.
    pub fn inside(&self) -> String {
        format!("{NAME}.{}.svc:{PORT}", self.namespace)
    }

    /// The names and addresses of its certificate, without duplicates.
    fn names(&self) -> Vec<String> {
        let service = format!("{NAME}.{}", self.namespace);
        let mut names: Vec<String> =
            vec![NAME.to_owned(), service.clone(), format!("{service}.svc"), format!("{service}.svc.cluster.local")];
        for host in &self.hosts {
            let name = host.name().trim_matches(['[', ']']);
            if names.iter().all(|known| known != name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    fn node_host(&self) -> &str {
        self.hosts.first().map(Host::as_str).unwrap_or_default()
    }
}

/// Two replicas of the server, the Service and the ConfigMap.
pub fn kubernetes(location: &Location, server: &str) -> String {
    let san = |name: &String| format!("            - --san\n            - {}\n", quoted(name));
    let deployment = format!(
        include_str!("deployment.yaml"),
        name = NAME,
        namespace = quoted(&location.namespace),
        plain = location.namespace,
        image = quoted(server),
        sans = location.names().iter().map(san).collect::<String>(),
        port = PORT,
        user = USER,
        ca = CA,
        secret = SECRET,
    );
    documents(&[deployment, service(location), config_map(location)])
}

/// The VM, with the same Service and ConfigMap.
pub fn kubevirt(location: &Location, disk: &str, boot: &str) -> String {
    // The kernel command line of `run`, for the machine type that KubeVirt uses.
    let arguments = format!(
        "console=ttyS0 panic=-1 loglevel=5 cryptomgr.notests no_timer_check localregistry.names={}",
        location.names().join(",")
    );
    let machine = format!(
        include_str!("machine.yaml"),
        name = NAME,
        namespace = quoted(&location.namespace),
        memory = MEMORY,
        arguments = quoted(&arguments),
        boot = quoted(boot),
        kernel = KERNEL,
        initramfs = INITRAMFS,
        disk = quoted(disk),
        port = PORT,
    );
    documents(&[machine, service(location), config_map(location)])
}

fn service(location: &Location) -> String {
    format!(
        include_str!("service.yaml"),
        name = NAME,
        namespace = quoted(&location.namespace),
        port = PORT,
        node_port = location.node_port
    )
}

fn config_map(location: &Location) -> String {
    hosting(location.node_host(), &location.inside())
}

fn documents(documents: &[String]) -> String {
    documents.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_has_every_name_once() {
        let hosts = ["registry.test:30500", "[fd00::1]:30500", "localregistry:30500"].map(|host| host.parse().unwrap());
        let location = Location { namespace: "e2e".to_owned(), hosts: hosts.into(), node_port: 30500 };
        let expected = [
            "localregistry",
            "localregistry.e2e",
            "localregistry.e2e.svc",
            "localregistry.e2e.svc.cluster.local",
            "registry.test",
            "fd00::1",
        ];
        assert_eq!(location.names(), expected);
        assert_eq!((location.inside().as_str(), location.node_host()), ("localregistry.e2e.svc:5000", "registry.test:30500"));
    }
}
