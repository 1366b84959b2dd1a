//! `pack --pull`: images from a registry that this machine can reach. What enters are references; what leaves are layouts to pack,
//! every manifest and blob of them verified, in a working folder that is removed when they are dropped. Nothing is ever pushed, and
//! nothing is asked of a registry but what belongs to the images.
//!
//! ```text
//! reference ─ client (TLS, redirects, tries) ─ upstream (credentials, errors) ─ image (manifests, referrers) ─ blobs ─▶ tree
//! ```

mod auth;
mod blobs;
mod client;
mod credentials;
mod error;
mod image;
mod reference;
mod store;
mod tree;
mod trust;
mod upstream;
mod url;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::HumanBytes;

use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::Report;
use crate::oci::{Digest, Host, Platform};
use blobs::Near;
use client::{Client, Settings};
use image::{Found, Wanted};
use store::Store;
use upstream::Upstream;

pub use error::{Fault, PullError};
pub use reference::Reference;
pub use tree::Pulled;

/// What `pack` takes for pulling.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Pulling")]
pub struct Pulling {
    /// Pull the image REF (as docker pull takes it: busybox, quay.io/org/app:v1, host:5000/app@sha256:…) and pack it under its upstream,
    /// with what refers to it. Credentials are those of docker login and podman login. May be given several times
    #[arg(long, value_name = "REF")]
    pull: Vec<Reference>,

    /// Trust the CAs in FILE (PEM) for registries that are pulled from, beside those of the system and /etc/docker/certs.d
    #[arg(long, value_name = "FILE")]
    registry_ca: Vec<PathBuf>,

    /// Speak plain HTTP with the registry HOST[:PORT], credentials included. On localhost that is seen to without being asked for
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<Host>,

    /// Give a registry up that says nothing for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pull_timeout: u64,
}

impl Pulling {
    /// What `--pull` names, in the order that it is given in.
    #[must_use]
    pub fn references(&self) -> &[Reference] {
        &self.pull
    }

    /// Pulls `references` into a working folder in `folder` whose name starts with `prefix`: each image as a layout, with its name,
    /// in order of their names. Blobs that one of `near` has are not fetched.
    ///
    /// # Errors
    /// [`PullError`], of the first that fails; nothing is left then.
    pub fn run(
        &self,
        mut references: Vec<Reference>,
        platform: Option<&Platform>,
        near: &[Near<'_>],
        (folder, prefix): (&Path, &str),
        report: Report,
        interrupt: &Interrupt,
    ) -> Result<Vec<(Reference, Pulled)>, PullError> {
        references.sort();
        references.dedup();
        let Some(first) = references.first() else { return Ok(Vec::new()) };
        let made = Store::new(folder, prefix);
        let store = made.map_err(|source| PullError { image: first.to_string(), source: no_folder(folder, source) })?;
        let client = Client::new(self.settings(), interrupt.clone());
        let pull = Pull { client, store: Arc::new(store), platform, near, report };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| pull.client.watch(&done));
            let _done = Done(&done);
            let pulled = references.into_iter().map(|reference| match pull.one(&reference) {
                Ok(pulled) => Ok((reference, pulled)),
                Err(source) => Err(PullError { image: reference.to_string(), source }),
            });
            pulled.collect()
        })
    }

    fn settings(&self) -> Settings {
        Settings {
            plain_http: self.plain_http.clone(),
            cas: self.registry_ca.clone(),
            timeout: Duration::from_secs(self.pull_timeout),
            credentials: credentials::files(|name| std::env::var_os(name)),
        }
    }
}

fn no_folder(folder: &Path, source: io::Error) -> Fault {
    Fault::Folder { folder: folder.to_owned(), source }
}

/// Says that the work is done when it is dropped, by a panic too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Pull<'a> {
    client: Client,
    store: Arc<Store>,
    platform: Option<&'a Platform>,
    near: &'a [Near<'a>],
    report: Report,
}

impl Pull<'_> {
    fn one(&self, reference: &Reference) -> Result<Pulled, Fault> {
        self.report.step(format!("pulling {reference}"));
        let upstream = Upstream::new(&self.client, reference)?;
        let Found { listed, blobs, left_out } = image::find(&self.client, &upstream, &self.store, reference, self.platform)?;
        if let (Some(platform), false) = (self.platform, left_out.is_empty()) {
            self.report.step(format!("{reference}: {platform} is kept, left out: {}", left_out.join(", ")));
        }
        let all = blobs.len();
        let wanted: Vec<(Digest, Wanted)> = blobs.into_iter().filter(|(digest, _)| !self.store.has(digest)).collect();
        let is_near = |(digest, blob): &(Digest, Wanted)| self.near.iter().any(|near| blobs::is_in(*near, digest, blob.size));
        let far: Vec<&(Digest, Wanted)> = wanted.iter().filter(|one| !is_near(one)).collect();
        self.report.step(format!("fetching {} of {all} blobs, {}", far.len(), HumanBytes(total(far.iter().copied()))));
        let bar = self.report.bytes_bar("pulling", total(wanted.iter()));
        let fetched = blobs::fetch(&self.client, &upstream, (&self.store, self.near), wanted, &bar);
        bar.finish_and_clear();
        fetched?;
        Ok(Pulled::new(Arc::clone(&self.store), &listed))
    }
}

/// The size of blobs together, in bytes.
fn total<'a>(blobs: impl Iterator<Item = &'a (Digest, Wanted)>) -> u64 {
    blobs.fold(0, |sum, (_, blob)| sum.saturating_add(blob.size))
}
