//! Adds and removes disks while the registry serves, and sends an event for each change. A disk that cannot be served, or that
//! conflicts with a served one, causes a warning and no change.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::watch;

use super::{Device, DiskChoice, DiskError, MountedDisk, list_devices, mount, unmount, with_timeout};
use crate::guest::early::console;
use crate::guest::error::Fault;
use crate::proto::{Disks, event};
use crate::registry::api::handler::Registry;
use crate::registry::content::store::{Disk, Store};
use crate::registry::telemetry::events::Events;
use crate::registry::tls::Leaves;
use crate::text;

/// Code of the warning about a disk that no choice selects.
const NOT_SELECTED: &str = "DISK_IGNORED";

/// Updates the registry when disks are added or removed.
#[derive(Debug)]
pub struct DiskManager {
    registry: Arc<Registry>,
    choices: Vec<DiskChoice>,
    served: Vec<MountedDisk>,
    /// Disks that are present but not served. Each is examined once.
    ignored: Vec<Device>,
    /// Issues certificates for the upstream hosts of a new disk.
    leaves: Option<Arc<Leaves>>,
    events: Events,
}

impl DiskManager {
    /// A manager for `registry`, which serves the disks `served`, selected by `choices`.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        choices: Vec<DiskChoice>,
        served: Vec<MountedDisk>,
        leaves: Option<Arc<Leaves>>,
        events: Events,
    ) -> Self {
        Self { registry, choices, served, ignored: Vec::new(), leaves, events }
    }

    /// Checks the devices after each notification, while the guest serves.
    pub async fn run(mut self, mut changes: watch::Receiver<()>) {
        // Do not warn about disks that boot saw and did not select.
        if let Ok(devices) = self.devices().await {
            let is_selected = |device: &&Device| self.choices.iter().any(|choice| device.is_selected_by(choice));
            self.ignored = devices.iter().filter(|device| !is_selected(device)).cloned().collect();
        }
        loop {
            match self.devices().await {
                Ok(devices) => self.update(devices).await,
                Err(error) => self.warn(error.code(), text::chain(&error)),
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn devices(&self) -> Result<Vec<Device>, DiskError> {
        let known = self.served.iter().map(|attached| &attached.device).chain(&self.ignored).cloned().collect();
        list_devices(&self.choices, known).await
    }

    /// Serves new disks among `devices`, and stops serving those that are missing.
    async fn update(&mut self, devices: Vec<Device>) {
        let is_present = |known: &Device| devices.iter().any(|device| device.is(known));
        let (served, removed) = std::mem::take(&mut self.served).into_iter().partition(|attached| is_present(&attached.device));
        self.served = served;
        self.ignored.retain(is_present);
        for attached in removed {
            self.remove(attached).await;
        }
        for device in devices {
            let mut known = self.served.iter().map(|attached| &attached.device).chain(&self.ignored);
            if known.any(|known| known.is(&device)) {
                continue;
            }
            if let Err((code, why)) = self.add(device.clone()).await {
                self.ignored.push(device);
                self.warn(code, format!("{why}; this disk is not served, and nothing else changes"));
            }
        }
    }

    /// Serves one more disk. Fails with the code and the message of a warning.
    async fn add(&mut self, device: Device) -> Result<(), (&'static str, String)> {
        self.check_selected(&device)?;
        let warning = |fault: Fault| (fault.code(), fault.chain());
        let attached = match mount(device).await {
            // The kernel announces a device before it can be opened, and again when it can.
            Err(DiskError::Read { source, .. }) if Errno::from_io_error(&source) == Some(Errno::NXIO) => return Ok(()),
            mounted => mounted.map_err(|error| warning(error.into()))?,
        };
        let (name, root, registry) = (attached.device.to_string(), attached.root.clone(), Arc::clone(&self.registry));
        let disk = name.clone();
        let opened = with_timeout(&name, move || {
            let store = with_disk(registry.snapshot().store(), &root, &disk)?;
            Ok(registry.snapshot_of(store))
        });
        let snapshot = match opened.await {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                unmount(&attached);
                return Err(warning(fault));
            }
        };
        if let Some(leaves) = &self.leaves {
            leaves.add_upstreams(snapshot.store().upstreams());
        }
        self.registry.replace(snapshot);
        self.served.push(attached);
        console::log(&format!("{name} was attached and is now served"));
        self.announce(name, String::new());
        Ok(())
    }

    /// Rejects a disk that no choice selects, or whose choice already has a disk.
    fn check_selected(&self, device: &Device) -> Result<(), (&'static str, String)> {
        let mut selecting = self.choices.iter().filter(|choice| device.is_selected_by(choice)).peekable();
        if selecting.peek().is_none() {
            let expected: Vec<String> = self.choices.iter().map(|choice| super::describe(&choice.by)).collect();
            return Err((NOT_SELECTED, format!("{device} was attached; expected one {}", expected.join(", or "))));
        }
        let current = |choice: &DiskChoice| self.served.iter().find(|attached| attached.device.is_selected_by(choice));
        let others: Vec<_> = selecting.map(|choice| if choice.by.matches_many() { None } else { current(choice) }).collect();
        match others.iter().all(Option::is_some).then(|| others.first().copied().flatten()).flatten() {
            None => Ok(()),
            Some(other) => Err((NOT_SELECTED, format!("{device} was attached; {} is already served in its place", other.device))),
        }
    }

    /// Stops serving a disk.
    async fn remove(&mut self, attached: MountedDisk) {
        let (name, registry) = (attached.device.to_string(), Arc::clone(&self.registry));
        let disk = name.clone();
        let without =
            with_timeout(&name, move || Ok::<_, Fault>(registry.snapshot_of(registry.snapshot().store().without(&disk))));
        match without.await {
            Ok(snapshot) => self.registry.replace(snapshot),
            Err(fault) => self.warn(fault.code(), fault.chain()),
        }
        unmount(&attached);
        console::log(&format!("{name} was removed; its content is no longer served unless another disk has it"));
        self.announce(String::new(), name);
    }

    fn announce(&self, added: String, removed: String) {
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

/// Adds the disk at `root` to `store`.
fn with_disk(store: &Store, root: &Path, name: &str) -> Result<Store, Fault> {
    let opened = Disk::open(root, name).map_err(|source| Fault::Contents { disk: name.to_owned(), source })?;
    store.with(opened).map_err(Fault::Conflict)
}
