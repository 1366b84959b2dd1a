//! How a machine ended: maps what was observed to one outcome, its exit status and its message. Pure functions.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::exit::Status;
use crate::proto::Done;
use crate::text::printable;

/// The reason in QMP's SHUTDOWN event if a signal made QEMU quit.
const HOST_SIGNAL: &str = "host-signal";

/// How the QEMU process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// With status 0, but because of a signal from outside: QEMU handles SIGTERM, SIGINT and SIGHUP by quitting.
    QuitOnSignal,
}

impl Exit {
    /// Whether QEMU failed by itself: a nonzero status, or a signal that a program raises by its own fault.
    pub(crate) fn is_crash(self) -> bool {
        let own = [Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE];
        match self {
            Self::Code(code) => code != 0,
            Self::Signal(number) => own.iter().any(|&signal| signal as i32 == number),
            Self::QuitOnSignal => false,
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(code),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::QuitOnSignal => f.write_str("quit on a signal"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// Why the launcher itself killed QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillReason {
    /// `ready` did not come within this time.
    NotReady(Duration),
    /// The machine did not end after a shutdown request.
    NoShutdown,
    /// The machine did not end after a shutdown request, and its heartbeat had stopped.
    Hung,
    /// The machine did not end after its `done` event.
    StuckAfterDone,
    /// The machine did not end after a kernel panic.
    StuckAfterPanic,
    /// passt, which carried the user network, has ended: clients could no longer reach the guest.
    NetworkLost,
    /// [`super::Appliance::kill`] was called.
    Requested,
}

/// Everything that was observed of a machine that has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observations {
    pub exit: Exit,
    /// Why the launcher killed QEMU, if it did.
    pub killed: Option<KillReason>,
    /// The kernel's panic line, or QEMU's report of a panic.
    pub panic: Option<String>,
    /// Whether the guest sent `ready`.
    pub ready: bool,
    /// The guest's `done` event.
    pub done: Option<Done>,
    /// The reason in QMP's SHUTDOWN event: "guest-shutdown", "guest-reset", ….
    pub reason: Option<String>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Cleanly: the guest sent `ready`, then `done` with status 0, then QEMU exited by itself.
    Done(Done),
    /// The guest stopped and named its fault.
    Fault(Done),
    /// The guest's kernel panicked; its panic line.
    Panic(String),
    /// `ready` did not come within this time.
    NotReady(Duration),
    /// QEMU died or was killed.
    Died {
        /// How QEMU ended.
        exit: Exit,
        /// Why the launcher killed it, if it did.
        killed: Option<KillReason>,
        /// Whether the guest had sent `done` before.
        done: bool,
    },
    /// QEMU exited normally, but the guest had not sent `done`: it reset or powered off by itself.
    Stopped {
        /// Whether the registry had been ready.
        ready: bool,
        /// The reason in QMP's SHUTDOWN event.
        reason: Option<String>,
    },
}

impl Outcome {
    /// Decides the outcome. A panic outweighs everything; then the guest's own fault; then the boot timeout; then how QEMU ended.
    pub(crate) fn from_observations(seen: Observations) -> Self {
        let Observations { exit, killed, panic, ready, done, reason } = seen;
        if let Some(line) = panic {
            return Self::Panic(line);
        }
        let on_signal = exit == Exit::Code(0) && reason.as_deref() == Some(HOST_SIGNAL);
        let exit = if on_signal { Exit::QuitOnSignal } else { exit };
        match (done, killed, exit) {
            (Some(done), _, _) if done.status != 0 => Self::Fault(done),
            (_, Some(KillReason::NotReady(after)), _) => Self::NotReady(after),
            (Some(done), _, Exit::Code(0)) if ready => Self::Done(done),
            (_, _, Exit::Code(0)) => Self::Stopped { ready, reason },
            (done, killed, exit) => Self::Died { exit, killed, done: done.is_some() },
        }
    }

    /// The exit status of `localregistry run` (see its `--help`).
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        self.status().code()
    }

    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Done(_) => Status::Success,
            Self::Fault(_) => Status::GuestFault,
            Self::Panic(_) => Status::KernelPanic,
            Self::NotReady(_) => Status::NotReady,
            Self::Died { .. } => Status::QemuDied,
            Self::Stopped { .. } => Status::GuestStopped,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(done) => {
                let (requests, bytes, reason) = (done.requests, done.bytes, printable(done.reason.as_bytes()));
                write!(f, "the appliance shut down cleanly ({reason}): {requests} requests, {bytes} bytes sent")
            }
            Self::Fault(done) => {
                let (code, reason) = (printable(done.code.as_bytes()), printable(done.reason.as_bytes()));
                write!(f, "the guest stopped: FATAL code={code} {reason} (status {})", done.status)
            }
            Self::Panic(line) => write!(f, "the guest's kernel panicked: {line}"),
            Self::NotReady(after) => {
                write!(f, "the registry was not ready within {} s; QEMU was killed", after.as_secs())
            }
            Self::Died { exit, killed: Some(killed), .. } => write!(f, "QEMU {exit}, by this program: {killed}"),
            Self::Died { exit, killed: None, done } => {
                let when = if *done { "after" } else { "before" };
                write!(f, "QEMU {exit} {when} the guest said that it was done")
            }
            Self::Stopped { ready, reason } => {
                let what = match reason.as_deref() {
                    Some("guest-reset") => "the guest reset",
                    Some("guest-shutdown") => "the guest powered off",
                    _ => "QEMU ended",
                };
                let when = if *ready { "without saying that it was done" } else { "before the registry was ready" };
                write!(f, "{what} {when}")
            }
        }
    }
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(after) => write!(f, "the registry was not ready within {} s", after.as_secs()),
            Self::NoShutdown => f.write_str("the guest did not power off after it was asked to"),
            Self::Hung => {
                f.write_str("the guest hung: its heartbeat had stopped, and it did not power off after it was asked to")
            }
            Self::StuckAfterDone => f.write_str("the guest did not power off after it was done"),
            Self::StuckAfterPanic => f.write_str("the guest's kernel panicked and did not stop"),
            Self::NetworkLost => f.write_str("passt, which carried the user network, has ended"),
            Self::Requested => f.write_str("an immediate end was requested"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(status: u32) -> Option<Done> {
        Some(Done { reason: "why".into(), status, code: "NAME".into(), requests: 2, bytes: 30, ..Done::default() })
    }

    /// The rules of `run --help`, written a second time as one list.
    fn expected(seen: &Observations) -> u8 {
        let rules = [
            (seen.panic.is_some(), 4),
            (seen.done.as_ref().is_some_and(|done| done.status != 0), 3),
            (matches!(seen.killed, Some(KillReason::NotReady(_))), 5),
            (seen.exit != Exit::Code(0) || seen.reason.as_deref() == Some("host-signal"), 6),
            (!seen.ready || seen.done.is_none(), 7),
        ];
        rules.into_iter().find(|(holds, _)| *holds).map_or(0, |(_, status)| status)
    }

    #[test]
    fn every_combination_has_its_status() {
        let late = Duration::from_secs(9);
        let kills = [
            KillReason::NotReady(late),
            KillReason::NoShutdown,
            KillReason::Hung,
            KillReason::StuckAfterDone,
            KillReason::StuckAfterPanic,
            KillReason::NetworkLost,
            KillReason::Requested,
        ];
        let killed: Vec<Option<KillReason>> = kills.into_iter().map(Some).chain([None]).collect();
        let mut zeros = 0;
        for exit in [Exit::Code(0), Exit::Code(1), Exit::Signal(9)] {
            for &killed in &killed {
                for panic in [None, Some("Kernel panic - not syncing: x".to_owned())] {
                    for ready in [false, true] {
                        for done in [None, done(0), done(1)] {
                            for reason in [None, Some("guest-shutdown".to_owned()), Some("host-signal".to_owned())] {
                                let (panic, done) = (panic.clone(), done.clone());
                                let seen = Observations { exit, killed, panic, ready, done, reason };
                                let status = Outcome::from_observations(seen.clone()).exit_status();
                                assert_eq!(status, expected(&seen), "{seen:?}");
                                zeros += u32::from(status == 0);
                            }
                        }
                    }
                }
            }
        }
        // Exit 0, ready, done with 0, no panic, two of the reasons, and any kill reason but the timeout.
        assert_eq!(zeros, 14);
    }

    #[test]
    fn every_outcome_has_its_message() {
        let died = |exit, killed, done| Outcome::Died { exit, killed, done };
        let stopped = |ready, reason: Option<&str>| Outcome::Stopped { ready, reason: reason.map(str::to_owned) };
        for (outcome, sentence) in [
            (Outcome::Done(done(0).unwrap()), "the appliance shut down cleanly (why): 2 requests, 30 bytes sent"),
            (Outcome::Fault(done(7).unwrap()), "the guest stopped: FATAL code=NAME why (status 7)"),
            (
                Outcome::Panic("Kernel panic - not syncing: x".into()),
                "the guest's kernel panicked: Kernel panic - not syncing: x",
            ),
            (Outcome::NotReady(Duration::from_secs(120)), "the registry was not ready within 120 s; QEMU was killed"),
            (died(Exit::Code(1), None, false), "QEMU exited with status 1 before the guest said that it was done"),
            (died(Exit::Signal(9), None, true), "QEMU was killed by SIGKILL after the guest said that it was done"),
            (died(Exit::Signal(77), None, false), "QEMU was killed by signal 77 before the guest said that it was done"),
            (died(Exit::QuitOnSignal, None, false), "QEMU quit on a signal before the guest said that it was done"),
            (
                died(Exit::Signal(9), Some(KillReason::NoShutdown), false),
                "QEMU was killed by SIGKILL, by this program: the guest did not power off after it was asked to",
            ),
            (
                died(Exit::Signal(9), Some(KillReason::Hung), false),
                "QEMU was killed by SIGKILL, by this program: the guest hung: its heartbeat had stopped, and it did not power off \
                 after it was asked to",
            ),
            (
                died(Exit::Signal(9), Some(KillReason::StuckAfterDone), true),
                "QEMU was killed by SIGKILL, by this program: the guest did not power off after it was done",
            ),
            (
                died(Exit::Signal(9), Some(KillReason::NetworkLost), false),
                "QEMU was killed by SIGKILL, by this program: passt, which carried the user network, has ended",
            ),
            (
                died(Exit::Signal(9), Some(KillReason::Requested), false),
                "QEMU was killed by SIGKILL, by this program: an immediate end was requested",
            ),
            (stopped(true, Some("guest-reset")), "the guest reset without saying that it was done"),
            (stopped(false, Some("guest-shutdown")), "the guest powered off before the registry was ready"),
            (stopped(true, None), "QEMU ended without saying that it was done"),
        ] {
            assert_eq!(outcome.to_string(), sentence);
        }
    }

    #[test]
    fn guest_text_is_made_printable() {
        let fault = Done { reason: "\x1b[2Jgone\n0".into(), status: 1, code: "A\x07".into(), ..Done::default() };
        assert_eq!(Outcome::Fault(fault).to_string(), "the guest stopped: FATAL code=A\\u{7} gone\\n0 (status 1)");
    }
}
