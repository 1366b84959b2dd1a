//! The program that the server's image is made of: this one, linked statically. Where it is looked for.

use std::path::{Path, PathBuf};

use crate::host::boot::program::{Program, ProgramError, SERVER};

/// Where it is built in the same `target/`, seen from the folder of this program.
const PLACES: [&str; 2] =
    ["../x86_64-unknown-linux-musl/release/localregistry", "../../x86_64-unknown-linux-musl/release/localregistry"];

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It is nowhere.
    #[error("there is no static localregistry: neither {} nor {}; build it with `{}`, or name it with --server", .own.display(), .others.join(" nor "), SERVER.build)]
    Nowhere {
        /// This program.
        own: PathBuf,
        /// Where else it was looked for.
        others: Vec<String>,
    },
    /// It cannot be the server.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The program `given`; where none is given, this program if it is static, else a static one that is built beside it.
pub fn find(given: Option<&Path>) -> Result<Program, ServerError> {
    if let Some(path) = given {
        return Ok(Program::read(path, SERVER)?);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let others = PLACES.map(|place| folder.join(place));
    let found = [own.clone()].iter().chain(&others).find_map(|path| Program::read(path, SERVER).ok());
    found.ok_or_else(|| ServerError::Nowhere { own, others: others.iter().map(|path| path.display().to_string()).collect() })
}
