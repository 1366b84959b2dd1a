//! Private mounts and a private network for a test: clients and daemons write to fixed paths (`/etc/docker`, `/run`,
//! `/var/lib/containers`) and connect to the internet.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::vm::succeed;

/// An address for documentation (RFC 5737). A loopback address would not do, because dockerd checks no certificates there.
pub const ADDRESS: &str = "192.0.2.1";

/// Runs `ip` with these arguments, which a space separates, and returns its output.
pub fn ip(arguments: &str) -> String {
    succeed(crate::program("ip").args(arguments.split(' ')))
}

/// Runs a test in a thread with private mounts and a private network: `/etc` and `/var/lib` are writable copies, `/run` is empty,
/// and the network has only [`ADDRESS`] and the loopback. The empty cgroups of the runtimes (`docker`, `libpod_parent`, `default`)
/// stay, because other tests may use them.
pub fn privately(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("root is needed");
        mount_on(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None);
        // The next mount on `/run` hides the file system of the overlays, which disappears with the last process.
        mount_on(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None);
        for (index, lower) in ["/etc", "/var/lib"].into_iter().enumerate() {
            let (upper, work) = (format!("/run/upper{index}"), format!("/run/work{index}"));
            [&upper, &work].into_iter().for_each(|path| fs::create_dir(path).unwrap());
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
            mount_on(Some("overlay"), lower, Some("overlay"), MsFlags::empty(), Some(&options));
        }
        mount_on(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None);
        forget_configuration();
        ip("link set lo up");
        ip(&format!("address add {ADDRESS}/32 dev lo"));
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Replaces the machine's configuration of docker and of the programs on containers/image by a minimal one.
fn forget_configuration() {
    for folder in ["/etc/docker", "/etc/containers"] {
        let _ = fs::remove_dir_all(folder);
    }
    fs::create_dir("/etc/containers").unwrap();
    fs::write("/etc/containers/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
}

fn mount_on(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags, options: Option<&str>) {
    mount(source, Path::new(target), kind, flags, options).unwrap_or_else(|error| panic!("mount {kind:?} on {target}: {error}"));
}

/// Runs a test in a thread with a private `tmpfs` on `folder`, mounted with these options.
pub fn on_tmpfs(folder: &Path, options: &str, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
            mount_on(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None);
            mount_on(Some("tmpfs"), folder.to_str().unwrap(), Some("tmpfs"), MsFlags::empty(), Some(options));
            test();
        };
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Makes the mount on `folder` read-only. Call it inside [`on_tmpfs`].
pub fn read_only(folder: &Path) {
    mount_on(None, folder.to_str().unwrap(), None, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None);
}

/// Runs a test in a thread with another `/proc/cpuinfo` and a `/dev` that has `/dev/null` and, on request, a `/dev/kvm` that can
/// be opened and does nothing. Puts the files into `folder`.
pub fn with_kvm(folder: &Path, kvm: bool, cpuinfo: &str, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
            mount_on(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None);
            let path = |name: &str| folder.join(name).display().to_string();
            fs::write(path("cpuinfo"), cpuinfo).unwrap();
            mount_on(Some(&path("cpuinfo")), "/proc/cpuinfo", None, MsFlags::MS_BIND, None);
            fs::create_dir_all(path("dev")).unwrap();
            mount_on(Some("tmpfs"), &path("dev"), Some("tmpfs"), MsFlags::empty(), None);
            for name in ["dev/null"].into_iter().chain(kvm.then_some("dev/kvm")) {
                fs::write(path(name), "").unwrap();
                mount_on(Some("/dev/null"), &path(name), None, MsFlags::MS_BIND, None);
            }
            mount_on(Some(&path("dev")), "/dev", None, MsFlags::MS_BIND | MsFlags::MS_REC, None);
            test();
        };
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
