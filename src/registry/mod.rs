//! The server, used by both programs.
