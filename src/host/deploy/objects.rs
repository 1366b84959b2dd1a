//! Kubernetes objects as YAML: a registry's place and its images enter, documents for `kubectl apply` leave. Pure. The objects
//! themselves are in the `.yaml` files beside this one, with names in braces for what is filled in.

use crate::host::nodes::trust::kubernetes::hosting;
use crate::host::nodes::trust::text::quoted;
use crate::oci::Host;

/// Name of every object, and the label by which the Service finds what serves.
pub const NAME: &str = "localregistry";
/// The registry's port in its container or machine: the one that the guest has by default.
pub const PORT: u16 = 5000;
/// User and group of the server: nobody's, as images without users have it.
pub const USER: u32 = 65532;
/// Where the images lie in the server's container.
pub const IMAGES: &str = "/images";
/// Where the Secret is mounted.
const CA: &str = "/ca";
/// The Secret with the CA that signs every replica's certificate, of the type `kubernetes.io/tls`.
pub const SECRET: &str = "localregistry-ca";

/// Where the kernel and its initramfs lie in their image.
pub const KERNEL: &str = "/boot/vmlinux";
/// The initramfs.
pub const INITRAMFS: &str = "/boot/initramfs.cpio";
/// Memory of a machine, as `run` gives it by default.
const MEMORY: &str = "256Mi";

/// Where a registry is to be in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace of all but the ConfigMap.
    pub namespace: String,
    /// Where nodes reach it, host and port. Never empty; the first is told to tools.
    pub hosts: Vec<Host>,
    /// The port that every node forwards to it.
    pub node_port: u16,
}

impl Place {
    /// Where containers reach it.
    pub fn inside(&self) -> String {
        format!("{NAME}.{}.svc:{PORT}", self.namespace)
    }

    /// The names and addresses that its certificate is for, each once.
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

/// The server, twice, with its Service and the ConfigMap.
pub fn kubernetes(place: &Place, server: &str) -> String {
    let san = |name: &String| format!("            - --san\n            - {}\n", quoted(name));
    let deployment = format!(
        include_str!("deployment.yaml"),
        name = NAME,
        namespace = quoted(&place.namespace),
        plain = place.namespace,
        image = quoted(server),
        sans = place.names().iter().map(san).collect::<String>(),
        port = PORT,
        user = USER,
        ca = CA,
        secret = SECRET,
    );
    documents(&[deployment, service(place), config_map(place)])
}

/// The machine, with the same Service and ConfigMap.
pub fn kubevirt(place: &Place, disk: &str, boot: &str) -> String {
    // As QEMU's arguments of `run` have it, for the board that KubeVirt takes.
    let arguments = format!("console=ttyS0 panic=-1 loglevel=5 no_timer_check localregistry.names={}", place.names().join(","));
    let machine = format!(
        include_str!("machine.yaml"),
        name = NAME,
        namespace = quoted(&place.namespace),
        memory = MEMORY,
        arguments = quoted(&arguments),
        boot = quoted(boot),
        kernel = KERNEL,
        initramfs = INITRAMFS,
        disk = quoted(disk),
        port = PORT,
    );
    documents(&[machine, service(place), config_map(place)])
}

fn service(place: &Place) -> String {
    format!(
        include_str!("service.yaml"),
        name = NAME,
        namespace = quoted(&place.namespace),
        port = PORT,
        node_port = place.node_port
    )
}

fn config_map(place: &Place) -> String {
    hosting(place.node_host(), &place.inside())
}

fn documents(documents: &[String]) -> String {
    documents.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_for_every_name_once() {
        let hosts = ["registry.test:30500", "[fd00::1]:30500", "localregistry:30500"].map(|host| host.parse().unwrap());
        let place = Place { namespace: "e2e".to_owned(), hosts: hosts.into(), node_port: 30500 };
        let expected = [
            "localregistry",
            "localregistry.e2e",
            "localregistry.e2e.svc",
            "localregistry.e2e.svc.cluster.local",
            "registry.test",
            "fd00::1",
        ];
        assert_eq!(place.names(), expected);
        assert_eq!((place.inside().as_str(), place.node_host()), ("localregistry.e2e.svc:5000", "registry.test:30500"));
    }
}
