//! Verifies a disk: each blob against its digest, and the catalog against index.json and the manifests.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

use super::contents::{Blob, BlobFault, BlobKind, Contents, ContentsError, read_fault};
use crate::disk::catalog::{Catalog, RepositoryId};
use crate::disk::layout::Tree;
use crate::host::support::interrupt::{Interrupt, Interrupted};
use crate::host::support::workers;
use crate::oci::{Digest, Hasher, Repository};

/// Read buffer size in bytes.
pub const CHUNK: usize = 1 << 20;
/// Most differences of a catalog that are listed. One bug of its writer may be in every row.
const MAX_NAMED: usize = 20;

/// Hashes all blobs that were not checked yet, on all processors, and adds their faults to `contents`.
///
/// # Errors
/// Fails with [`ContentsError::Unsupported`] or [`ContentsError::Interrupted`].
pub fn blobs(
    tree: &(dyn Tree + Sync),
    contents: &mut Contents,
    bar: &ProgressBar,
    interrupt: &Interrupt,
) -> Result<(), ContentsError> {
    let mut unchecked: Vec<(u32, &Blob)> = (0..).zip(&contents.blobs).filter(|(_, blob)| !blob.checked).collect();
    // Largest first, so that no processor is left with a long one at the end.
    unchecked.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
    let faults = Mutex::new(Vec::new());
    workers::each(&unchecked, |(number, blob)| {
        let fault = fault(tree, blob, bar, interrupt)?;
        faults.lock().unwrap_or_else(PoisonError::into_inner).extend(fault.map(|fault| (*number, fault)));
        Ok::<(), ContentsError>(())
    })?;
    contents.faults.extend(faults.into_inner().unwrap_or_else(PoisonError::into_inner));
    let digest = |number: &u32| contents.blobs.get(*number as usize).map(|blob| blob.digest);
    contents.faults.sort_by_key(|(number, _)| digest(number));
    Ok(())
}

fn fault(tree: &dyn Tree, blob: &Blob, bar: &ProgressBar, interrupt: &Interrupt) -> Result<Option<BlobFault>, ContentsError> {
    match hash(tree, blob, bar, interrupt, |_| Ok(())) {
        Ok((found, _)) if found != blob.size => Ok(Some(BlobFault::Size { expected: blob.size, found })),
        Ok((_, found)) if found != blob.digest => Ok(Some(BlobFault::Content { found })),
        Ok(_) => Ok(None),
        Err(error) => {
            interrupt.check()?;
            let path = blob.digest.blob_path();
            Ok(Some(read_fault(error).map_err(|source| ContentsError::Unsupported { path, source })?))
        }
    }
}

/// Reads a blob, passing its parts to `each`, and returns its size and digest. Reads at most one byte beyond the expected size.
///
/// # Errors
/// Fails if the blob cannot be read, if `each` fails, or after a signal.
pub fn hash(
    tree: &dyn Tree,
    blob: &Blob,
    bar: &ProgressBar,
    interrupt: &Interrupt,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<(u64, Digest)> {
    let content = tree.open(&blob.digest.blob_path())?;
    let mut hasher = Hasher::new(blob.digest.algorithm());
    if content.size != blob.size {
        return Ok((content.size, hasher.finish()));
    }
    let mut reader = content.reader.take(blob.size.saturating_add(1));
    let mut buffer = vec![0; usize::try_from(blob.size).unwrap_or(CHUNK).saturating_add(1).min(CHUNK)];
    let mut len = 0;
    loop {
        let count = interrupt.read(&mut reader, &mut buffer)?;
        if count == 0 {
            return Ok((len, hasher.finish()));
        }
        let part = buffer.get(..count).unwrap_or_default();
        hasher.update(part);
        each(part)?;
        len += count as u64;
        bar.inc(count as u64);
    }
}

/// Lists how the catalog differs from index.json and the manifests.
///
/// # Errors
/// Fails after a signal.
pub fn catalog(catalog: &Catalog, contents: &Contents, interrupt: &Interrupt) -> Result<Vec<String>, Interrupted> {
    let mut differences = Differences::default();
    // Missing blobs are reported as faults. A catalog may omit them (`pack --allow-missing`).
    let missing = contents.faults.iter().filter(|(_, fault)| fault.is_missing()).map(|(number, _)| *number).collect();
    // Images are sorted by repository.
    let named: Vec<_> = contents.images.iter().filter_map(|image| Some((image.repository.as_ref()?, image))).collect();
    let mut expected = HashSet::new();
    for images in named.chunk_by(|(a, _), (b, _)| a == b) {
        interrupt.check()?;
        let Some((repository, _)) = images.first() else { continue };
        expected.insert(repository.as_str());
        let Some(id) = catalog.repository(repository.as_str()) else {
            differences.add(|| format!("it lacks the repository {repository}"));
            continue;
        };
        let images: Vec<_> = images.iter().map(|(_, image)| *image).collect();
        tags(catalog, contents, (repository, id), &images, &mut differences);
        every_tag(catalog, contents, (repository, id), &images, &mut differences);
        content(catalog, contents, (repository, id), &images, &missing, &mut differences);
    }
    for id in catalog.repositories() {
        let name = catalog.repository_name(id);
        if !expected.contains(name) {
            differences.add(|| format!("it has the repository {}, but index.json does not", name.escape_default()));
        }
    }
    Ok(differences.listed())
}

/// A repository, and its ID in the catalog.
type CatalogRepository<'a> = (&'a Repository, RepositoryId);

fn tags(
    catalog: &Catalog,
    contents: &Contents,
    (name, id): CatalogRepository<'_>,
    images: &[&super::Image],
    differences: &mut Differences,
) {
    let expected = images.iter().filter_map(|image| Some((image.tag.as_ref()?.as_str(), contents.root_blob(image)?.digest)));
    let mut expected: BTreeMap<&str, Digest> = expected.collect();
    for (tag, blob) in catalog.tags_after(id, None) {
        let found = catalog.blob(blob).map(|blob| blob.digest);
        match (expected.remove(tag), found) {
            (None, _) => differences.add(|| format!("it has the tag {name}:{}, but index.json does not", tag.escape_default())),
            (Some(expected), Some(found)) if expected != found => {
                differences.add(|| format!("its tag {name}:{tag} is {found}, but in index.json {expected}"));
            }
            _ => {}
        }
    }
    for tag in expected.keys() {
        differences.add(|| format!("it lacks the tag {name}:{tag}"));
    }
}

fn every_tag(
    catalog: &Catalog,
    contents: &Contents,
    (name, id): CatalogRepository<'_>,
    images: &[&super::Image],
    differences: &mut Differences,
) {
    let expected =
        images.iter().find(|image| image.every_tag).and_then(|image| contents.root_blob(image)).map(|blob| blob.digest);
    let found = catalog.every_tag(id).and_then(|blob| catalog.blob(blob)).map(|blob| blob.digest);
    if expected != found {
        let or_no_manifest =
            |digest: Option<Digest>| digest.map_or_else(|| "no manifest".to_owned(), |digest| digest.to_string());
        differences.add(|| {
            format!(
                "for all other tags of {name} it has {}, but index.json has {}",
                or_no_manifest(found),
                or_no_manifest(expected)
            )
        });
    }
}

fn content(
    catalog: &Catalog,
    contents: &Contents,
    (name, id): CatalogRepository<'_>,
    images: &[&super::Image],
    missing: &HashSet<u32>,
    differences: &mut Differences,
) {
    let mut expected = BTreeSet::new();
    let mut referrers = BTreeSet::new();
    for image in images {
        let Some(root) = contents.root(image) else { continue };
        let left_out = |number: &u32| {
            let digest = contents.blobs.get(*number as usize).map(|blob| blob.digest);
            missing.contains(number) && digest.is_some_and(|digest| catalog.blob_in(id, &digest).is_none())
        };
        expected.extend(root.blobs.iter().copied().filter(|number| !left_out(number)));
        referrers.extend(root.referrers.iter().map(|(number, subject)| (*subject, *number)));
    }
    for number in &expected {
        let Some(blob) = contents.blobs.get(*number as usize) else { continue };
        let digest = blob.digest;
        let Some(found) = catalog.blob_in(id, &digest).and_then(|found| catalog.blob(found)) else {
            differences.add(|| format!("it lacks blob {digest} in the repository {name}"));
            continue;
        };
        if found.size != blob.size {
            differences.add(|| format!("its size of blob {digest} is {} bytes, but in manifests {}", found.size, blob.size));
        }
        let kind = if let BlobKind::Manifest(media_type) = &blob.kind { Some(media_type.as_ref()) } else { None };
        if kind != found.manifest {
            let or_no_manifest = |kind: Option<&str>| kind.unwrap_or("no manifest").escape_default().to_string();
            differences.add(|| {
                format!(
                    "its type of blob {digest} is {}, but the content is {}",
                    or_no_manifest(found.manifest),
                    or_no_manifest(kind)
                )
            });
        }
    }
    let roots = images.iter().filter_map(|image| contents.root(image));
    let mut left_out: BTreeSet<Digest> = roots.flat_map(|root| &root.left_out).map(|blob| blob.digest).collect();
    if !left_out.is_empty() {
        // Another image of the repository may have it.
        let present = expected.iter().filter_map(|number| contents.blobs.get(*number as usize));
        present.for_each(|blob| _ = left_out.remove(&blob.digest));
    }
    let known: BTreeSet<Digest> = catalog.left_out_of(id).map(|left_out| left_out.digest).collect();
    for digest in left_out.difference(&known) {
        differences.add(|| format!("it lacks that {digest} is left out of the repository {name}"));
    }
    for digest in known.difference(&left_out) {
        differences.add(|| format!("it has {digest} as left out of the repository {name}, but index.json does not"));
    }
    let surplus = catalog.blobs_of(id).len().saturating_sub(expected.len());
    if surplus > 0 {
        differences.add(|| format!("it has {surplus} more blobs in the repository {name} than its images"));
    }
    for (subject, number) in referrers {
        let Some(referrer) = contents.blobs.get(number as usize).map(|blob| blob.digest) else { continue };
        let mut known = catalog.referrers(id, &subject).filter_map(|blob| catalog.blob(blob));
        if !known.any(|known| known.digest == referrer) {
            differences.add(|| format!("it lacks that {referrer} refers to {subject} in the repository {name}"));
        }
    }
}

/// A bounded list of differences.
#[derive(Default)]
struct Differences {
    listed: Vec<String>,
    more: u64,
}

impl Differences {
    fn add(&mut self, difference: impl FnOnce() -> String) {
        if self.listed.len() < MAX_NAMED {
            self.listed.push(difference());
        } else {
            self.more += 1;
        }
    }

    fn listed(mut self) -> Vec<String> {
        if self.more > 0 {
            self.listed.push(format!("it differs in {} more places", self.more));
        }
        self.listed
    }
}
