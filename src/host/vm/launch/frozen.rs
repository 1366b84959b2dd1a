//! Frozen machines: a machine that has booted as far as it does not depend on the run, saved to the cache. A run starts from it, with its
//! own disks, networks, ports and config, which the guest finds when it goes on (`guest::early::frozen`).
//!
//! The machine's memory is in a file that runs map privately, so that they share what they do not change.
//!
//! The first run that finds none boots, and saves one beside that: at the lowest priority, and only as long as the run goes on. One process
//! at a time saves a machine, in a folder that gets its name when it is whole.

use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
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
use crate::host::vm::qemu::{Board, Channel, Channels, Machine, MemoryFile, MemoryPurpose, loader_rom};
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
/// Longest file for the guest in bytes.
const FILE_MAX: u64 = 4 << 20;
/// Longest record in bytes.
const RECORD_MAX: u64 = 4096;
/// How long the machine that is saved beside a run may take to boot. It has only the time that nothing else needs.
const BESIDE_TIMEOUT: Duration = Duration::from_secs(600);
/// The lowest priority (sched(7)).
const LOWEST: i32 = 19;
/// The highest value of `/proc/PID/oom_score_adj`: of all processes, this one is killed first when memory runs out.
const KILLED_FIRST: &str = "1000";
/// Time between two questions to QEMU.
const POLL: Duration = Duration::from_millis(2);
/// Lines of the console in messages.
const REPORTED_LINES: usize = 5;
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
    /// Another process is saving a machine.
    #[error("another run is saving one")]
    Busy,
    /// QEMU has not saved it.
    #[error("QEMU cannot save the machine: {0}")]
    Save(String),
    /// The guest ended or did not get there.
    #[error("the guest {how} before it could be frozen: {console}")]
    Guest {
        /// What happened.
        how: String,
        /// Whether it ended by itself.
        powered_off: bool,
        /// Its last lines.
        console: String,
    },
}

impl FreezeError {
    fn guest(how: String, powered_off: bool, said: &Tail) -> Self {
        Self::Guest { how, powered_off, console: said.last(REPORTED_LINES).join("; ") }
    }
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
        if !options.qemu_arguments.is_empty() {
            return Err("QEMU has further arguments, which a frozen machine does not know".to_owned().into());
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
        cpus: options.cpus.count(accel),
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

/// Saves the machine for `options`, unless that has been done, and returns its folder. Waits for another process that saves one.
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
    let lock = File::open(&parent).map_err(file_error(&parent))?;
    let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
    let _lock = locked.map_err(io::Error::other).flatten().map_err(file_error(&parent))?;
    save(options, accel, &target, None).await?;
    Ok(target)
}

/// Saves the machine for `options` in the folder `target` while a run goes on, at the lowest priority. If another process is saving one,
/// this does nothing. A machine that cannot be saved is not tried again.
pub(crate) async fn save_beside(options: Options, accel: Accel, target: PathBuf) {
    let saved = async {
        let parent = cache::folder(FOLDER)?;
        let lock = File::open(&parent).map_err(file_error(&parent))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => FreezeError::Busy,
            TryLockError::Error(source) => file_error(&parent)(source),
        })?;
        save(&options, accel, &target, Some(LOWEST)).await
    };
    // Other errors may be gone at the next run: a full disk, little memory.
    if let Err(error @ FreezeError::Guest { powered_off: true, .. }) = saved.await {
        mark_unusable(&target, &chain(&error));
    }
}

/// Boots a machine and saves it in the folder `target`. The caller holds the lock.
async fn save(options: &Options, accel: Accel, target: &Path, nice: Option<i32>) -> Result<(), FreezeError> {
    if Saved::open(target).is_ok() {
        return Ok(());
    }
    let parent = cache::folder(FOLDER)?;
    // Without the lock, these folders are of processes that were killed.
    for left in entries(&parent).filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        let _not_ours = fs::remove_dir_all(left.path());
    }
    let work = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent)
        .map_err(file_error(&parent))?;
    let file = |name| work.path().join(name);
    let (ram, state, record) = (file(RAM), file(STATE), file(RECORD));
    boot_into(options, accel, [&ram, &state], nice).await?;
    for path in [&ram, &state] {
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(file_error(path))?;
    }
    let content = files::read(&state, STATE_MAX).map_err(file_error(&state))?;
    let text = fs::metadata(&ram).and_then(|metadata| Ok(serde_json::to_vec(&Record::of(&metadata, &content))?));
    text.and_then(|text| files::write_private(&record, &text, 0o600)).map_err(file_error(&record))?;
    // What is there is not whole.
    let _nothing = fs::remove_dir_all(target);
    fs::rename(work.path(), target).map_err(file_error(target))?;
    drop(work.keep());
    remove_old(&parent, target);
    Ok(())
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> FreezeError + use<> {
    let path = path.to_owned();
    move |source| FreezeError::File { path: path.clone(), source }
}

/// Boots the machine with its memory in the file `ram`, and writes the state of its devices to the file `state`. With `nice` it has that
/// priority, and is the first to be killed when memory runs out.
async fn boot_into(options: &Options, accel: Accel, [ram, state]: [&Path; 2], nice: Option<i32>) -> Result<(), FreezeError> {
    let (mut console, qemu_console) = socket_pair()?;
    let (qmp, qemu_qmp) = socket_pair()?;
    let (mut stderr, qemu_stderr) = socket_pair()?;
    let memory = MemoryFile { path: ram.to_owned(), purpose: MemoryPurpose::Freeze };
    let machine = machine(options, accel, memory, qemu_console.as_raw_fd(), qemu_qmp.as_raw_fd());
    let mut command = Command::new(&options.qemu);
    command.args(machine.frozen_arguments()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(qemu_stderr).process_group(0);
    command.preserved_fds(vec![qemu_console, qemu_qmp]);
    // The thread that starts QEMU has a priority of its own, which QEMU inherits.
    let lower = move || nice.map_or(Ok(()), |by| Ok(rustix::process::nice(by).map(drop)?));
    let process = Process::start_after(command, lower).map_err(|source| spawn_error(&options.qemu, options.board, source))?;
    if nice.is_some() {
        let _not_permitted = fs::write(format!("/proc/{}/oom_score_adj", process.pid()), KILLED_FIRST);
    }

    let limit = if nice.is_some() { BESIDE_TIMEOUT } else { options.timeout };
    let mut said = Tail::default();
    match timeout(limit, until_waiting(&mut console, &mut said)).await {
        Ok(true) => {}
        Ok(false) => {
            let exit = process.exit().await;
            let _read = timeout(QMP_TIMEOUT, until_waiting(&mut stderr, &mut said)).await;
            let how = format!("did not wait: QEMU {exit}");
            return Err(FreezeError::guest(how, exit == Exit::Code(0), &said));
        }
        Err(_) => return Err(FreezeError::guest(format!("did not wait within {} s", limit.as_secs()), false, &said)),
    }
    let (mut qmp, listener) = Qmp::new(qmp);
    let listening = tokio::spawn(async move { listener.listen(&Arc::new(Monitor::default())).await });
    qmp.execute("qmp_capabilities", Value::Null, QMP_TIMEOUT).await?;
    qmp.execute("stop", Value::Null, QMP_TIMEOUT).await?;
    ignore_shared_memory(&mut qmp).await?;
    // QEMU 7.2 writes it through a command of the shell, or to a descriptor that it got by SCM_RIGHTS.
    let to = format!("exec:cat >{}", shell_word(&state.to_string_lossy()));
    qmp.execute("migrate", json!({ "uri": to }), QMP_TIMEOUT).await?;
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

/// What QEMU and the guest get when a frozen machine starts, and the sockets for that. QEMU's ends are open until the run ends.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The state of the devices.
    state: Vec<u8>,
    state_socket: UnixStream,
    /// QEMU's number of the other end.
    state_fd: RawFd,
    /// The files of fw_cfg, as the guest reads them.
    files: Vec<u8>,
    files_socket: UnixStream,
}

impl Incoming {
    /// Prepares the start of `saved` with these files. Returns QEMU's ends of the sockets, that for the files second.
    pub(crate) fn new(saved: &Saved, files: &[(&str, PathBuf)]) -> Result<(Self, [OwnedFd; 2]), LaunchError> {
        let (state_socket, qemu_state) = socket_pair()?;
        let (files_socket, qemu_files) = socket_pair()?;
        let mut content = Vec::new();
        for (name, path) in files {
            let file = files::read(path, FILE_MAX);
            let file = file.map_err(|source| LaunchError::Read { what: "file for the guest", path: path.clone(), source })?;
            content.extend(format!("{} {name}\n", file.len()).bytes());
            content.extend(file);
        }
        content.push(b'\n');
        let (state, state_fd) = (saved.state.clone(), qemu_state.as_raw_fd());
        Ok((Self { state, state_socket, state_fd, files: content, files_socket }, [qemu_state, qemu_files]))
    }

    /// Loads the state, lets the guest go on, and sends it its files.
    pub(crate) async fn resume(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        ignore_shared_memory(qmp).await?;
        qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{}", self.state_fd) }), QMP_TIMEOUT).await?;
        send(&mut self.state_socket, &self.state, "migrate-incoming").await?;
        // QEMU would wait for the rest of a state that is cut short.
        let _closed = self.state_socket.shutdown().await;
        loop {
            let answer = qmp.execute("query-status", Value::Null, QMP_TIMEOUT).await?;
            if answer.get("status").and_then(Value::as_str) != Some("inmigrate") {
                break;
            }
            sleep(POLL).await;
        }
        qmp.execute("cont", Value::Null, QMP_TIMEOUT).await?;
        send(&mut self.files_socket, &self.files, "cont").await
    }
}

/// Sends what QEMU needs to follow `command`.
async fn send(socket: &mut UnixStream, bytes: &[u8], command: &'static str) -> Result<(), QmpError> {
    let sent = timeout(QMP_TIMEOUT, socket.write_all(bytes)).await;
    sent.map_err(|_| QmpError::TimedOut { command, time_limit: QMP_TIMEOUT })?.map_err(|_| QmpError::Closed { command })
}

/// Removes the oldest machines beyond [`KEPT`], but never `newest`. Those in use go on: QEMU has their files open.
fn remove_old(parent: &Path, newest: &Path) {
    let mut others: Vec<_> = machines(parent).into_iter().filter(|(path, _)| path != newest).collect();
    others.sort_by_key(|(_, modified)| std::cmp::Reverse(*modified));
    for (path, _) in others.into_iter().skip(KEPT - 1) {
        let _gone_already = fs::remove_dir_all(path);
    }
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
    use std::os::unix::fs::symlink;

    use super::*;

    /// A saved machine, as [`freeze`] leaves it.
    fn saved(parent: &Path, name: &str) -> PathBuf {
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
    fn oldest_machines_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = (0..6).map(|number| saved(parent.path(), &number.to_string())).collect();
        for (age, folder) in (0_u64..).zip(&folders) {
            File::open(folder).unwrap().set_modified(std::time::SystemTime::now() - Duration::from_secs(age * 60)).unwrap();
        }
        // The one that has just been saved stays, whatever its time.
        remove_old(parent.path(), &folders[5]);
        let there: Vec<bool> = folders.iter().map(|folder| folder.exists()).collect();
        assert_eq!(there, [true, true, true, false, false, true]);
    }
}
