//! Manages one interface while the guest runs: waits for it, assigns its addresses and routes, renews its lease, and starts again
//! when the interface is removed or loses its carrier. After boot, errors become warnings and are retried.

mod ipv6;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use crate::config::settings::{Cidr, Interface, Mac};
use crate::guest::early::{console, modules};
use crate::registry::telemetry::events::Events;
use crate::text;

use super::dhcp::{self, Extension};
use super::dhcp_client::Lease;
use super::interface_selection::select_link;
use super::link::{Link, Links};
use super::{NetError, conflict};

/// Time to the next attempt after an error.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after a declined address. RFC 2131 (section 3.1.5) waits 10 s; a user waits for this boot.
const DECLINE_PAUSE: Duration = Duration::from_secs(1);
/// How long servers may take to confirm a lease after the link came up again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(4);
/// Priority of the first interface's default route. The kernel prefers lower numbers.
const PRIORITY: u32 = 100;

/// The state of an interface.
#[derive(Debug)]
pub enum Status {
    /// Not found. Holds the interfaces that were found.
    Missing(Vec<Link>),
    /// Found, but without a carrier.
    NoCarrier(Link),
    /// Setup in progress.
    Working,
    /// Ready, with all addresses.
    Up,
    /// Setup failed.
    Failed(NetError),
}

/// State shared by the interface managers.
#[derive(Debug)]
pub struct Shared {
    pub(crate) links: Links,
    pub(crate) interfaces: Vec<Interface>,
    hostname: String,
    events: Events,
    // These three lists have one entry for each configured interface.
    statuses: Mutex<Vec<Status>>,
    /// Notified when one of them changes.
    pub(crate) status_changed: Notify,
    /// The MAC address that each has, or had last.
    macs: Mutex<Vec<Option<Mac>>>,
    /// The index of each, or of the VLAN on it.
    indices: Mutex<Vec<Option<u32>>>,
    /// Whether boot is over. During boot an error is fatal, after it a warning.
    serving: AtomicBool,
}

impl Shared {
    /// Shared state before any manager has run.
    pub(crate) fn new(links: Links, hostname: &str, interfaces: &[Interface], events: Events) -> Self {
        Self {
            links,
            interfaces: interfaces.to_vec(),
            hostname: hostname.to_owned(),
            events,
            statuses: Mutex::new(interfaces.iter().map(|_| Status::Working).collect()),
            status_changed: Notify::new(),
            macs: Mutex::new(vec![None; interfaces.len()]),
            indices: Mutex::new(vec![None; interfaces.len()]),
            serving: AtomicBool::new(false),
        }
    }

    pub(crate) fn statuses(&self) -> MutexGuard<'_, Vec<Status>> {
        lock(&self.statuses)
    }

    fn set_status(&self, index: usize, status: Status) {
        set(&self.statuses, index, status);
        self.status_changed.notify_one();
    }

    pub(crate) fn indices(&self) -> Vec<Option<u32>> {
        lock(&self.indices).clone()
    }

    /// Ends the boot: errors become warnings.
    pub(crate) fn start_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Sends `error` to the launcher as a warning, after boot.
    pub(crate) fn warn(&self, error: &NetError) {
        self.warn_with(error.code(), text::chain(error));
    }

    fn warn_with(&self, code: &str, message: String) {
        if self.serving.load(Ordering::Acquire) {
            console::warn(&self.events, code, message);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set<T>(list: &Mutex<Vec<T>>, index: usize, value: T) {
    if let Some(slot) = lock(list).get_mut(index) {
        *slot = value;
    }
}

/// A lease, the time of its request, and the index of its interface.
#[derive(Debug, Clone)]
struct CurrentLease {
    lease: Lease,
    since: Instant,
    index: u32,
}

/// The manager of one interface.
#[derive(Debug)]
pub struct InterfaceManager {
    index: usize,
    interface: Interface,
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    lease: Option<CurrentLease>,
    /// The last warning, so that it is not repeated.
    last_warning: String,
}

impl InterfaceManager {
    /// The manager of the interface at `place` in the config.
    pub(crate) fn new(index: usize, shared: Arc<Shared>, changes: watch::Receiver<()>) -> Self {
        let interface = shared.interfaces.get(index).cloned().unwrap_or_default();
        Self { index, interface, shared, changes, lease: None, last_warning: String::new() }
    }

    /// Runs until the guest ends.
    pub(crate) async fn run(mut self) {
        loop {
            let failed = match self.connected().await {
                Ok(link) => self.configure_until_lost(link).await,
                Err(error) => Err(error),
            };
            if let Err(error) = failed {
                self.warn_once(&error);
                self.shared.set_status(self.index, Status::Failed(error));
                sleep(RETRY).await;
            }
        }
    }

    fn warn_once(&mut self, error: &NetError) {
        let words = text::chain(error);
        if self.last_warning != words {
            self.shared.warn(error);
            self.last_warning = words;
        }
    }

    /// Waits until the interface exists, is up and has a carrier.
    async fn connected(&mut self) -> Result<Link, NetError> {
        let mut brought_up = None;
        loop {
            self.changes.mark_unchanged();
            let found = self.shared.links.ethernet()?;
            let macs = lock(&self.shared.macs).clone();
            let status = match select_link(&found, &self.shared.interfaces, &macs, self.index) {
                None => Status::Missing(found),
                Some(base) => {
                    set(&self.shared.macs, self.index, Some(base.mac));
                    let link = match self.interface.vlan {
                        None => Some(base),
                        Some(id) => self.vlan(&found, base, id)?,
                    };
                    if let Some(link) = link {
                        if brought_up != Some(link.index) {
                            brought_up = Some(link.index);
                            self.shared.links.up(link, self.interface.mtu)?;
                        }
                        set(&self.shared.indices, self.index, Some(link.index));
                        if link.carrier {
                            self.shared.set_status(self.index, Status::Working);
                            return Ok(link.clone());
                        }
                    }
                    Status::NoCarrier(base.clone())
                }
            };
            self.shared.set_status(self.index, status);
            self.change().await;
        }
    }

    /// The VLAN `id` on `base`. Creates it if it is missing.
    fn vlan<'a>(&self, found: &'a [Link], base: &Link, id: u16) -> Result<Option<&'a Link>, NetError> {
        let name = format!("{}.{id}", base.name);
        let link = found.iter().find(|link| link.is_virtual && link.name == name);
        if link.is_none() {
            self.shared.links.up(base, None)?;
            // If a module is missing, `add_vlan` reports it.
            if let Err(error) = modules::load_vlans() {
                console::log(&text::chain(&error));
            }
            // The kernel's notification about the new interface triggers the next check, which finds it.
            self.shared.links.add_vlan(base, id)?;
        }
        Ok(link)
    }

    async fn change(&mut self) {
        if self.changes.changed().await.is_err() {
            // The runtime is shutting down.
            std::future::pending::<()>().await;
        }
    }

    /// Configures `link` and maintains its addresses until it is removed or loses its carrier.
    async fn configure_until_lost(&mut self, link: Link) -> Result<(), NetError> {
        let (shared, changes) = (Arc::clone(&self.shared), self.changes.clone());
        let is_lost = tokio::select! {
            () = lost(&shared, changes, link.index) => true,
            result = self.configure(&link) => result.map(|()| false)?,
        };
        if is_lost {
            self.shared.warn(&NetError::LinkDown { link });
            self.last_warning.clear();
        }
        Ok(())
    }

    async fn configure(&mut self, link: &Link) -> Result<(), NetError> {
        let deadline = Instant::now() + self.interface.timeout;
        let addresses = self.interface.addresses.clone();
        self.check_conflicts(link, &addresses, conflict::STATIC_WAIT).await?;
        for address in &addresses {
            self.add(link, *address)?;
        }
        for gateway in &self.interface.gateways {
            self.shared.links.add_default_route(link, *gateway, self.priority(), false)?;
        }
        if self.interface.dhcp {
            self.get_lease(link, deadline).await?;
        }
        self.wait_for_ipv6(link, deadline).await?;
        self.shared.set_status(self.index, Status::Up);
        self.last_warning.clear();
        self.maintain_lease(link).await
    }

    fn priority(&self) -> u32 {
        PRIORITY.saturating_add(u32::try_from(self.index).unwrap_or(PRIORITY))
    }

    /// Adds an address to `link` and announces it to machines that knew it at another.
    fn add(&self, link: &Link, own: Cidr) -> Result<(), NetError> {
        self.shared.links.add_address(link, own)?;
        if let IpAddr::V4(address) = own.address
            && let Err(error) = conflict::announce(link, address)
        {
            self.shared.warn_with("ARP", format!("{link}: cannot announce the address {address} by ARP: {error}"));
        }
        Ok(())
    }

    /// Checks all IPv4 addresses for conflicts at the same time. The kernel checks IPv6 addresses.
    async fn check_conflicts(&self, link: &Link, addresses: &[Cidr], wait: Duration) -> Result<(), NetError> {
        let mut checks = tokio::task::JoinSet::new();
        for own in addresses {
            if let IpAddr::V4(address) = own.address {
                let link = link.clone();
                checks.spawn(async move { (address, conflict::find(&link, address, wait).await) });
            }
        }
        while let Some(checked) = checks.join_next().await {
            let Ok((address, found)) = checked else { continue };
            match found {
                Ok(None) => {}
                Ok(other) => return Err(NetError::Conflict { link: link.clone(), address: address.into(), other }),
                Err(error) => {
                    self.shared.warn_with(
                        "ARP",
                        format!("{link}: cannot check by ARP whether another machine has the address {address}: {error}"),
                    );
                }
            }
        }
        Ok(())
    }

    /// Gets a lease before `deadline`, or has the current one confirmed, and applies it.
    async fn get_lease(&mut self, link: &Link, deadline: Instant) -> Result<(), NetError> {
        if let Some(current) = self.lease.take_if(|current| current.index == link.index) {
            let requested = Instant::now();
            match dhcp::extend(link, &self.shared.hostname, &current.lease, None, requested + CONFIRM_TIMEOUT).await {
                Extension::Extended(lease) => return self.apply(link, lease, requested, Some(&current)),
                // The server may be gone. The lease is valid until it expires.
                Extension::Unanswered => {
                    self.lease = Some(current);
                    return Ok(());
                }
                Extension::Refused(_) => self.shared.links.remove_address(link, current.lease.address)?,
            }
        }
        self.lease = None;
        let mut conflict = None;
        loop {
            let requested = Instant::now();
            let lease = match dhcp::acquire(link, &self.shared.hostname, deadline, self.interface.timeout).await {
                Ok(lease) => lease,
                Err(error) => return Err(conflict.unwrap_or(error)),
            };
            let addresses = [lease.address];
            let checked: &[Cidr] = if lease.alone { &[] } else { &addresses };
            match self.check_conflicts(link, checked, conflict::LEASED_WAIT).await {
                Ok(()) => return self.apply(link, lease, requested, None),
                Err(error) => {
                    self.shared.warn(&error);
                    dhcp::decline(link, &lease).await;
                    conflict = Some(error);
                }
            }
            sleep(DECLINE_PAUSE).await;
        }
    }

    /// Applies `lease` to `link`, in place of the `previous` one.
    fn apply(&mut self, link: &Link, lease: Lease, since: Instant, previous: Option<&CurrentLease>) -> Result<(), NetError> {
        let previous = previous.filter(|previous| previous.lease.address != lease.address);
        if let (Some(mtu), None) = (lease.mtu, self.interface.mtu) {
            self.shared.links.up(link, Some(mtu.into()))?;
        }
        let own = lease.address;
        let router = lease.router.map(IpAddr::V4);
        self.lease = Some(CurrentLease { lease, since, index: link.index });
        // Remove the old address first: a kernel without `promote_secondaries` removes all addresses of a network with its first
        // one.
        if let Some(previous) = previous {
            self.shared.links.remove_address(link, previous.lease.address)?;
        }
        self.add(link, own)?;
        match router {
            Some(router) => self.shared.links.add_default_route(link, router, self.priority(), !own.contains(router)),
            None => Ok(()),
        }
    }

    /// Renews the lease, and gets another one if that fails. Returns the error of the last attempt.
    async fn maintain_lease(&mut self, link: &Link) -> Result<(), NetError> {
        loop {
            let Some(current) = self.lease.clone().filter(|_| self.interface.dhcp) else { return std::future::pending().await };
            let lost = match dhcp::renew(link, &self.shared.hostname, &current.lease, current.since).await {
                Extension::Extended(lease) => {
                    self.apply(link, lease, Instant::now(), Some(&current))?;
                    continue;
                }
                Extension::Refused(source) => NetError::DhcpRefused { link: link.clone(), source },
                Extension::Unanswered => NetError::LeaseEnded { link: link.clone(), address: current.lease.address.address },
            };
            self.lease = None;
            self.shared.links.remove_address(link, current.lease.address)?;
            self.shared.warn(&lost);
            self.get_lease(link, Instant::now() + self.interface.timeout).await?;
        }
    }
}

/// Waits until the interface `index` is gone or has no carrier.
async fn lost(shared: &Shared, mut changes: watch::Receiver<()>, index: u32) {
    loop {
        changes.mark_unchanged();
        if let Ok(found) = shared.links.ethernet()
            && !found.iter().any(|link| link.index == index && link.carrier)
        {
            return;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
