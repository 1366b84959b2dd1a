//! What was left out of a disk on purpose: content that its images name, by repository.

use super::{Catalog, CatalogError, RepositoryId, digest_at, digest_number, digests, ends, expect, slice};
use crate::oci::Digest;
use crate::proto;

/// Content that an image names and that was left out of a repository on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut<'a> {
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The platform of a manifest, such as `linux/arm64`; `None` if its index gives none, and for other content.
    pub platform: Option<&'a str>,
}

impl Catalog {
    /// Whether this content was left out of the repository on purpose, and what it is.
    #[must_use]
    pub fn left_out(&self, repository: RepositoryId, digest: &Digest) -> Option<LeftOut<'_>> {
        let number = digest_number(&self.columns.left_out_sha256, &self.columns.left_out_sha512, digest)?;
        self.left_out_numbers(repository).binary_search(&number).ok()?;
        self.left_out_at(number)
    }

    /// What was left out of the repository on purpose, sorted by digest.
    pub fn left_out_of(&self, repository: RepositoryId) -> impl Iterator<Item = LeftOut<'_>> {
        self.left_out_numbers(repository).iter().filter_map(|number| self.left_out_at(*number))
    }

    fn left_out_at(&self, number: u32) -> Option<LeftOut<'_>> {
        let (c, at) = (&self.columns, number as usize);
        let digest = digest_at(&c.left_out_sha256, &c.left_out_sha512, at)?;
        let platform = (*c.left_out_platforms.get(at)? as usize).checked_sub(1).and_then(|at| c.platforms.get(at));
        Some(LeftOut { digest, size: *c.left_out_sizes.get(at)?, platform: platform.map(String::as_str) })
    }

    fn left_out_numbers(&self, repository: RepositoryId) -> &[u32] {
        let range = slice(&self.columns.repository_left_out_ends, repository.0);
        self.columns.repository_left_out.get(range).unwrap_or_default()
    }
}

/// Checks the columns of what is left out. Older disks have none of them.
pub(super) fn check(c: &proto::Catalog, repositories: usize) -> Result<(), CatalogError> {
    let count = digests("left_out_sha256", &c.left_out_sha256, 32)? + digests("left_out_sha512", &c.left_out_sha512, 64)?;
    expect("left_out_sizes", c.left_out_sizes.len() == count, "one size for each digest is expected")?;
    expect("left_out_platforms", c.left_out_platforms.len() == count, "one platform for each digest is expected")?;
    let is_known = |platform: &u32| *platform as usize <= c.platforms.len();
    expect("left_out_platforms", c.left_out_platforms.iter().all(is_known), "a platform has no name")?;
    let rows = if c.repository_left_out_ends.is_empty() { 0 } else { repositories };
    ends("repository_left_out_ends", &c.repository_left_out_ends, rows, c.repository_left_out.len())?;
    for repository in 0..rows {
        let numbers = c.repository_left_out.get(slice(&c.repository_left_out_ends, repository)).unwrap_or_default();
        let ascend = numbers.is_sorted_by(|a, b| a < b) && numbers.last().is_none_or(|last| (*last as usize) < count);
        expect("repository_left_out", ascend, "ascending numbers of what is left out are expected")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Builder;
    use super::*;

    #[test]
    fn what_is_left_out_is_stored_by_repository_and_checked() {
        let (a, b): (crate::oci::Repository, crate::oci::Repository) = ("test/a".parse().unwrap(), "test/b".parse().unwrap());
        let (arm64, layer) = (Digest::sha256_of(b"arm64"), Digest::sha256_of(b"layer"));
        let mut builder = Builder::default();
        for (platform, size) in [(None, 3), (Some("linux/arm64/v8"), 5), (Some("linux/arm64"), 5)] {
            builder.left_out("test/a", LeftOut { digest: arm64, size, platform });
        }
        builder.left_out("test/a", LeftOut { digest: layer, size: 9, platform: None });
        // Another image of b has it.
        builder.left_out("test/b", LeftOut { digest: arm64, size: 5, platform: None });
        builder.blob(&b, arm64, 5, Some("application/vnd.oci.image.manifest.v1+json"));
        builder.blob(&a, Digest::sha256_of(b"kept"), 4, None);
        let built = builder.finish();
        let catalog = Catalog::decode(built.encode().into()).unwrap();
        assert_eq!(catalog, built);
        let [a, b] = ["test/a", "test/b"].map(|name| catalog.repository(name).unwrap());
        let found = |repository, digest| catalog.left_out(repository, &digest).map(|found| (found.size, found.platform));
        assert_eq!((found(a, arm64), found(a, layer)), (Some((5, Some("linux/arm64"))), Some((9, None))));
        assert_eq!((found(b, arm64), found(b, layer), catalog.left_out_of(b).count()), (None, None, 0));
        assert_eq!((catalog.left_out_of(a).count(), catalog.blob_in(a, &arm64)), (2, None));

        let damage = |change: fn(&mut proto::Catalog)| {
            let mut damaged = catalog.clone();
            change(&mut damaged.columns);
            Catalog::decode(damaged.encode().into()).unwrap_err().to_string()
        };
        for (message, expected) in [
            (damage(|c| c.left_out_sizes.clear()), "left_out_sizes: one size for each digest is expected"),
            (damage(|c| c.left_out_platforms.clear()), "left_out_platforms: one platform for each digest is expected"),
            (damage(|c| c.platforms.clear()), "left_out_platforms: a platform has no name"),
            (damage(|c| _ = c.repository_left_out_ends.pop()), "repository_left_out_ends: one end for each row is expected"),
            (damage(|c| c.repository_left_out_ends.clear()), "repository_left_out_ends: ends do not close their column"),
            (
                damage(|c| c.repository_left_out = vec![0, 2]),
                "repository_left_out: ascending numbers of what is left out are expected",
            ),
        ] {
            assert_eq!(message, format!("the catalog is damaged: column {expected}; pack the disk again"));
        }
    }
}
