//! The checks of the machine itself: QEMU, KVM, memory, the cache, the programs that commands run. QEMU is asked for its version and
//! tried; the others are only looked for.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Check, trial};
use crate::host::support::cache;
use crate::host::support::tools::Tool;
use crate::host::vm::accel::{self, Accel};
use crate::host::vm::launch::printable;
use crate::host::vm::qemu::version::{OLDEST, newer};
use crate::host::vm::qemu::{Board, Version};
use crate::text::chain;

/// Bytes of memory that the default machine and its QEMU take.
const MEMORY: u64 = 320 << 20;

/// Whether QEMU is there, new enough, and runs a machine.
pub fn qemu(board: Board, program: &Path) -> Check {
    let name = program.display();
    let install = format!("install Debian's package {} (`apt-get install {}`)", board.package(), board.package());
    let said = match first_line(program, "--version") {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::fail("qemu", format!("{name} is not on this machine"), install);
        }
        Err(error) => return Check::fail("qemu", format!("cannot run {name}: {error}"), install),
    };
    let Some(version) = Version::parse(&said) else {
        return Check::fail("qemu", format!("{name} says {said:?}, which is no version of QEMU"), install);
    };
    let found = format!("{name} {version}");
    if version < OLDEST {
        return Check::fail(
            "qemu",
            format!("{found} is too old: {OLDEST} or later is needed"),
            format!("{}; --qemu takes another", newer(board.package())),
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

/// Whether KVM can be used, by a machine that runs under it.
pub fn kvm(board: Board, program: &Path) -> Check {
    let slower = "boots are emulated (TCG), which works and is some times slower";
    if board == Board::Virt && !cfg!(target_arch = "aarch64") {
        return Check::note("kvm", "another processor's machine is always emulated", slower);
    }
    if let Err(error) = accel::probe() {
        return Check::note("kvm", format!("cannot be used: {}", chain(&error)), slower);
    }
    match trial::run(program, Accel::Kvm) {
        Ok(()) => Check::ok("kvm", "runs a machine"),
        Err(error) => Check::note("kvm", format!("cannot be used: {}", chain(&error)), slower),
    }
}

/// Whether a machine fits into the memory that is free.
pub fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available(&text) {
        Some(bytes) => enough(bytes),
        None => Check::note("memory", "/proc/meminfo does not say how much is available", "a machine takes 256 MiB"),
    }
}

/// The bytes that `meminfo` says are available.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn enough(bytes: u64) -> Check {
    let found = format!("{} MiB available", bytes >> 20);
    if bytes >= MEMORY {
        return Check::ok("memory", found);
    }
    Check::fail("memory", found, "a machine takes 256 MiB: end something, or give it less (--memory)")
}

/// Whether downloads can be kept.
pub fn cache() -> Check {
    let advice = "set LOCALREGISTRY_CACHE to a folder that can be written to";
    let folder = match cache::folder("") {
        Ok(folder) => folder,
        Err(error) => return Check::fail("cache", chain(&error), advice),
    };
    match tempfile::tempfile_in(&folder) {
        Ok(_) => Check::ok("cache", folder.components().collect::<std::path::PathBuf>().display().to_string()),
        Err(error) => Check::fail("cache", format!("cannot write to {}: {error}", folder.display()), advice),
    }
}

/// Whether a program is there, which is for `purpose`; and whether that is certain to need it.
pub fn program(tool: Tool, purpose: &str, needed: bool) -> Check {
    match tool.find() {
        Ok(path) => Check::ok(tool.name, format!("{}, for {purpose}", path.display())),
        Err(error) if needed => Check::fail(tool.name, error.to_string(), format!("needed by {purpose}")),
        Err(error) => Check::note(tool.name, error.to_string(), format!("needed only by {purpose}")),
    }
}

/// The first line that a program says to `flag`, on standard output or else on standard error.
fn first_line(program: &Path, flag: &str) -> io::Result<String> {
    let output = Command::new(program).arg(flag).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let line = said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
    Ok(printable(line.unwrap_or(b"nothing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_enough_or_not() {
        let meminfo = "MemTotal:        8000000 kB\nMemFree:  1 kB\nMemAvailable:     409600 kB\n";
        assert_eq!(available(meminfo), Some(409_600 << 10));
        for text in ["", "MemAvailable: x kB\n", "MemAvailable: 5\n", "MemAvailable: 18446744073709551615 kB\n"] {
            assert_eq!(available(text), None, "{text:?}");
        }
        assert_eq!(enough(400 << 20).line(), "ok    memory      400 MiB available");
        assert_eq!(
            enough(319 << 20).line(),
            "FAIL  memory      319 MiB available; a machine takes 256 MiB: end something, or give it less (--memory)"
        );
    }
}
