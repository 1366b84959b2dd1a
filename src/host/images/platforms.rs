//! Which manifests of an index `pack --platform` keeps, whatever source the index comes from.

use std::collections::HashSet;

use crate::host::support::report::counted;
use crate::oci::graph::{self, Node};
use crate::oci::{Descriptor, Digest, Platform, media_type};

/// Annotation of BuildKit's attestations.
const ATTESTATION: &str = "vnd.docker.reference.type";
/// Annotation with the digest of the manifest that an attestation is about.
const ATTESTED: &str = "vnd.docker.reference.digest";
/// Operating system of manifests that are not for a platform.
const UNKNOWN: &str = "unknown";

/// The platforms to pack of each index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlatformChoice {
    /// The platforms; none: all of them.
    pub wanted: Vec<Platform>,
    /// Whether the platform's manifest takes the place of the index. Otherwise the index stays, with its digest.
    pub flatten: bool,
}

/// What is kept and left out of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedPlatforms {
    /// Digest of the image: of its index, or of the manifest that took its place.
    pub root: Digest,
    /// The platforms that are kept, with commas.
    pub platforms: String,
    /// What was left out: platforms, and counts of manifests without one.
    pub left_out: Vec<String>,
}

/// A wanted platform that an index does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// The wanted platform.
    pub wanted: String,
    /// The platforms of the index.
    pub available: Vec<String>,
}

/// A manifest below an index, with the platform from its descriptor or its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its platform, if it has one.
    pub platform: Option<Platform>,
}

/// What the content of a manifest says about itself.
#[derive(Debug)]
pub enum Content {
    /// It is an index of these entries.
    Index(Vec<Descriptor>),
    /// It is for this platform, or for none, or cannot be read.
    Manifest(Option<Platform>),
}

/// The manifests below an index, which are not indexes themselves. `look` reads the content of nested indexes, and of manifests whose
/// descriptor has no platform.
///
/// # Errors
/// Fails with the first error of `look`. What is beyond a limit of the walk is not listed: reading the image refuses it.
pub fn leaves<E>(index: Vec<Descriptor>, mut look: impl FnMut(&Descriptor) -> Result<Content, E>) -> Result<Vec<Leaf>, E> {
    let mut leaves = Vec::new();
    let mut walk = graph::Walk::default();
    walk.descend(0, index);
    while let Some(step) = walk.next_manifest() {
        let Ok(Node { descriptor, depth, is_repeated }) = step else { continue };
        if descriptor.platform.is_some() && !media_type::is_index(&descriptor.media_type) {
            let platform = descriptor.platform.clone();
            leaves.push(Leaf { descriptor, platform });
        } else if !is_repeated {
            match look(&descriptor)? {
                Content::Index(entries) => walk.descend(depth, entries),
                Content::Manifest(platform) => leaves.push(Leaf { descriptor, platform }),
            }
        }
    }
    Ok(leaves)
}

/// The platform in the content of a config. cosign writes configs whose platform is empty.
#[must_use]
pub fn of_config(content: &[u8]) -> Option<Platform> {
    let platform: Option<Platform> = serde_json::from_slice(content).ok();
    platform.filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty())
}

/// The manifests of an index that are kept, and those that are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The manifests for the wanted platforms, and what is for no platform or about a kept manifest.
    pub kept: Vec<Leaf>,
    /// The manifests for other platforms, and the attestations about them.
    pub left_out: Vec<Leaf>,
    wanted: Vec<Leaf>,
}

impl PlatformChoice {
    /// Checks that an image without an index is for one of the platforms. One that says no platform, such as an artifact, fits any.
    ///
    /// # Errors
    /// Fails if the image is for another platform.
    pub fn check_single(&self, own: Option<&Platform>) -> Result<(), Unavailable> {
        let Some(own) = own.filter(|own| own.os != UNKNOWN && !self.wanted.is_empty()) else { return Ok(()) };
        let fits = |wanted: &Platform| wanted.matches(own) || wanted.variant.is_none() && wanted.same_architecture(own);
        if self.wanted.iter().any(fits) {
            return Ok(());
        }
        let wanted: Vec<String> = self.wanted.iter().map(ToString::to_string).collect();
        Err(Unavailable { wanted: wanted.join(" and "), available: vec![own.to_string()] })
    }

    /// Sorts the manifests of an index. `None` if the index is not for platforms.
    ///
    /// # Errors
    /// Fails if the index has nothing for one of the platforms.
    pub fn select(&self, leaves: &[Leaf]) -> Result<Option<Selection>, Unavailable> {
        let for_platforms: Vec<(&Leaf, &Platform)> =
            leaves.iter().filter_map(|leaf| Some((leaf, leaf.for_platform()?))).collect();
        if for_platforms.is_empty() || self.wanted.is_empty() {
            return Ok(None);
        }
        let mut wanted: Vec<Leaf> = Vec::new();
        for platform in &self.wanted {
            let found = matching(platform, &for_platforms);
            if found.is_empty() {
                let available = names(for_platforms.iter().map(|(_, platform)| *platform));
                return Err(Unavailable { wanted: platform.to_string(), available });
            }
            // Of several matches (releases of Windows), a client that is given one manifest gets the first.
            let found = found.into_iter().take(if self.flatten { 1 } else { usize::MAX });
            wanted.extend(found.filter(|leaf| !wanted.contains(leaf)).cloned().collect::<Vec<_>>());
        }
        let digests: HashSet<Digest> = wanted.iter().map(|leaf| leaf.descriptor.digest).collect();
        let others: HashSet<Digest> =
            for_platforms.iter().map(|(leaf, _)| leaf.descriptor.digest).filter(|digest| !digests.contains(digest)).collect();
        let is_kept = |leaf: &Leaf| {
            let about = leaf.attested();
            digests.contains(&leaf.descriptor.digest)
                || !self.flatten
                    && leaf.for_platform().is_none()
                    && !others.contains(&leaf.descriptor.digest)
                    && about.is_none_or(|about| !others.contains(&about))
        };
        let (kept, left_out) = leaves.iter().cloned().partition(is_kept);
        Ok(Some(Selection { kept, left_out, wanted }))
    }
}

impl Selection {
    /// The first manifest for the wanted platforms.
    #[must_use]
    pub fn first(&self) -> Option<&Descriptor> {
        self.wanted.first().map(|leaf| &leaf.descriptor)
    }

    /// What to say about it. `root` is the digest of the image.
    #[must_use]
    pub fn summary(&self, root: Digest) -> SelectedPlatforms {
        let mut left_out = names(self.left_out.iter().filter_map(Leaf::for_platform));
        let without: Vec<&Leaf> = self.left_out.iter().filter(|leaf| leaf.for_platform().is_none()).collect();
        let attestations = without.iter().filter(|leaf| leaf.is_attestation()).count();
        if attestations > 0 {
            left_out.push(counted(attestations, "attestation"));
        }
        if without.len() > attestations {
            left_out.push(format!("{} for no platform", counted(without.len() - attestations, "manifest")));
        }
        let platforms = names(self.wanted.iter().filter_map(|leaf| leaf.platform.as_ref())).join(", ");
        SelectedPlatforms { root, platforms, left_out }
    }
}

impl Leaf {
    /// The platform that the manifest is for. `None` for an attestation, and for one of the platform "unknown".
    fn for_platform(&self) -> Option<&Platform> {
        self.platform.as_ref().filter(|platform| platform.os != UNKNOWN && !self.is_attestation())
    }

    fn is_attestation(&self) -> bool {
        self.descriptor.annotations.contains_key(ATTESTATION)
    }

    /// The manifest that an attestation is about.
    fn attested(&self) -> Option<Digest> {
        self.descriptor.annotations.get(ATTESTED)?.parse().ok()
    }
}

/// The manifests for `wanted`. A platform without a variant also matches the only manifest of its architecture.
fn matching<'a>(wanted: &Platform, leaves: &[(&'a Leaf, &Platform)]) -> Vec<&'a Leaf> {
    let all = |matches: &dyn Fn(&Platform) -> bool| -> Vec<&'a Leaf> {
        leaves.iter().filter(|(_, platform)| matches(platform)).map(|(leaf, _)| *leaf).collect()
    };
    let found = all(&|platform| wanted.matches(platform));
    if !found.is_empty() || wanted.variant.is_some() {
        return found;
    }
    let alike = all(&|platform| wanted.same_architecture(platform));
    if alike.len() == 1 { alike } else { Vec::new() }
}

fn names<'a>(all: impl Iterator<Item = &'a Platform>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in all.map(ToString::to_string) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;

    fn descriptor(content: &str) -> Descriptor {
        Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256_of(content.as_bytes()), 1)
    }

    /// `NAME PLATFORM`, `NAME` without a platform, or `NAME about OTHER`: an attestation.
    fn leaf(text: &str) -> Leaf {
        let words: Vec<&str> = text.split(' ').collect();
        let mut descriptor = descriptor(words[0]);
        let platform = match words[1..] {
            ["about", of] => {
                let digest = Digest::sha256_of(of.as_bytes()).to_string();
                descriptor.annotations =
                    HashMap::from([(ATTESTATION.into(), "attestation-manifest".into()), (ATTESTED.into(), digest)]);
                Some(Platform { os: UNKNOWN.into(), architecture: UNKNOWN.into(), variant: None })
            }
            [platform] => Some(platform.parse().unwrap()),
            _ => None,
        };
        Leaf { descriptor, platform }
    }

    fn select(wanted: &[&str], flatten: bool, leaves: &[&str]) -> Result<Option<Vec<usize>>, Unavailable> {
        let wanted = wanted.iter().map(|platform| platform.parse().unwrap()).collect();
        let leaves: Vec<Leaf> = leaves.iter().map(|text| leaf(text)).collect();
        let selection = PlatformChoice { wanted, flatten }.select(&leaves)?;
        let position = |kept: &Leaf| leaves.iter().position(|leaf| leaf == kept).unwrap();
        Ok(selection.map(|selection| {
            assert_eq!(selection.kept.len() + selection.left_out.len(), leaves.len());
            selection.kept.iter().map(position).collect()
        }))
    }

    #[test]
    fn variants_match_as_in_clients() {
        for (wanted, available, expected) in [
            ("linux/amd64", &["a linux/arm64", "b linux/amd64"][..], &[1][..]),
            ("linux/arm64", &["a linux/amd64", "b linux/arm64/v8"], &[1]),
            ("linux/arm64/v8", &["a linux/amd64", "b linux/arm64"], &[1]),
            ("linux/arm", &["a linux/arm/v6", "b linux/arm/v7"], &[1]),
            ("linux/arm", &["a linux/amd64", "b linux/arm/v6"], &[1]),
            ("linux/amd64/v3", &["a linux/amd64", "b linux/amd64/v3"], &[1]),
            // Releases of Windows: clients choose by `os.version`.
            ("windows/amd64", &["a windows/amd64", "b linux/amd64", "c windows/amd64"], &[0, 2]),
        ] {
            assert_eq!(select(&[wanted], false, available), Ok(Some(expected.to_vec())), "{wanted} of {available:?}");
            let first = vec![expected[0]];
            assert_eq!(select(&[wanted], true, available), Ok(Some(first)), "{wanted} of {available:?}");
        }
    }

    #[test]
    fn several_platforms_are_kept_with_what_is_about_them() {
        let leaves =
            ["a linux/amd64", "b linux/arm64", "c linux/s390x", "d about a", "e about b", "f about c", "g", "h about elsewhere"];
        assert_eq!(select(&["linux/amd64", "linux/arm64"], false, &leaves), Ok(Some(vec![0, 1, 3, 4, 6, 7])));
        assert_eq!(select(&["linux/s390x", "linux/s390x"], false, &leaves), Ok(Some(vec![2, 5, 6, 7])));
        assert_eq!(select(&["linux/s390x"], true, &leaves), Ok(Some(vec![2])));
        // One manifest for two platforms is kept whole.
        assert_eq!(select(&["linux/amd64"], false, &["a linux/amd64", "a linux/arm64"]), Ok(Some(vec![0, 1])));
        assert_eq!(select(&["linux/amd64"], false, &["a", "b about a"]), Ok(None), "not for platforms");
        assert_eq!(select(&[], false, &leaves), Ok(None), "every platform is wanted");
    }

    #[test]
    fn missing_platform_is_not_replaced_by_another() {
        for (wanted, available) in [
            (&["linux/arm"][..], &["linux/arm/v5", "linux/arm/v6"][..]),
            (&["linux/arm/v7"], &["linux/arm/v6"]),
            (&["windows/amd64"], &["linux/amd64"]),
            (&["linux/amd64", "linux/arm64"], &["linux/amd64"]),
        ] {
            let leaves: Vec<String> = available.iter().map(|platform| format!("{platform} {platform}")).collect();
            let leaves: Vec<&str> = leaves.iter().map(String::as_str).collect();
            let missing = Unavailable {
                wanted: wanted.last().unwrap().to_string(),
                available: available.iter().map(ToString::to_string).collect(),
            };
            assert_eq!(select(wanted, false, &leaves), Err(missing));
        }
    }

    #[test]
    fn nested_index_is_read_once_and_repeated_manifests_are_all_listed() {
        let manifest = leaf("a linux/amd64");
        let with_platform = Descriptor { platform: manifest.platform.clone(), ..manifest.descriptor.clone() };
        let mut indexes: HashMap<Digest, Vec<Descriptor>> = HashMap::new();
        let mut entries = vec![with_platform.clone(), with_platform];
        for depth in 0..graph::MAX_DEPTH - 1 {
            let index = Descriptor { media_type: media_type::OCI_INDEX.into(), ..descriptor(&format!("index {depth}")) };
            indexes.insert(index.digest, entries);
            entries = vec![index; 100];
        }
        entries.push(descriptor("without"));
        let looked = RefCell::new(Vec::new());
        let found = leaves(entries, |one| {
            looked.borrow_mut().push(one.digest);
            let index = indexes.get(&one.digest).cloned().map(Content::Index);
            Ok::<_, Infallible>(index.unwrap_or(Content::Manifest("linux/arm64".parse().ok())))
        });
        let found: Vec<Digest> = found.unwrap().iter().map(|leaf| leaf.descriptor.digest).collect();
        let (one, other) = (manifest.descriptor.digest, descriptor("without").digest);
        assert_eq!(found, [one, one, other]);
        let mut looked = looked.into_inner();
        looked.sort();
        looked.dedup();
        assert_eq!(looked.len(), indexes.len() + 1);
    }

    #[test]
    fn configs_without_a_platform_are_for_none() {
        assert_eq!(of_config(br#"{"os":"linux","architecture":"arm","variant":"v7"}"#).unwrap().to_string(), "linux/arm/v7");
        for content in [&br#"{"os":"","architecture":""}"#[..], b"{}", b"not JSON"] {
            assert_eq!(of_config(content), None);
        }
    }
}
