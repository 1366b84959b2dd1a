//! The CA that signs a registry's certificate, if it is not generated for one run: from two files, or in a folder. The key appears
//! in no error, and is written only to that folder.

mod args;
mod dir;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::host::support::files;
use crate::registry::tls::Authority;
use crate::registry::tls::provided::{self, CaError, LARGEST};

pub use args::{Certificates, Tls};
pub use dir::DirError;

/// Name of the certificate in fw_cfg.
const CERTIFICATE: &str = "opt/localregistry/ca.crt";
/// What errors call the file of `--ca`.
pub(crate) const CA_CERTIFICATE: &str = "CA certificate";
/// What errors call the file of its key.
pub(crate) const CA_KEY: &str = "CA key";
const KEY: &str = "opt/localregistry/ca.key";

/// A usable CA.
#[derive(Debug)]
pub struct Ca {
    /// The certificate's file, PEM.
    pub certificate: PathBuf,
    /// The key's file, PEM.
    pub key: PathBuf,
    /// Signs certificates with the key.
    pub authority: Authority,
}

/// Why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaFilesError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}", .path.display())]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The files are not a CA that can sign.
    #[error("cannot sign with the CA {} and the key {}", .certificate.display(), .key.display())]
    Use {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        source: Box<CaError>,
    },
    /// The CA's folder cannot be used.
    #[error(transparent)]
    Dir(#[from] DirError),
}

impl Ca {
    /// Reads the CA from two files, and checks it at the time `now`.
    ///
    /// # Errors
    /// Fails if a file cannot be read, or if the CA cannot sign.
    pub fn read(certificate: &Path, key: &Path, now: SystemTime) -> Result<Self, CaFilesError> {
        Self::read_named([CA_CERTIFICATE, CA_KEY], certificate, key, now)
    }

    fn read_named(names: [&'static str; 2], certificate: &Path, key: &Path, now: SystemTime) -> Result<Self, CaFilesError> {
        let read = |what, path: &Path| {
            files::read(path, LARGEST).map_err(|source| CaFilesError::Read { what, path: path.to_owned(), source })
        };
        let pem = read(names[0], certificate)?;
        let key_pem = Zeroizing::new(read(names[1], key)?);
        let authority = provided::authority(&pem, &key_pem, Some(now)).map_err(|source| CaFilesError::Use {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), authority })
    }

    /// Returns the CA in the folder `dir`, and creates it on first use.
    ///
    /// # Errors
    /// Fails if the folder cannot be used, or if others could read the key.
    pub fn in_dir(dir: &Path, now: SystemTime) -> Result<Self, CaFilesError> {
        let (certificate, key) = dir::files(dir)?;
        Self::read_named(["certificate of the CA's folder,", "key of the CA's folder,"], &certificate, &key, now)
    }

    /// The files for a guest, by their names in fw_cfg.
    #[must_use]
    pub fn secrets(self) -> [(&'static str, PathBuf); 2] {
        [(CERTIFICATE, self.certificate), (KEY, self.key)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_fw_cfg() {
        assert!([CERTIFICATE, KEY].iter().all(|name| name.len() <= 55));
    }
}
