//! The disks that a registry serves, and the merged catalog of their images. A disk is a folder with an OCI image layout. Disks are only
//! read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, Semaphore};
use tokio::time::timeout;

use crate::disk::catalog::{self, Catalog, CatalogError};
use crate::disk::layout::{self, Directory, LayoutError, LayoutImages, LeftOver, MissingBlob, ReadOptions, Tree, Unnamed};
use crate::oci::upstreams;
use crate::oci::{Digest, Repository};
use crate::registry::limits::DISK_READS;
#[cfg(test)]
use crate::registry::simulation::disks as simulation;

/// Maximum size of a catalog, in bytes.
const MAX_CATALOG: u64 = 1 << 30;
/// Bytes that a probe of a disk reads: one page.
const PROBE_BYTES: usize = 4096;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be opened.
    #[error("cannot open {path}; the folder of an OCI image layout is expected")]
    Open {
        /// The folder.
        path: String,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The catalog cannot be read.
    #[error("cannot read {}", catalog::PATH)]
    Read(#[source] io::Error),
    /// The catalog is damaged or has another version.
    #[error("{}", catalog::PATH)]
    Catalog(#[from] CatalogError),
    /// There is no catalog, and the layout is invalid.
    #[error("{} is not there, and the layout cannot be read without it", catalog::PATH)]
    Layout(#[from] LayoutError),
}

/// An open disk: a folder with an OCI image layout, and its catalog.
#[derive(Debug)]
pub struct Disk {
    /// The name in messages.
    name: String,
    root: Directory,
    catalog: Arc<Catalog>,
    /// Limits the reads that wait for the disk.
    read_slots: Arc<Semaphore>,
    /// Held while a blob is read only to check its digest.
    verification: Mutex<()>,
    timeouts: AtomicU64,
    missing: Vec<MissingBlob>,
    left_over: Vec<LeftOver>,
}

impl Disk {
    /// Opens the layout at `path`. Messages use `name`. With a catalog no blob is opened; without one the manifests are walked.
    ///
    /// # Errors
    /// Fails if the folder is not a layout that can be served.
    pub fn open(path: &Path, name: impl Into<String>) -> Result<Self, StoreError> {
        let root = open_folder(path)?;
        let loaded = read_catalog(&root, false)?;
        Ok(Self::new(root, name.into(), loaded))
    }

    fn new(root: Directory, name: String, LoadedCatalog { catalog, missing, left_over }: LoadedCatalog) -> Self {
        Self {
            name,
            root,
            catalog: Arc::new(catalog),
            read_slots: Arc::new(Semaphore::new(DISK_READS)),
            verification: Mutex::default(),
            timeouts: AtomicU64::default(),
            missing,
            left_over,
        }
    }

    /// The entries of the layout's index that are not served.
    #[must_use]
    pub fn left_over(&self) -> &[LeftOver] {
        &self.left_over
    }

    /// The content that images refer to and the disk lacks.
    #[must_use]
    pub fn missing(&self) -> &[MissingBlob] {
        &self.missing
    }

    /// The name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a blob without blocking, if the kernel has its path in the cache.
    ///
    /// # Errors
    /// Fails with `WouldBlock` if the disk must be read, and otherwise like [`Disk::open_blob`].
    pub fn open_cached(&self, digest: &Digest, size: u64) -> io::Result<File> {
        #[cfg(test)]
        simulation::open_cached(&self.name)?;
        checked(self.root.file_cached(&digest.blob_path()), size)
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// Fails if the file cannot be opened or its size is not `size`.
    pub fn open_blob(&self, digest: &Digest, size: u64) -> io::Result<File> {
        #[cfg(test)]
        simulation::open(&self.name)?;
        checked(self.root.file(&digest.blob_path()), size)
    }

    /// Runs `read` on a blocking thread. The number of threads that wait for this disk is limited.
    ///
    /// # Errors
    /// Returns the error of `read`, or `TimedOut` if it does not finish within `limit`.
    pub async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        read: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let slots = Arc::clone(&self.read_slots);
        let finished = async {
            let slot = slots.acquire_owned().await.map_err(io::Error::other)?;
            let read = move || {
                let result = read();
                // Released by the thread: a read that hangs keeps its slot after the request has timed out.
                drop(slot);
                result
            };
            #[cfg(not(test))]
            let reading = tokio::task::spawn_blocking(read);
            #[cfg(test)]
            let reading = simulation::spawn_blocking(&self.name, read);
            reading.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        };
        timeout(limit, finished).await.unwrap_or_else(|_| {
            self.timeouts.fetch_add(1, Ordering::Relaxed);
            Err(timed_out(&format!("within {} s", limit.as_secs())))
        })
    }

    /// Waits until no other request reads a blob of this disk to check its digest.
    ///
    /// # Errors
    /// Fails with `TimedOut` if the disk timed out during the wait. Otherwise a request behind several others would wait for a timeout of
    /// each of them.
    pub async fn verification_turn(&self) -> io::Result<MutexGuard<'_, ()>> {
        let timeouts = || self.timeouts.load(Ordering::Relaxed);
        let before = timeouts();
        let turn = self.verification.lock().await;
        if timeouts() == before { Ok(turn) } else { Err(timed_out("earlier requests")) }
    }

    /// Reads a page of the largest blob from the disk, bypassing the page cache.
    fn probe(&self) -> io::Result<()> {
        let Some(blob) = self.catalog.largest_blob() else { return Ok(()) };
        let mut file = self.open_blob(&blob.digest, blob.size)?;
        let mut page = [0; PROBE_BYTES];
        // tmpfs and the like keep their pages all the same. Then the page comes from memory.
        rustix::fs::fadvise(&file, 0, NonZeroU64::new(PROBE_BYTES as u64), rustix::fs::Advice::DontNeed)?;
        file.read(&mut page).map(|_| ())
    }
}

/// Two disks that cannot be served together because their catalogs disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{about} is {} on {}, and {} on {}; expected the same, or it on one of them", one.1, one.0, other.1, other.0)]
pub struct Conflict {
    about: catalog::ConflictKind,
    /// Name of the first disk, and its value.
    one: (String, String),
    /// Name of the second disk, and its value.
    other: (String, String),
}

/// The disks that are served together. A store never changes.
#[derive(Debug, Clone)]
pub struct Store {
    disks: Vec<Arc<Disk>>,
    catalog: Arc<Catalog>,
    /// By blob: the index of its disk. Empty if there is only one disk.
    disk_of_blob: Vec<u32>,
    /// The hosts in the names of the repositories.
    upstreams: HashSet<String>,
}

impl Store {
    /// A store of the one layout at `path`. See [`Disk::open`].
    ///
    /// # Errors
    /// See [`Disk::open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self::single(Arc::new(Disk::open(path, path.display().to_string())?)))
    }

    /// A store of the one layout at `path`, whose catalog is known.
    ///
    /// # Errors
    /// Fails if the folder cannot be opened.
    pub fn with_catalog(path: &Path, loaded: LoadedCatalog) -> Result<Self, StoreError> {
        let disk = Disk::new(open_folder(path)?, path.display().to_string(), loaded);
        Ok(Self::single(Arc::new(disk)))
    }

    /// A store of one disk. It uses the disk's catalog as it is.
    fn single(disk: Arc<Disk>) -> Self {
        let catalog = Arc::clone(&disk.catalog);
        Self::new(vec![disk], catalog, Vec::new())
    }

    fn new(disks: Vec<Arc<Disk>>, catalog: Arc<Catalog>, disk_of_blob: Vec<u32>) -> Self {
        let names = catalog.repositories().filter_map(|id| catalog.repository_name(id).parse::<Repository>().ok());
        let upstreams = names.filter_map(|name| name.host().map(str::to_owned)).collect();
        Self { disks, catalog, disk_of_blob, upstreams }
    }

    /// A store of these disks, which may be none.
    ///
    /// # Errors
    /// Fails if the catalogs of two disks disagree.
    pub fn merge(disks: Vec<Arc<Disk>>) -> Result<Self, Conflict> {
        if let [disk] = disks.as_slice() {
            return Ok(Self::single(Arc::clone(disk)));
        }
        let catalogs: Vec<&Catalog> = disks.iter().map(|disk| &*disk.catalog).collect();
        let name = |(index, value): (usize, String)| (disks.get(index).map(|disk| disk.name.clone()).unwrap_or_default(), value);
        match catalog::merge(&catalogs) {
            Ok((merged, disk_of_blob)) => Ok(Self::new(disks, Arc::new(merged), disk_of_blob)),
            Err(catalog::CatalogConflict { kind: about, first: one, second: other }) => {
                Err(Conflict { about, one: name(one), other: name(other) })
            }
        }
    }

    /// A store of these disks and `disk`.
    ///
    /// # Errors
    /// Fails if the catalog of `disk` disagrees with that of another disk.
    pub fn with(&self, disk: Disk) -> Result<Self, Conflict> {
        Self::merge(self.disks.iter().cloned().chain([Arc::new(disk)]).collect())
    }

    /// A store of these disks except the one with this name.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let others = self.disks.iter().filter(|disk| disk.name != name).cloned().collect();
        // The disks of a store agree, so any subset of them does, and the merge cannot fail.
        Self::merge(others).unwrap_or_else(|_| self.clone())
    }

    /// The merged catalog.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The disks in their order.
    #[must_use]
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// The disk of a blob.
    #[must_use]
    pub fn disk_of(&self, digest: &Digest) -> Option<&Arc<Disk>> {
        if let [disk] = self.disks.as_slice() {
            return Some(disk);
        }
        let index = self.disk_of_blob.get(self.catalog.number(digest)? as usize)?;
        self.disks.get(*index as usize)
    }

    /// Whether the name of a repository starts with this host.
    #[must_use]
    pub fn has_upstream(&self, host: &str) -> bool {
        self.upstreams.contains(host)
    }

    /// The hosts in the names of the repositories, and the aliases of these hosts.
    pub fn upstreams(&self) -> impl Iterator<Item = String> {
        let aliases = self.upstreams.iter().flat_map(|host| upstreams::aliases(host));
        self.upstreams.iter().cloned().chain(aliases.map(|alias| (*alias).to_owned()))
    }

    /// The number of tags.
    #[must_use]
    pub fn images(&self) -> usize {
        self.catalog.tag_count()
    }

    /// The number of distinct blobs.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.catalog.blob_totals().0
    }

    /// The total size of all blobs, in bytes.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.catalog.blob_totals().1
    }

    /// Reads a page from each disk, bypassing the page cache.
    ///
    /// # Errors
    /// Returns the first read error, or an error if there is no disk.
    pub fn probe(&self) -> io::Result<()> {
        if self.disks.is_empty() {
            return Err(io::Error::other("there is no disk"));
        }
        let named = |disk: &Disk, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", disk.name));
        self.disks.iter().try_for_each(|disk| disk.probe().map_err(|error| named(disk, error)))
    }
}

fn open_folder(path: &Path) -> Result<Directory, StoreError> {
    Directory::open(path).map_err(|cause| StoreError::Open { path: path.display().to_string(), cause })
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the disk did not answer {what}"))
}

fn checked(opened: io::Result<(File, u64)>, expected: u64) -> io::Result<File> {
    let (file, found) = opened?;
    if found != expected {
        let kind = if found < expected { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::Other };
        return Err(io::Error::new(kind, format!("the file has {found} bytes, and the catalog says {expected}")));
    }
    Ok(file)
}

/// The catalog of a layout, and what it leaves out.
#[derive(Debug)]
pub struct LoadedCatalog {
    /// The catalog.
    pub catalog: Catalog,
    /// The content that images refer to and the layout lacks.
    pub missing: Vec<MissingBlob>,
    /// The entries of the layout's index that are left out.
    pub left_over: Vec<LeftOver>,
}

/// Loads the catalog of the layout in `tree`, or builds one from the manifests. Then images may lack content if `allow_missing` permits that.
///
/// # Errors
/// Fails if the tree is not a layout that can be served.
pub fn read_catalog(tree: &dyn Tree, allow_missing: bool) -> Result<LoadedCatalog, StoreError> {
    if let Some(catalog) = load_catalog(tree)? {
        return Ok(LoadedCatalog { catalog, missing: Vec::new(), left_over: Vec::new() });
    }
    let LayoutImages { images, left_over } =
        layout::images(tree, ReadOptions { unnamed: Unnamed::Default, verify: false, allow_missing })?;
    let missing = images.iter().flat_map(layout::Image::missing).collect();
    Ok(LoadedCatalog { catalog: layout::build_catalog(&images)?, missing, left_over })
}

/// Loads the catalog file of `tree`, if there is one.
///
/// # Errors
/// Fails if the file cannot be read or is not a valid catalog.
pub fn load_catalog(tree: &dyn Tree) -> Result<Option<Catalog>, StoreError> {
    let content = match tree.open(catalog::PATH) {
        Ok(content) => content,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(StoreError::Read(cause)),
    };
    if content.size > MAX_CATALOG {
        let size = content.size;
        return Err(StoreError::Read(io::Error::other(format!("it has {size} bytes, and at most {MAX_CATALOG} are expected"))));
    }
    let mut encoded = Vec::with_capacity(usize::try_from(content.size).unwrap_or_default());
    content.reader.take(MAX_CATALOG).read_to_end(&mut encoded).map_err(StoreError::Read)?;
    Ok(Some(Catalog::decode(Bytes::from(encoded))?))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn disk(name: &str) -> Arc<Disk> {
        let layout = tempfile::tempdir().unwrap();
        std::fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(layout.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        Arc::new(Disk::open(layout.path(), name).unwrap())
    }

    #[test]
    fn disk_that_hangs_blocks_a_limited_number_of_threads_and_no_other_disk() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (hung, healthy) = (disk("hung"), disk("healthy"));
            let (started, starts) = channel();
            let (release, held) = channel::<()>();
            let held = Arc::new(std::sync::Mutex::new(held));
            let requests: Vec<_> = (0..4 * DISK_READS)
                .map(|_| {
                    let (disk, started, held) = (Arc::clone(&hung), started.clone(), Arc::clone(&held));
                    tokio::spawn(async move {
                        let read = move || {
                            started.send(()).map_err(io::Error::other)?;
                            let _ = held.lock().map(|held| held.recv());
                            Ok(())
                        };
                        disk.run(Duration::from_millis(500), read).await
                    })
                })
                .collect();
            for request in requests {
                let error = request.await.unwrap().unwrap_err();
                assert_eq!(
                    (error.kind(), error.to_string()),
                    (io::ErrorKind::TimedOut, "the disk did not answer within 0 s".into())
                );
            }
            assert_eq!(starts.try_iter().count(), DISK_READS, "further requests get no thread");
            assert_eq!(healthy.run(Duration::from_secs(60), || Ok(7)).await.unwrap(), 7);
            drop(release);
            assert_eq!(hung.run(Duration::from_secs(60), || Ok(7)).await.unwrap(), 7, "the disk recovers");
        });
    }

    #[tokio::test]
    async fn requests_waiting_to_verify_fail_when_the_disk_hangs() {
        let disk = disk("hung");
        let first = disk.verification_turn().await.unwrap();
        let waiting = tokio::spawn({
            let disk = Arc::clone(&disk);
            async move { disk.verification_turn().await.map(drop).map_err(|error| error.to_string()) }
        });
        tokio::task::yield_now().await;
        let (sender, receiver) = channel::<()>();
        disk.run(Duration::from_millis(1), move || receiver.recv().map_err(io::Error::other)).await.unwrap_err();
        drop(first);
        assert_eq!(waiting.await.unwrap(), Err("the disk did not answer earlier requests".into()));
        assert!(disk.verification_turn().await.is_ok());
        drop(sender);
    }

    #[test]
    fn store_without_disks_is_empty_and_its_probe_fails() {
        let empty = Store::merge(Vec::new()).unwrap();
        assert_eq!((empty.images(), empty.probe().unwrap_err().to_string()), (0, "there is no disk".to_owned()));
        let one = empty.with(Arc::into_inner(disk("one")).unwrap()).unwrap();
        assert!(one.probe().is_ok() && one.without("one").disks().is_empty());
    }
}
