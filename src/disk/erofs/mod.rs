//! EROFS without compression (Linux, `fs/erofs/erofs_fs.h`): a reader for any image, and the writer of `pack`.

mod directory;
mod format;
mod image;
mod inode;
mod reader;
pub(crate) mod writer;

pub use image::ErofsError;
pub use reader::ErofsTree;
