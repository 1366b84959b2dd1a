//! Frozen machines: a machine that has booted as far as it does not depend on the run, saved to the cache. A run starts from it, with its
//! own disks, networks, ports and config, which the guest finds when it goes on (`guest::early::frozen`).
//!
//! The machine's memory is in a file that runs map privately, so that they share what they do not change.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::CommandFdExt;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::{sleep, timeout};

use super::monitor::{Monitor, read_some};
use super::outcome::Exit;
use super::process::{Process, socket_pair, spawn_error};
use super::qmp::{Qmp, QmpError};
use super::tail::Tail;
use super::{LaunchError, Options, QMP_TIMEOUT};
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::quote::shell_word;
use crate::host::vm::accel::{self, Accel};
use crate::host::vm::qemu::{Board, Channel, Channels, Machine, MemoryFile};
use crate::text::chain;

/// The line on the guest's console after which it can be saved.
const WAITING: &str = "localregistry: waiting to be frozen";
/// Folder in the cache.
const FOLDER: &str = "frozen";
/// Machines that are kept. Each takes as much of the disk as its guest has touched of its memory: 60 to 100 MB.
const KEPT: usize = 4;
/// Part of every key, changed when machines that were saved before are no longer usable.
const FORMAT: u32 = 1;
/// Longest state of devices in bytes. It has less than a MiB.
const STATE_MAX: u64 = 64 << 20;
/// Longest record in bytes.
const RECORD_MAX: u64 = 4096;
/// Time between two questions to QEMU.
const POLL: Duration = Duration::from_millis(2);
/// Lines of the console in messages.
const REPORTED_LINES: usize = 5;
// The files of a saved machine.
const RAM: &str = "ram";
const STATE: &str = "state";
const RECORD: &str = "record.json";

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

/// Why no machine was frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The board cannot.
    #[error("a {} cannot be frozen: its guest cannot find devices after its boot; use q35", .0.name())]
    Board(Board),
    /// There is no folder for it.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A file cannot be read or written.
    #[error("cannot use {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// QEMU refuses.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU has not saved it.
    #[error("QEMU cannot save the machine: {0}")]
    Save(String),
    /// The guest ended or did not get there.
    #[error("the guest {how} before it could be frozen: {console}")]
    Guest {
        /// What happened.
        how: String,
        /// Its last lines.
        console: String,
    },
}

/// A machine that has been saved.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
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
    pub(crate) fn find(options: &Options, accel: Accel) -> Result<Self, String> {
        if options.cold {
            return Err("--cold forbids it".into());
        }
        if options.board != Board::Q35 {
            return Err(FreezeError::Board(options.board).to_string());
        }
        if !options.qemu_arguments.is_empty() {
            return Err("QEMU has further arguments, which a frozen machine does not know".into());
        }
        let folder = place(options, accel).map_err(|error| chain(&error))?;
        if !folder.exists() {
            return Err("none is saved for this machine; `localregistry freeze` saves one".into());
        }
        Self::open(&folder).map_err(|error| {
            let saved = format!("the frozen machine {} is damaged and was removed: {error}", folder.display());
            let _not_ours = fs::remove_dir_all(&folder);
            saved
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
        if Record::of(&ram, &folder.join(STATE))? != record {
            return Err(io::Error::other("its files have changed"));
        }
        Ok(Self { folder: folder.to_owned() })
    }

    pub(crate) fn memory(&self) -> MemoryFile {
        MemoryFile { path: self.folder.join(RAM), shared: false }
    }

    /// The state of its devices.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Removes it, as it does not start.
    pub(crate) fn discard(&self) {
        let _gone_already = fs::remove_dir_all(&self.folder);
    }
}

impl Record {
    fn of(ram: &Metadata, state: &Path) -> io::Result<Self> {
        let content = files::read(state, STATE_MAX)?;
        Ok(Self { ram_bytes: ram.len(), ram_modified: (ram.mtime(), ram.mtime_nsec()), state_sha256: sha256(&content) })
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
    let arguments = machine(options, accel, MemoryFile { path: PathBuf::new(), shared: true }, -1, -1).frozen_arguments();
    let unread = |path: &Path| {
        let path = path.to_owned();
        move |source| FreezeError::File { path, source }
    };
    let [qemu, kernel] = [&find_program(&options.qemu), &options.kernel].map(|path| -> Result<_, FreezeError> {
        let metadata = fs::metadata(path).map_err(unread(path))?;
        Ok(format!("{} {} {}.{}", path.display(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    });
    // The time of an initramfs in the cache is that of its last use.
    let initramfs = fs::read(&options.initramfs).map_err(unread(&options.initramfs))?;
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

/// The machine that is frozen: no disk, no network, no virtio device.
fn machine(options: &Options, accel: Accel, memory: MemoryFile, console: i32, qmp: i32) -> Machine {
    let console = Channel::Inherited(console);
    Machine {
        board: options.board,
        tsc_khz: None,
        accel,
        memory_mib: options.memory_mib,
        memory: Some(memory),
        cpus: options.cpus,
        kernel: options.kernel.clone(),
        initramfs: options.initramfs.clone(),
        disks: vec![],
        networks: vec![],
        fw_cfg: vec![],
        channels: Channels { qmp: Channel::Inherited(qmp), events: console.clone(), control: console.clone(), console },
        further: vec![],
    }
}

/// Saves the machine for `options`, unless that has been done, and returns its folder.
///
/// # Errors
/// Fails if it cannot be booted or saved. Nothing is left then.
pub async fn freeze(options: &Options) -> Result<PathBuf, FreezeError> {
    if options.board != Board::Q35 {
        return Err(FreezeError::Board(options.board));
    }
    let (accel, _) = accel::select(options.accel).map_err(LaunchError::from)?;
    let target = place(options, accel)?;
    if Saved::open(&target).is_ok() {
        return Ok(target);
    }
    let parent = cache::folder(FOLDER)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FreezeError::File { path, source }
    };
    let work = tempfile::Builder::new().prefix("new-").tempdir_in(&parent).map_err(failed(&parent))?;
    let (ram, state) = (work.path().join(RAM), work.path().join(STATE));
    save(options, accel, &ram, &state).await?;

    for path in [&ram, &state] {
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed(path))?;
    }
    let metadata = fs::metadata(&ram).map_err(failed(&ram))?;
    let record = Record::of(&metadata, &state).map_err(failed(&state))?;
    let path = work.path().join(RECORD);
    let text = serde_json::to_vec(&record).map_err(io::Error::from);
    text.and_then(|text| files::write_private(&path, &text, 0o600)).map_err(failed(&path))?;
    // What stands there is not whole. Another process may have been quicker: then its machine stays.
    let _none = Saved::open(&target).map(drop).or_else(|_| fs::remove_dir_all(&target));
    match fs::rename(work.path(), &target) {
        Ok(()) => drop(work.keep()),
        Err(_) if Saved::open(&target).is_ok() => {}
        Err(source) => return Err(FreezeError::File { path: target, source }),
    }
    remove_old(&parent, &target);
    Ok(target)
}

/// Boots the machine and saves it.
async fn save(options: &Options, accel: Accel, ram: &Path, state: &Path) -> Result<(), FreezeError> {
    let (mut console, qemu_console) = socket_pair()?;
    let (qmp, qemu_qmp) = socket_pair()?;
    let (mut stderr, qemu_stderr) = socket_pair()?;
    let memory = MemoryFile { path: ram.to_owned(), shared: true };
    let machine = machine(options, accel, memory, qemu_console.as_raw_fd(), qemu_qmp.as_raw_fd());
    let mut command = Command::new(&options.qemu);
    command.args(machine.frozen_arguments()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(qemu_stderr).process_group(0);
    command.preserved_fds(vec![qemu_console, qemu_qmp]);
    let process = Process::start(command).map_err(|source| spawn_error(&options.qemu, options.board, source))?;

    let ended = |how: String, said: &Tail| FreezeError::Guest { how, console: said.last(REPORTED_LINES).join("; ") };
    let mut said = Tail::default();
    match timeout(options.timeout, until_waiting(&mut console, &mut said)).await {
        Ok(true) => {}
        Ok(false) => {
            let exit = process.exit().await;
            let _read = timeout(QMP_TIMEOUT, until_waiting(&mut stderr, &mut said)).await;
            return Err(ended(format!("did not wait: QEMU {exit}"), &said));
        }
        Err(_) => return Err(ended(format!("did not wait within {} s", options.timeout.as_secs()), &said)),
    }
    let (mut qmp, listener) = Qmp::new(qmp);
    let listening = tokio::spawn(async move { listener.listen(&Arc::new(Monitor::default())).await });
    qmp.execute("qmp_capabilities", Value::Null, QMP_TIMEOUT).await?;
    qmp.execute("stop", Value::Null, QMP_TIMEOUT).await?;
    ignore_shared_memory(&mut qmp).await?;
    qmp.execute("migrate", json!({ "uri": shell("cat >", state) }), QMP_TIMEOUT).await?;
    loop {
        let answer = qmp.execute("query-migrate", Value::Null, QMP_TIMEOUT).await?;
        match answer.get("status").and_then(Value::as_str) {
            Some("completed") => break,
            Some("failed" | "cancelled") => return Err(FreezeError::Save(answer.to_string())),
            _ => sleep(POLL).await,
        }
    }
    qmp.execute("quit", Value::Null, QMP_TIMEOUT).await?;
    let exit = process.exit().await;
    listening.abort();
    if exit == Exit::Code(0) { Ok(()) } else { Err(FreezeError::Save(format!("it {exit}"))) }
}

/// Reads the console until the guest waits. Returns false at its end.
async fn until_waiting(stream: &mut UnixStream, said: &mut Tail) -> bool {
    let mut buffer = [0; 4096];
    while let Some(bytes) = read_some(stream, &mut buffer).await {
        said.feed(bytes);
        if said.last(usize::MAX).iter().any(|line| line == WAITING) {
            return true;
        }
    }
    false
}

/// Leaves memory in files that are shared out of what is saved, and of what is expected when it is loaded.
async fn ignore_shared_memory(qmp: &mut Qmp) -> Result<(), QmpError> {
    let capabilities = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
    qmp.execute("migrate-set-capabilities", capabilities, QMP_TIMEOUT).await.map(drop)
}

/// The address of a file for QEMU, which gives and takes a state through a command of the shell (QEMU 8.2 has `file:`).
fn shell(command: &str, file: &Path) -> String {
    format!("exec:{command} {}", shell_word(&file.to_string_lossy()))
}

/// Loads the file `state`, and lets the guest go on. It waits for a line on its console, which QEMU must not get before the state.
pub(crate) async fn resume(qmp: &mut Qmp, state: &Path, console: &mut OwnedWriteHalf) -> Result<(), QmpError> {
    ignore_shared_memory(qmp).await?;
    qmp.execute("migrate-incoming", json!({ "uri": shell("cat", state) }), QMP_TIMEOUT).await?;
    loop {
        let answer = qmp.execute("query-status", Value::Null, QMP_TIMEOUT).await?;
        if answer.get("status").and_then(Value::as_str) != Some("inmigrate") {
            break;
        }
        sleep(POLL).await;
    }
    qmp.execute("cont", Value::Null, QMP_TIMEOUT).await?;
    console.write_all(b"\n").await.map_err(|_| QmpError::Closed { command: "cont" })
}

/// Removes the oldest machines beyond [`KEPT`], but never `newest`. Those in use go on: QEMU has their files open.
fn remove_old(parent: &Path, newest: &Path) {
    let mut others: Vec<_> = machines(parent).into_iter().filter(|(path, _)| path != newest).collect();
    others.sort_by_key(|(_, modified)| std::cmp::Reverse(*modified));
    for (path, _) in others.into_iter().skip(KEPT - 1) {
        let _gone_already = fs::remove_dir_all(path);
    }
}

/// The saved machines in `parent`, each with the time of its last change.
fn machines(parent: &Path) -> Vec<(PathBuf, i64)> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().filter(|entry| entry.path().join(RECORD).exists());
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.mtime()))).collect()
}

/// The number of saved machines, and the bytes that they take.
///
/// # Errors
/// Fails if there is no cache.
pub(crate) fn kept() -> Result<(usize, u64), CacheError> {
    let machines = machines(&cache::folder(FOLDER)?);
    let size = |path: &Path| {
        [RAM, STATE].iter().filter_map(|name| fs::metadata(path.join(name)).ok()).map(|file| file.blocks() * 512).sum()
    };
    let bytes = machines.iter().map(|(path, _)| -> u64 { size(path) }).sum();
    Ok((machines.len(), bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A saved machine, as [`freeze`] leaves it.
    fn saved(parent: &Path, name: &str) -> PathBuf {
        let folder = parent.join(name);
        fs::create_dir(&folder).unwrap();
        for (file, content) in [(RAM, "memory"), (STATE, "state")] {
            files::write_private(&folder.join(file), content.as_bytes(), 0o600).unwrap();
        }
        let record = Record::of(&fs::metadata(folder.join(RAM)).unwrap(), &folder.join(STATE)).unwrap();
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
                let ram = fs::File::options().write(true).open(folder.join(RAM)).unwrap();
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
    fn oldest_machines_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = (0..6).map(|number| saved(parent.path(), &number.to_string())).collect();
        for (age, folder) in (0_u64..).zip(&folders) {
            fs::File::open(folder).unwrap().set_modified(std::time::SystemTime::now() - Duration::from_secs(age * 60)).unwrap();
        }
        // The one that has just been saved stays, whatever its time.
        remove_old(parent.path(), &folders[5]);
        let there: Vec<bool> = folders.iter().map(|folder| folder.exists()).collect();
        assert_eq!(there, [true, true, true, false, false, true]);
    }
}
