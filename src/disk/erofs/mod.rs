//! EROFS without compression (Linux, `fs/erofs/erofs_fs.h`): a reader for any image, and the writer of `pack`.

mod directory;
mod format;
mod inode;
mod reader;
mod volume;
pub(crate) mod writer;

pub use reader::ErofsTree;
pub use volume::ErofsError;
