//! Reference pages that are generated from the code.

pub mod manual;
pub mod schema;
