//! What the command line adds to an error of the library, which knows of no flags: the flags that help.

use std::error::Error;

use super::boot::initramfs::{self, InitError};
use super::boot::kernel::{self, DownloadError};
use super::boot::modules::{ModulesError, TreeError};
use super::deploy::DeployError;
use super::images::sample;
use super::vm::launch::error::Purpose;
use super::vm::launch::{BuildError, LaunchError, Outcome};
use crate::text::chain;

/// `error` with its causes and the hint, on one line.
pub(crate) fn line(error: &dyn Error, hint: Option<&str>) -> String {
    let line = chain(error);
    hint.map_or(line.clone(), |hint| format!("{line}; {hint}"))
}

/// For a machine that cannot be booted, by `run`.
pub(crate) fn launch(error: &LaunchError) -> Option<&'static str> {
    match error {
        LaunchError::Port { purpose: Purpose::Registry, .. } => Some("--publish takes another address, with port 0 a free one"),
        LaunchError::Port { purpose: Purpose::Metrics, .. } => Some("--metrics takes another address, with port 0 a free one"),
        LaunchError::Privileged { purpose: Purpose::Registry, .. } => Some("--publish takes another port"),
        LaunchError::Privileged { purpose: Purpose::Metrics, .. } => Some("--metrics takes another port"),
        LaunchError::NoKvm(_) => Some("boot with --accel tcg"),
        LaunchError::Interfaces => Some("--net gives networks"),
        LaunchError::NoPort { .. } => Some("--publish with a port needs no answer"),
        LaunchError::TooOld { .. } => Some("--qemu takes another"),
        LaunchError::Layout { .. } => Some(
            "`localregistry pack LAYOUT -o DISK` makes a disk of it, and `localregistry serve LAYOUT` serves it on this machine without \
             a VM",
        ),
        LaunchError::Ended(ended) if matches!(ended.outcome, Outcome::NotReady(_)) => Some("--timeout gives it longer"),
        _ => None,
    }
}

/// For an appliance that cannot be built.
pub(crate) fn build(error: &BuildError) -> Option<&'static str> {
    match error {
        BuildError::Launch(error) => launch(error),
        BuildError::Kernel(error) => kernel(error),
        BuildError::Initramfs(error) => initramfs(error),
        _ => None,
    }
}

/// For a kernel that is not there.
pub(crate) fn kernel(error: &kernel::Error) -> Option<&'static str> {
    match error {
        kernel::Error::NotBuilt { .. } => Some("--flavor chooses"),
        kernel::Error::Download(error) if is_no_kernel(error) => Some("--kernel names one"),
        _ => None,
    }
}

/// Whether the distribution has no kernel to boot, as far as is known here.
fn is_no_kernel(error: &DownloadError) -> bool {
    use DownloadError::{Contents, Depends, Image, Unknown};
    matches!(error, Unknown { .. } | Depends(_) | Contents { .. } | Image { .. })
}

/// For an initramfs that cannot be made.
pub(crate) fn initramfs(error: &initramfs::Error) -> Option<&'static str> {
    match error {
        initramfs::Error::Init(error) => init(error),
        initramfs::Error::Processors { .. } => Some("--init and --modules name them"),
        initramfs::Error::Modules(ModulesError::Tree { source: TreeError::Missing { .. }, .. }) => Some("--modules names them"),
        initramfs::Error::Kernel(kernel::Error::Download(error)) if is_no_kernel(error) => {
            Some("--modules names those of another kernel")
        }
        initramfs::Error::Kernel(error) => kernel(error),
        _ => None,
    }
}

/// For an init that is nowhere.
pub(crate) fn init(error: &InitError) -> Option<&'static str> {
    matches!(error, InitError::Nowhere(_)).then_some("--init names one, too")
}

/// For a sample image that cannot be made.
pub(crate) fn sample(error: &sample::SampleError) -> Option<&'static str> {
    if let sample::SampleError::Program(error) = error { init(error) } else { None }
}

/// For a cluster that nothing is made for.
pub(crate) fn deploy(error: &DeployError) -> Option<&'static str> {
    match error {
        DeployError::Kernel(error) => kernel(error),
        DeployError::Initramfs(initramfs::Error::Init(_)) => None,
        DeployError::Initramfs(error) => initramfs(error),
        _ => None,
    }
}
