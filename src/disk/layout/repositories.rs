//! Assigns a repository to the entries of an index that name none. All commands use these rules, so they agree on what a layout holds.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{DEFAULT_REPOSITORY, IndexEntry, LayoutError};
use crate::oci::{Digest, Repository, Tag};

/// The entries of an index, each with its repository, without duplicates; and the digests of those that are left over.
///
/// An entry without a repository gets, in this order:
///
/// 1. `default`, if the entry has a tag, or a name that is no reference to an image; a valid tag in that name stays;
/// 2. every repository that holds a manifest to which the entry refers: by the `subject` of one of its manifests, by the digest in its
///    tag, as cosign's signatures do, or as BuildKit's attestations do. These repositories then hold the entry's own manifests too;
/// 3. none, if the entry has no tag and another entry has its content: an index that lists it, or an entry with a name;
/// 4. `default`, or the repository that all named entries share, if the entry has a tag or refers to something, or no entry names an image.
///
/// An entry with a name otherwise stays without a repository. One without a name is left over, such as an image whose tag another one got,
/// and so is content that is no manifest, whatever its name. What belongs only to entries that are left over is left over too.
/// An entry without a tag is dropped if another entry gives the same content a tag in the same repository. `content` returns every digest
/// below a root, with the subject of each manifest that has one.
#[must_use]
pub fn assign_repositories(
    mut entries: Vec<IndexEntry>,
    default: Option<&Repository>,
    content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>,
) -> (Vec<IndexEntry>, Vec<Digest>) {
    let any_named = entries.iter().any(IndexEntry::names_image);
    if any_named {
        // A tag cannot name content that is no manifest.
        entries.iter_mut().filter(|entry| !entry.is_manifest()).for_each(IndexEntry::clear_name);
    }
    for entry in entries.iter_mut().filter(|entry| entry.repository.is_none() && entry.has_name()) {
        entry.repository = default.cloned();
        entry.tag = entry.tag.take().or_else(|| entry.misnamed.as_ref().filter(|_| default.is_some())?.tag.clone());
    }
    let (mut left_over, mut seen) = (Vec::new(), HashSet::new());
    if entries.iter().any(|entry| entry.repository.is_none()) {
        let mut by_reference = repositories_by_reference(&entries, &content);
        let contained = contained(&entries, &content);
        let mut named = entries.iter().filter_map(|entry| entry.repository.as_ref());
        let only = named.next().filter(|first| named.all(|other| other == *first)).cloned();
        let fallback = default.cloned().or(only);
        let mut assigned = Vec::with_capacity(entries.len());
        let mut unwanted: HashSet<usize> = HashSet::new();
        let mut companions = Vec::with_capacity(entries.len());
        for (number, entry) in entries.iter().enumerate() {
            let is_referring = by_reference.contains_key(&number);
            let is_companion = is_referring || (any_named && outside(entry, &content).next().is_some());
            companions.push(is_companion || entry.is_companion);
            let is_wanted = !any_named || entry.repository.is_some() || entry.has_name() || is_referring;
            if !(is_wanted || (is_companion && fallback.is_some()) || contained.contains(&number)) {
                unwanted.insert(number);
            }
        }
        add_companions(&mut unwanted, &entries, &contained, &content);
        for ((number, entry), is_companion) in entries.into_iter().enumerate().zip(companions) {
            let found = by_reference.remove(&number).unwrap_or_default();
            let fallback = fallback.as_ref().filter(|_| entry.misnamed.is_none());
            let with = |repository| IndexEntry { repository, is_companion, ..entry.clone() };
            if unwanted.contains(&number) {
                left_over.extend(Some(entry.descriptor.digest).filter(|digest| seen.insert(*digest)));
            } else if entry.repository.is_some() {
                assigned.push(entry);
            } else if !found.is_empty() {
                assigned.extend(found.into_iter().map(Some).map(with));
            } else if !contained.contains(&number) {
                assigned.push(with(fallback.cloned()));
            }
        }
        entries = assigned;
    }
    (without_duplicates(entries), left_over)
}

/// The entries of an index as a server names them: [`assign_repositories`] without a default, and [`DEFAULT_REPOSITORY`] for the rest.
///
/// # Errors
/// Fails with [`LayoutError::Conflict`] if two manifests have the same tag.
pub fn served_entries(
    entries: Vec<IndexEntry>,
    content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>,
) -> Result<(Vec<IndexEntry>, Vec<Digest>), LayoutError> {
    let default: Option<Repository> = DEFAULT_REPOSITORY.parse().ok();
    let (mut entries, left_over) = assign_repositories(entries, None, content);
    let mut holders = HashMap::new();
    for entry in &mut entries {
        entry.repository = entry.repository.take().or_else(|| default.clone());
        let digest = entry.descriptor.digest;
        let names = [entry.tag.clone().map(Some), entry.every_tag.then_some(None)];
        for tag in names.into_iter().flatten() {
            let first = *holders.entry((entry.repository.clone(), tag)).or_insert(digest);
            if first != digest {
                let (first, second) = (Box::new(first), Box::new(digest));
                return Err(LayoutError::Conflict { image: entry.name(), first, second });
            }
        }
    }
    Ok((without_duplicates(entries), left_over))
}

/// The manifests to which an entry refers.
fn references(entry: &IndexEntry, content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>) -> impl Iterator<Item = Digest> {
    let subjects = content(&entry.descriptor.digest).into_iter().filter_map(|(_, subject)| subject);
    subjects.chain(entry.tag.as_ref().and_then(Tag::attached_to)).chain(entry.attests)
}

/// The manifests to which an entry refers and that it does not hold itself.
fn outside(entry: &IndexEntry, content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>) -> impl Iterator<Item = Digest> {
    let own: HashSet<Digest> = content(&entry.descriptor.digest).into_iter().map(|(digest, _)| digest).collect();
    references(entry, content).filter(move |subject| !own.contains(subject))
}

/// Adds to the positions of what is left over the entries that refer only to it. Those that name an image or a repository stay.
fn add_companions(
    left_over: &mut HashSet<usize>,
    entries: &[IndexEntry],
    contained: &HashSet<usize>,
    content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>,
) {
    if left_over.is_empty() {
        return;
    }
    let below = |entry: &IndexEntry| content(&entry.descriptor.digest).into_iter().map(|(digest, _)| digest);
    let mut pending: HashSet<Digest> = HashSet::new();
    // The number of kept entries that hold a digest, and the positions of those that refer to one and can be left over.
    let mut holders: HashMap<Digest, usize> = HashMap::new();
    let mut referrers: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate().filter(|(number, _)| !contained.contains(number)) {
        if left_over.contains(&number) {
            pending.extend(below(entry));
            continue;
        }
        below(entry).for_each(|digest| *holders.entry(digest).or_default() += 1);
        if !entry.is_named && !entry.names_image() {
            outside(entry, &content).for_each(|subject| referrers.entry(subject).or_default().push(number));
        }
    }
    // These are held by nothing else. Each entry that is left over can add some, because then nothing holds them any more.
    let mut pending: Vec<Digest> = pending.into_iter().filter(|digest| !holders.contains_key(digest)).collect();
    while let Some(digest) = pending.pop() {
        for number in referrers.get(&digest).into_iter().flatten() {
            let Some(entry) = entries.get(*number) else { continue };
            if outside(entry, &content).any(|subject| holders.contains_key(&subject)) || !left_over.insert(*number) {
                continue;
            }
            for held in below(entry) {
                let count = holders.entry(held).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    holders.remove(&held);
                    pending.push(held);
                }
            }
        }
    }
}

/// The repositories by rule 2 of [`assign_repositories`], by the entry's position in the index.
fn repositories_by_reference(
    entries: &[IndexEntry],
    content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>,
) -> HashMap<usize, BTreeSet<Repository>> {
    // The unnamed entries that refer to a digest.
    let mut referrers: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.repository.is_none()) {
        references(entry, &content).for_each(|subject| referrers.entry(subject).or_default().push(number));
    }
    let mut repositories: HashMap<usize, BTreeSet<Repository>> = HashMap::new();
    if referrers.is_empty() {
        return repositories;
    }
    // A pair says that a repository holds all content below a root. The set of pairs seen ends the loop.
    let root = |entry: &IndexEntry| entry.descriptor.digest;
    let mut pending: Vec<(Digest, Repository)> =
        entries.iter().filter_map(|entry| Some((root(entry), entry.repository.clone()?))).collect();
    let mut seen: HashSet<(Digest, Repository)> = pending.iter().cloned().collect();
    while let Some((held, repository)) = pending.pop() {
        for (digest, _) in content(&held) {
            for number in referrers.get(&digest).into_iter().flatten() {
                repositories.entry(*number).or_default().insert(repository.clone());
                let pair = entries.get(*number).map(|entry| (root(entry), repository.clone()));
                pending.extend(pair.filter(|pair| seen.insert(pair.clone())));
            }
        }
    }
    repositories
}

/// The positions of the entries by rule 3 of [`assign_repositories`].
fn contained(entries: &[IndexEntry], content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>) -> HashSet<usize> {
    let is_bare = |entry: &IndexEntry| entry.repository.is_none() && entry.tag.is_none();
    let mut bare: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| is_bare(entry)) {
        bare.entry(entry.descriptor.digest).or_default().push(number);
    }
    let mut contained = HashSet::new();
    for holder in entries.iter().filter(|_| !bare.is_empty()) {
        let held = holder.descriptor.digest;
        for (digest, _) in content(&held) {
            // A damaged layout may have two roots that hold each other. Both stay.
            let is_mutual = |digest: &Digest| content(digest).iter().any(|(below, _)| *below == held);
            let Some(numbers) = bare.get(&digest) else { continue };
            if if digest == held { !is_bare(holder) } else { !is_mutual(&digest) } {
                contained.extend(numbers);
            }
        }
    }
    contained
}

/// The entries with each name of the same content once.
fn without_duplicates(mut entries: Vec<IndexEntry>) -> Vec<IndexEntry> {
    let has_tag = |entry: &&IndexEntry| entry.tag.is_some() || entry.every_tag;
    // Only the few entries without a tag can be dropped, so only their keys are looked up.
    let bare: HashSet<_> = entries.iter().filter(|entry| !has_tag(entry) && entry.repository.is_some()).map(key).collect();
    let tagged: HashSet<_> = entries.iter().filter(has_tag).map(key).filter(|key| bare.contains(key)).collect();
    let mut seen = HashSet::new();
    let is_needed = |entry: &IndexEntry| has_tag(&entry) || !tagged.contains(&key(entry));
    let keep: Vec<bool> =
        entries.iter().map(|entry| seen.insert((key(entry), &entry.tag, entry.every_tag)) && is_needed(entry)).collect();
    let mut keep = keep.into_iter();
    entries.retain(|_| keep.next().unwrap_or(true));
    entries
}

/// The repository and the root of an entry.
fn key(entry: &IndexEntry) -> (Option<&Repository>, &Digest) {
    (entry.repository.as_ref(), &entry.descriptor.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, media_type};

    fn digest(content: &str) -> Digest {
        Digest::sha256_of(content.as_bytes())
    }

    /// An entry of this content named `repository:tag`. Either part may be empty.
    fn entry(name: &str, content: &str) -> IndexEntry {
        let (repository, tag) = name.split_once(':').unwrap_or((name, ""));
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest(content), 1);
        let repository: Option<Repository> = repository.parse().ok();
        let is_named = repository.is_some();
        let (every_tag, attests, is_companion, left_out, misnamed) = (false, None, false, [].into(), None);
        IndexEntry {
            descriptor,
            is_named,
            repository,
            tag: tag.parse().ok(),
            every_tag,
            attests,
            is_companion,
            left_out,
            misnamed,
        }
    }

    /// The names of the entries with their repositories. Content `s>x` refers to `x`. Content `a+b` has `a` and `b` below it.
    fn assigned(entries: &[(&str, &str)], default: Option<&str>) -> Vec<String> {
        let default: Option<Repository> = default.map(|default| default.parse().unwrap());
        let below = |root: &Digest| {
            let (_, content) = entries.iter().find(|(_, content)| digest(content) == *root).unwrap();
            let parts = content.split('+').map(|part| (digest(part), part.split_once('>').map(|(_, subject)| digest(subject))));
            std::iter::once((*root, None)).chain(parts).collect()
        };
        let entries_of = entries.iter().map(|(name, content)| entry(name, content)).collect();
        let (assigned, left_over) = assign_repositories(entries_of, default.as_ref(), below);
        let content = |root: &Digest| entries.iter().find(|(_, content)| digest(content) == *root).unwrap().1;
        let name = |entry: &IndexEntry| {
            let repository = entry.repository.as_ref().map(Repository::as_str).unwrap_or("-");
            let tag = entry.tag.as_ref().map(Tag::as_str).unwrap_or("-");
            format!("{repository}:{tag} {}", content(&entry.descriptor.digest))
        };
        let left_over = left_over.iter().map(|root| format!("left over: {}", content(root)));
        assigned.iter().map(name).chain(left_over).collect()
    }

    #[test]
    fn unnamed_entries_get_the_repository_of_their_subject() {
        let signature = format!("sha256-{}.sig", digest("1").hex());
        let (tag, name) = (format!(":{signature}"), format!("a/a:{signature} 9"));
        for (entries, expected) in [
            // All named entries share one repository.
            (vec![("a/a:1", "1"), (":v", "3"), ("", "s>x")], vec!["a/a:1 1", "a/a:v 3", "a/a:- s>x"]),
            (vec![("a/a:1", "1"), ("b/b:1", "2"), (":v", "4")], vec!["a/a:1 1", "b/b:1 2", "-:v 4"]),
            // A referrer, a referrer in an index, a referrer of a later referrer, and a referrer by its tag.
            (vec![("", "s>2"), ("a/a:1", "1"), ("b/b:1", "2")], vec!["b/b:- s>2", "a/a:1 1", "b/b:1 2"]),
            (vec![("", "x+s>2"), ("a/a:1", "1"), ("b/b:1", "2+3")], vec!["b/b:- x+s>2", "a/a:1 1", "b/b:1 2+3"]),
            (
                vec![("", "t>s>1"), ("", "s>1"), ("a/a:1", "1"), ("b/b:1", "2")],
                vec!["a/a:- t>s>1", "a/a:- s>1", "a/a:1 1", "b/b:1 2"],
            ),
            (vec![(&tag, "9"), ("a/a:1", "1"), ("b/b:1", "2")], vec![&name, "a/a:1 1", "b/b:1 2"]),
            // Every repository that holds the subject.
            (vec![("a/a:1", "1"), ("b/b:1", "1"), ("", "s>1")], vec!["a/a:1 1", "b/b:1 1", "a/a:- s>1", "b/b:- s>1"]),
            // Two entries that refer to each other.
            (
                vec![("a/a:1", "1"), ("b/b:1", "2"), ("", "x+s>y"), ("", "y+s>x")],
                vec!["a/a:1 1", "b/b:1 2", "left over: x+s>y", "left over: y+s>x"],
            ),
        ] {
            assert_eq!(assigned(&entries, None), expected, "{entries:?}");
        }
    }

    #[test]
    fn entry_without_a_name_is_left_over_beside_names() {
        let signature = format!(":sha256-{}.sig", digest("2").hex());
        for (entries, expected) in [
            (vec![("a/a:1", "1"), ("", "2")], vec!["a/a:1 1", "left over: 2"]),
            (vec![(":v", "1"), ("", "2"), ("", "2")], vec!["-:v 1", "left over: 2"]),
            // A referrer of nothing that is there, if there is more than one repository.
            (vec![("a/a:1", "1"), ("b/b:1", "2"), ("", "s>x")], vec!["a/a:1 1", "b/b:1 2", "left over: s>x"]),
            // A referrer only of what it holds itself.
            (vec![("a/a:1", "1"), ("", "x+s>x")], vec!["a/a:1 1", "left over: x+s>x"]),
            // What belongs only to what is left over, by whatever way, and what belongs to an image too.
            (
                vec![("", "t>s>2"), ("a/a:1", "1"), ("", "s>2"), ("", "2")],
                vec!["a/a:1 1", "left over: t>s>2", "left over: s>2", "left over: 2"],
            ),
            (vec![("a/a:1", "1"), (&signature, "9"), ("", "2")], vec!["a/a:1 1", "left over: 9", "left over: 2"]),
            (
                vec![("a/a:1", "1"), ("b/b:1", "3"), (&signature, "9"), ("", "2")],
                vec!["a/a:1 1", "b/b:1 3", "left over: 9", "left over: 2"],
            ),
            (vec![("a/a:1", "1"), ("", "s>2+t>1"), ("", "2")], vec!["a/a:1 1", "a/a:- s>2+t>1", "left over: 2"]),
            (vec![("a/a:1", "1"), ("", "s>x"), ("", "2")], vec!["a/a:1 1", "a/a:- s>x", "left over: 2"]),
            (vec![("a/a:1", "1"), ("a/a:v", "s>2"), ("", "2")], vec!["a/a:1 1", "a/a:v s>2", "left over: 2"]),
            // Its content is in an image.
            (vec![("a/a:1", "1+2"), ("b/b:1", "3"), ("", "2"), ("", "3")], vec!["a/a:1 1+2", "b/b:1 3"]),
            // Its content is in what is left over.
            (vec![("a/a:1", "1"), ("", "2+3"), ("", "3")], vec!["a/a:1 1", "left over: 2+3"]),
            // No entry names an image.
            (vec![("", "1"), ("", "2")], vec!["-:- 1", "-:- 2"]),
            (vec![("", "1+2"), ("", "2")], vec!["-:- 1+2"]),
        ] {
            assert_eq!(assigned(&entries, None), expected, "{entries:?}");
        }
        assert_eq!(assigned(&[(":v", "1"), ("", "2")], Some("x/x")), ["x/x:v 1", "left over: 2"]);
        let shared = [(":v", "1+3"), ("", "s>3"), ("", "2+3")];
        assert_eq!(assigned(&shared, Some("x/x")), ["x/x:v 1+3", "x/x:- s>3", "left over: 2+3"]);
        let signed = [(":v", "1"), (&*signature, "9"), ("", "2"), ("", "s>2")];
        assert_eq!(assigned(&signed, Some("x/x")), ["x/x:v 1", "left over: 9", "left over: 2", "left over: s>2"]);
    }

    #[test]
    fn default_repository_is_assigned_to_unnamed_entries() {
        for (entries, expected) in [
            (vec![("", "1"), ("", "2")], vec!["x/x:- 1", "x/x:- 2"]),
            (vec![("", "s>y"), (":v", "2")], vec!["x/x:- s>y", "x/x:v 2"]),
            (vec![("a/a:1", "1"), (":v", "2"), ("", "s>1")], vec!["a/a:1 1", "x/x:v 2", "a/a:- s>1"]),
        ] {
            assert_eq!(assigned(&entries, Some("x/x")), expected, "{entries:?}");
        }
    }

    #[test]
    fn each_name_of_the_same_content_is_listed_once() {
        for (entries, expected) in [
            (vec![("a/a:1", "1"), ("a/a:1", "1"), ("a/a:2", "1")], vec!["a/a:1 1", "a/a:2 1"]),
            (vec![("a/a", "1"), ("a/a:1", "1"), ("", "1")], vec!["a/a:1 1"]),
            (vec![("a/a", "1"), ("a/a", "1")], vec!["a/a:- 1"]),
            (vec![("", "1"), (":v", "1"), (":v", "1")], vec!["-:v 1"]),
            (vec![("a/a:1", "1"), ("b/b", "1")], vec!["a/a:1 1", "b/b:- 1"]),
        ] {
            assert_eq!(assigned(&entries, None), expected, "{entries:?}");
        }
    }
}
