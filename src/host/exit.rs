//! The exit statuses of `localregistry`. `run --help` prints this table, and a test compares docs/running.md with it.

use std::fmt::Write;

/// An exit status other than that of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "`Status::meaning` describes each")]
pub enum Status {
    Success = 0,
    Error = 1,
    Usage = 2,
    GuestFault = 3,
    KernelPanic = 4,
    NotReady = 5,
    QemuDied = 6,
    GuestStopped = 7,
    NoQemu = 8,
    NoDisk = 9,
    PortTaken = 10,
    NoNetwork = 11,
    CannotWrite = 12,
    NoAccess = 13,
    NoKernel = 14,
    NoPermission = 15,
}

impl Status {
    /// All of them, in order of their codes.
    pub const ALL: [Self; 16] = [
        Self::Success,
        Self::Error,
        Self::Usage,
        Self::GuestFault,
        Self::KernelPanic,
        Self::NotReady,
        Self::QemuDied,
        Self::GuestStopped,
        Self::NoQemu,
        Self::NoDisk,
        Self::PortTaken,
        Self::NoNetwork,
        Self::CannotWrite,
        Self::NoAccess,
        Self::NoKernel,
        Self::NoPermission,
    ];

    /// The number that the process exits with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What the status of `run` means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "the guest reported `done` and powered off, as asked or by itself; with --detach: it is ready",
            Self::Error => "another error before the boot, or an output file that cannot be written",
            Self::Usage => "the command line is wrong",
            Self::GuestFault => "the guest stopped with a fault: `FATAL code=NAME`",
            Self::KernelPanic => "the guest's kernel panicked",
            Self::NotReady => "the registry was not ready within --timeout",
            Self::QemuDied => "QEMU died or was killed, or passt ended",
            Self::GuestStopped => "the guest reset or powered off without reporting `done`",
            Self::NoQemu => "QEMU is missing, too old, or another program",
            Self::NoDisk => "a disk is missing or damaged, has no known file system, or is shorter than its superblock says",
            Self::PortTaken => "a port is taken",
            Self::NoNetwork => "a bridge, tap, socket or passt of --net is missing, in use, of another kind or does not start",
            Self::CannotWrite => "the run's folder or another output cannot be written",
            Self::NoAccess => "a certificate, key, CA or password file cannot be used",
            Self::NoKernel => "there is no kernel or initramfs, or the kernel lacks an option that the guest needs",
            Self::NoPermission => "no permission to create or open a tap of --net, or to listen on a port below 1024",
        }
    }

    /// What the status of the other commands means, if they use it.
    const fn of_other_commands(self) -> Option<&'static str> {
        match self {
            Self::Success => Some("success. `diff`: the disks have the same images. `assert`: the log is as expected"),
            Self::Error => Some("an error, explained on standard error. `diff`: images differ. `assert`: the log differs"),
            Self::Usage => Some("the command line is wrong. `diff`, `assert`: an error"),
            _ => None,
        }
    }
}

/// The statuses of `run`, for its `--help`.
#[must_use]
pub fn help() -> String {
    let line = |status: Status| format!("  {:>2}  {}\n", status.code(), status.meaning());
    Status::ALL.map(line).concat()
}

/// The statuses of all commands, as a table in Markdown.
#[must_use]
pub fn table() -> String {
    let mut table = "| status | of | meaning |\n|---|---|---|\n".to_owned();
    for status in Status::ALL {
        let others = status.of_other_commands().map(|meaning| ("all", meaning));
        let run = ("`run`", status.meaning());
        let is_new = others.is_none_or(|(_, meaning)| !meaning.starts_with(run.1));
        for (commands, meaning) in others.into_iter().chain(is_new.then_some(run)) {
            // Writing to a String cannot fail.
            let _written = writeln!(table, "| {} | {commands} | {meaning} |", status.code());
        }
    }
    table
        + "| 129, 130, 143 | `pack`, `deploy`, `inspect`, `diff`, `trust`, `kernel`, `initramfs`, `sample`, `manual`; `serve`, `run` before it is ready or boots | ended by SIGHUP, SIGINT, SIGTERM |\n"
}
