//! A registry for end-to-end cluster tests: a set of container images, packed into one disk, booted as one more machine on the
//! test network, pulled from over TLS by unmodified container runtimes.
//!
//! ```text
//! images ─ host::images ─▶ disk ─ host::vm ─▶ guest (PID 1) ─ registry ─▶ nodes of the test cluster
//!                                    ▲                │
//!                                    └────────────────┘ events: ready, CA, requests, done
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`address`] | addresses and names of machines |
//! | `text` | error chains, escaping, lines |
//! | [`oci`] | digests, names, media types, manifests |
//! | [`proto`] | the contracts between host and guest, generated from `proto/` |
//! | [`disk`] | file systems, image layout and catalog, read and written |
//! | [`registry`] | the read-only registry server, used by both programs |
//! | `config` | the guest's config, written by the host and read by the guest |
//! | `guest` | PID 1 of the VM: the program `localregistry-init` |
//! | `host` | the commands of `localregistry`; [`launch`] is the API for launchers |
//!
//! `guest` and `host` never import each other. Both import the other modules.

pub mod address;
#[cfg(any(feature = "guest", feature = "host"))]
pub mod config;
pub mod disk;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "host")]
pub mod host;
pub mod oci;
pub mod proto;
pub mod registry;
#[cfg_attr(not(any(feature = "guest", feature = "host")), expect(dead_code))]
mod text;

#[cfg(feature = "host")]
pub use crate::host::vm::launch;
