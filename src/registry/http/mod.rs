//! The parts of HTTP that do not depend on what a registry is: conditions, ranges, multipart bodies, responses, errors.

pub(crate) mod condition;
pub mod error;
pub(crate) mod multipart;
pub mod range;
pub mod reply;
pub(crate) mod response_memory;
