//! Static programs: what runs where there are no libraries, in the guest or in an image made from scratch. What enters is a file; what
//! leaves is its content and the processor that it is for.

use std::io;
use std::path::{Path, PathBuf};

use super::elf::{Elf, ElfError, Processor};
use crate::host::support::files;

/// Largest program that is taken for one, in bytes.
const LARGEST: u64 = 256 << 20;

/// What a program is wanted for, in the words of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// What it is called.
    pub name: &'static str,
    /// What it is to be.
    pub title: &'static str,
    /// Where it runs.
    pub place: &'static str,
    /// How this project's is built.
    pub build: &'static str,
}

/// PID 1 of the guest.
pub const INIT: Role = Role {
    name: "init",
    title: "the guest's init",
    place: "guest",
    build: "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init",
};

/// The server of the image that a cluster runs.
pub const SERVER: Role = Role {
    name: "server",
    title: "the server",
    place: "image",
    build: "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features host --bin localregistry",
};

/// Why a file is not such a program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be read.
    #[error("cannot read the {} {}", role.name, path.display())]
    Read {
        /// What it is wanted for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no program, or one of no processor that a guest can have.
    #[error("{} cannot be {}", path.display(), role.title)]
    Elf {
        /// What it is wanted for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It needs libraries, and there are none.
    #[error(
        "{} cannot be {}: it is not static (it asks for {interpreter}), and the {} has no libraries; this project's is built with `{}`",
        path.display(), role.title, role.place, role.build
    )]
    Dynamic {
        /// What it is wanted for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The dynamic loader that it asks for.
        interpreter: String,
    },
}

/// A static program.
#[derive(Debug)]
pub struct Program {
    /// Its bytes.
    pub content: Vec<u8>,
    /// The processor that it is for.
    pub processor: Processor,
}

impl Program {
    /// Reads the program at `path`, which is wanted as `role`.
    ///
    /// # Errors
    /// It cannot be read, is no program of a processor that a guest can have, or is not static.
    pub fn read(path: &Path, role: Role) -> Result<Self, ProgramError> {
        let path = || path.to_owned();
        let content = files::read(&path(), LARGEST).map_err(|source| ProgramError::Read { role, path: path(), source })?;
        let elf = Elf::parse(&content).map_err(|source| ProgramError::Elf { role, path: path(), source })?;
        match elf.interpreter() {
            Some(interpreter) => Err(ProgramError::Dynamic { role, path: path(), interpreter }),
            None => Ok(Self { processor: elf.processor(), content }),
        }
    }
}
