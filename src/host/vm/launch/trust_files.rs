//! Writes the files that nodes need to trust and use a running appliance.

use std::path::{Path, PathBuf};

use super::Appliance;
use crate::host::nodes::trust::{self, Bundle, DiskImages, Endpoint, TrustError, TrustFormat};

impl Appliance {
    /// Writes the files that nodes need to trust and use the registry to the folder `dir`, for every runtime, as `localregistry trust`
    /// does. They contain the registry's endpoints and names, its CA, and the images and upstream hosts of the disks. An earlier
    /// bundle is replaced as a whole. It reads the disks' indexes and blocks; within async code call it on a blocking thread.
    ///
    /// # Errors
    /// Fails if the folder holds something else, or a disk cannot be read. The folder is not changed then. See [`TrustError`].
    pub fn trust(&self, dir: &Path) -> Result<(), TrustError> {
        trust::check(dir)?;
        let contents = trust::disk_images(&self.disks, false)?;
        self.write_trust(dir, &[], contents).map(drop)
    }

    /// The same for `contents` that have been read already. Nodes reach the registry at `hosts`, if any are given. Returns the absolute
    /// path of the folder.
    pub(crate) fn write_trust(&self, dir: &Path, hosts: &[Endpoint], contents: DiskImages) -> Result<PathBuf, TrustError> {
        let endpoints = [self.endpoints(), self.further_endpoints()].concat();
        let endpoints =
            endpoints.iter().map(|endpoint| endpoint.parse()).collect::<Result<Vec<_>, _>>().map_err(TrustError::Endpoint)?;
        let plain = self.endpoint().starts_with("http://");
        let ca = (!plain).then_some(self.ready.ca_pem.as_str());
        let bundle = Bundle::of_run(&endpoints, hosts, &self.names, ca, contents, dir)?;
        trust::write(&trust::tree(&bundle, &[TrustFormat::All]), dir)?;
        Ok(bundle.dir.into())
    }
}
