//! The server, used by both programs.

pub mod catalog;
pub mod events;
pub mod layout;
