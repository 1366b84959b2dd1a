//! The server, used by both programs.

pub mod events;
