//! What every launcher can use: the CA, variables for a shell, and the list of images.

use std::collections::HashSet;

use super::text::shell;
use super::{Bundle, Tree};
use crate::oci::{ImageName, Repository};
use crate::registry::content::upstreams::{DOCKER_HUB, LOCALHOST};

/// The files.
pub(crate) const NAMES: [&str; 3] = ["ca.crt", "env", "images.txt"];

/// `ca.crt` (with TLS), `env` and `images.txt`.
pub(crate) fn files(bundle: &Bundle) -> Tree {
    let [ca, env, images] = NAMES;
    let mut tree = Tree::new();
    tree.extend(bundle.ca.clone().map(|pem| (ca.to_owned(), pem)));
    tree.insert(env.to_owned(), variables(bundle));
    tree.insert(images.to_owned(), references(bundle));
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

/// The images as a pod's spec would name them, one a line: an upstream's by its own name, by way of the mirror entries. What podman
/// named `localhost/NAME` is the registry's own `NAME`, unless the registry finds another repository by that name first.
fn references(bundle: &Bundle) -> String {
    let address = bundle.address();
    let repositories = bundle.images.iter().map(|image| &image.repository);
    let found_first: HashSet<&str> =
        repositories.filter(|one| matches!(one.host(), None | Some(DOCKER_HUB))).map(|one| one.path()).collect();
    let own = |image: &ImageName| match (image.repository.host(), image.repository.path()) {
        (None, _) => Some(image.clone()),
        (Some(LOCALHOST), path) if !found_first.contains(path) => {
            let repository = path.parse::<Repository>().ok().filter(|repository| repository.host().is_none())?;
            Some(ImageName { repository, ..image.clone() })
        }
        _ => None,
    };
    let reference = |image| own(image).map_or_else(|| format!("{image}\n"), |own| format!("{address}/{own}\n"));
    bundle.images.iter().map(reference).collect()
}
