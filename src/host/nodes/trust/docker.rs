//! Files of dockerd for `/etc/docker`, and lines for `/etc/hosts`. dockerd has mirrors only for docker.io, and falls back to Docker
//! Hub in any case, so its name must not resolve. Another upstream host can be replaced only if the registry is an IP address with
//! port 443: then the host's name can resolve to it.

use std::net::IpAddr;

use serde_json::json;

use super::{Bundle, FileTree};
use crate::oci::Host;
use crate::oci::upstreams::{DOCKER_HUB, LOCALHOST, aliases};

/// An address that refuses connections at once.
const NOWHERE: &str = "0.0.0.0";
/// The port of HTTPS.
const HTTPS: &str = "443";

/// `certs.d`, `daemon.json` and `hosts`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    // localhost is not redirected: images that podman names `localhost/NAME` are also in the registry as `NAME`.
    let others: Vec<&Host> = bundle.mirrored_hosts().filter(|host| ![DOCKER_HUB, LOCALHOST].contains(&host.as_str())).collect();
    let stand_in = standing_in(bundle);
    let named = others.iter().filter(|_| stand_in.is_some()).map(|host| host.as_str());
    let folders: Vec<String> = bundle.addresses().chain(named).map(|host| format!("certs.d/{host}")).collect();
    let mut tree = bundle.certificates(folders.iter().map(String::as_str));
    tree.insert("daemon.json".to_owned(), daemon(bundle));
    tree.insert("hosts".to_owned(), hosts(bundle, &others, stand_in));
    tree
}

fn has_mirrored(bundle: &Bundle) -> bool {
    bundle.mirrored().any(|host| host == DOCKER_HUB)
}

fn daemon(bundle: &Bundle) -> String {
    let mut daemon = json!({});
    if has_mirrored(bundle) {
        daemon["registry-mirrors"] = json!([bundle.url()]);
    }
    if bundle.ca.is_none() {
        daemon["insecure-registries"] = bundle.addresses().collect();
    }
    format!("{daemon:#}\n")
}

/// The address to which names of other registries can resolve.
fn standing_in(bundle: &Bundle) -> Option<IpAddr> {
    let host = bundle.endpoints.first()?;
    let port = host.as_str().strip_prefix(host.name()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(HTTPS);
    let address = host.name().trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    (port == HTTPS && bundle.ca.is_some()).then_some(address)
}

fn hosts(bundle: &Bundle, others: &[&Host], stand_in: Option<IpAddr>) -> String {
    let mut lines = Vec::new();
    if has_mirrored(bundle) {
        lines.push("# dockerd falls back to Docker Hub after its mirror: disable the name.".to_owned());
        lines.push(format!("{NOWHERE} {}", aliases(DOCKER_HUB).join(" ")));
    }
    for other in others {
        lines.push(match stand_in.filter(|_| other.name() == other.as_str()) {
            Some(address) => format!("{address} {other}"),
            None => format!(
                "# dockerd has no mirrors for {other}: pull {}/{}/NAME{}",
                bundle.image_address(),
                other.component(),
                // Names in /etc/hosts have no port.
                if other.name() == other.as_str() {
                    format!(", or serve on an address with port {HTTPS}")
                } else {
                    String::new()
                }
            ),
        });
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
