//! Images: pulled from other registries, packed into a disk, or made as samples.

pub mod pack;
pub mod pull;
pub mod sample;
pub mod scratch;
