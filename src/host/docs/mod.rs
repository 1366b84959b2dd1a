//! Documentation generated from the code: man pages, completions, and the reference of all JSON.

pub mod manual;
pub mod schema;
