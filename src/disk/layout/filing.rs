//! Gives a repository to the entries of an index that name none. Every command reads layouts by these rules, so that all of them agree
//! on what a layout holds. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Entry;
use crate::oci::{Digest, Repository, Tag};

/// The entries of an index, each with the repository that it belongs to, without repeats.
///
/// An entry without a repository belongs to, in this order:
///
/// 1. `given`, if the entry has a tag;
/// 2. every repository that holds a manifest which the entry refers to: as the `subject` of one of its manifests, or by the digest in
///    its tag, as cosign's signatures do. The entry's own manifests count as held by these repositories from then on;
/// 3. `given`, or the only repository that other entries name.
///
/// Otherwise it keeps no repository. An entry without a tag is left out if another one gives the same content a tag in the same
/// repository. `content` gives every digest below a root, each with its subject if it is a manifest that has one.
#[must_use]
pub fn file(
    mut entries: Vec<Entry>,
    given: Option<&Repository>,
    content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>,
) -> Vec<Entry> {
    for entry in entries.iter_mut().filter(|entry| entry.repository.is_none() && entry.tag.is_some()) {
        entry.repository = given.cloned();
    }
    if entries.iter().any(|entry| entry.repository.is_none()) {
        let mut places = places(&entries, content);
        let mut named = entries.iter().filter_map(|entry| entry.repository.as_ref());
        let only = named.next().filter(|first| named.all(|other| other == *first)).cloned();
        let rest = given.cloned().or(only);
        let filed = entries.into_iter().enumerate().flat_map(|(number, entry)| {
            let found = places.remove(&number).unwrap_or_default();
            let of = |repository| Entry { repository, ..entry.clone() };
            match (&entry.repository, found.is_empty()) {
                (Some(_), _) => vec![entry],
                (None, true) => vec![of(rest.clone())],
                (None, false) => found.into_iter().map(Some).map(of).collect(),
            }
        });
        entries = filed.collect();
    }
    without_repeats(entries)
}

/// The repositories that rule 2 of [`file`] finds, by the entry's place in the index.
fn places(entries: &[Entry], content: impl Fn(&Digest) -> Vec<(Digest, Option<Digest>)>) -> HashMap<usize, BTreeSet<Repository>> {
    // The unnamed entries that refer to a digest.
    let mut waiting: HashMap<Digest, Vec<usize>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.repository.is_none()) {
        let subjects = content(&entry.descriptor.digest).into_iter().filter_map(|(_, subject)| subject);
        for subject in subjects.chain(entry.tag.as_ref().and_then(Tag::attached_to)) {
            waiting.entry(subject).or_default().push(number);
        }
    }
    let mut places: HashMap<usize, BTreeSet<Repository>> = HashMap::new();
    if waiting.is_empty() {
        return places;
    }
    // Each row says that a repository holds all content below a root. The set has the rows that were seen, so that the walk ends.
    let root = |entry: &Entry| entry.descriptor.digest;
    let mut rows: Vec<(Digest, Repository)> =
        entries.iter().filter_map(|entry| Some((root(entry), entry.repository.clone()?))).collect();
    let mut seen: HashSet<(Digest, Repository)> = rows.iter().cloned().collect();
    while let Some((held, repository)) = rows.pop() {
        for (digest, _) in content(&held) {
            for number in waiting.get(&digest).into_iter().flatten() {
                places.entry(*number).or_default().insert(repository.clone());
                let row = entries.get(*number).map(|entry| (root(entry), repository.clone()));
                rows.extend(row.filter(|row| seen.insert(row.clone())));
            }
        }
    }
    places
}

/// The entries, each name of the same content once.
fn without_repeats(mut entries: Vec<Entry>) -> Vec<Entry> {
    let is_listed = |entry: &&Entry| entry.tag.is_some() || entry.every_tag;
    // Few entries have neither: only of these it has to be known what else there is.
    let bare: HashSet<_> = entries.iter().filter(|entry| !is_listed(entry) && entry.repository.is_some()).map(place).collect();
    let listed: HashSet<_> = entries.iter().filter(is_listed).map(place).filter(|place| bare.contains(place)).collect();
    let mut seen = HashSet::new();
    let is_new = |entry: &Entry| is_listed(&entry) || !listed.contains(&place(entry));
    let kept: Vec<bool> =
        entries.iter().map(|entry| seen.insert((place(entry), &entry.tag, entry.every_tag)) && is_new(entry)).collect();
    let mut kept = kept.into_iter();
    entries.retain(|_| kept.next().unwrap_or(true));
    entries
}

/// A root and the repository that it is filed under.
fn place(entry: &Entry) -> (Option<&Repository>, &Digest) {
    (entry.repository.as_ref(), &entry.descriptor.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;
    use crate::oci::media_type;

    fn digest(content: &str) -> Digest {
        Digest::sha256_of(content.as_bytes())
    }

    /// An entry of this content under `repository:tag`, where either may be empty.
    fn entry(name: &str, content: &str) -> Entry {
        let (repository, tag) = name.split_once(':').unwrap_or((name, ""));
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest(content), 1);
        let repository: Option<Repository> = repository.parse().ok();
        Entry { descriptor, named: repository.is_some(), repository, tag: tag.parse().ok(), every_tag: false }
    }

    /// The names of the entries as filed. Content `s>x` refers to `x`; content `a+b` has `a` and `b` below it.
    fn filed(entries: &[(&str, &str)], given: Option<&str>) -> Vec<String> {
        let given: Option<Repository> = given.map(|given| given.parse().unwrap());
        let below = |root: &Digest| {
            let (_, content) = entries.iter().find(|(_, content)| digest(content) == *root).unwrap();
            let parts = content.split('+').map(|part| (digest(part), part.split_once('>').map(|(_, subject)| digest(subject))));
            std::iter::once((*root, None)).chain(parts).collect()
        };
        let filed = file(entries.iter().map(|(name, content)| entry(name, content)).collect(), given.as_ref(), below);
        let short = |entry: &Entry| {
            let content = entries.iter().find(|(_, content)| digest(content) == entry.descriptor.digest).unwrap().1;
            let repository = entry.repository.as_ref().map(Repository::as_str).unwrap_or("-");
            format!("{repository}:{} {content}", entry.tag.as_ref().map(Tag::as_str).unwrap_or("-"))
        };
        filed.iter().map(short).collect()
    }

    #[test]
    fn entries_without_a_repository_go_where_their_subject_is() {
        let signature = format!("sha256-{}.sig", digest("1").hex());
        let (tag, name) = (format!(":{signature}"), format!("a/a:{signature} 9"));
        for (entries, expected) in [
            // The only repository that there is.
            (vec![("a/a:1", "1"), ("", "2"), (":v", "3")], vec!["a/a:1 1", "a/a:- 2", "a/a:v 3"]),
            (vec![("a/a:1", "1"), ("b/b:1", "2"), ("", "3"), (":v", "4")], vec!["a/a:1 1", "b/b:1 2", "-:- 3", "-:v 4"]),
            (vec![("", "1")], vec!["-:- 1"]),
            // A referrer, one within an index, one of a referrer that comes later, and one by its tag.
            (vec![("", "s>2"), ("a/a:1", "1"), ("b/b:1", "2")], vec!["b/b:- s>2", "a/a:1 1", "b/b:1 2"]),
            (vec![("", "x+s>2"), ("a/a:1", "1"), ("b/b:1", "2+3")], vec!["b/b:- x+s>2", "a/a:1 1", "b/b:1 2+3"]),
            (
                vec![("", "t>s>1"), ("", "s>1"), ("a/a:1", "1"), ("b/b:1", "2")],
                vec!["a/a:- t>s>1", "a/a:- s>1", "a/a:1 1", "b/b:1 2"],
            ),
            (vec![(&tag, "9"), ("a/a:1", "1"), ("b/b:1", "2")], vec![&name, "a/a:1 1", "b/b:1 2"]),
            // In every repository that has the subject.
            (vec![("a/a:1", "1"), ("b/b:1", "1"), ("", "s>1")], vec!["a/a:1 1", "b/b:1 1", "a/a:- s>1", "b/b:- s>1"]),
            // Two that refer to each other end the walk, too.
            (
                vec![("a/a:1", "1"), ("b/b:1", "2"), ("", "x+s>y"), ("", "y+s>x")],
                vec!["a/a:1 1", "b/b:1 2", "-:- x+s>y", "-:- y+s>x"],
            ),
        ] {
            assert_eq!(filed(&entries, None), expected, "{entries:?}");
        }
    }

    #[test]
    fn a_given_repository_takes_what_has_none() {
        for (entries, expected) in [
            (vec![("", "1"), (":v", "2")], vec!["x/x:- 1", "x/x:v 2"]),
            (vec![("a/a:1", "1"), ("", "2"), ("", "s>1")], vec!["a/a:1 1", "x/x:- 2", "a/a:- s>1"]),
        ] {
            assert_eq!(filed(&entries, Some("x/x")), expected, "{entries:?}");
        }
    }

    #[test]
    fn the_same_content_is_listed_once_by_each_name() {
        for (entries, expected) in [
            (vec![("a/a:1", "1"), ("a/a:1", "1"), ("a/a:2", "1")], vec!["a/a:1 1", "a/a:2 1"]),
            (vec![("a/a", "1"), ("a/a:1", "1"), ("", "1")], vec!["a/a:1 1"]),
            (vec![("a/a", "1"), ("a/a", "1")], vec!["a/a:- 1"]),
            (vec![("", "1"), (":v", "1"), (":v", "1")], vec!["-:- 1", "-:v 1"]),
            (vec![("a/a:1", "1"), ("b/b", "1")], vec!["a/a:1 1", "b/b:- 1"]),
        ] {
            assert_eq!(filed(&entries, None), expected, "{entries:?}");
        }
    }
}
