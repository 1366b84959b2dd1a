//! `pack --pull`: pulls images with their referrers from registries into image layouts in a working folder, verified.
//!
//! The working folder is removed when the layouts are dropped. Nothing is pushed.
//!
//! ```text
//! reference ─ client (TLS, redirects, retries) ─ upstream (credentials, errors) ─ image, blobs, then referrers ─▶ tree
//! ```

mod auth;
mod blobs;
mod client;
mod credentials;
mod error;
mod links;
mod manifests;
mod reference;
mod referrers;
mod store;
mod tree;
mod trust;
mod upstream;
mod url;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::host::images::platforms::PlatformChoice;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::host::support::workers::no_thread;
use crate::oci::{Digest, Host};
use blobs::{BlobFetcher, LocalTree};
use client::{Client, ClientSettings, TRIES};
use manifests::{ManifestFetcher, RemoteBlob, RemoteImage};
use referrers::{ReferrerLookup, Referrers};
use store::Store;
use upstream::Upstream;

pub use error::{Fault, PullError};
pub use reference::ImageReference;
use tree::ListedManifest;
pub use tree::{FailedLookup, PulledLayout};

/// The options of `pack` for pulling.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Pulling")]
pub struct PullArgs {
    /// Pull the image REF, with its referrers, and pack it under the name of its registry. REF is as for docker pull: busybox,
    /// quay.io/org/app:v1, host:5000/app@sha256:… Credentials are those of docker login and podman login. Repeatable
    #[arg(long, value_name = "REF")]
    pull: Vec<ImageReference>,

    /// Pull images without what belongs to them: signatures, attestations and other referrers. Without this flag they are pulled too;
    /// if the registry does not give them, a warning says so
    #[arg(long)]
    no_referrers: bool,

    /// Trust the CAs in FILE (PEM) when pulling, in addition to those of the system and of /etc/docker/certs.d. Repeatable
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,

    /// Use plain HTTP for the registry HOST[:PORT], also for credentials. Not needed for localhost. Repeatable
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<Host>,

    /// Give up if a registry sends nothing for SECONDS, or has not sent a whole manifest, list or token after SECONDS
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pull_timeout: u64,
}

impl PullArgs {
    /// The images to pull, in the order given.
    #[must_use]
    pub fn references(&self) -> &[ImageReference] {
        &self.pull
    }

    /// Pulls `references` into a working folder in `folder` whose name starts with `prefix`. Returns each image as a layout, sorted by
    /// name. Blobs that one of `local` has are not fetched.
    ///
    /// # Errors
    /// Fails with the first image that cannot be pulled, and removes the working folder.
    pub fn run(
        &self,
        mut references: Vec<ImageReference>,
        platforms: &PlatformChoice,
        local: &[LocalTree<'_>],
        (folder, prefix): (&Path, &str),
        report: Report,
        interrupt: &Interrupt,
    ) -> Result<Vec<(ImageReference, PulledLayout)>, PullError> {
        references.sort();
        references.dedup();
        let Some(first) = references.first().map(ToString::to_string) else { return Ok(Vec::new()) };
        let named = credentials::check_named_file(|name| std::env::var_os(name));
        named.map_err(|source| PullError { image: first.clone(), source: source.into() })?;
        let result = Store::new(folder, prefix);
        let store = result.map_err(|source| PullError { image: first.clone(), source: folder_fault(folder, source) })?;
        let client = Client::new(self.settings(), report, interrupt.clone());
        let pull = Puller { client, store: Arc::new(store), platforms, local, report, has_referrers: !self.no_referrers };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _set_done = SetOnDrop(&done);
            let watch = thread::Builder::new().spawn_scoped(scope, || pull.client.watch(&done));
            watch.map_err(|source| PullError { image: first, source: Fault::Thread(no_thread(&source)) })?;
            let pulled = references.into_iter().map(|reference| match pull.one(&reference) {
                Ok(pulled) => Ok((reference, pulled)),
                Err(source) => Err(PullError { image: reference.to_string(), source }),
            });
            pulled.collect()
        })
    }

    fn settings(&self) -> ClientSettings {
        ClientSettings {
            plain_http: self.plain_http.clone(),
            cas: self.registry_ca.clone(),
            timeout: Duration::from_secs(self.pull_timeout),
            credentials: credentials::files(|name| std::env::var_os(name), nix::unistd::getuid().as_raw()),
        }
    }
}

fn folder_fault(folder: &Path, source: io::Error) -> Fault {
    Fault::Folder { folder: folder.to_owned(), source }
}

/// Sets a flag when it is dropped, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Puller<'a> {
    client: Client,
    store: Arc<Store>,
    platforms: &'a PlatformChoice,
    local: &'a [LocalTree<'a>],
    report: Report,
    has_referrers: bool,
}

impl Puller<'_> {
    fn one(&self, reference: &ImageReference) -> Result<PulledLayout, Fault> {
        self.report.step(format!("pulling {reference}"));
        let upstream = Upstream::new(&self.client, reference)?;
        let mut fetcher = ManifestFetcher::new(&self.client, &upstream, &self.store);
        let RemoteImage { root, content, selected } = fetcher.fetch_image(reference, self.platforms)?;
        self.fetch(&upstream, content.blobs)?;
        // Last, so that no answer to these requests can matter to the image.
        let Referrers { listed, failed } = if self.has_referrers {
            self.report.step("looking up signatures and referrers");
            ReferrerLookup::new(fetcher, reference, &content.manifests, self.local).run()?
        } else {
            Referrers::default()
        };
        if let Some(first) = failed.first() {
            let more = if failed.len() == 1 { String::new() } else { format!(" and without {} more", failed.len() - 1) };
            self.report.warn(format!(
                "{reference} is packed without {}{more}, because {}; with --no-referrers nothing but the image is looked up",
                first.what, first.why
            ));
        }
        let listed: Vec<ListedManifest> = [root].into_iter().chain(listed).collect();
        Ok(PulledLayout::new(Arc::clone(&self.store), &listed, selected, failed))
    }

    /// Fetches the blobs of an image that the store does not have.
    fn fetch(&self, upstream: &Upstream<'_>, blobs: BTreeMap<Digest, RemoteBlob>) -> Result<(), Fault> {
        let all = blobs.len();
        let wanted: Vec<(Digest, RemoteBlob)> = blobs.into_iter().filter(|(digest, _)| !self.store.has(digest)).collect();
        let is_local =
            |(digest, blob): &(Digest, RemoteBlob)| self.local.iter().any(|local| blobs::has_blob(*local, digest, blob.size));
        let far: Vec<&(Digest, RemoteBlob)> = wanted.iter().filter(|one| !is_local(one)).collect();
        self.report.step(format!("fetching {} of {all} blobs, {}", far.len(), HumanBytes(total(far.iter().copied()))));
        let bar = self.report.bytes_bar("pulling", total(wanted.iter()));
        let (client, store, local) = (&self.client, &*self.store, self.local);
        let fetcher = BlobFetcher { client, upstream, store, local, tries: TRIES, bar };
        let fetched = fetcher.fetch(wanted, || client.stop());
        fetcher.bar.finish_and_clear();
        fetched
    }
}

/// Total size of blobs in bytes.
fn total<'a>(blobs: impl Iterator<Item = &'a (Digest, RemoteBlob)>) -> u64 {
    blobs.fold(0, |sum, (_, blob)| sum.saturating_add(blob.size))
}
