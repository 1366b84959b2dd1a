//! Boots what a builder describes: checks its settings, and finds the kernel, the initramfs and the CA.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::command::{QemuCommand, command};
use super::super::frozen::freeze;
use super::super::{Appliance, Options, check_disk, check_outputs};
use super::{BuildError, Builder};
use crate::address::is_san;
use crate::config::guest_config::GuestConfig;
use crate::host::boot::kernel::Flavor;
use crate::host::boot::{initramfs, kernel};
use crate::host::nodes::access::AccessError;
use crate::host::nodes::ca::{self, Ca};
use crate::host::vm::qemu::Board;

/// The kernel to boot.
#[derive(Debug, Clone)]
pub(super) enum KernelSource {
    Flavor(Flavor),
    File {
        kernel: PathBuf,
        /// The folder with its modules, from which an initramfs is made.
        modules: Option<PathBuf>,
    },
}

/// The CA that signs the certificate.
#[derive(Debug, Clone)]
pub(super) enum CaSource {
    /// PEM files of the certificate and its key.
    Files(PathBuf, PathBuf),
    /// A folder that keeps a CA. It is created at first use.
    Dir(PathBuf),
}

impl CaSource {
    fn read(&self) -> Result<Ca, ca::CaFilesError> {
        let now = SystemTime::now();
        match self {
            Self::Files(certificate, key) => Ca::read(certificate, key, now),
            Self::Dir(dir) => Ca::in_dir(dir, now),
        }
    }
}

impl Builder {
    /// Boots the appliance and waits until its registry is ready. Dropping the future before that ends QEMU, and so does dropping the
    /// appliance. Call it within a Tokio runtime with time and I/O.
    ///
    /// # Errors
    /// See [`BuildError`]. No process and no file is left.
    pub async fn boot(self) -> Result<Appliance, BuildError> {
        Ok(Appliance::boot(self.resolve_options().await?).await?)
    }

    /// Boots a machine like this one as far as it does not depend on disks, networks and config, and saves it in the cache, unless that has
    /// been done. Later boots start from it. Returns its folder.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn freeze(mut self) -> Result<PathBuf, BuildError> {
        self.options.disks.clear();
        Ok(freeze(&self.resolve_options().await?).await?)
    }

    /// Builds QEMU's command line for a launcher that starts QEMU itself, and writes its files into the existing folder `folder`.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn command(self, folder: &Path) -> Result<QemuCommand, BuildError> {
        Ok(command(self.resolve_options().await?, folder).await?)
    }

    /// Checks the config, the disks, the access control files and the output files: what can be checked without creating or downloading anything. All
    /// other methods do it as well; call it to fail before longer preparations. It reads files and blocks.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn check(&self) -> Result<(), BuildError> {
        self.guest_config()?;
        let given = self.options.memory_mib;
        if let KernelSource::Flavor(flavor) = self.kernel
            && given < flavor.min_memory_mib()
        {
            return Err(BuildError::Memory { flavor, given });
        }
        self.options.disks.iter().try_for_each(|disk| check_disk(disk))?;
        check_outputs(&self.options)?;
        self.access.check().map_err(BuildError::Access)
    }

    /// Finds the kernel, the initramfs and the CA, and returns the options for [`Appliance::boot`]. It may download a kernel.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn resolve_options(self) -> Result<Options, BuildError> {
        // Downloads, unpacks and waits for file locks.
        tokio::task::spawn_blocking(move || self.resolve_blocking()).await.map_err(BuildError::Aborted)?
    }

    fn resolve_blocking(mut self) -> Result<Options, BuildError> {
        self.check()?;
        self.options.config = self.guest_config()?;
        let Self { mut options, kernel, initramfs, init, ca, access, .. } = self;
        let board = options.board;
        if options.qemu.as_os_str().is_empty() {
            options.qemu = board.program().into();
        }
        options.secrets.extend(access.secrets());
        if let Some(ca) = ca {
            options.secrets.extend(ca.read().map_err(BuildError::Ca)?.secrets());
        }
        let init = init.as_deref();
        (options.kernel, options.initramfs) = match kernel {
            KernelSource::File { kernel, modules } => {
                kernel::check_fits(&kernel, kernel::options_of(&kernel), board)?;
                // It comes with its modules or with an initramfs.
                let build = || initramfs::cached(init, &modules.unwrap_or_default(), &options.report);
                (kernel, initramfs.map_or_else(build, Ok).map_err(BuildError::Initramfs)?)
            }
            KernelSource::Flavor(flavor) if board == Board::Virt && flavor.package().is_some() => {
                return Err(BuildError::NoFlavor(board));
            }
            KernelSource::Flavor(flavor) => {
                let kernel = kernel::cached_or_download(flavor, board, &options.report).map_err(BuildError::Kernel)?;
                kernel::check_fits(&kernel.elf, kernel.options(), board)?;
                let build = || initramfs::of_kernel(init, &kernel, &options.report);
                (kernel.elf.clone(), initramfs.map_or_else(build, Ok).map_err(BuildError::Initramfs)?)
            }
        };
        Ok(options)
    }

    /// The guest's config with all settings and names.
    pub(crate) fn guest_config(&self) -> Result<GuestConfig, BuildError> {
        let mut config = self.options.config.clone();
        for setting in self.settings.iter().chain(&self.access.settings()) {
            config.set(setting).map_err(BuildError::Set)?;
        }
        if self.access.has_client_ca() && config.is_plain() {
            return Err(BuildError::Access(AccessError::ClientCaWithoutTls));
        }
        for name in &self.names {
            if !is_san(name) {
                return Err(BuildError::Name(name.clone()));
            }
            config.add_name(name);
        }
        Ok(config)
    }
}
