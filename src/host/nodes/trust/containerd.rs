//! Files of containerd (`docs/hosts.md` there): a folder for each host in image names. containerd asks `server` last, by default
//! the host itself. Here it is the registry, so that containerd asks no other server.

use super::{Bundle, FileTree};
use crate::host::support::quote::quoted;

/// containerd's folder for hosts without a folder.
const DEFAULT: &str = "_default";

/// Folders for each address of the registry, for each upstream host, and for all other hosts.
pub(crate) fn certs(bundle: &Bundle) -> FileTree {
    let own = bundle.addresses().map(|address| (address, bundle.url_of(address)));
    let mirrored = bundle.mirrored().chain([DEFAULT]).map(|host| (host, bundle.url()));
    let mut tree = FileTree::new();
    for (host, url) in own.chain(mirrored) {
        for folder in folders(host) {
            tree.insert(format!("{folder}/hosts.toml"), hosts_toml(&url, bundle.ca.is_some()));
            tree.extend(bundle.certificates([folder.as_str()]));
        }
    }
    tree
}

/// The folder names for `host`. containerd accepts two forms for a host with a port; some tools cannot keep a colon in a name.
fn folders(host: &str) -> Vec<String> {
    let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let plain = port.map(|(name, port)| format!("{name}_{port}_"));
    [host.to_owned()].into_iter().chain(plain).collect()
}

fn hosts_toml(url: &str, tls: bool) -> String {
    // Relative to the file's folder.
    let ca = if tls { "ca = \"ca.crt\"\n" } else { "" };
    let how = format!("capabilities = [\"pull\", \"resolve\"]\n{ca}");
    let server = format!("server = {}\n{how}", quoted(url));
    // containerd 1.6 cannot parse a table name with a bracket, and also requires `host`. If it cannot parse the file, it asks the
    // upstream host. So for an IPv6 address `server` has the options, and `host` is empty.
    if url.contains('[') { format!("{server}\n[host]\n") } else { format!("{server}\n[host.{}]\n{how}", quoted(url)) }
}

#[cfg(test)]
mod tests {
    use super::folders;

    #[test]
    fn host_with_a_port_has_two_folders() {
        assert_eq!(folders("10.1.0.82:5000"), ["10.1.0.82:5000", "10.1.0.82_5000_"]);
        assert_eq!(folders("[fd00::1]:5000"), ["[fd00::1]:5000", "[fd00::1]_5000_"]);
        assert_eq!(folders("[fd00::1]"), ["[fd00::1]"]);
        assert_eq!(folders("docker.io"), ["docker.io"]);
    }
}
