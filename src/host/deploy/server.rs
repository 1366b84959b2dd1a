//! The program that the server's image is made of: this one, linked statically. Where it is looked for, and whether it can run in an
//! image that has nothing else.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::elf::{Elf, ElfError};
use crate::host::files;

/// How it is built.
const BUILD: &str =
    "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features host --bin localregistry";
/// Where it is built in the same `target/`, seen from the folder of this program.
const PLACES: [&str; 2] =
    ["../x86_64-unknown-linux-musl/release/localregistry", "../../x86_64-unknown-linux-musl/release/localregistry"];
/// Largest program that is taken for one, in bytes.
const LARGEST: u64 = 1 << 30;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is nowhere.
    #[error("there is no static localregistry: neither {} nor {}; build it with `{BUILD}`, or name it with --server", .own.display(), .others.join(" nor "))]
    Nowhere {
        /// This program.
        own: PathBuf,
        /// Where else it was looked for.
        others: Vec<String>,
    },
    /// It cannot be read.
    #[error("cannot read the server {}", .path.display())]
    Read {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no program.
    #[error("{} cannot be the server", .path.display())]
    Elf {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It needs libraries, and there are none.
    #[error(
        "{} cannot be the server: it is not static (it asks for {interpreter}), and the image has no libraries; it is built with \
         `{BUILD}`",
        .path.display()
    )]
    Dynamic {
        /// The program.
        path: PathBuf,
        /// The dynamic loader that it asks for.
        interpreter: String,
    },
}

/// The program `given`; where none is given, this program if it is static, else a static one that is built beside it.
pub fn find(given: Option<&Path>) -> Result<Vec<u8>, ServerError> {
    if let Some(path) = given {
        return read(path);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let others = PLACES.map(|place| folder.join(place));
    let found = [own.clone()].iter().chain(&others).find_map(|path| read(path).ok());
    found.ok_or_else(|| ServerError::Nowhere { own, others: others.iter().map(|path| path.display().to_string()).collect() })
}

fn read(path: &Path) -> Result<Vec<u8>, ServerError> {
    let named = || path.to_owned();
    let program = files::read(path, LARGEST).map_err(|source| ServerError::Read { path: named(), source })?;
    let elf = Elf::parse(&program).map_err(|source| ServerError::Elf { path: named(), source })?;
    match elf.interpreter() {
        Some(interpreter) => Err(ServerError::Dynamic { path: named(), interpreter }),
        None => Ok(program),
    }
}
