//! Frozen machines: a machine that has booted as far as it does not depend on the run, saved to the cache. A run starts from it, with its
//! own disks, networks, ports and config, which the guest finds when it goes on (`guest::early::frozen`).
//!
//! The machine's memory is in a file that runs map privately, so that they share what they do not change.
//!
//! The first run that finds none boots, and saves one beside that: at the lowest priority, and only as long as the run goes on. One process
//! at a time saves a machine, in a folder that gets its name when it is whole.

mod save;
mod start;

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::qmp::{Qmp, QmpError};
use super::{Options, QMP_TIMEOUT};
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::vm::accel::Accel;
use crate::host::vm::qemu::{Board, Channel, Channels, Machine, MemoryFile, MemoryPurpose, loader_rom};
use crate::text::chain;

use save::file_error;
pub(crate) use save::save_beside;
pub use save::{FreezeError, freeze};
pub(crate) use start::Incoming;

/// Folder in the cache.
const FOLDER: &str = "frozen";
/// Part of every key, changed when machines that were saved before are no longer usable.
const FORMAT: u32 = 1;
/// Longest state of devices in bytes. It has less than a MiB.
const STATE_MAX: u64 = 64 << 20;
/// Options of QEMU that add a device or a back end, each with a value.
const ADDING: [&str; 9] = ["-blockdev", "-chardev", "-device", "-drive", "-mon", "-netdev", "-object", "-qmp", "-trace"];
/// Longest record in bytes.
const RECORD_MAX: u64 = 4096;
/// Time between two questions to QEMU.
const POLL: Duration = Duration::from_millis(2);
// The files of a saved machine.
const RAM: &str = "ram";
const STATE: &str = "state";
const RECORD: &str = "record.json";
/// The only file of a machine that cannot be saved, or does not start: it says why.
const UNUSABLE: &str = "unusable";
/// Longest reason in it, in bytes.
const REASON_MAX: usize = 1000;
/// How the name of a folder starts while its machine is being saved.
const UNFINISHED: &str = "new-";

/// How an appliance started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From a frozen machine.
    Warm,
    /// By a complete boot.
    Cold {
        /// Why not from a frozen machine.
        why: String,
    },
}

/// A machine that has been saved.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
    /// The state of its devices.
    state: Vec<u8>,
}

/// Why a run boots.
#[derive(Debug)]
pub(crate) struct NoMachine {
    pub why: String,
    /// Where a machine can be saved for the next run.
    pub missing: Option<PathBuf>,
}

impl From<String> for NoMachine {
    fn from(why: String) -> Self {
        Self { why, missing: None }
    }
}

/// What the files of a saved machine have to be.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    ram_bytes: u64,
    /// Seconds and nanoseconds since 1970.
    ram_modified: (i64, i64),
    state_sha256: String,
}

impl Saved {
    /// The machine for `options`, if one has been saved and is whole. Otherwise why a run boots. A damaged one is removed.
    pub(crate) fn find(options: &Options, accel: Accel) -> Result<Self, NoMachine> {
        if options.cold {
            return Err("--cold forbids it".to_owned().into());
        }
        if options.board != Board::Q35 {
            return Err(FreezeError::Board(options.board).to_string().into());
        }
        if let Some(argument) = unknown_argument(&options.qemu_arguments) {
            return Err(format!("a frozen machine would not follow the argument {} of QEMU", argument.display()).into());
        }
        let folder = place(options, accel).map_err(|error| chain(&error))?;
        if !folder.exists() {
            return Err(NoMachine { why: "none is saved for this machine yet".into(), missing: Some(folder) });
        }
        if let Ok(why) = files::read(&folder.join(UNUSABLE), REASON_MAX as u64) {
            let why = String::from_utf8_lossy(&why);
            return Err(format!("{why}; `localregistry freeze` tries again").into());
        }
        Self::open(&folder).map_err(|error| {
            let why = format!("the frozen machine {} is damaged and was removed: {error}", folder.display());
            let _not_ours = fs::remove_dir_all(&folder);
            NoMachine { why, missing: Some(folder) }
        })
    }

    /// Opens a saved machine and checks that it is whole, and that only this user could have written it.
    fn open(folder: &Path) -> io::Result<Self> {
        let ram = own(&folder.join(RAM))?;
        let (_, record) = (own(folder)?, own(&folder.join(RECORD))?);
        own(&folder.join(STATE))?;
        if record.len() > RECORD_MAX {
            return Err(io::Error::other("its record is too long"));
        }
        let record: Record = serde_json::from_slice(&fs::read(folder.join(RECORD))?)?;
        let state = files::read(&folder.join(STATE), STATE_MAX)?;
        if Record::of(&ram, &state) != record {
            return Err(io::Error::other("its files have changed"));
        }
        Ok(Self { folder: folder.to_owned(), state })
    }

    /// Its memory, in which `kernel` is.
    pub(crate) fn memory(&self, kernel: &Path) -> MemoryFile {
        let mut start = [0; 4];
        // A machine with another ROM does not start, and the run boots.
        let _unreadable = File::open(kernel).and_then(|mut file| file.read_exact(&mut start));
        MemoryFile { path: self.folder.join(RAM), purpose: MemoryPurpose::Start { loader: loader_rom(&start) } }
    }

    /// Removes it, as it does not start. The runs that follow boot, and none tries to save another.
    pub(crate) fn discard(&self, why: &str) {
        let _gone_already = fs::remove_dir_all(&self.folder);
        mark_unusable(&self.folder, why);
    }
}

/// The first of QEMU's further arguments that does more than to add a device or a back end, which the guest finds when it goes on. Others
/// may contradict the state, or change what the guest reads when it boots.
fn unknown_argument(arguments: &[OsString]) -> Option<&OsString> {
    let adds = |pair: &[OsString]| matches!(pair, [option, _] if ADDING.iter().any(|known| option == *known));
    arguments.chunks(2).find(|pair| !adds(pair)).and_then(|pair| pair.first())
}

/// Notes that the machine for `folder` cannot be used. If that fails, the next run tries again.
fn mark_unusable(folder: &Path, why: &str) {
    let end = why.floor_char_boundary(REASON_MAX);
    let text = why.get(..end).unwrap_or_default();
    let _try_again = fs::create_dir(folder).and_then(|()| files::write_private(&folder.join(UNUSABLE), text.as_bytes(), 0o600));
}

impl Record {
    fn of(ram: &Metadata, state: &[u8]) -> Self {
        Self { ram_bytes: ram.len(), ram_modified: (ram.mtime(), ram.mtime_nsec()), state_sha256: sha256(state) }
    }
}

/// Reads the metadata of a file or folder that only this user can write.
fn own(path: &Path) -> io::Result<Metadata> {
    let found = fs::symlink_metadata(path)?;
    let name = path.file_name().unwrap_or_default().display().to_string();
    if found.file_type().is_symlink() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!("{name} belongs to another user")));
    }
    if found.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!("others may write to {name}")));
    }
    Ok(found)
}

/// The SHA-256 digest in hexadecimal digits.
fn sha256(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of the machine that `options` need.
fn place(options: &Options, accel: Accel) -> Result<PathBuf, FreezeError> {
    let arguments =
        machine(options, accel, MemoryFile { path: PathBuf::new(), purpose: MemoryPurpose::Freeze }, -1, -1).frozen_arguments();
    let [qemu, kernel] = [&find_program(&options.qemu), &options.kernel].map(|path| -> Result<_, FreezeError> {
        let metadata = fs::metadata(path).map_err(file_error(path))?;
        Ok(format!("{} {} {}.{}", path.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    });
    // The time of an initramfs in the cache is that of its last use.
    let initramfs = fs::read(&options.initramfs).map_err(file_error(&options.initramfs))?;
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().filter(|line| line.starts_with("model name") || line.starts_with("flags")).take(2);
    let parts = [format!("{FORMAT} {} {arguments:?}", env!("CARGO_PKG_VERSION")), qemu?, kernel?, sha256(&initramfs)];
    let parts: Vec<&str> = parts.iter().map(String::as_str).chain(processor).collect();
    Ok(cache::folder(FOLDER)?.join(sha256(parts.join("\n").as_bytes())))
}

/// The file of a program: a path, or a name in `PATH`.
fn find_program(program: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = || std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    let found = if program.components().count() > 1 { None } else { in_path() };
    fs::canonicalize(found.as_deref().unwrap_or(program)).unwrap_or_else(|_| program.to_owned())
}

/// The machine that is frozen: no disk, no network, no source of randomness, and nobody at the ports of events and commands.
fn machine(options: &Options, accel: Accel, memory: MemoryFile, console: i32, qmp: i32) -> Machine {
    let nobody = || Channel::File("/dev/null".into());
    Machine {
        board: options.board,
        tsc_khz: None,
        accel,
        memory_mib: options.memory_mib,
        memory: Some(memory),
        cpus: options.cpus.count(accel, options.memory_mib),
        kernel: options.kernel.clone(),
        initramfs: options.initramfs.clone(),
        disks: vec![],
        networks: vec![],
        fw_cfg: vec![],
        channels: Channels {
            qmp: Channel::Inherited(qmp),
            console: Channel::Inherited(console),
            events: nobody(),
            control: nobody(),
            files: Some(nobody()),
        },
        further: vec![],
    }
}

/// Leaves memory in files that are shared out of what is saved, and of what is expected when it is loaded.
async fn ignore_shared_memory(qmp: &mut Qmp) -> Result<(), QmpError> {
    let capabilities = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    qmp.execute("migrate-set-capabilities", capabilities, QMP_TIMEOUT).await.map(drop)
}

/// The saved machines in `parent`, and what is left of unusable ones, each with the time of its last change.
fn machines(parent: &Path) -> Vec<(PathBuf, i64)> {
    let finished = entries(parent).filter(|entry| !entry.file_name().to_string_lossy().starts_with(UNFINISHED));
    finished.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.mtime()))).collect()
}

fn entries(parent: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(parent).into_iter().flatten().flatten()
}

/// The number of saved machines, and the bytes that they take.
///
/// # Errors
/// Fails if there is no cache.
pub(crate) fn kept() -> Result<(usize, u64), CacheError> {
    let mut machines = machines(&cache::folder(FOLDER)?);
    machines.retain(|(path, _)| path.join(RECORD).exists());
    let size = |path: &Path| {
        [RAM, STATE].iter().filter_map(|name| fs::metadata(path.join(name)).ok()).map(|file| file.blocks() * 512).sum()
    };
    let bytes = machines.iter().map(|(path, _)| -> u64 { size(path) }).sum();
    Ok((machines.len(), bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A saved machine, as [`freeze`] leaves it.
    pub(super) fn saved(parent: &Path, name: &str) -> PathBuf {
        let folder = parent.join(name);
        fs::create_dir(&folder).unwrap();
        for (file, content) in [(RAM, "memory"), (STATE, "state")] {
            files::write_private(&folder.join(file), content.as_bytes(), 0o600).unwrap();
        }
        let record = Record::of(&fs::metadata(folder.join(RAM)).unwrap(), b"state");
        files::write_private(&folder.join(RECORD), &serde_json::to_vec(&record).unwrap(), 0o600).unwrap();
        folder
    }

    #[test]
    fn only_a_whole_machine_of_this_user_is_started() {
        let parent = tempfile::tempdir().unwrap();
        type Damage = fn(&Path);
        let set_mode = |path: PathBuf, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        assert!(Saved::open(&saved(parent.path(), "whole")).is_ok());
        for (number, (said, damage)) in [
            ("its files have changed", (|folder| fs::write(folder.join(STATE), "stat").unwrap()) as Damage),
            ("its files have changed", |folder| fs::write(folder.join(STATE), "State").unwrap()),
            ("its files have changed", |folder| fs::write(folder.join(RAM), "memory and more").unwrap()),
            ("its files have changed", |folder| {
                let ram = File::options().write(true).open(folder.join(RAM)).unwrap();
                ram.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            }),
            ("No such file", |folder| fs::remove_file(folder.join(STATE)).unwrap()),
            ("EOF while parsing", |folder| fs::write(folder.join(RECORD), "{").unwrap()),
            ("its record is too long", |folder| fs::write(folder.join(RECORD), " ".repeat(5000)).unwrap()),
            ("ram belongs to another user", |folder| {
                fs::rename(folder.join(RAM), folder.join("real")).unwrap();
                symlink(folder.join("real"), folder.join(RAM)).unwrap();
            }),
        ]
        .into_iter()
        .enumerate()
        {
            let folder = saved(parent.path(), &number.to_string());
            damage(&folder);
            let error = Saved::open(&folder).unwrap_err().to_string();
            assert!(error.contains(said), "{number}: {error}");
        }
        for name in [RAM, STATE, RECORD, ""] {
            let folder = saved(parent.path(), &format!("open-{name}"));
            set_mode(folder.join(name), 0o770);
            let error = Saved::open(&folder).unwrap_err().to_string();
            assert!(error.starts_with("others may write to "), "{name}: {error}");
        }
    }

    #[test]
    fn arguments_that_only_add_are_told_from_others() {
        let unknown = |words: &str| {
            let arguments: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
            unknown_argument(&arguments).map(|argument| argument.to_str().unwrap().to_owned())
        };
        assert_eq!(unknown(""), None);
        assert_eq!(unknown("-device pcie-root-port,id=a,chassis=9,slot=9 -qmp unix:/tmp/qmp,server=on,wait=off"), None);
        for other in ["-S", "-device", "-rtc base=2030-01-01", "-smp 2", "-cpu qemu64", "-m 1G"] {
            let first = other.split(' ').next().unwrap();
            assert_eq!(unknown(&format!("-device virtio-balloon-pci {other}")).as_deref(), Some(first));
        }
    }
}
