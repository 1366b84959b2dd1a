//! Applies `--platform` to the entries of a layout's index. An entry keeps its index and leaves manifests out, or takes the platform's
//! manifest in place of its index (`--flatten`). No bytes of a manifest change, so digests stay.
//!
//! Content that cannot be read stays unchanged; the layout's reader reports the error.

use std::collections::HashSet;
use std::convert::Infallible;

use super::super::platforms::{self, Content, Leaf, PlatformChoice, SelectedPlatforms, Unavailable};
use crate::disk::layout::{IndexEntry, Tree};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, Platform, media_type};

/// An index has no manifest for a platform.
#[derive(Debug, thiserror::Error)]
#[error("image {image} has nothing for {wanted}, only for {}", available.join(", "))]
pub struct PlatformError {
    image: String,
    wanted: String,
    available: Vec<String>,
}

/// Selects the platforms of each index among `entries`, and returns what was left out. Referrers of what is left out are removed.
///
/// # Errors
/// Fails if an index has manifests for platforms, but none for a wanted one, or if an image without an index is for another platform.
pub fn select(
    tree: &dyn Tree,
    entries: &mut Vec<IndexEntry>,
    choice: &PlatformChoice,
) -> Result<Vec<SelectedPlatforms>, PlatformError> {
    let (mut selected, mut kept, mut dropped) = (Vec::new(), HashSet::new(), HashSet::new());
    if choice.wanted.is_empty() {
        return Ok(selected);
    }
    // Where entries have names, one without a name is no image of its own.
    let any_named = entries.iter().any(IndexEntry::names_image);
    let is_image = |entry: &&mut IndexEntry| entry.names_image() || !any_named && entry.tag.is_none();
    let mut singles = Vec::new();
    for entry in entries.iter_mut().filter(is_image) {
        let missing =
            |missing: Unavailable| PlatformError { image: entry.name(), wanted: missing.wanted, available: missing.available };
        let Some(index) = verified(tree, &entry.descriptor) else { continue };
        if !media_type::is_index(&index.media_type) {
            let fits = choice.check_single(platform_of(tree, &index).as_ref()).map_err(missing);
            singles.push((entry.descriptor.digest, entry.names_image(), fits));
            continue;
        }
        let Ok(leaves) = platforms::leaves(index.manifests, |descriptor| Ok::<_, Infallible>(look(tree, descriptor)));
        // What the source has left out is not there to be kept.
        let absent: HashSet<&Digest> = entry.left_out.iter().collect();
        let leaves: Vec<Leaf> = leaves.into_iter().filter(|leaf| !absent.contains(&leaf.descriptor.digest)).collect();
        let Some(selection) = choice.select(&leaves).map_err(missing)? else { continue };
        let left_out = selection.left_out.iter().map(|leaf| leaf.descriptor.digest);
        dropped.extend(left_out.clone());
        if let Some(first) = selection.first().filter(|_| choice.flatten) {
            dropped.insert(entry.descriptor.digest);
            entry.descriptor = Descriptor::new(&first.media_type, first.digest, first.size);
        } else {
            entry.left_out = entry.left_out.iter().copied().chain(left_out).collect();
        }
        kept.extend(selection.kept.iter().map(|leaf| leaf.descriptor.digest));
        let summary = selection.summary(entry.descriptor.digest);
        if !selected.contains(&summary) {
            selected.push(summary);
        }
    }
    // oras and zot list every manifest of an index beside it.
    let is_part = |digest: &Digest| kept.contains(digest) || dropped.contains(digest);
    singles.retain(|(digest, is_named, _)| *is_named || !is_part(digest));
    singles.into_iter().try_for_each(|(.., fits)| fits)?;
    dropped.retain(|digest| !kept.contains(digest));
    entries.retain(|entry| entry.repository.is_some() || entry.tag.is_some() || !dropped.contains(&entry.descriptor.digest));
    entries.iter().for_each(|entry| _ = dropped.remove(&entry.descriptor.digest));
    drop_referrers(tree, entries, dropped);
    Ok(selected)
}

/// What the content of a manifest says about itself.
fn look(tree: &dyn Tree, descriptor: &Descriptor) -> Content {
    let Some(manifest) = verified(tree, descriptor) else { return Content::Manifest(None) };
    if media_type::is_index(&manifest.media_type) {
        return Content::Index(manifest.manifests);
    }
    Content::Manifest(descriptor.platform.clone().or_else(|| platform_of(tree, &manifest)))
}

/// The platform in an image's config. `None` for an artifact.
fn platform_of(tree: &dyn Tree, image: &Manifest) -> Option<Platform> {
    platforms::of_config(&content(tree, image.config()?)?)
}

/// Removes the referrers of removed manifests from the index: those without a name, and those whose tag has the manifest's digest.
fn drop_referrers(tree: &dyn Tree, entries: &mut Vec<IndexEntry>, mut dropped: HashSet<Digest>) {
    let mut before = None;
    while before.replace(entries.len()) != Some(entries.len()) && !dropped.is_empty() {
        entries.retain(|entry| {
            let subject = match &entry.tag {
                Some(tag) => tag.attached_to(),
                None if entry.repository.is_some() => None,
                None => entry.attests.or_else(|| Some(verified(tree, &entry.descriptor)?.subject?.digest)),
            };
            let is_dropped = subject.is_some_and(|subject| dropped.contains(&subject));
            if is_dropped {
                dropped.insert(entry.descriptor.digest);
            }
            !is_dropped
        });
    }
}

/// Reads a manifest. `None` if its content does not match its digest.
fn verified(tree: &dyn Tree, descriptor: &Descriptor) -> Option<Manifest> {
    Manifest::parse(&content(tree, descriptor)?).ok()
}

/// Reads a manifest or config. `None` if it does not match its digest.
fn content(tree: &dyn Tree, Descriptor { digest, .. }: &Descriptor) -> Option<Vec<u8>> {
    let content = tree.open(&digest.blob_path()).and_then(|file| file.read_all(MAX_MANIFEST_SIZE)).ok()?;
    (digest.algorithm().digest_of(&content) == *digest).then_some(content)
}
