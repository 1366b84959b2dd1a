//! Reads static programs, which run without libraries: PID 1 of the guest, and the server in an image made from scratch.

use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::elf::{Elf, ElfError, Processor};
use crate::host::support::files;

/// The largest program accepted, in bytes.
const LARGEST: u64 = 256 << 20;

/// The purpose of a program, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// Its short name.
    pub name: &'static str,
    /// Its full name.
    pub title: &'static str,
    /// Where it runs.
    pub runs_in: &'static str,
    /// The command that builds this project's.
    pub build: &'static str,
    /// This project's other program, which cannot take this role.
    other: &'static str,
}

const LOCALREGISTRY: &str = "localregistry";
const LOCALREGISTRY_INIT: &str = "localregistry-init";

/// The help of `localregistry`, which `localregistry-init` never contains.
const HELP: &str = "Pack container images into a disk, boot it as a registry";
/// A message of `localregistry-init`. `localregistry` contains it too, for it searches for it here.
const PID_1: &str = "localregistry-init: this program only runs as PID 1";

/// PID 1 of the guest.
pub const INIT: Role = Role {
    name: "init",
    title: "the guest's init",
    runs_in: "guest",
    build: "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init",
    other: LOCALREGISTRY,
};

/// The program of the sample image.
pub const SAMPLE: Role =
    Role { name: "program", title: "the sample image's program", runs_in: "image", build: INIT.build, other: LOCALREGISTRY };

/// The server in the image for a cluster.
pub const SERVER: Role = Role {
    name: "server",
    title: "the server",
    runs_in: "image",
    build: "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features host --bin localregistry",
    other: LOCALREGISTRY_INIT,
};

/// Why a file is not a usable program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The file cannot be read.
    #[error("cannot read the {} {}", role.name, path.display())]
    Read {
        /// The program's purpose.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a program for a guest's processor.
    #[error("{} cannot be {}", path.display(), role.title)]
    Elf {
        /// The program's purpose.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ElfError,
    },
    /// The program is this project's other one.
    #[error("{} cannot be {}: it is {}; build the right one with `{}`", path.display(), role.title, role.other, role.build)]
    Other {
        /// The program's purpose.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The program is dynamically linked.
    #[error(
        "{} cannot be {}: it is not static (it asks for {interpreter}), and the {} has no libraries; build this project's with `{}`",
        path.display(), role.title, role.runs_in, role.build
    )]
    Dynamic {
        /// The program's purpose.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The dynamic loader it asks for.
        interpreter: String,
    },
}

/// A static program.
#[derive(Debug)]
pub struct Program {
    /// The program's bytes.
    pub content: Vec<u8>,
    /// The processor it is built for.
    pub processor: Processor,
}

impl Program {
    /// Reads the program at `path` for the purpose `role`.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is not a program for a guest's processor, or is not static.
    pub fn read(path: &Path, role: Role) -> Result<Self, ProgramError> {
        let path = || path.to_owned();
        let content = files::read(&path(), LARGEST).map_err(|source| ProgramError::Read { role, path: path(), source })?;
        let elf = Elf::parse(&content).map_err(|source| ProgramError::Elf { role, path: path(), source })?;
        if own_name(&content) == Some(role.other) {
            return Err(ProgramError::Other { role, path: path() });
        }
        match elf.interpreter() {
            Some(interpreter) => Err(ProgramError::Dynamic { role, path: path(), interpreter }),
            None => Ok(Self { processor: elf.processor(), content }),
        }
    }
}

/// Which of this project's programs `content` is, if it is one.
fn own_name(content: &[u8]) -> Option<&'static str> {
    let contains = |text: &str| memmem::find(content, text.as_bytes()).is_some();
    if contains(HELP) { Some(LOCALREGISTRY) } else { contains(PID_1).then_some(LOCALREGISTRY_INIT) }
}
