//! dockerd's files, for `/etc/docker`, and lines for the node's `/etc/hosts`. dockerd has mirrors for docker.io alone, and after them
//! asks Docker Hub whatever it is told: only its name can be taken away. Another upstream can be stood in for only where the registry
//! is an address with HTTPS's own port, since then the upstream's name can be given to it.

use std::net::IpAddr;

use serde_json::json;

use super::{Bundle, Tree};
use crate::registry::content::upstreams::{DOCKER_HUB, LOCALHOST, aliases};

/// An address that nothing answers at, and that says so at once.
const NOWHERE: &str = "0.0.0.0";
/// Port of HTTPS.
const HTTPS: &str = "443";

/// `certs.d`, `daemon.json` and `hosts`.
pub(crate) fn files(bundle: &Bundle) -> Tree {
    // The name of the node itself is not given away: what podman named `localhost/NAME` the registry also has as `NAME`.
    let others: Vec<&str> = bundle.mirrored().filter(|host| ![DOCKER_HUB, LOCALHOST].contains(host)).collect();
    let stand_in = standing_in(bundle);
    let named = others.iter().filter(|_| stand_in.is_some());
    let folders: Vec<String> = bundle.addresses().chain(named.copied()).map(|host| format!("certs.d/{host}")).collect();
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

/// The address that other registries' names can be given to.
fn standing_in(bundle: &Bundle) -> Option<IpAddr> {
    let host = bundle.endpoints.first()?;
    let port = host.as_str().strip_prefix(host.name()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(HTTPS);
    let address = host.name().trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    (port == HTTPS && bundle.ca.is_some()).then_some(address)
}

fn hosts(bundle: &Bundle, others: &[&str], stand_in: Option<IpAddr>) -> String {
    let mut lines = Vec::new();
    if has_mirrored(bundle) {
        lines.push("# Docker Hub is asked after its mirror: it is nowhere.".to_owned());
        let names = aliases().filter(|(_, upstream)| *upstream == DOCKER_HUB).map(|(alias, _)| alias);
        lines.push(format!("{NOWHERE} {}", names.collect::<Vec<_>>().join(" ")));
    }
    for other in others {
        lines.push(match stand_in.filter(|_| !other.contains(':')) {
            Some(address) => format!("{address} {other}"),
            None => format!(
                "# dockerd has no mirror for {other}: pull {}/{other}/NAME, or serve at an address with port {HTTPS}",
                bundle.address()
            ),
        });
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}
