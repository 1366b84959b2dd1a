//! containerd's hosts files (containerd, `docs/hosts.md`): a folder for each host of image names. What `server` names is the last that
//! is asked, and without it that would be the host itself: it is the registry here, so that nobody else is asked.

use super::text::quoted;
use super::{Bundle, Tree};

/// The folder for every host that has none.
const DEFAULT: &str = "_default";

/// The folders: for the registry by each of its addresses, for each upstream host, and for all the others.
pub(crate) fn certs(bundle: &Bundle) -> Tree {
    let own = bundle.addresses().map(|address| (address, bundle.url_of(address)));
    let mirrored = bundle.mirrored().chain([DEFAULT]).map(|host| (host, bundle.url()));
    let mut tree = Tree::new();
    for (host, url) in own.chain(mirrored) {
        for folder in folders(host) {
            tree.insert(format!("{folder}/hosts.toml"), hosts_toml(&url, bundle.ca.is_some()));
            tree.extend(bundle.certificates([folder.as_str()]));
        }
    }
    tree
}

/// Names of the folder for `host`: containerd takes either for a host with a port, and some tools cannot keep a colon.
fn folders(host: &str) -> Vec<String> {
    let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let plain = port.map(|(name, port)| format!("{name}_{port}_"));
    [host.to_owned()].into_iter().chain(plain).collect()
}

fn hosts_toml(url: &str, tls: bool) -> String {
    // Relative to this file's folder.
    let ca = if tls { "ca = \"ca.crt\"\n" } else { "" };
    let how = format!("capabilities = [\"pull\", \"resolve\"]\n{ca}");
    let server = format!("server = {}\n{how}", quoted(url));
    // containerd 1.6 can neither read a table with a bracket in its name nor do without `host`, and with a file that it cannot read it
    // asks the upstream itself. `server` with its own lines is enough.
    if url.contains('[') { format!("{server}\n[host]\n") } else { format!("{server}\n[host.{}]\n{how}", quoted(url)) }
}

#[cfg(test)]
mod tests {
    use super::folders;

    #[test]
    fn a_host_with_a_port_has_two_folders() {
        assert_eq!(folders("10.1.0.82:5000"), ["10.1.0.82:5000", "10.1.0.82_5000_"]);
        assert_eq!(folders("[fd00::1]:5000"), ["[fd00::1]:5000", "[fd00::1]_5000_"]);
        assert_eq!(folders("[fd00::1]"), ["[fd00::1]"]);
        assert_eq!(folders("docker.io"), ["docker.io"]);
    }
}
