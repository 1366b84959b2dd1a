//! What the nodes of a test cluster need: trust files, CAs, and access control.

pub mod access;
pub mod ca;
pub mod trust;
