//! Takes from the process that serves what serving does not need. Code that a client got to run in it could read the disks and send bytes
//! to clients, as the server does; it could not mount, load a module, open a raw socket, start a program, or read a file that is not on a
//! disk.
//!
//! The process must have one thread: the rules hold for the thread that calls, and for those that it starts.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};
use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

/// The user and group that own nothing.
const NOBODY: u32 = 65534;
/// Sets a socket to not block (uapi/asm-generic/ioctls.h).
const FIONBIO: i32 = 0x5421;
/// The Landlock rights that are known here. A kernel that knows fewer denies those.
const LANDLOCK: ABI = ABI::V6;

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The user cannot be changed.
    #[error("cannot give up root's rights")]
    User(#[source] Errno),
    /// A capability cannot be dropped, or programs could still gain some.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// The filter is not valid.
    #[error("cannot build the filter of system calls")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel does not take the filter.
    #[error("the kernel takes no filter of system calls; it needs CONFIG_SECCOMP_FILTER")]
    Filter(#[source] seccompiler::Error),
    /// Landlock fails.
    #[error("cannot restrict the files that can be opened (Landlock)")]
    Landlock(#[from] RulesetError),
}

/// Drops root's rights, forbids every file that is not in one of the folders `readable` or one of these files, and leaves the system calls
/// that serving needs. Returns whether the kernel has Landlock.
///
/// With Landlock one capability stays, to read what is readable whatever its mode: disks of other tools may have files that only root reads.
/// Without it the user's rights alone protect files, and no capability stays.
///
/// # Errors
/// Fails if the kernel refuses a step. Some may have been taken.
pub fn confine(readable: &[&str]) -> Result<bool, ConfineError> {
    for capability in CapabilitySet::all() {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(ConfineError::Capabilities(error.into())),
        }
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).map_err(ConfineError::User)?;
    setresgid(group, group, group).map_err(ConfineError::User)?;
    // Otherwise the next step would empty them all: capabilities(7), "Effect of user ID changes on capabilities".
    set_keep_capabilities(true).map_err(|error| ConfineError::Capabilities(error.into()))?;
    setresuid(user, user, user).map_err(ConfineError::User)?;
    // No process of this user may read its memory, nor the process itself through /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| ConfineError::Capabilities(error.into()))?;
    set_no_new_privs(true).map_err(|error| ConfineError::Capabilities(error.into()))?;
    let landlocked = restrict_files(readable)?;
    let kept = if landlocked { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
        .map_err(|error| ConfineError::Capabilities(error.into()))?;
    filter_calls()?;
    Ok(landlocked)
}

/// Allows to read what is `readable`, and nothing else: no other file, no connection, no signal to another process. Whether the kernel can.
fn restrict_files(readable: &[&str]) -> Result<bool, RulesetError> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(LANDLOCK))?.handle_access(AccessNet::ConnectTcp)?;
    let ruleset = ruleset.scope(Scope::from_all(LANDLOCK))?.create()?;
    let ruleset = ruleset.add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// Installs both filters. What both allow without a look at the arguments costs a bit of a table, not a run of them (Linux 5.11).
fn filter_calls() -> Result<(), ConfineError> {
    // The last one forbids to install another.
    for program in [attacks()?, allowed_calls()?] {
        apply_filter(&program).map_err(ConfineError::Filter)?;
    }
    Ok(())
}

/// Lets the calls that serving needs pass. Others fail with EPERM: a library may try one that is newer, or for which it has another way,
/// and a request that fails is better than a registry that ends.
fn allowed_calls() -> Result<BpfProgram, ConfineError> {
    let always = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, vec![]));
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    filter(always.chain(allowed_with_arguments()?), denied, SeccompAction::Allow)
}

/// Ends the process at a call that no library makes by itself. PID 1 reports the signal.
fn attacks() -> Result<BpfProgram, ConfineError> {
    filter(ATTACKS.iter().map(|call| (*call, vec![])), SeccompAction::Allow, SeccompAction::KillProcess)
}

fn filter(
    rules: impl Iterator<Item = (c_long, Vec<SeccompRule>)>,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    Ok(SeccompFilter::new(rules.collect(), others, these, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

/// Calls that pass with every argument.
const ALLOWED: &[c_long] = &[
    // Files: those of the disks are opened, and the port of events, the console and PID 1's socket are open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendfile,
    libc::SYS_lseek,
    libc::SYS_close,
    // Its flags are in memory, where a filter does not look: Landlock and the user's rights forbid to write.
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getdents64,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fcntl,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // What the runtime waits for.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    // Memory and threads. What makes a process of a thread, or code of memory, is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getrandom,
    libc::SYS_prlimit64,
    libc::SYS_uname,
];

/// Calls of this processor's system call table that the C library still uses.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Calls that pass with some arguments.
fn allowed_with_arguments() -> Result<Vec<(c_long, Vec<SeccompRule>)>, ConfineError> {
    let is = |index, mask: i32, value: i32| {
        SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            MaskedEq(u64::from(mask.cast_unsigned())),
            u64::from(value.cast_unsigned()),
        )
    };
    let equals = |index, value: i32| SeccompCondition::new(index, SeccompCmpArgLen::Dword, Eq, u64::from(value.cast_unsigned()));
    // To read.
    let opening = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    // `SOCK_TYPE_MASK` of Linux's net.h; the other bits are flags.
    let stream = |family| Ok::<_, seccompiler::BackendError>(vec![equals(0, family)?, is(1, 0xf, libc::SOCK_STREAM)?]);
    let calls = [
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, vec![vec![is(1, opening, libc::O_RDONLY)?]]),
        (libc::SYS_openat, vec![vec![is(2, opening, libc::O_RDONLY)?]]),
        (libc::SYS_socket, vec![stream(libc::AF_INET)?, stream(libc::AF_INET6)?]),
        (libc::SYS_socketpair, vec![vec![equals(0, libc::AF_UNIX)?]]),
        (libc::SYS_mmap, vec![vec![is(2, libc::PROT_EXEC, 0)?]]),
        (libc::SYS_mprotect, vec![vec![is(2, libc::PROT_EXEC, 0)?]]),
        (libc::SYS_clone, vec![vec![is(0, libc::CLONE_THREAD, libc::CLONE_THREAD)?]]),
        (libc::SYS_prctl, vec![vec![equals(0, libc::PR_SET_NAME)?], vec![equals(0, libc::PR_SET_THP_DISABLE)?]]),
        // Not those of a terminal: the console could be typed on.
        (libc::SYS_ioctl, vec![vec![equals(1, FIONBIO)?]]),
    ];
    let rules = |conditions: Vec<Vec<_>>| conditions.into_iter().map(SeccompRule::new).collect::<Result<Vec<_>, _>>();
    Ok(calls
        .into_iter()
        .map(|(call, conditions)| Ok((call, rules(conditions)?)))
        .collect::<Result<_, seccompiler::BackendError>>()?)
}

/// Calls that only an attack makes.
const ATTACKS: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn filters_are_valid_and_no_call_is_in_two_tables() {
        let (allowed, attacks) = (allowed_calls().unwrap(), attacks().unwrap());
        // The kernel takes up to 4096 instructions (`BPF_MAXINSNS`).
        assert!(allowed.len() + attacks.len() < 4096);
        let conditional: Vec<_> = allowed_with_arguments().unwrap().into_iter().map(|(call, _)| call).collect();
        let all: Vec<_> = [ALLOWED, ALLOWED_HERE, &conditional, ATTACKS].concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
