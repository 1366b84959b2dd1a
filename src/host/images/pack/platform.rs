//! Reduces a layout to one platform: `index.json` names the platform's manifest in place of each index.
//!
//! As with `skopeo copy` and `docker pull`, that manifest keeps its bytes and so its digest, and no new index is written. Content
//! that cannot be read stays unchanged; the layout's reader reports the error.

use serde_json::Value;
use std::collections::{HashMap, HashSet};

use crate::disk::layout::{self, IndexEntry, Tree};
use crate::host::images::virtual_layout::Overlay;
use crate::host::support::report::counted;
use crate::oci::graph::{self, Node};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Platform, media_type};

/// Largest `index.json` in bytes, as in the layout reader.
const MAX_INDEX: u64 = 64 << 20;
/// Annotation of BuildKit's attestations.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// An index has no manifest for the platform.
#[derive(Debug, thiserror::Error)]
#[error("image {image} has nothing for {wanted}, only for {}", available.join(", "))]
pub struct PlatformError {
    image: String,
    wanted: String,
    available: Vec<String>,
}

/// An index reduced to one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedPlatform {
    /// Digest of the kept manifest.
    pub kept: Digest,
    /// Platform of the kept manifest.
    pub platform: String,
    /// What was left out: platforms, and counts of manifests without one.
    pub left_out: Vec<String>,
}

type BoxedTree = Box<dyn Tree + Send + Sync>;

/// Reduces each index of `tree` to the platform `wanted`, and returns what was left out.
///
/// # Errors
/// Fails if an index has manifests for platforms, but none for this one, or if an image without an index is for another platform.
pub fn reduce(tree: BoxedTree, wanted: &Platform) -> Result<(BoxedTree, Vec<SelectedPlatform>), PlatformError> {
    let Some(mut index) =
        read(tree.as_ref(), "index.json", MAX_INDEX).and_then(|json| serde_json::from_slice::<Value>(&json).ok())
    else {
        return Ok((tree, Vec::new()));
    };
    let (mut left_out, mut dropped) = (Vec::new(), HashSet::new());
    let Some(roots) = index.get_mut("manifests").and_then(Value::as_array_mut) else { return Ok((tree, Vec::new())) };
    let Ok(entries) = layout::entries(tree.as_ref()) else { return Ok((tree, Vec::new())) };
    // Beside names, an entry without one is no image: oras and zot list every manifest, and skopeo leaves old ones.
    let any_named = entries.iter().any(IndexEntry::names_image);
    let is_image = |entry: &IndexEntry| if any_named { entry.names_image() } else { entry.tag.is_none() };
    let mut kept = HashSet::new();
    for (root, _) in roots.iter_mut().zip(&entries).filter(|(_, entry)| is_image(entry)) {
        let Some(descriptor) = parsed(root) else { continue };
        let Some(leaves) = leaves(tree.as_ref(), &descriptor) else { continue };
        let Some(found) = select(&descriptor, &leaves, wanted)? else { continue };
        dropped.insert(descriptor.digest);
        dropped.extend(leaves.iter().map(|leaf| leaf.digest));
        kept.insert(found.digest);
        let annotations = root.get("annotations").cloned();
        *root = serde_json::json!({ "mediaType": found.media_type, "digest": found.digest.to_string(), "size": found.size });
        if let (Some(object), Some(annotations)) = (root.as_object_mut(), annotations) {
            object.insert("annotations".to_owned(), annotations);
        }
        let platform = found.platform.as_ref().map(ToString::to_string).unwrap_or_default();
        let selected = SelectedPlatform { kept: found.digest, platform, left_out: others(&leaves, found.digest) };
        if !left_out.contains(&selected) {
            left_out.push(selected);
        }
    }
    dropped.retain(|digest| !kept.contains(digest));
    for entry in entries.iter().filter(|entry| is_image(entry)) {
        let digest = entry.descriptor.digest;
        if !dropped.contains(&digest) && !kept.contains(&digest) {
            check_single(tree.as_ref(), &entry.descriptor, &entry.name(), wanted)?;
        }
    }
    let mut is_dropped = entries.iter().map(|entry| match &entry.tag {
        // By their kind, cosign's signatures would become those of the manifest in place of the index.
        Some(tag) => tag.attached_to().is_some_and(|subject| dropped.contains(&subject)),
        None => entry.repository.is_none() && dropped.contains(&entry.descriptor.digest),
    });
    roots.retain(|root| !is_dropped.next().unwrap_or_default() || parsed(root).is_none_or(|root| kept.contains(&root.digest)));
    for root in roots.iter().filter_map(parsed) {
        dropped.remove(&root.digest);
    }
    drop_referrers(tree.as_ref(), roots, &mut dropped);
    let Ok(index) = serde_json::to_vec(&index) else { return Ok((tree, Vec::new())) };
    let files = HashMap::from([("index.json".to_owned(), index)]);
    Ok((Box::new(Overlay { tree, files }), left_out))
}

/// The manifests below an index. `None` if `root` is not an index, or cannot be read completely.
fn leaves(tree: &dyn Tree, root: &Descriptor) -> Option<Vec<Descriptor>> {
    let mut leaves = Vec::new();
    let mut walk = graph::Walk::from_root(root.clone());
    while let Some(step) = walk.next_manifest() {
        let Node { descriptor, depth, is_repeated } = step.ok()?;
        if depth > 0 && !media_type::is_index(&descriptor.media_type) {
            leaves.push(descriptor);
        } else if !is_repeated {
            let index = verified(tree, &descriptor).filter(|index| media_type::is_index(&index.media_type))?;
            walk.descend(depth, index.manifests);
        }
    }
    Some(leaves)
}

/// Checks that an image without an index is for `wanted`, by its config. Artifacts, whose config has no platform, fit any.
fn check_single(tree: &dyn Tree, root: &Descriptor, image: &str, wanted: &Platform) -> Result<(), PlatformError> {
    let own = || -> Option<Platform> {
        let manifest = verified(tree, root)?;
        let config = manifest.config()?.digest;
        let content = read(tree, &config.blob_path(), MAX_MANIFEST_SIZE)?;
        let is_intact = config.algorithm().digest_of(&content) == config;
        is_intact.then(|| serde_json::from_slice(&content).ok())?
    };
    let fits = |own: &Platform| wanted.matches(own) || wanted.variant.is_none() && wanted.same_architecture(own);
    match own().filter(|own| !own.os.is_empty() && own.os != "unknown" && !fits(own)) {
        None => Ok(()),
        Some(own) => Err(PlatformError { image: image.to_owned(), wanted: wanted.to_string(), available: vec![own.to_string()] }),
    }
}

fn image_name(root: &Descriptor) -> String {
    let name = root.annotations.get(layout::REF_NAME);
    name.map_or_else(|| root.digest.to_string(), Clone::clone)
}

/// The manifest for `wanted`. `None` if the index is not for platforms.
fn select(root: &Descriptor, leaves: &[Descriptor], wanted: &Platform) -> Result<Option<Descriptor>, PlatformError> {
    let for_platforms: Vec<(&Descriptor, &Platform)> =
        leaves.iter().filter(|leaf| !has_no_platform(leaf)).filter_map(|leaf| Some((leaf, leaf.platform.as_ref()?))).collect();
    if for_platforms.is_empty() {
        return Ok(None);
    }
    // Of several matches (releases of Windows), the first, as in clients.
    let found = for_platforms.iter().find(|(_, platform)| wanted.matches(platform));
    // A platform without a variant also matches the only manifest of its architecture.
    let alike = || {
        let mut alike =
            for_platforms.iter().filter(|(_, platform)| wanted.variant.is_none() && wanted.same_architecture(platform));
        alike.next().filter(|_| alike.next().is_none())
    };
    let found = found.or_else(alike);
    let missing = || PlatformError {
        image: image_name(root),
        wanted: wanted.to_string(),
        available: platforms(for_platforms.iter().map(|(_, platform)| *platform)),
    };
    found.map(|(leaf, _)| Some((*leaf).clone())).ok_or_else(missing)
}

fn platforms<'a>(all: impl Iterator<Item = &'a Platform>) -> Vec<String> {
    let mut names: Vec<String> = all.map(ToString::to_string).collect();
    names.dedup();
    names
}

/// The platforms other than the kept one, and counts of manifests without a platform.
fn others(leaves: &[Descriptor], kept: Digest) -> Vec<String> {
    let all_others = || leaves.iter().filter(|leaf| leaf.digest != kept);
    let for_platforms = all_others().filter(|leaf| !has_no_platform(leaf)).filter_map(|leaf| leaf.platform.as_ref());
    let mut rest = platforms(for_platforms);
    let attestations = all_others().filter(|leaf| leaf.annotations.contains_key(ATTESTATION)).count();
    let unknown = all_others().filter(|leaf| has_no_platform(leaf) || leaf.platform.is_none()).count() - attestations;
    if attestations > 0 {
        rest.push(counted(attestations, "attestation"));
    }
    if unknown > 0 {
        rest.push(format!("{} for no platform", counted(unknown, "manifest")));
    }
    rest
}

/// Whether the manifest is not for a platform: an attestation, or one of the platform "unknown".
fn has_no_platform(leaf: &Descriptor) -> bool {
    leaf.annotations.contains_key(ATTESTATION) || leaf.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

/// Removes unnamed referrers of removed manifests from the index.
fn drop_referrers(tree: &dyn Tree, roots: &mut Vec<Value>, dropped: &mut HashSet<Digest>) {
    loop {
        let before = roots.len();
        roots.retain(|root| {
            let Some(descriptor) = parsed(root).filter(|descriptor| descriptor.annotations.is_empty()) else { return true };
            let subject = verified(tree, &descriptor).and_then(|manifest| manifest.subject);
            let is_dropped = subject.is_some_and(|subject| dropped.contains(&subject.digest));
            if is_dropped {
                dropped.insert(descriptor.digest);
            }
            !is_dropped
        });
        if roots.len() == before {
            return;
        }
    }
}

fn parsed(descriptor: &Value) -> Option<Descriptor> {
    serde_json::from_value(descriptor.clone()).ok()
}

/// Reads a manifest. `None` if its content does not match its digest.
fn verified(tree: &dyn Tree, descriptor: &Descriptor) -> Option<Manifest> {
    let content = read(tree, &descriptor.digest.blob_path(), MAX_MANIFEST_SIZE)?;
    let is_intact = descriptor.digest.algorithm().digest_of(&content) == descriptor.digest;
    is_intact.then(|| Manifest::parse(&content).ok())?
}

fn read(tree: &dyn Tree, path: &str, limit: u64) -> Option<Vec<u8>> {
    tree.open(path).and_then(|file| file.read_all(limit)).ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use serde_json::json;

    use super::*;
    use crate::disk::layout::OpenFile;
    use crate::host::images::virtual_layout::in_memory;

    fn leaf(platform: &str, content: &str) -> Descriptor {
        let digest = Digest::sha256_of(content.as_bytes());
        Descriptor { platform: platform.parse().ok(), ..Descriptor::new(media_type::OCI_MANIFEST, digest, 1) }
    }

    fn selected(wanted: &str, available: &[&str]) -> Result<String, String> {
        let leaves: Vec<Descriptor> = available.iter().enumerate().map(|(n, platform)| leaf(platform, &n.to_string())).collect();
        let found = select(&leaf("linux/amd64", "root"), &leaves, &wanted.parse().unwrap()).map_err(|error| error.to_string())?;
        Ok(found.unwrap().platform.unwrap().to_string())
    }

    #[test]
    fn variants_match_as_in_clients() {
        for (wanted, available, expected) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], "linux/amd64"),
            ("linux/arm64", &["linux/amd64", "linux/arm64/v8"], "linux/arm64/v8"),
            ("linux/arm64/v8", &["linux/amd64", "linux/arm64"], "linux/arm64"),
            ("linux/arm", &["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
            ("linux/arm", &["linux/amd64", "linux/arm/v6"], "linux/arm/v6"),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3"], "linux/amd64/v3"),
        ] {
            assert_eq!(selected(wanted, available).as_deref(), Ok(expected), "{wanted} of {available:?}");
        }
    }

    /// Blobs in memory, by path, and how often each is opened.
    #[derive(Default)]
    struct Memory(HashMap<String, (Vec<u8>, Cell<usize>)>);

    impl Memory {
        fn add_index(&mut self, entries: &[Descriptor]) -> Descriptor {
            let entry =
                |one: &Descriptor| json!({"mediaType": one.media_type, "digest": one.digest.to_string(), "size": one.size});
            let entries: Vec<Value> = entries.iter().map(entry).collect();
            let content = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries}).to_string();
            let index = Descriptor::new(media_type::OCI_INDEX, Digest::sha256_of(content.as_bytes()), content.len() as u64);
            self.0.insert(index.digest.blob_path(), (content.into_bytes(), Cell::new(0)));
            index
        }
    }

    impl Tree for Memory {
        fn open(&self, path: &str) -> io::Result<OpenFile<'_>> {
            let (content, opened) = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
            opened.set(opened.get() + 1);
            Ok(in_memory(content))
        }
    }

    #[test]
    fn index_is_read_once_and_repeated_manifests_are_all_listed() {
        let mut tree = Memory::default();
        let manifest = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256_of(b"manifest"), 1);
        let mut root = tree.add_index(&[manifest.clone(), manifest.clone()]);
        for _ in 0..graph::MAX_DEPTH - 1 {
            root = tree.add_index(&vec![root; 100]);
        }
        assert_eq!(leaves(&tree, &root), Some(vec![manifest.clone(), manifest]));
        assert!(tree.0.values().all(|(_, opened)| opened.get() == 1));
    }

    #[test]
    fn missing_platform_is_not_replaced_by_another() {
        for (wanted, available) in [
            ("linux/arm", &["linux/arm/v5", "linux/arm/v6"][..]),
            ("linux/arm/v7", &["linux/arm/v6"]),
            ("windows/amd64", &["linux/amd64"]),
        ] {
            let digest = Digest::sha256_of(b"root");
            let expected = format!("image {digest} has nothing for {wanted}, only for {}", available.join(", "));
            assert_eq!(selected(wanted, available), Err(expected));
        }
    }
}
