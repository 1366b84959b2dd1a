//! The annotation `kind`, by which two tools tell the entries of `index.json` apart:
//!
//! - `cosign save` (cosign 3, `pkg/oci/layout/index.go`) writes one image without a name, and `dev.cosignproject.cosign/sigs` and `/atts`
//!   beside `/image` or `/imageIndex`;
//! - a hauler store (hauler 2, `pkg/consts/consts.go`) gives the image and all that belongs to it one name, and writes `dev.hauler/sigs`,
//!   `/atts`, `/sboms` and `/referrers/HEX`, before version 2 with cosign's prefix (`pkg/consts/migrate.go`).
//!
//! As `hauler store copy` does (`cmd/hauler/cli/store/copy.go`), signatures, attestations and SBOMs get the tags by which cosign finds
//! them, and other referrers are found by their subject. So is what has an unknown kind and the name of an image: the name is the image's.

use std::collections::{BTreeSet, HashMap};

use super::name_annotations;
use crate::oci::{Descriptor, Digest, Tag};

const ANNOTATION: &str = "kind";
const PREFIXES: [&str; 2] = ["dev.cosignproject.cosign/", "dev.hauler/"];
/// Kinds, and the ends of cosign's tags for them.
const ATTACHMENTS: [(&str, &str); 3] = [("sigs", ".sig"), ("atts", ".att"), ("sboms", ".sbom")];
const REFERRER: &str = "referrers";
/// Kinds of the images themselves.
const IMAGES: [&str; 2] = ["image", "imageIndex"];

/// The kind of an entry that is not an image itself.
enum Companion {
    /// It belongs to the image of its name, with the tag that ends like this.
    Attachment(&'static str),
    /// Its subject says to what it belongs.
    Referrer,
    /// Its kind is not known. It is an image, unless another image has its name.
    Unknown,
}

/// The tag of each entry that belongs to an image, by position. One without a tag is found by its subject, or not at all.
pub fn companion_tags(entries: &[Descriptor]) -> HashMap<usize, Option<Tag>> {
    let mut companions: HashMap<usize, Companion> =
        entries.iter().enumerate().filter_map(|(number, entry)| Some((number, companion(entry)?))).collect();
    if companions.is_empty() {
        return HashMap::new();
    }
    let mut images: HashMap<Option<&str>, BTreeSet<Digest>> = HashMap::new();
    for (_, entry) in entries.iter().enumerate().filter(|(number, _)| !companions.contains_key(number)) {
        images.entry(name(entry)).or_default().insert(entry.digest);
    }
    let has_image = |number: &usize| entries.get(*number).is_some_and(|entry| images.contains_key(&name(entry)));
    companions.retain(|number, companion| !matches!(companion, Companion::Unknown) || has_image(number));
    let image = |number: usize| {
        let named = entries.get(number).and_then(|entry| images.get(&name(entry)))?;
        named.first().filter(|_| named.len() == 1)
    };
    let tag = |(number, companion): (usize, Companion)| match companion {
        Companion::Attachment(end) => (number, image(number).and_then(|image| Tag::attachment(image, end))),
        Companion::Referrer | Companion::Unknown => (number, None),
    };
    companions.into_iter().map(tag).collect()
}

fn companion(entry: &Descriptor) -> Option<Companion> {
    let kind = entry.annotations.get(ANNOTATION)?;
    let kind = PREFIXES.iter().find_map(|prefix| kind.strip_prefix(prefix))?;
    if IMAGES.contains(&kind) {
        return None;
    }
    if kind.split('/').next() == Some(REFERRER) {
        return Some(Companion::Referrer);
    }
    let attachment = ATTACHMENTS.iter().find(|(known, _)| *known == kind);
    Some(attachment.map_or(Companion::Unknown, |(_, end)| Companion::Attachment(end)))
}

fn name(entry: &Descriptor) -> Option<&str> {
    name_annotations(entry).next().map(|(_, name)| name)
}
