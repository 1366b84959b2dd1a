//! Finds the program for the server's image: a statically linked `localregistry`.

use std::path::{Path, PathBuf};

use crate::host::boot::static_program::{Program, ProgramError, SERVER};

/// Paths of static builds in the same `target/`, relative to this program's folder.
const CANDIDATES: [&str; 2] =
    ["../x86_64-unknown-linux-musl/release/localregistry", "../../x86_64-unknown-linux-musl/release/localregistry"];

/// Why there is no server program.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No candidate is a static program.
    #[error("there is no static localregistry: neither {} nor {}; build it with `{}`, or set one with --server", .own.display(), .others.join(" nor "), SERVER.build)]
    Nowhere {
        /// This program.
        own: PathBuf,
        /// The other candidates.
        others: Vec<String>,
    },
    /// The program cannot be the server.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Reads the program at `path`. Without a path, takes this program if it is static, else a static build next to it.
pub fn find(path: Option<&Path>) -> Result<Program, ServerError> {
    if let Some(path) = path {
        return Ok(Program::read(path, SERVER)?);
    }
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    let others = CANDIDATES.map(|path| folder.join(path));
    let found = [own.clone()].iter().chain(&others).find_map(|path| Program::read(path, SERVER).ok());
    found.ok_or_else(|| ServerError::Nowhere { own, others: others.iter().map(|path| path.display().to_string()).collect() })
}
