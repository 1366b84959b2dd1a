//! A registry for end-to-end cluster tests: a set of container images, packed into one disk, booted as one more machine on the
//! test network, pulled from over TLS by unmodified container runtimes.
//!
//! ```text
//! images ─ host::pack ─▶ disk ─ host::launch ─▶ guest (PID 1) ─ registry ─▶ nodes of the test cluster
//!                                                 │
//!                                                 └─ events: ready, CA, requests, done ─▶ host::launch
//! ```
//!
//! | room | holds |
//! |---|---|
//! | `address` | addresses and names of machines |
//! | [`oci`] | digests, names, media types: pure, parsed once at the edge |
//! | [`proto`] | the contracts between host and guest, generated from `proto/` |
//! | [`registry`] | the server: catalog, routes, ranges, replies, TLS, the accept loop. Both programs serve with it |
//! | `guest` | PID 1's duties, in `localregistry-init` |
//! | `host` | the launcher's tools, in `localregistry`; `launch` is the API for launchers |
//!
//! `guest` and `host` never import each other. Both stand on the others.

#[cfg(any(feature = "guest", feature = "host"))]
pub mod address;
#[cfg(any(feature = "guest", feature = "host"))]
mod causes;
#[cfg(any(feature = "guest", feature = "host"))]
mod label;
mod layers;
pub mod oci;
pub mod proto;
pub mod registry;
#[cfg(any(feature = "guest", feature = "host"))]
mod superblock;

#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub use host::launch;
