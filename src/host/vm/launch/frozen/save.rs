//! Saves a machine: boots it until its guest waits, and writes its memory and the state of its devices to a folder.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::CommandFdExt;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::{
    FOLDER, POLL, RAM, RECORD, Record, STATE, STATE_MAX, Saved, UNFINISHED, entries, ignore_shared_memory, machine, machines,
    mark_unusable, place,
};
use crate::host::support::cache::{self, CacheError};
use crate::host::support::files;
use crate::host::support::quote::shell_word;
use crate::host::vm::accel::{self, Accel};
use crate::host::vm::launch::monitor::{Monitor, read_some};
use crate::host::vm::launch::outcome::Exit;
use crate::host::vm::launch::process::{Process, socket_pair, spawn_error};
use crate::host::vm::launch::qmp::{Qmp, QmpError};
use crate::host::vm::launch::tail::Tail;
use crate::host::vm::launch::{LaunchError, Options, QMP_TIMEOUT};
use crate::host::vm::qemu::{Board, MemoryFile, MemoryPurpose};
use crate::text::chain;

/// The line on the guest's console after which it can be saved.
const WAITING: &str = "localregistry: waiting to be frozen";
/// Machines that are kept. Each takes as much of the disk as its guest has touched of its memory: 60 to 100 MB.
const KEPT: usize = 4;
/// How long the machine that is saved beside a run may take to boot. It has only the time that nothing else needs.
const BESIDE_TIMEOUT: Duration = Duration::from_secs(600);
/// The lowest priority (sched(7)).
const LOWEST: i32 = 19;
/// The highest value of `/proc/PID/oom_score_adj`: of all processes, this one is killed first when memory runs out.
const KILLED_FIRST: &str = "1000";
/// Lines of the console in messages.
const REPORTED_LINES: usize = 5;

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

pub(super) fn file_error(path: &Path) -> impl Fn(io::Error) -> FreezeError + use<> {
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

/// Removes the oldest machines beyond [`KEPT`], but never `newest`. Those in use go on: QEMU has their files open.
fn remove_old(parent: &Path, newest: &Path) {
    let mut others: Vec<_> = machines(parent).into_iter().filter(|(path, _)| path != newest).collect();
    others.sort_by_key(|(_, modified)| std::cmp::Reverse(*modified));
    for (path, _) in others.into_iter().skip(KEPT - 1) {
        let _gone_already = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::saved;
    use super::*;

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
