//! What the nodes of a test cluster are given: trust files, certificate authorities, credentials.

pub mod access;
pub mod ca;
pub mod trust;
