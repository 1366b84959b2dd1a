//! What every launcher can use: the CA, variables for a shell, and the list of images.

use super::text::shell;
use super::{Bundle, Tree};
use crate::oci::ImageName;

/// The files.
pub(super) const NAMES: [&str; 3] = ["ca.crt", "env", "images.txt"];

/// `ca.crt` (with TLS), `env` and `images.txt`.
pub(super) fn files(bundle: &Bundle) -> Tree {
    let [ca, env, images] = NAMES;
    let mut tree = Tree::new();
    tree.extend(bundle.ca.clone().map(|pem| (ca.to_owned(), pem)));
    tree.insert(env.to_owned(), variables(bundle));
    tree.insert(images.to_owned(), bundle.images.iter().map(|image| reference(bundle, image) + "\n").collect());
    tree
}

/// Assignments, for `. env`, `set -a; . env` and systemd's `EnvironmentFile=`. A bundle is copied to nodes, and no shell tells a file
/// where it is: so the CA's path is relative to this file.
fn variables(bundle: &Bundle) -> String {
    let ca = bundle.ca.as_ref().map_or_else(String::new, |_| "ca.crt".to_owned());
    let upstreams: Vec<&str> = bundle.mirrored().collect();
    [
        ("LOCALREGISTRY_ENDPOINT", bundle.url()),
        ("LOCALREGISTRY_ADDRESS", bundle.address().to_owned()),
        ("LOCALREGISTRY_CA", ca),
        ("LOCALREGISTRY_UPSTREAMS", upstreams.join(" ")),
    ]
    .iter()
    .map(|(name, value)| format!("{name}={}\n", shell(value)))
    .fold("# Paths are relative to the folder of this file.\n".to_owned(), |text, line| text + &line)
}

/// The image as a pod's spec would name it: an upstream's by its own name, by way of the mirror entries.
fn reference(bundle: &Bundle, image: &ImageName) -> String {
    if image.repository.host().is_some() { image.to_string() } else { format!("{}/{image}", bundle.address()) }
}
