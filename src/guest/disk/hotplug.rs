//! Mounts and unmounts disks while the registry serves, and has the server add and remove them. A disk that cannot be served, or that
//! conflicts with a served one, causes a warning and no change.

use rustix::io::Errno;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::{Device, DiskChoice, DiskError, MountedDisk, list_devices, mount, unmount};
use crate::guest::early::console;
use crate::guest::messages::{DiskRoot, Order, ServerFault};
use crate::guest::supervisor::Server;
use crate::registry::telemetry::events::Events;
use crate::text;

/// Code of the warning about a disk that no choice selects.
const NOT_SELECTED: &str = "DISK_IGNORED";

/// Updates the server when disks are added or removed.
#[derive(Debug)]
pub struct DiskManager {
    server: Server,
    /// The server's answers.
    answers: UnboundedReceiver<Result<(), ServerFault>>,
    choices: Vec<DiskChoice>,
    served: Vec<MountedDisk>,
    /// Disks that are present but not served. Each is examined once.
    ignored: Vec<Device>,
    events: Events,
}

impl DiskManager {
    /// A manager for `server`, which serves the disks `served`, selected by `choices`, and sends `answers`.
    #[must_use]
    pub const fn new(
        server: Server,
        answers: UnboundedReceiver<Result<(), ServerFault>>,
        choices: Vec<DiskChoice>,
        served: Vec<MountedDisk>,
        events: Events,
    ) -> Self {
        Self { server, answers, choices, served, ignored: Vec::new(), events }
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
                self.warn(&code, format!("{why}; this disk is not served, and nothing else changes"));
            }
        }
    }

    /// Serves one more disk. Fails with the code and the message of a warning.
    async fn add(&mut self, device: Device) -> Result<(), (String, String)> {
        self.check_selected(&device).map_err(|why| (NOT_SELECTED.to_owned(), why))?;
        let attached = match mount(device).await {
            // The kernel announces a device before it can be opened, and again when it can.
            Err(DiskError::Read { source, .. }) if Errno::from_io_error(&source) == Some(Errno::NXIO) => return Ok(()),
            mounted => mounted.map_err(|error| (error.code().to_owned(), text::chain(&error)))?,
        };
        if let Err(fault) = self.order(Order::Add(DiskRoot::from(&attached))).await {
            unmount(&attached);
            return Err((fault.code, fault.message));
        }
        console::log(&format!("{} was attached and is now served", attached.device));
        self.served.push(attached);
        Ok(())
    }

    /// Has the server change its disks.
    async fn order(&mut self, order: Order) -> Result<(), ServerFault> {
        self.server.send(&order).await;
        // Without a server the machine is about to power off.
        self.answers.recv().await.unwrap_or(Ok(()))
    }

    /// Rejects a disk that no choice selects, or whose choice already has a disk.
    fn check_selected(&self, device: &Device) -> Result<(), String> {
        let mut selecting = self.choices.iter().filter(|choice| device.is_selected_by(choice)).peekable();
        if selecting.peek().is_none() {
            let expected: Vec<String> = self.choices.iter().map(|choice| super::describe(&choice.by)).collect();
            return Err(format!("{device} was attached; expected one {}", expected.join(", or ")));
        }
        let current = |choice: &DiskChoice| self.served.iter().find(|attached| attached.device.is_selected_by(choice));
        let others: Vec<_> = selecting.map(|choice| if choice.by.matches_many() { None } else { current(choice) }).collect();
        match others.iter().all(Option::is_some).then(|| others.first().copied().flatten()).flatten() {
            None => Ok(()),
            Some(other) => Err(format!("{device} was attached; {} is already served in its place", other.device)),
        }
    }

    /// Stops serving a disk.
    async fn remove(&mut self, attached: MountedDisk) {
        let name = attached.device.to_string();
        if let Err(fault) = self.order(Order::Remove(name.clone())).await {
            self.warn(&fault.code, fault.message);
        }
        unmount(&attached);
        console::log(&format!("{name} was removed; its content is no longer served unless another disk has it"));
    }

    fn warn(&self, code: &str, message: String) {
        console::warn(&self.events, code, message);
    }
}
