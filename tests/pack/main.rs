//! Packs, pulls into a disk, and inspects one. Needs no root and no network.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod archives;
mod bad_archives;
mod bad_images;
mod bad_sources;
mod bounds;
mod charts;
mod damaged_disks;
mod index_entries;
mod layouts;
mod limits;
mod names;
mod nulls;
mod output;
mod platforms;
mod pull_credentials;
mod pull_faults;
mod pull_referrers;
mod pull_secrets;
mod sample;
mod selection;
mod sources;
