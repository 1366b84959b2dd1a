//! Looks up what belongs to an image and is optional: its referrers (signatures, attestations, SBOMs), by the referrers API or else the
//! referrers tag (distribution specification, "Listing Referrers" and "Referrers Tag Schema"), and what cosign attached by tags.
//!
//! Whatever the registry answers to these look-ups, the image is pulled: a failure is recorded. Each artifact is fetched with its blobs
//! before it counts as found, so that none is found in part.

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};

use http::header::{CONTENT_TYPE, LINK};
use indicatif::ProgressBar;
use serde::Deserialize;

use super::blobs::{BlobFetcher, LocalTree};
use super::error::{Fault, printable};
use super::links;
use super::manifests::{FetchedManifest, ManifestFetcher, RemoteContent};
use super::reference::ImageReference;
use super::tree::{FailedLookup, ListedManifest};
use crate::oci::graph::MAX_MANIFESTS;
use crate::oci::json::null_as_default;
use crate::oci::{COSIGN_SUFFIXES, Descriptor, Digest, MAX_MANIFEST_SIZE, Manifest, ManifestError, Reference, Tag, media_type};
use crate::text::chain;

/// Most pages of one list of referrers. A page may be empty, so that the number of manifests is no bound.
const MAX_PAGES: usize = 100;

/// What was found beside an image.
#[derive(Debug, Default)]
pub struct Referrers {
    /// The manifests that the layout's index lists.
    pub listed: Vec<ListedManifest>,
    /// What could not be looked up.
    pub failed: Vec<FailedLookup>,
}

/// A complete artifact.
struct Artifact {
    root: ListedManifest,
    manifests: Vec<Digest>,
}

/// Looks up what belongs to one image.
pub struct ReferrerLookup<'a> {
    fetcher: ManifestFetcher<'a>,
    reference: &'a ImageReference,
    local: &'a [LocalTree<'a>],
    found: Referrers,
    /// Manifests of the image and of what was found. Their referrers are looked up once.
    known: HashSet<Digest>,
    /// Manifests whose referrers are not yet looked up.
    subjects: VecDeque<Digest>,
    /// Whether the referrers API has answered every request.
    has_api: bool,
    /// Set after a failure that makes more look-ups pointless.
    is_over: bool,
}

impl<'a> ReferrerLookup<'a> {
    /// Prepares the look-ups for `reference`, which has the given manifests. Blobs that one of `local` has are not fetched.
    #[must_use]
    pub fn new(
        fetcher: ManifestFetcher<'a>,
        reference: &'a ImageReference,
        image: &[Digest],
        local: &'a [LocalTree<'a>],
    ) -> Self {
        let (known, subjects) = (image.iter().copied().collect(), image.iter().copied().collect());
        Self { fetcher, reference, local, found: Referrers::default(), known, subjects, has_api: true, is_over: false }
    }

    /// Looks up everything.
    ///
    /// # Errors
    /// Fails after a signal, and if the store cannot be used.
    pub fn run(mut self) -> Result<Referrers, Fault> {
        let image = self.known.clone();
        while let Some(subject) = self.subjects.pop_front() {
            let tag = format!("{}-{}", subject.algorithm().name(), subject.hex());
            self.look_up_by_api(subject)?;
            if !self.has_api {
                self.look_up_by_tag(&tag, subject)?;
            }
            for suffix in COSIGN_SUFFIXES.iter().filter(|_| image.contains(&subject)) {
                self.look_up_attachment(&format!("{tag}{suffix}"), subject)?;
            }
        }
        Ok(self.found)
    }

    /// Adds the referrers that the API lists.
    fn look_up_by_api(&mut self, subject: Digest) -> Result<(), Fault> {
        if !self.has_api || self.is_over {
            return Ok(());
        }
        let listed = match self.list(&subject) {
            Err(Fault::NotFound { .. }) => None,
            listed => self.unless_failed(&format!("the referrers of {subject}"), listed)?,
        };
        self.has_api = listed.is_some();
        let (listed, end) = listed.unwrap_or_default();
        if let Some(fault) = end {
            self.unless_failed::<()>(&format!("some referrers of {subject}"), Err(fault))?;
        }
        for descriptor in listed {
            if self.known.contains(&descriptor.digest) {
                continue;
            }
            if let Some(artifact) = self.referrer(&descriptor, subject, false)? {
                self.add(artifact);
            }
        }
        Ok(())
    }

    /// Adds the referrers tag with the list that it names. It is not a list if it is not an index, or is the subject itself, which some
    /// registries give for the tag `sha256-HEX`. If an entry of the list cannot be had, or is no referrer, the others are added.
    fn look_up_by_tag(&mut self, tag: &str, subject: Digest) -> Result<(), Fault> {
        let Some((tag, list)) = self.tagged(tag, subject)? else { return Ok(()) };
        if !media_type::is_index(&list.manifest.media_type) {
            return Ok(());
        }
        let mut entries = Vec::new();
        for descriptor in &list.manifest.manifests {
            entries.push(self.referrer(descriptor, subject, true)?);
        }
        let what = format!("tag {tag}");
        let list = if entries.iter().all(Option::is_some) { self.complete(&what, list, Some(tag))? } else { None };
        match list {
            Some(list) => self.add(list),
            None => entries.into_iter().flatten().for_each(|entry| self.add(entry)),
        }
        Ok(())
    }

    /// Adds what cosign attached to the subject.
    fn look_up_attachment(&mut self, tag: &str, subject: Digest) -> Result<(), Fault> {
        let Some((tag, attached)) = self.tagged(tag, subject)? else { return Ok(()) };
        let what = format!("tag {tag}");
        if let Some(artifact) = self.complete(&what, attached, Some(tag))? {
            self.add(artifact);
        }
        Ok(())
    }

    /// The manifest of a tag. `None` if there is no such tag, or it names the subject itself.
    fn tagged(&mut self, tag: &str, subject: Digest) -> Result<Option<(Tag, FetchedManifest)>, Fault> {
        // With a longer digest than SHA-256 there is no such tag.
        let Some(tag) = tag.parse::<Tag>().ok().filter(|_| !self.is_over) else { return Ok(None) };
        let fetched = self.fetcher.fetch(&Reference::Tag(tag.clone()), None);
        let fetched = self.unless_missing(&format!("tag {tag}"), fetched)?;
        Ok(fetched.filter(|fetched| fetched.digest != subject).map(|fetched| (tag, fetched)))
    }

    /// A manifest that a list names as a referrer. `None` if it cannot be had, or does not refer to `subject`. In a tagged list, the tag
    /// alone may tell the subject of an artifact, but not of an image or an index: such tags may also name the platforms of an image.
    fn referrer(&mut self, descriptor: &Descriptor, subject: Digest, is_tagged: bool) -> Result<Option<Artifact>, Fault> {
        if self.is_over || is_tagged && (descriptor.digest == subject || descriptor.platform.is_some()) {
            return Ok(None);
        }
        let what = format!("manifest {}", descriptor.digest);
        let fetched = self.fetcher.fetch(&Reference::Digest(descriptor.digest), Some(descriptor));
        let Some(fetched) = self.unless_failed(&what, fetched)? else { return Ok(None) };
        let found = fetched.manifest.subject.as_ref().map(|subject| subject.digest);
        if found == Some(subject) || (is_tagged && found.is_none() && is_artifact(&fetched.manifest)) {
            return self.complete(&what, fetched, None);
        }
        // Tags are names that anything may have. The API says that these are referrers.
        if !is_tagged {
            let host = self.fetcher.upstream.host.clone();
            let fault = Fault::Subject { host, what: what.clone(), expected: subject, found };
            self.unless_failed::<()>(&what, Err(fault))?;
        }
        Ok(None)
    }

    /// Fetches all of an artifact. `None` if a part of it cannot be had.
    fn complete(&mut self, what: &str, fetched: FetchedManifest, tag: Option<Tag>) -> Result<Option<Artifact>, Fault> {
        let root = fetched.listed(tag.map(|tag| (self.reference.repository.clone(), Some(tag))));
        let content = self.fetcher.fetch_tree(fetched);
        let content = content.and_then(|content| self.fetch_blobs(&content).map(|()| content));
        Ok(self.unless_failed(what, content)?.map(|content| Artifact { root, manifests: content.manifests }))
    }

    fn fetch_blobs(&self, content: &RemoteContent) -> Result<(), Fault> {
        let ManifestFetcher { client, upstream, store, tries, .. } = self.fetcher;
        let mut wanted = Vec::new();
        for (digest, blob) in &content.blobs {
            if store.has(digest) {
                self.fetcher.check_size(&format!("blob {digest} of {}", upstream.path), digest, blob.size)?;
            } else {
                wanted.push((*digest, blob.clone()));
            }
        }
        let fetcher = BlobFetcher { client, upstream, store, local: self.local, tries, bar: ProgressBar::hidden() };
        fetcher.fetch(wanted, || {})
    }

    fn add(&mut self, artifact: Artifact) {
        self.found.listed.push(artifact.root);
        self.subjects.extend(artifact.manifests.into_iter().filter(|manifest| self.known.insert(*manifest)));
    }

    /// As [`ReferrerLookup::unless_failed`]. What does not exist is not a failure.
    fn unless_missing<T>(&mut self, what: &str, result: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match result {
            Err(Fault::NotFound { .. }) => Ok(None),
            result => self.unless_failed(what, result),
        }
    }

    /// Records a failure.
    ///
    /// # Errors
    /// Fails after a signal, and if the cause is on this machine.
    fn unless_failed<T>(&mut self, what: &str, result: Result<T, Fault>) -> Result<Option<T>, Fault> {
        let fault = match result {
            Ok(found) => return Ok(Some(found)),
            Err(fault) => fault,
        };
        self.fetcher.client.check()?;
        if fault.is_local() {
            return Err(fault);
        }
        let mut why = chain(&fault);
        // The next look-up would take as long.
        if matches!(fault, Fault::Timeout { .. } | Fault::RateLimited { .. }) {
            self.is_over = true;
            why.push_str("; nothing more was looked up for this image");
        }
        if fault.is_transient() {
            self.fetcher.tries = 1;
        }
        self.found.failed.push(FailedLookup { image: self.reference.to_string(), what: what.to_owned(), why });
        Ok(None)
    }

    /// The referrers of a manifest by the referrers API, with the failure that ended the list early.
    ///
    /// # Errors
    /// Fails if there is not even a first page, and if there are too many referrers.
    fn list(&self, subject: &Digest) -> Result<(Vec<Descriptor>, Option<Fault>), Fault> {
        let (mut listed, mut asked) = (Vec::new(), HashSet::new());
        let mut target = format!("referrers/{subject}");
        loop {
            asked.insert(target.clone());
            let (entries, next) = match self.page(subject, &target) {
                Err(fault) if asked.len() > 1 => return Ok((listed, Some(fault))),
                page => page?,
            };
            listed.extend(entries);
            if listed.len() > MAX_MANIFESTS {
                return Err(Fault::Endless(format!("{MAX_MANIFESTS} referrers")));
            }
            target = match next {
                Ok(None) => return Ok((listed, None)),
                Ok(Some(next)) if asked.contains(&next) => {
                    let fault = self.link_fault(subject, &format!("names the page {} again", printable(&next)));
                    return Ok((listed, Some(fault)));
                }
                Ok(Some(_)) if asked.len() == MAX_PAGES => {
                    return Ok((listed, Some(Fault::Endless(format!("{MAX_PAGES} pages of referrers")))));
                }
                Ok(Some(next)) => next,
                Err(fault) => return Ok((listed, Some(fault))),
            };
        }
    }

    /// The entries of one page, and the target of the next.
    fn page(&self, subject: &Digest, target: &str) -> Result<Page, Fault> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(deserialize_with = "null_as_default")]
            manifests: Vec<Descriptor>,
        }
        let ManifestFetcher { client, upstream, tries, .. } = self.fetcher;
        let what = format!("referrers of {subject} in {}", upstream.path);
        let (kind, links, body) = client.attempt(tries, || {
            let (response, at) = upstream.get(target, &what, &[("Accept", media_type::OCI_INDEX)])?;
            let values =
                |name| response.headers().get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            let kind = media_type::of_header(&values(CONTENT_TYPE).next().unwrap_or_default());
            let links: Vec<String> = values(LINK).map(Cow::into_owned).collect();
            Ok((kind, links, upstream.read(response, &at, &what, MAX_MANIFEST_SIZE)?))
        })?;
        if kind != media_type::OCI_INDEX {
            return Err(Fault::MediaType { host: upstream.host.clone(), what, found: printable(&kind) });
        }
        let index: Index = serde_json::from_slice(&body).map_err(|error| Fault::Manifest {
            host: upstream.host.clone(),
            what,
            source: ManifestError::Json(error),
        })?;
        let next = links::next(links.iter().map(String::as_str))
            .map_err(|text| self.link_fault(subject, &format!("is not as in RFC 8288: {}", printable(text))));
        let next = next.and_then(|next| {
            let target = next.map(|url| {
                next_page(url, &upstream.path, subject)
                    .ok_or_else(|| self.link_fault(subject, &format!("names no other page: {}", printable(url))))
            });
            target.transpose()
        });
        Ok((index.manifests, next))
    }

    fn link_fault(&self, subject: &Digest, why: &str) -> Fault {
        let ManifestFetcher { upstream, .. } = self.fetcher;
        let what = format!("referrers of {subject} in {}", upstream.path);
        Fault::Link { host: upstream.host.clone(), what, why: why.to_owned() }
    }
}

/// Whether a manifest without a subject is something else than a container image or an index of them.
fn is_artifact(manifest: &Manifest) -> bool {
    manifest.artifact_type.as_deref().is_some_and(|kind| !media_type::is_config(kind))
}

/// The entries of a page of referrers, and the target of the next page, if any.
type Page = (Vec<Descriptor>, Result<Option<String>, Fault>);

/// The target of the next page of the referrers of `subject` in the repository `path` (distribution specification, "Listing Referrers").
/// Only the path and the query of the link are used, so that a list cannot continue on another host. A path that is none of the
/// repository's referrers, as behind a proxy that changes paths, stands for the list itself, and the query tells the page.
fn next_page(url: &str, path: &str, subject: &Digest) -> Option<String> {
    let url = url.split('#').next().unwrap_or_default();
    let (location, query) = url.split_once('?').map_or((url, None), |(location, query)| (location, Some(query)));
    let absolute = match location.split_once("//") {
        Some((scheme, rest)) if scheme.is_empty() || scheme.ends_with(':') => rest.find('/').and_then(|start| rest.get(start..)),
        _ => Some(location),
    };
    let own = absolute.and_then(|location| location.strip_prefix(&format!("/v2/{path}/referrers/")));
    let own = own.filter(|own| own.starts_with(&subject.to_string()));
    match (own, query) {
        (Some(own), Some(query)) => Some(format!("referrers/{own}?{query}")),
        (Some(own), None) => Some(format!("referrers/{own}")),
        (None, Some(query)) => Some(format!("referrers/{subject}?{query}")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_page_stays_in_the_repository() {
        let subject = Digest::sha256_of(b"");
        for (link, expected) in [
            ("/v2/a/b/referrers/SUBJECT?n=2&last=y", Some("SUBJECT?n=2&last=y")),
            ("/v2/a/b/referrers/SUBJECT/2", Some("SUBJECT/2")),
            ("http://inner:1/v2/a/b/referrers/SUBJECT/2?x#y", Some("SUBJECT/2?x")),
            ("https://elsewhere/?n=2", Some("SUBJECT?n=2")),
            ("https://elsewhere?n=2", Some("SUBJECT?n=2")),
            ("//elsewhere/v2/a/b/referrers/SUBJECT?n=2", Some("SUBJECT?n=2")),
            ("?n=2", Some("SUBJECT?n=2")),
            ("SUBJECT?n=//2", Some("SUBJECT?n=//2")),
            ("/v2/a/c/referrers/SUBJECT/2", None),
            ("https://elsewhere", None),
            ("", None),
        ] {
            let filled = |text: &str| text.replace("SUBJECT", &subject.to_string());
            let expected = expected.map(|target| filled(&format!("referrers/{target}")));
            assert_eq!(next_page(&filled(link), "a/b", &subject), expected, "{link}");
        }
    }
}
