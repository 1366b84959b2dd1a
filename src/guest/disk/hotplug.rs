//! Disks that come and go while the registry serves. What enters are the kernel's notifications; what leaves is a registry that serves
//! what is there, and an event for each change. A disk that cannot be served, or that disagrees with one that is, is a warning and
//! changes nothing.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{ANSWER, Attached, Device, DiskChoice, DiskError, look, mount, unmount};
use crate::guest::early::console;
use crate::guest::error::Fault;
use crate::proto::{Disks, event};
use crate::registry::api::handler::Registry;
use crate::registry::content::store::{Disk, Store};
use crate::registry::telemetry::events::Events;
use crate::registry::tls::Leaves;
use crate::text;

/// Code of the warning that a disk is not meant.
const NOT_MEANT: &str = "DISK_IGNORED";

/// Who keeps the registry to the disks that are there.
#[derive(Debug)]
pub struct Keeper {
    registry: Arc<Registry>,
    choices: Vec<DiskChoice>,
    served: Vec<Attached>,
    /// Disks that are there and not served: each is looked at once.
    refused: Vec<Device>,
    /// Whose certificates have to name the hosts that a disk brings.
    leaves: Option<Arc<Leaves>>,
    events: Events,
}

impl Keeper {
    /// Keeps `registry`, which serves the disks `served`, to what `choices` mean.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        choices: Vec<DiskChoice>,
        served: Vec<Attached>,
        leaves: Option<Arc<Leaves>>,
        events: Events,
    ) -> Self {
        Self { registry, choices, served, refused: Vec::new(), leaves, events }
    }

    /// Looks whenever a device has come or gone, as long as the guest serves.
    pub async fn run(mut self, mut changes: watch::Receiver<()>) {
        // What boot saw and passed over is no news; what came since is.
        if let Ok(devices) = self.devices().await {
            let meant = |device: &&Device| self.choices.iter().any(|choice| device.is_meant_by(choice));
            self.refused = devices.iter().filter(|device| !meant(device)).cloned().collect();
        }
        loop {
            match self.devices().await {
                Ok(devices) => self.follow(devices).await,
                Err(error) => self.warn(error.code(), text::chain(&error)),
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn devices(&self) -> Result<Vec<Device>, DiskError> {
        let known = self.served.iter().map(|attached| &attached.device).chain(&self.refused).cloned().collect();
        look(&self.choices, known).await
    }

    /// Serves what is new among `devices`, and no longer what is gone.
    async fn follow(&mut self, devices: Vec<Device>) {
        let is_there = |known: &Device| devices.iter().any(|device| device.is(known));
        let (served, gone) = std::mem::take(&mut self.served).into_iter().partition(|attached| is_there(&attached.device));
        self.served = served;
        self.refused.retain(is_there);
        for attached in gone {
            self.remove(attached).await;
        }
        for device in devices {
            let mut known = self.served.iter().map(|attached| &attached.device).chain(&self.refused);
            if known.any(|known| known.is(&device)) {
                continue;
            }
            if let Err(fault) = self.add(device.clone()).await {
                self.refused.push(device);
                let (code, why) = fault;
                self.warn(code, format!("{why}; it is not served, and all else is as before"));
            }
        }
    }

    /// Serves one more disk, or says why not: a code, and words.
    async fn add(&mut self, device: Device) -> Result<(), (&'static str, String)> {
        self.check_meant(&device)?;
        let told = |fault: Fault| (fault.code(), fault.chain());
        let attached = match mount(device).await {
            // The kernel names a device before it can be opened, and reports it once more when it can.
            Err(DiskError::Read { source, .. }) if Errno::from_io_error(&source) == Some(Errno::NXIO) => return Ok(()),
            mounted => mounted.map_err(|error| told(error.into()))?,
        };
        let (name, root, registry) = (attached.device.to_string(), attached.root.clone(), Arc::clone(&self.registry));
        let opened = in_time(&name, move |name| {
            let store = with(registry.snapshot().store(), &root, &name)?;
            Ok(registry.snapshot_of(store))
        });
        let snapshot = match opened.await {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                unmount(&attached);
                return Err(told(fault));
            }
        };
        if let Some(leaves) = &self.leaves {
            leaves.add_upstreams(snapshot.store().upstreams());
        }
        self.registry.replace(snapshot);
        self.served.push(attached);
        console::say(&format!("{name} came: it is served"));
        self.tell(name, String::new());
        Ok(())
    }

    /// Refuses a disk that no choice means, or whose place another has.
    fn check_meant(&self, device: &Device) -> Result<(), (&'static str, String)> {
        let mut meaning = self.choices.iter().filter(|choice| device.is_meant_by(choice)).peekable();
        if meaning.peek().is_none() {
            let meant: Vec<String> = self.choices.iter().map(|choice| super::meant(&choice.by)).collect();
            return Err((NOT_MEANT, format!("{device} came; expected one {}", meant.join(", or "))));
        }
        let taken = |choice: &DiskChoice| self.served.iter().find(|attached| attached.device.is_meant_by(choice));
        let others: Vec<_> = meaning.map(|choice| if choice.by.matches_many() { None } else { taken(choice) }).collect();
        match others.iter().all(Option::is_some).then(|| others.first().copied().flatten()).flatten() {
            None => Ok(()),
            Some(other) => Err((NOT_MEANT, format!("{device} came; {} is served in its place already", other.device))),
        }
    }

    /// No longer serves a disk.
    async fn remove(&mut self, attached: Attached) {
        let (name, registry) = (attached.device.to_string(), Arc::clone(&self.registry));
        let without = in_time(&name, move |name| Ok(registry.snapshot_of(registry.snapshot().store().without(&name))));
        match without.await {
            Ok(snapshot) => self.registry.replace(snapshot),
            Err(fault) => self.warn(fault.code(), fault.chain()),
        }
        unmount(&attached);
        console::say(&format!("{name} is gone: what it alone had is no longer served"));
        self.tell(String::new(), name);
    }

    fn tell(&self, added: String, removed: String) {
        let snapshot = self.registry.snapshot();
        let store = snapshot.store();
        self.events.emit(event::Event::Disks(Disks {
            added,
            removed,
            disks: store.disks().iter().map(|disk| disk.name().to_owned()).collect(),
            images: u32::try_from(store.images()).unwrap_or(u32::MAX),
            blobs: u32::try_from(store.blobs()).unwrap_or(u32::MAX),
            blob_bytes: store.blob_bytes(),
        }));
    }

    fn warn(&self, code: &str, message: String) {
        console::warn(&self.events, code, message);
    }
}

/// `store` with the disk at `root`.
fn with(store: &Store, root: &Path, name: &str) -> Result<Store, Fault> {
    let opened = Disk::open(root, name).map_err(|source| Fault::Contents { disk: name.to_owned(), source })?;
    store.with(opened).map_err(Fault::Conflict)
}

/// What `work` gives, on a thread that may wait for the disk of this name; or that it hangs.
async fn in_time<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(String) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let own = name.to_owned();
    let hung = || Fault::Disk(DiskError::Hung { what: name.to_owned() });
    match timeout(ANSWER, tokio::task::spawn_blocking(move || work(own))).await {
        Ok(done) => done.unwrap_or_else(|_| Err(hung())),
        Err(_) => Err(hung()),
    }
}
