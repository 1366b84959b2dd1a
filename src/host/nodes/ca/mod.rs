//! The CA that signs a registry's certificate, where it is not made for one run alone: brought in two files, or kept in a folder.
//! Paths enter; checked ones, and what signs with them, leave. A key is in no error, and is written to no place but its folder.

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

/// Names of the CA's files in fw_cfg.
const CERTIFICATE: &str = "opt/localregistry/ca.crt";
const KEY: &str = "opt/localregistry/ca.key";

/// A CA that can be used: its files, and what signs with them.
#[derive(Debug)]
pub struct Ca {
    /// The certificate's file, PEM.
    pub certificate: PathBuf,
    /// The key's file, PEM.
    pub key: PathBuf,
    /// What signs.
    pub authority: Authority,
}

/// Why a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("cannot read the {what} {}", .path.display())]
    Read {
        /// Which of the two.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is in the files.
    #[error("cannot sign with the CA {} and the key {}", .certificate.display(), .key.display())]
    Use {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: Box<CaError>,
    },
    /// The folder that keeps one.
    #[error(transparent)]
    Dir(#[from] DirError),
}

impl Ca {
    /// The CA in these two files, at the time `now`.
    ///
    /// # Errors
    /// [`Error`], where a file cannot be read, or what is in them cannot sign.
    pub fn read(certificate: &Path, key: &Path, now: SystemTime) -> Result<Self, Error> {
        let read =
            |what, path: &Path| files::read(path, LARGEST).map_err(|source| Error::Read { what, path: path.to_owned(), source });
        let pem = read("CA certificate", certificate)?;
        let key_pem = Zeroizing::new(read("CA key", key)?);
        let authority = provided::authority(&pem, &key_pem, Some(now)).map_err(|source| Error::Use {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source: Box::new(source),
        })?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), authority })
    }

    /// The CA that the folder `dir` keeps; made there where it keeps none yet.
    ///
    /// # Errors
    /// [`Error`], where the folder cannot be used, or others could read the key.
    pub fn kept_in(dir: &Path, now: SystemTime) -> Result<Self, Error> {
        let (certificate, key) = dir::files(dir)?;
        Self::read(&certificate, &key, now)
    }

    /// Its files as a guest is given them, by their names in fw_cfg.
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
