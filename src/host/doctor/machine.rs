//! Checks of the machine itself: QEMU, KVM, memory, the cache, and the external programs. QEMU is run; the others are only looked
//! for.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Check, trial};
use crate::host::support::cache;
use crate::host::support::report::counted;
use crate::host::support::tools::Tool;
use crate::host::vm::accel::{self, Accel};
use crate::host::vm::launch::{frozen, passt};
use crate::host::vm::qemu::version::{OLDEST, newer};
use crate::host::vm::qemu::{Board, Version};
use crate::text::{chain, printable};

/// Memory that the default VM and its QEMU need, in bytes.
const MEMORY: u64 = 320 << 20;

/// Checks that QEMU is installed, is recent enough, and runs a VM.
pub fn qemu(board: Board, program: &Path) -> Check {
    let name = program.display();
    let install = format!("install Debian's package {} (`apt-get install {}`)", board.package(), board.package());
    let printed = match first_line(program, "--version") {
        Ok(printed) => printed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::fail("qemu", format!("{name} is not on this machine"), install);
        }
        Err(error) => return Check::fail("qemu", format!("cannot run {name}: {error}"), install),
    };
    let Some(version) = Version::parse(&printed) else {
        return Check::fail("qemu", format!("{name} prints {printed:?}, which is not a QEMU version"), install);
    };
    let found = format!("{name} {version}");
    if version < OLDEST {
        return Check::fail(
            "qemu",
            format!("{found} is too old: {OLDEST} or later is needed"),
            format!("{}; choose another QEMU with --qemu", newer(board.package())),
        );
    }
    if board == Board::Virt {
        return Check::ok("qemu", found);
    }
    match trial::run(program, Accel::Tcg) {
        Ok(()) => Check::ok("qemu", format!("{found} runs a machine")),
        Err(error) => Check::fail("qemu", format!("{found} runs no machine: {}", chain(&error)), install),
    }
}

/// Checks that KVM works, by running a VM under it.
pub fn kvm(board: Board, program: &Path) -> Check {
    let slower = "boots are emulated (TCG): this works, but is several times slower";
    if board == Board::Virt && !cfg!(target_arch = "aarch64") {
        return Check::note("kvm", "a VM for another processor is always emulated", slower);
    }
    if let Err(error) = accel::probe() {
        return Check::note("kvm", format!("cannot be used: {}", chain(&error)), slower);
    }
    match trial::run(program, Accel::Kvm) {
        Ok(()) => Check::ok("kvm", "runs a machine"),
        Err(error) => Check::note("kvm", format!("cannot be used: {}", chain(&error)), slower),
    }
}

/// Checks what carries the network `user`, by starting passt.
pub fn user_network() -> Check {
    let slower = "QEMU itself carries the network `user` (slirp): this works, but is slower";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(passt::PasstError::Start).and_then(|runtime| runtime.block_on(passt::check())) {
        Ok(path) => Check::ok("passt", format!("{} carries the network `user` of `run`", path.display())),
        Err(error) => Check::note("passt", chain(&error), slower),
    }
}

/// Checks that a VM fits into the available memory.
pub fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&text) {
        Some(bytes) => enough(bytes),
        None => Check::note("memory", "/proc/meminfo does not say how much is available", "a VM needs 256 MiB"),
    }
}

/// The available memory in bytes, from the text of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn enough(bytes: u64) -> Check {
    let found = format!("{} MiB available", bytes >> 20);
    if bytes >= MEMORY {
        return Check::ok("memory", found);
    }
    Check::fail("memory", found, "a VM needs 256 MiB: free some memory, or give the VM less (--memory)")
}

/// Says how many frozen machines there are, and what they take.
pub fn frozen_machines() -> Check {
    match frozen::kept() {
        Ok((0, _)) => Check::ok("frozen", "no machine is saved; the first `run` saves one, from which the next start faster"),
        Ok((count, bytes)) => Check::ok("frozen", format!("{}, {} MiB", counted(count, "saved machine"), bytes >> 20)),
        Err(error) => Check::note("frozen", chain(&error), "see the check `cache`"),
    }
}

/// Checks that the cache folder is writable.
pub fn cache() -> Check {
    let advice = "set LOCALREGISTRY_CACHE to a writable folder";
    let folder = match cache::folder("") {
        Ok(folder) => folder,
        Err(error) => return Check::fail("cache", chain(&error), advice),
    };
    match tempfile::tempfile_in(&folder) {
        Ok(_) => Check::ok("cache", folder.components().collect::<std::path::PathBuf>().display().to_string()),
        Err(error) => Check::fail("cache", format!("cannot write to {}: {error}", folder.display()), advice),
    }
}

/// Checks that a program is installed. `purpose` says which commands run it; it is `needed` if they are certain to need it.
pub fn program(tool: Tool, purpose: &str, needed: bool) -> Check {
    match tool.find() {
        Ok(path) => Check::ok(tool.name, format!("{}, for {purpose}", path.display())),
        Err(error) if needed => Check::fail(tool.name, error.to_string(), format!("needed by {purpose}")),
        Err(error) => Check::note(tool.name, error.to_string(), format!("needed only by {purpose}")),
    }
}

/// The first line that a program prints when run with `flag`, from standard output or else standard error.
fn first_line(program: &Path, flag: &str) -> io::Result<String> {
    let output = Command::new(program).arg(flag).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    let printed = [output.stdout, output.stderr].concat();
    let line = printed.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
    Ok(printable(line.unwrap_or(b"nothing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_compared_with_the_need() {
        let meminfo = "MemTotal:        8000000 kB\nMemFree:  1 kB\nMemAvailable:     409600 kB\n";
        assert_eq!(available(meminfo), Some(409_600 << 10));
        for text in ["", "MemAvailable: x kB\n", "MemAvailable: 5\n", "MemAvailable: 18446744073709551615 kB\n"] {
            assert_eq!(available(text), None, "{text:?}");
        }
        assert_eq!(enough(400 << 20).line(), "ok    memory      400 MiB available");
        assert_eq!(
            enough(319 << 20).line(),
            "FAIL  memory      319 MiB available; a VM needs 256 MiB: free some memory, or give the VM less (--memory)"
        );
    }
}
