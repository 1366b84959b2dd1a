//! Files of every bundle: the CA, shell variables, and the list of images.

use std::collections::HashSet;

use super::{Bundle, FileTree};
use crate::host::support::quote::shell;
use crate::oci::upstreams::{DOCKER_HUB, LOCALHOST};
use crate::oci::{ImageName, Repository};

/// The file names.
pub(crate) const NAMES: [&str; 3] = ["ca.crt", "env", "images.txt"];

/// `ca.crt` (with TLS), `env` and `images.txt`.
pub(crate) fn files(bundle: &Bundle) -> FileTree {
    let [ca, env, images] = NAMES;
    let mut tree = FileTree::new();
    tree.extend(bundle.ca.clone().map(|pem| (ca.to_owned(), pem)));
    tree.insert(env.to_owned(), variables(bundle));
    tree.insert(images.to_owned(), references(bundle));
    tree
}

/// Variable assignments for `. env`, `set -a; . env` and systemd's `EnvironmentFile=`. A bundle is copied to nodes, and a sourced
/// file does not know its own path, so the CA's path is relative.
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

/// The images as named in a pod's spec, one per line. Images of upstream hosts keep their names and are found by the mirror
/// entries, except those of an IPv6 address, which few clients take in a name. `localhost/NAME`, which podman uses, becomes the registry's own `NAME`, unless the registry resolves that to another
/// repository first.
fn references(bundle: &Bundle) -> String {
    let address = bundle.image_address();
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
    let is_nameable = |image: &ImageName| !image.repository.as_str().starts_with('[');
    let reference = |image: &ImageName| match own(image) {
        Some(own) => format!("{address}/{own}\n"),
        None if is_nameable(image) => format!("{image}\n"),
        None => {
            let name = image.to_string();
            let reference = name.strip_prefix(image.repository.as_str()).unwrap_or_default();
            format!("{address}/{}{reference}\n", image.repository.to_path())
        }
    };
    bundle.images.iter().map(reference).collect()
}
