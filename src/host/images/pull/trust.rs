//! Whom a registry's certificate may be by: the CAs of the system, those that docker and podman keep for the host, and those given.
//! Files are only read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts};

use super::error::Fault;
use crate::host::support::files;

/// Where docker and podman look for the CAs of one host: `HOST/*.crt`.
const HOST_FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// Largest file of CAs, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The CAs that are trusted for `host`: the system's (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), those in `given`, and those
/// kept for it.
///
/// # Errors
/// Where a file of the latter two cannot be used.
pub fn roots(host: &str, given: &[PathBuf]) -> Result<RootCerts, Fault> {
    let mut roots: Vec<CertificateDer<'static>> = rustls_native_certs::load_native_certs().certs;
    for file in given.iter().cloned().chain(kept(host)) {
        let added = certificates(&file).map_err(|why| Fault::Ca { file, why })?;
        roots.extend(added);
    }
    let roots: Vec<Certificate<'static>> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(RootCerts::from(roots))
}

/// The files that are kept for a host, in order of their names.
fn kept(host: &str) -> Vec<PathBuf> {
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
    // Those that rustls would only pass over.
    let mut store = RootCertStore::empty();
    found.iter().try_for_each(|certificate| store.add(certificate.clone())).map_err(|error| error.to_string())?;
    Ok(found)
}
