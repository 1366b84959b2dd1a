//! Hints on the flags that solve an error. The library's errors do not mention flags; the command line adds these.

use std::error::Error;

use super::boot::initramfs::{self, InitError};
use super::boot::kernel::{self, DownloadError};
use super::boot::modules::{ModulesError, TreeError};
use super::deploy::DeployError;
use super::images::sample;
use super::inspect::diff::DiffError;
use super::inspect::look::DamageError;
use super::nodes::access::{AccessError, PASSWORD_FILE};
use super::nodes::ca::{CA_CERTIFICATE, CA_KEY, CaFilesError};
use super::nodes::trust::{DiskImagesError, TrustError};
use super::serve::ServeError;
use super::vm::launch::error::Purpose;
use super::vm::launch::{BuildError, LaunchError, Outcome};
use crate::registry::auth::AuthError;
use crate::text::chain;

/// Formats `error`, its causes and the hint on one line.
pub(crate) fn line(error: &dyn Error, hint: Option<&str>) -> String {
    let line = chain(error);
    hint.map_or(line.clone(), |hint| format!("{line}; {hint}"))
}

/// The hint for a VM that could not be booted.
pub(crate) fn launch(error: &LaunchError) -> Option<&'static str> {
    match error {
        LaunchError::Port { purpose: Purpose::Registry, .. } => {
            Some("choose another address with --publish; port 0 picks a free port")
        }
        LaunchError::Port { purpose: Purpose::Metrics, .. } => {
            Some("choose another address with --metrics; port 0 picks a free port")
        }
        LaunchError::Privileged { purpose: Purpose::Registry, .. } => Some("choose another port with --publish"),
        LaunchError::Privileged { purpose: Purpose::Metrics, .. } => Some("choose another port with --metrics"),
        LaunchError::NoKvm(_) => Some("boot with --accel tcg"),
        LaunchError::Interfaces => Some("--net sets networks"),
        LaunchError::NoPort { .. } => Some("or set a port with --publish"),
        LaunchError::TooOld { .. } => Some("choose another QEMU with --qemu"),
        LaunchError::Layout { .. } => Some(
            "`localregistry pack LAYOUT -o DISK` makes a disk of it, and `localregistry serve LAYOUT` serves it on this machine without \
             a VM",
        ),
        LaunchError::Ended(ended) if matches!(ended.outcome, Outcome::NotReady(_)) => Some("allow more time with --timeout"),
        _ => None,
    }
}

/// The hint for an appliance that cannot be built.
pub(crate) fn build(error: &BuildError) -> Option<&'static str> {
    match error {
        BuildError::Launch(error) => launch(error),
        BuildError::Kernel(error) => kernel(error),
        BuildError::Initramfs(error) => initramfs(error),
        BuildError::Access(error) => access(error),
        BuildError::Ca(error) => ca(error),
        _ => None,
    }
}

/// The hint for `serve`.
pub(crate) fn serve(error: &ServeError) -> Option<&'static str> {
    match error {
        ServeError::Access(error) => access(error),
        ServeError::OwnCa(error) => ca(error),
        ServeError::Layout { cause, .. } => damage(cause),
        _ => None,
    }
}

/// The hint for `trust`.
pub(crate) fn trust(error: &TrustError) -> Option<&'static str> {
    if let TrustError::DiskImages(DiskImagesError::Disk { source, .. }) = error { damage(source) } else { None }
}

/// The hint for `diff`.
pub(crate) fn diff(error: &DiffError) -> Option<&'static str> {
    if let DiffError::Disk { source, .. } = error { damage(source) } else { None }
}

/// The flag that takes a layout which lacks content.
fn damage(error: &DamageError) -> Option<&'static str> {
    error.is_missing().then_some("--allow-missing takes the rest")
}

/// The flag of an unusable file for access control.
fn access(error: &AccessError) -> Option<&'static str> {
    match error {
        AccessError::Read { what: PASSWORD_FILE, .. } | AccessError::Auth(AuthError::Htpasswd(_)) => {
            Some("the password file is set with --htpasswd")
        }
        AccessError::Read { .. } | AccessError::ClientCa { .. } => Some("the client CA is set with --client-ca"),
        _ => None,
    }
}

/// The flag of an unreadable file of a CA.
fn ca(error: &CaFilesError) -> Option<&'static str> {
    match error {
        CaFilesError::Read { what: CA_CERTIFICATE, .. } => Some("the CA is set with --ca"),
        CaFilesError::Read { what: CA_KEY, .. } => Some("the CA's key is set with --key"),
        CaFilesError::Read { .. } => Some("the CA's folder is set with --ca-dir"),
        _ => None,
    }
}

/// The hint for a kernel that is not available.
pub(crate) fn kernel(error: &kernel::KernelError) -> Option<&'static str> {
    match error {
        kernel::KernelError::NotBuilt { .. } => Some("choose a kernel with --flavor"),
        kernel::KernelError::Download(error) if is_no_kernel(error) => Some("set it with --kernel"),
        _ => None,
    }
}

/// Whether the distribution offers no bootable kernel. Other download errors may pass by themselves.
fn is_no_kernel(error: &DownloadError) -> bool {
    use DownloadError::{Contents, Depends, Image, Unknown};
    matches!(error, Unknown { .. } | Depends(_) | Contents { .. } | Image { .. })
}

/// The hint for an initramfs that cannot be built.
pub(crate) fn initramfs(error: &initramfs::InitramfsError) -> Option<&'static str> {
    match error {
        initramfs::InitramfsError::Init(error) => init(error),
        initramfs::InitramfsError::Processors { .. } => Some("set them with --init and --modules"),
        initramfs::InitramfsError::Modules(ModulesError::Tree { source: TreeError::Missing { .. }, .. }) => {
            Some("set the modules with --modules")
        }
        initramfs::InitramfsError::Kernel(kernel::KernelError::Download(error)) if is_no_kernel(error) => {
            Some("take another kernel's modules with --modules")
        }
        initramfs::InitramfsError::Kernel(error) => kernel(error),
        _ => None,
    }
}

/// The hint for an init that was not found.
pub(crate) fn init(error: &InitError) -> Option<&'static str> {
    matches!(error, InitError::Nowhere(_)).then_some("or set one with --init")
}

/// The hint for a sample image that cannot be made.
pub(crate) fn sample(error: &sample::SampleError) -> Option<&'static str> {
    matches!(error, sample::SampleError::Nowhere(_)).then_some("or set one with --binary")
}

/// The hint for `deploy`.
pub(crate) fn deploy(error: &DeployError) -> Option<&'static str> {
    match error {
        DeployError::Kernel(error) => kernel(error),
        DeployError::Initramfs(initramfs::InitramfsError::Init(_)) => None,
        DeployError::Initramfs(error) => initramfs(error),
        _ => None,
    }
}
