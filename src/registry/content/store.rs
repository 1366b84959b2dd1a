//! The content behind the registry: folders that are image layouts, each a disk, and the catalog of all of them. Read-only: nothing
//! here can write.

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
use crate::disk::layout::{self, Directory, LayoutError, Missing, Reading, Tree, Unnamed};
use crate::oci::Digest;
use crate::registry::limits::DISK_READS;

/// Largest catalog that is loaded, in bytes.
const MAX_CATALOG: u64 = 1 << 30;
/// Bytes that are read to see whether the disk answers: one page.
const PROBED: usize = 4096;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be opened.
    #[error("cannot open {path}; the folder of an OCI image layout is expected")]
    Open {
        /// The folder.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The catalog is there and cannot be read.
    #[error("cannot read {}", catalog::PATH)]
    Read(#[source] io::Error),
    /// The catalog is damaged, or of another version.
    #[error("{}", catalog::PATH)]
    Catalog(#[from] CatalogError),
    /// There is no catalog, and the layout is wrong.
    #[error("{} is not there, and the layout cannot be read without it", catalog::PATH)]
    Layout(#[from] LayoutError),
}

/// A disk, open: a folder that is an image layout, and its catalog.
#[derive(Debug)]
pub struct Disk {
    /// What messages call it.
    name: String,
    root: Directory,
    catalog: Arc<Catalog>,
    /// For those who wait for it.
    places: Arc<Semaphore>,
    /// For who reads a blob to see whether it is right.
    proofs: Mutex<()>,
    /// How often it did not answer in time.
    hangs: AtomicU64,
    /// What its images name and it does not have.
    missing: Vec<Missing>,
}

impl Disk {
    /// Opens the layout at `path`, which messages call `name`: with its catalog where it has one (then no blob is opened), else by
    /// walking its manifests.
    ///
    /// # Errors
    /// [`StoreError`], where the folder is no layout that can be served.
    pub fn open(path: &Path, name: impl Into<String>) -> Result<Self, StoreError> {
        Self::open_as(path, name, false)
    }

    /// The same. If it is `lenient`, images of a layout without a catalog may lack layers, and indexes manifests.
    ///
    /// # Errors
    /// As of [`Disk::open`].
    pub fn open_as(path: &Path, name: impl Into<String>, lenient: bool) -> Result<Self, StoreError> {
        let root = Directory::open(path).map_err(|cause| StoreError::Open { path: path.display().to_string(), cause })?;
        let (catalog, missing) = index(&root, lenient)?;
        Ok(Self {
            name: name.into(),
            root,
            catalog: Arc::new(catalog),
            places: Arc::new(Semaphore::new(DISK_READS)),
            proofs: Mutex::default(),
            hangs: AtomicU64::default(),
            missing,
        })
    }

    /// What its images name and it does not have, if it was opened in spite of that.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a blob's content where that cannot block: where the file's path is in the kernel's cache.
    ///
    /// # Errors
    /// `WouldBlock`, where the disk must be asked; else as [`Disk::open_blob`].
    pub fn open_cached(&self, digest: &Digest, size: u64) -> io::Result<File> {
        checked(self.root.file_cached(&digest.blob_path()), size)
    }

    /// Opens a blob's content.
    ///
    /// # Errors
    /// As of opening a file; also where the file has another size than the catalog says.
    pub fn open_blob(&self, digest: &Digest, size: u64) -> io::Result<File> {
        checked(self.root.file(&digest.blob_path()), size)
    }

    /// Does what may have to wait for the disk, on a thread that may wait. A disk that hangs keeps a bounded number of threads, and
    /// nobody for longer than `patience`.
    ///
    /// # Errors
    /// Those of `work`; `TimedOut`, where it is not done in time.
    pub async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let places = Arc::clone(&self.places);
        let done = async {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let working = tokio::task::spawn_blocking(move || {
                let done = work();
                drop(place);
                done
            });
            working.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        };
        timeout(patience, done).await.unwrap_or_else(|_| {
            self.hangs.fetch_add(1, Ordering::Relaxed);
            Err(hung(&format!("within {} s", patience.as_secs())))
        })
    }

    /// Waits until nobody else reads a blob of it to see whether it is right.
    ///
    /// # Errors
    /// `TimedOut`, where the disk hangs meanwhile: who waits behind others must not wait once more for each of them.
    pub async fn proofs(&self) -> io::Result<MutexGuard<'_, ()>> {
        let hangs = || self.hangs.load(Ordering::Relaxed);
        let before = hangs();
        let turn = self.proofs.lock().await;
        if hangs() == before { Ok(turn) } else { Err(hung("those who asked before")) }
    }

    /// Reads a little of the largest blob from the disk itself, whatever of it the kernel remembers.
    fn probe(&self) -> io::Result<()> {
        let Some(blob) = self.catalog.largest_blob() else { return Ok(()) };
        let mut file = self.open_blob(&blob.digest, blob.size)?;
        let mut some = [0; PROBED];
        // What does not forget its pages, such as a file system in memory, is read from there.
        rustix::fs::fadvise(&file, 0, NonZeroU64::new(PROBED as u64), rustix::fs::Advice::DontNeed)?;
        file.read(&mut some).map(|_| ())
    }
}

/// Two disks that cannot be served together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{about} is {} on {}, and {} on {}; expected the same, or it on one of them", one.1, one.0, other.1, other.0)]
pub struct Conflict {
    /// What they disagree on.
    about: catalog::About,
    /// The one, and what it says.
    one: (String, String),
    /// The other, and what that says.
    other: (String, String),
}

/// The disks that are served, as one: it never changes.
#[derive(Debug, Clone)]
pub struct Store {
    disks: Vec<Arc<Disk>>,
    catalog: Arc<Catalog>,
    /// For each blob the place of the disk that it is on; empty where there is but one.
    homes: Vec<u32>,
}

impl Store {
    /// The layout at `path`, as [`Disk::open`] opens it, alone.
    ///
    /// # Errors
    /// As of that.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_as(path, false)
    }

    /// The layout at `path`, as [`Disk::open_as`] opens it, alone.
    ///
    /// # Errors
    /// As of that.
    pub fn open_as(path: &Path, lenient: bool) -> Result<Self, StoreError> {
        Ok(Self::one(Disk::open_as(path, path.display().to_string(), lenient)?))
    }

    /// One disk alone. Its catalog is taken as it is.
    #[must_use]
    pub fn one(disk: Disk) -> Self {
        let catalog = Arc::clone(&disk.catalog);
        Self { disks: vec![Arc::new(disk)], catalog, homes: Vec::new() }
    }

    /// All of these disks as one; with none there is nothing in it.
    ///
    /// # Errors
    /// Where two of them disagree.
    pub fn of(disks: Vec<Arc<Disk>>) -> Result<Self, Conflict> {
        if let [disk] = disks.as_slice() {
            let catalog = Arc::clone(&disk.catalog);
            return Ok(Self { disks, catalog, homes: Vec::new() });
        }
        let catalogs: Vec<&Catalog> = disks.iter().map(|disk| &*disk.catalog).collect();
        let name = |(place, said): (usize, String)| (disks.get(place).map(|disk| disk.name.clone()).unwrap_or_default(), said);
        match catalog::merge(&catalogs) {
            Ok((merged, homes)) => Ok(Self { catalog: Arc::new(merged), homes, disks }),
            Err(catalog::Disagreement { about, one, other }) => Err(Conflict { about, one: name(one), other: name(other) }),
        }
    }

    /// These disks and one more.
    ///
    /// # Errors
    /// Where it disagrees with one of them.
    pub fn with(&self, disk: Disk) -> Result<Self, Conflict> {
        Self::of(self.disks.iter().cloned().chain([Arc::new(disk)]).collect())
    }

    /// These disks without the one of this name. What goes together goes together without one of it.
    ///
    /// # Errors
    /// None that can be.
    pub fn without(&self, name: &str) -> Result<Self, Conflict> {
        Self::of(self.disks.iter().filter(|disk| disk.name != name).cloned().collect())
    }

    /// The catalog.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The disks, in their order.
    #[must_use]
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// The disk that a blob of the catalog is on.
    #[must_use]
    pub fn disk_of(&self, digest: &Digest) -> Option<&Arc<Disk>> {
        if let [disk] = self.disks.as_slice() {
            return Some(disk);
        }
        let home = self.homes.get(self.catalog.number(digest)? as usize)?;
        self.disks.get(*home as usize)
    }

    /// How many tags there are.
    #[must_use]
    pub fn images(&self) -> usize {
        self.catalog.tag_count()
    }

    /// How many distinct blobs there are.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.catalog.blob_totals().0
    }

    /// Size of all blobs together, in bytes.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.catalog.blob_totals().1
    }

    /// Reads a little of each disk from the disk itself, whatever of it the kernel remembers.
    ///
    /// # Errors
    /// The first that cannot be read, or that there is none.
    pub fn probe(&self) -> io::Result<()> {
        if self.disks.is_empty() {
            return Err(io::Error::other("there is no disk"));
        }
        let failed = |disk: &Disk, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", disk.name));
        self.disks.iter().try_for_each(|disk| disk.probe().map_err(|error| failed(disk, error)))
    }
}

fn hung(whom: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("the disk did not answer {whom}"))
}

fn checked(opened: io::Result<(File, u64)>, expected: u64) -> io::Result<File> {
    let (file, found) = opened?;
    if found != expected {
        let kind = if found < expected { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::Other };
        return Err(io::Error::new(kind, format!("the file has {found} bytes, and the catalog says {expected}")));
    }
    Ok(file)
}

/// The catalog of the layout in `tree`: the one that it has, else the one that [`layout::images`] gives, with what is missing. If it is
/// `lenient`, that is no error.
///
/// # Errors
/// [`StoreError`], if the tree is no layout that can be served.
pub fn index(tree: &dyn Tree, lenient: bool) -> Result<(Catalog, Vec<Missing>), StoreError> {
    if let Some(catalog) = load(tree)? {
        return Ok((catalog, Vec::new()));
    }
    let images = layout::images(tree, Reading { unnamed: Unnamed::Default, verify: false, lenient })?;
    Ok((layout::catalog(&images)?, images.iter().flat_map(layout::Image::missing).collect()))
}

/// The catalog that `tree` has, if any.
///
/// # Errors
/// [`StoreError`], if it cannot be used.
pub fn load(tree: &dyn Tree) -> Result<Option<Catalog>, StoreError> {
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
    fn a_disk_that_hangs_keeps_so_many_threads_and_no_other_disk() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (hung, well) = (disk("hung"), disk("well"));
            let (started, starts) = channel();
            let (release, held) = channel::<()>();
            let held = Arc::new(std::sync::Mutex::new(held));
            let asked: Vec<_> = (0..4 * DISK_READS)
                .map(|_| {
                    let (disk, started, held) = (Arc::clone(&hung), started.clone(), Arc::clone(&held));
                    tokio::spawn(async move {
                        let work = move || {
                            started.send(()).map_err(io::Error::other)?;
                            let _ = held.lock().map(|held| held.recv());
                            Ok(())
                        };
                        disk.ask(Duration::from_millis(500), work).await
                    })
                })
                .collect();
            for one in asked {
                let error = one.await.unwrap().unwrap_err();
                assert_eq!(
                    (error.kind(), error.to_string()),
                    (io::ErrorKind::TimedOut, "the disk did not answer within 0 s".into())
                );
            }
            assert_eq!(starts.try_iter().count(), DISK_READS, "further ones got no thread");
            assert_eq!(well.ask(Duration::from_secs(60), || Ok(7)).await.unwrap(), 7);
            drop(release);
            assert_eq!(hung.ask(Duration::from_secs(60), || Ok(7)).await.unwrap(), 7, "and well again");
        });
    }

    #[tokio::test]
    async fn who_waits_behind_a_proof_of_a_disk_that_hangs_fails_with_it() {
        let disk = disk("hung");
        let first = disk.proofs().await.unwrap();
        let behind = tokio::spawn({
            let disk = Arc::clone(&disk);
            async move { disk.proofs().await.map(drop).map_err(|error| error.to_string()) }
        });
        tokio::task::yield_now().await;
        let (_held, hold) = channel::<()>();
        disk.ask(Duration::from_millis(1), move || hold.recv().map_err(io::Error::other)).await.unwrap_err();
        drop(first);
        assert_eq!(behind.await.unwrap(), Err("the disk did not answer those who asked before".into()));
        assert!(disk.proofs().await.is_ok());
        drop(_held);
    }

    #[test]
    fn without_a_disk_nothing_is_well() {
        let none = Store::of(Vec::new()).unwrap();
        assert_eq!((none.images(), none.probe().unwrap_err().to_string()), (0, "there is no disk".to_owned()));
        let one = none.with(Arc::into_inner(disk("one")).unwrap()).unwrap();
        assert!(one.probe().is_ok() && one.without("one").unwrap().disks().is_empty());
    }
}
