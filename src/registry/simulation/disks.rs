//! Disks whose calls fail, wait, return less or return something else, as a seed says. The files are real; the calls of
//! [`disk_calls`](crate::registry::content::disk_calls) and [`Disk`](crate::registry::content::store::Disk) ask here first, on a thread that has
//! [`install`]ed disks.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::io::Errno;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::content::library;
use super::faults;
use crate::registry::content::disk_calls::Cache;

/// How a disk behaves. Rates are of a thousand calls.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Not there: every call fails.
    pub is_gone: bool,
    /// Calls that find their bytes in the page cache.
    pub cached: u32,
    pub cache: Cache,
    /// Calls that fail, that are interrupted, that return less, and reads that hang.
    pub failing: u32,
    pub interrupted: u32,
    pub short: u32,
    pub hanging: u32,
    /// The longest time, in milliseconds, that a read which waits for the disk takes if it does not hang.
    pub latency: u64,
    /// Offset of a wrong byte in each file.
    pub wrong_byte: Option<u64>,
    /// Where each file ends, if that is before its end.
    pub cut_at: Option<u64>,
}

impl Behaviour {
    pub fn healthy() -> Self {
        Self {
            is_gone: false,
            cached: 1000,
            cache: Cache::Known,
            failing: 0,
            interrupted: 0,
            short: 0,
            hanging: 0,
            latency: 0,
            wrong_byte: None,
            cut_at: None,
        }
    }

    /// Whether every response from this disk must be right.
    pub fn is_sound(&self) -> bool {
        !self.is_gone && self.failing == 0 && self.hanging == 0 && self.wrong_byte.is_none() && self.cut_at.is_none()
    }
}

struct Disks {
    rng: fastrand::Rng,
    behaviours: Vec<Behaviour>,
}

thread_local! {
    static DISKS: RefCell<Option<Disks>> = const { RefCell::new(None) };
}

/// The disks of this thread's server behave so until [`remove`].
pub fn install(rng: fastrand::Rng, behaviours: Vec<Behaviour>) {
    DISKS.set(Some(Disks { rng, behaviours }));
}

pub fn remove() {
    DISKS.set(None);
}

pub fn change(disk: usize, change: impl FnOnce(&mut Behaviour)) {
    DISKS.with_borrow_mut(|disks| change(&mut disks.as_mut().unwrap().behaviours[disk]));
}

/// How long a read that hangs takes: longer than all else.
pub const HANG: Duration = Duration::from_secs(4000);

fn eio() -> io::Error {
    Errno::IO.into()
}

impl Disks {
    fn happens(&mut self, rate: u32) -> bool {
        rate > 0 && self.rng.u32(0..1000) < rate
    }

    fn open(&mut self, disk: usize, only_cached: bool) -> io::Result<()> {
        let behaviour = self.behaviours[disk].clone();
        // An open that is interrupted is repeated below this.
        faults::disk_call().or_else(|error| if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) })?;
        if behaviour.is_gone || self.happens(behaviour.failing) {
            return Err(eio());
        }
        if only_cached && !self.happens(behaviour.cached) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    fn read(&mut self, disk: usize, file: &File, space: &mut [u8], offset: u64) -> io::Result<usize> {
        let behaviour = self.behaviours[disk].clone();
        let most = faults::disk_call()?;
        if behaviour.is_gone || self.happens(behaviour.failing) {
            return Err(eio());
        }
        if self.happens(behaviour.interrupted) {
            return Err(Errno::INTR.into());
        }
        let mut len = space.len().min(most);
        if len > 1 && self.happens(behaviour.short) {
            len = self.rng.usize(1..len);
        }
        if let Some(end) = behaviour.cut_at {
            len = len.min(usize::try_from(end.saturating_sub(offset)).unwrap());
        }
        let count = file.read_at(&mut space[..len], offset)?;
        if let Some(wrong) = behaviour.wrong_byte.and_then(|wrong| wrong.checked_sub(offset))
            && let Some(byte) = space[..count].get_mut(usize::try_from(wrong).unwrap())
        {
            *byte ^= 0x40;
        }
        Ok(count)
    }
}

/// What the installed disks say, about the disk of this file.
fn with_file<T>(file: &File, call: impl FnOnce(&mut Disks, usize) -> T) -> Option<T> {
    DISKS.with_borrow_mut(|disks| {
        let disks = disks.as_mut()?;
        let disk = *library().disk_of_inode.get(&file.metadata().ok()?.ino())?;
        Some(call(disks, disk))
    })
}

pub fn read(file: &File, space: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
    with_file(file, |disks, disk| disks.read(disk, file, space, offset))
}

pub fn read_cached(file: &File, space: &mut [u8], offset: u64) -> Option<io::Result<Option<usize>>> {
    with_file(file, |disks, disk| {
        let Behaviour { cache, cached, .. } = disks.behaviours[disk];
        if cache != Cache::Known || !disks.happens(cached) {
            return Ok(None);
        }
        match disks.read(disk, file, space, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            read => read.map(Some),
        }
    })
}

pub fn cache(file: &File) -> Option<Cache> {
    with_file(file, |disks, disk| disks.behaviours[disk].cache)
}

pub fn open_cached(disk: &str) -> io::Result<()> {
    open_by(disk, true)
}

pub fn open(disk: &str) -> io::Result<()> {
    open_by(disk, false)
}

fn open_by(disk: &str, only_cached: bool) -> io::Result<()> {
    DISKS.with_borrow_mut(|disks| match (disks, library_disk(disk)) {
        (Some(disks), Some(disk)) => disks.open(disk, only_cached),
        _ => Ok(()),
    })
}

/// Reads on this thread, after the time that the disk takes.
pub fn spawn_blocking<T: Send + 'static>(disk: &str, read: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let latency = DISKS.with_borrow_mut(|disks| {
        let (disks, disk) = (disks.as_mut()?, library_disk(disk)?);
        let Behaviour { hanging, latency, .. } = disks.behaviours[disk];
        let hangs = disks.happens(hanging) || faults::disk_wait();
        Some(if hangs { HANG } else { Duration::from_millis(disks.rng.u64(0..=latency)) })
    });
    match latency {
        Some(latency) => tokio::spawn(async move {
            sleep(latency).await;
            read()
        }),
        None => tokio::task::spawn_blocking(read),
    }
}

fn library_disk(name: &str) -> Option<usize> {
    name.strip_prefix("simulated ")?.parse().ok()
}
