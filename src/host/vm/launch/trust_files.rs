//! The files that nodes need to trust and use a running appliance. A folder, and what the disk has, enter; a trust bundle is written.

use std::path::{Path, PathBuf};

use super::Appliance;
use crate::host::nodes::trust::{self, Bundle, Contents, Endpoint, Format, TrustError};

impl Appliance {
    /// Writes the files that nodes need to trust and use the registry to the folder `dir`, for every runtime, as `localregistry trust`
    /// does: of the registry's endpoints and names, its CA, and the images and their upstream hosts on the disks. An earlier bundle is
    /// replaced as a whole. It reads the disks' indexes, and blocks while it does: within async code call it where a thread may wait.
    ///
    /// # Errors
    /// See [`TrustError`]: something else is in the folder, or it is not known what the disks have. Then `dir` is as it was.
    pub fn trust(&self, dir: &Path) -> Result<(), TrustError> {
        let contents = trust::prepare(dir, &self.disks)?;
        self.write_trust(dir, &[], contents).map(drop)
    }

    /// The same where nodes reach the registry at `hosts`, if any are given, and `contents` are known; gives the folder's absolute path.
    pub(crate) fn write_trust(&self, dir: &Path, hosts: &[Endpoint], contents: Contents) -> Result<PathBuf, TrustError> {
        let places = [self.endpoints(), self.further_endpoints()].concat();
        let places =
            places.iter().map(|endpoint| endpoint.parse()).collect::<Result<Vec<_>, _>>().map_err(TrustError::Endpoint)?;
        let plain = self.endpoint().starts_with("http://");
        let ca = (!plain).then_some(self.ready.ca_pem.as_str());
        let bundle = Bundle::of_run(&places, hosts, &self.names, ca, contents, dir)?;
        trust::write(&trust::tree(&bundle, &[Format::All]), dir)?;
        Ok(bundle.dir.into())
    }
}
