//! The CAs that are trusted for a registry: the system's, those in docker's and podman's `certs.d`, and those given.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts};

use super::error::Fault;
use crate::host::support::files;

/// Folders of docker and podman with a host's CAs as `HOST/*.crt`.
const HOST_FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// Largest CA file in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The CAs trusted for `host`: the system's (by `SSL_CERT_FILE` and `SSL_CERT_DIR` if set), those in `given`, and those of the host.
///
/// # Errors
/// Fails if a file of the latter two cannot be used.
pub fn roots(host: &str, given: &[PathBuf]) -> Result<RootCerts, Fault> {
    let mut roots: Vec<CertificateDer<'static>> = rustls_native_certs::load_native_certs().certs;
    for file in given.iter().cloned().chain(host_ca_files(host)) {
        let added = certificates(&file).map_err(|why| Fault::Ca { file, why })?;
        roots.extend(added);
    }
    let roots: Vec<Certificate<'static>> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(RootCerts::from(roots))
}

/// The CA files of a host, sorted.
fn host_ca_files(host: &str) -> Vec<PathBuf> {
    let folders = HOST_FOLDERS.iter().map(|folder| Path::new(folder).join(host));
    let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "crt")).collect();
    files.sort();
    files
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = files::read(file, MAX_FILE).map_err(|error: io::Error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() {
        return Err("it has no CERTIFICATE block; PEM is expected".to_owned());
    }
    // rustls would silently skip certificates that it cannot use.
    let mut store = RootCertStore::empty();
    found.iter().try_for_each(|certificate| store.add(certificate.clone())).map_err(|error| error.to_string())?;
    Ok(found)
}
