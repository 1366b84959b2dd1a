//! One interface, from the first look for it to the end of the guest. What enters are its settings and that something changed; what
//! leaves is the interface with its addresses and routes whenever it is there, and how far it is. What fails after boot is a warning,
//! and tried again.

mod ipv6;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::config::settings::{Cidr, Interface, Mac};
use crate::guest::early::{console, modules};
use crate::registry::telemetry::events::Events;
use crate::text;

use super::client::Lease;
use super::dhcp::{self, Kept};
use super::link::{Link, Links};
use super::pick::pick;
use super::{NetError, conflict};

/// Time to the next attempt after one that failed, once the guest serves.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after an address was declined. RFC 2131 (section 3.1.5) has 10 s; somebody waits for this machine.
const DECLINED: Duration = Duration::from_secs(1);
/// How long servers may take to confirm a lease on a link that came up again.
const CONFIRM: Duration = Duration::from_secs(4);
/// Priority of the first interface's default route; a lower number comes first.
const PRIORITY: u32 = 100;

/// How far an interface is.
#[derive(Debug)]
pub enum Status {
    /// It is not there; these are.
    Missing(Vec<Link>),
    /// It is there, and connected to nothing.
    NoCarrier(Link),
    /// It is being set up.
    Working,
    /// It has its addresses.
    Up,
    /// It cannot have them.
    Failed(NetError),
}

/// What the keepers share.
#[derive(Debug)]
pub struct Shared {
    pub(crate) links: Links,
    pub(crate) interfaces: Vec<Interface>,
    hostname: String,
    events: Events,
    /// By the number of the interface in the settings, as the next two.
    statuses: Mutex<Vec<Status>>,
    /// Which one each has or had.
    had: Mutex<Vec<Option<Mac>>>,
    /// Its index, which a VLAN has of its own.
    indices: Mutex<Vec<Option<u32>>>,
    /// Whether the boot is over, in which faults are fatal and told so.
    serving: AtomicBool,
}

impl Shared {
    /// Interfaces that nobody has looked at yet.
    pub(crate) fn new(links: Links, hostname: &str, interfaces: &[Interface], events: Events) -> Self {
        Self {
            links,
            interfaces: interfaces.to_vec(),
            hostname: hostname.to_owned(),
            events,
            statuses: Mutex::new(interfaces.iter().map(|_| Status::Working).collect()),
            had: Mutex::new(vec![None; interfaces.len()]),
            indices: Mutex::new(vec![None; interfaces.len()]),
            serving: AtomicBool::new(false),
        }
    }

    pub(crate) fn statuses(&self) -> MutexGuard<'_, Vec<Status>> {
        lock(&self.statuses)
    }

    pub(crate) fn indices(&self) -> Vec<Option<u32>> {
        lock(&self.indices).clone()
    }

    /// Ends the boot: what fails from now on is a warning.
    pub(crate) fn start_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Tells the launcher of `error`, once the guest serves.
    pub(crate) fn warn(&self, error: &NetError) {
        self.tell(error.code(), text::chain(error));
    }

    fn tell(&self, code: &str, message: String) {
        if self.serving.load(Ordering::Acquire) {
            console::warn(&self.events, code, message);
        }
    }
}

fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set<T>(place: &Mutex<Vec<T>>, at: usize, value: T) {
    if let Some(slot) = lock(place).get_mut(at) {
        *slot = value;
    }
}

/// A lease, when it was given, and on which interface.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    since: Instant,
    index: u32,
}

/// Keeps one interface.
#[derive(Debug)]
pub struct Keeper {
    place: usize,
    interface: Interface,
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
    held: Option<Held>,
    /// What was warned of last: it is not said again and again.
    told: String,
}

impl Keeper {
    /// For number `place` of the interfaces of `shared`.
    pub(crate) fn new(place: usize, shared: Arc<Shared>, changes: watch::Receiver<()>) -> Self {
        let interface = shared.interfaces.get(place).cloned().unwrap_or_default();
        Self { place, interface, shared, changes, held: None, told: String::new() }
    }

    /// Keeps it, for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let failed = match self.connected().await {
                Ok(link) => self.hold_while_connected(link).await,
                Err(error) => Err(error),
            };
            if let Err(error) = failed {
                self.warn_once(&error);
                set(&self.shared.statuses, self.place, Status::Failed(error));
                sleep(RETRY).await;
            }
        }
    }

    fn warn_once(&mut self, error: &NetError) {
        let words = text::chain(error);
        if self.told != words {
            self.shared.warn(error);
            self.told = words;
        }
    }

    /// Waits until the interface is there, up and connected.
    async fn connected(&mut self) -> Result<Link, NetError> {
        let mut brought_up = None;
        loop {
            self.changes.mark_unchanged();
            let found = self.shared.links.ethernet()?;
            let had = lock(&self.shared.had).clone();
            let status = match pick(&found, &self.shared.interfaces, &had, self.place) {
                None => Status::Missing(found),
                Some(base) => {
                    set(&self.shared.had, self.place, Some(base.mac));
                    let link = match self.interface.vlan {
                        None => Some(base),
                        Some(id) => self.vlan(&found, base, id)?,
                    };
                    if let Some(link) = link {
                        if brought_up != Some(link.index) {
                            brought_up = Some(link.index);
                            self.shared.links.up(link, self.interface.mtu)?;
                        }
                        set(&self.shared.indices, self.place, Some(link.index));
                        if link.carrier {
                            set(&self.shared.statuses, self.place, Status::Working);
                            return Ok(link.clone());
                        }
                    }
                    Status::NoCarrier(base.clone())
                }
            };
            set(&self.shared.statuses, self.place, status);
            self.change().await;
        }
    }

    /// The VLAN `id` on `base`, made where it is not there yet.
    fn vlan<'a>(&self, found: &'a [Link], base: &Link, id: u16) -> Result<Option<&'a Link>, NetError> {
        let name = format!("{}.{id}", base.name);
        let link = found.iter().find(|link| link.made && link.name == name);
        if link.is_none() {
            self.shared.links.up(base, None)?;
            // What is lacking then, the kernel says.
            if let Err(error) = modules::load_vlans() {
                console::say(&text::chain(&error));
            }
            // It is found in the next look, of which the kernel's notification is the cause.
            self.shared.links.add_vlan(base, id)?;
        }
        Ok(link)
    }

    async fn change(&mut self) {
        if self.changes.changed().await.is_err() {
            // Nobody listens any more: the runtime ends.
            std::future::pending::<()>().await;
        }
    }

    /// Gives `link` its addresses and keeps them, as long as it is there and connected.
    async fn hold_while_connected(&mut self, link: Link) -> Result<(), NetError> {
        let (shared, changes) = (Arc::clone(&self.shared), self.changes.clone());
        let was_up = tokio::select! {
            () = lost(&shared, changes, link.index) => true,
            held = self.hold(&link) => held.map(|()| false)?,
        };
        if was_up {
            self.shared.warn(&NetError::LinkDown { link });
            self.told.clear();
        }
        Ok(())
    }

    async fn hold(&mut self, link: &Link) -> Result<(), NetError> {
        let deadline = Instant::now() + self.interface.timeout;
        let addresses = self.interface.addresses.clone();
        self.refuse_conflicts(link, &addresses, conflict::STATIC_WAIT).await?;
        for address in &addresses {
            self.add(link, *address)?;
        }
        for gateway in &self.interface.gateways {
            self.shared.links.add_default_route(link, *gateway, self.priority(), false)?;
        }
        if self.interface.dhcp {
            self.lease(link, deadline).await?;
        }
        self.wait_for_ipv6(link, deadline).await?;
        set(&self.shared.statuses, self.place, Status::Up);
        self.told.clear();
        self.keep_lease(link).await
    }

    fn priority(&self) -> u32 {
        PRIORITY.saturating_add(u32::try_from(self.place).unwrap_or(PRIORITY))
    }

    /// Gives `link` an address, and tells those who had it from another machine.
    fn add(&self, link: &Link, own: Cidr) -> Result<(), NetError> {
        self.shared.links.add_address(link, own)?;
        if let IpAddr::V4(address) = own.address
            && let Err(error) = conflict::announce(link, address)
        {
            self.shared.tell("ARP", format!("{link}: {address} could not be announced: {error}"));
        }
        Ok(())
    }

    /// Looks for other machines with any of the IPv4 addresses, all at once. IPv6 looks by itself.
    async fn refuse_conflicts(&self, link: &Link, addresses: &[Cidr], wait: Duration) -> Result<(), NetError> {
        let mut looks = tokio::task::JoinSet::new();
        for own in addresses {
            if let IpAddr::V4(address) = own.address {
                let link = link.clone();
                looks.spawn(async move { (address, conflict::other(&link, address, wait).await) });
            }
        }
        while let Some(looked) = looks.join_next().await {
            let Ok((address, found)) = looked else { continue };
            match found {
                Ok(None) => {}
                Ok(other) => return Err(NetError::Conflict { link: link.clone(), address: address.into(), other }),
                Err(error) => {
                    self.shared.tell("ARP", format!("{link}: it could not be asked who has {address}: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Gets a lease before `deadline`, or has the one confirmed that it still holds, and applies it.
    async fn lease(&mut self, link: &Link, deadline: Instant) -> Result<(), NetError> {
        if let Some(held) = self.held.take_if(|held| held.index == link.index) {
            let asked = Instant::now();
            match dhcp::extend(link, &self.shared.hostname, &held.lease, None, asked + CONFIRM).await {
                Kept::Extended(lease) => return self.apply(link, lease, asked, Some(&held)),
                // Maybe there is no server any more; the lease goes on until it ends.
                Kept::Silent => {
                    self.held = Some(held);
                    return Ok(());
                }
                Kept::Refused(_) => self.shared.links.remove_address(link, held.lease.address)?,
            }
        }
        self.held = None;
        let mut conflict = None;
        loop {
            let asked = Instant::now();
            let lease = match dhcp::acquire(link, &self.shared.hostname, deadline, self.interface.timeout).await {
                Ok(lease) => lease,
                Err(error) => return Err(conflict.unwrap_or(error)),
            };
            match self.refuse_conflicts(link, &[lease.address], conflict::LEASED_WAIT).await {
                Ok(()) => return self.apply(link, lease, asked, None),
                Err(error) => {
                    self.shared.warn(&error);
                    dhcp::decline(link, &lease).await;
                    conflict = Some(error);
                }
            }
            sleep(DECLINED).await;
        }
    }

    /// Gives `link` what was leased, in the place of what it `had`.
    fn apply(&mut self, link: &Link, lease: Lease, since: Instant, had: Option<&Held>) -> Result<(), NetError> {
        let had = had.filter(|had| had.lease.address != lease.address);
        if let (Some(mtu), None) = (lease.mtu, self.interface.mtu) {
            self.shared.links.up(link, Some(mtu.into()))?;
        }
        let own = lease.address;
        let router = lease.router.map(IpAddr::V4);
        self.held = Some(Held { lease, since, index: link.index });
        // First: a kernel that cannot be told otherwise takes an address's whole network away with it.
        if let Some(had) = had {
            self.shared.links.remove_address(link, had.lease.address)?;
        }
        self.add(link, own)?;
        match router {
            Some(router) => self.shared.links.add_default_route(link, router, self.priority(), !own.contains(router)),
            None => Ok(()),
        }
    }

    /// Keeps the lease, where there is one: has it extended, and gets another one where that fails. Ends with the fault of the last.
    async fn keep_lease(&mut self, link: &Link) -> Result<(), NetError> {
        loop {
            let Some(held) = self.held.clone().filter(|_| self.interface.dhcp) else { return std::future::pending().await };
            let lost = match dhcp::keep(link, &self.shared.hostname, &held.lease, held.since).await {
                Kept::Extended(lease) => {
                    self.apply(link, lease, Instant::now(), Some(&held))?;
                    continue;
                }
                Kept::Refused(source) => NetError::DhcpRefused { link: link.clone(), source },
                Kept::Silent => NetError::LeaseEnded { link: link.clone(), address: held.lease.address.address },
            };
            self.held = None;
            self.shared.links.remove_address(link, held.lease.address)?;
            self.shared.warn(&lost);
            self.lease(link, Instant::now() + self.interface.timeout).await?;
        }
    }
}

/// Waits until the interface `index` is not there any more, or not connected.
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
