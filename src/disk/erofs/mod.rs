//! EROFS, uncompressed: the reader that `inspect` and the launcher use, and the writer of `pack`.

pub(crate) mod directory;
pub(crate) mod inode;
pub(crate) mod reader;
pub(crate) mod writer;
