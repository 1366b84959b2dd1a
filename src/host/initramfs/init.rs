//! The guest's init: where it is looked for, and whether it can be PID 1 of a machine without libraries.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::cache::is_file;
use crate::host::elf::{Elf, ElfError, Processor};
use crate::host::files;

/// How this project's own init is built.
const BUILD: &str =
    "cargo build --release --target x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init";

/// Where it is, seen from the folder of this program: installed beside it, or built in the same `target/`.
const PLACES: [&str; 3] = [
    "localregistry-init",
    "../x86_64-unknown-linux-musl/release/localregistry-init",
    "../../x86_64-unknown-linux-musl/release/localregistry-init",
];

/// The largest init that is taken for one.
const MAX_INIT: u64 = 256 << 20;

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is nowhere.
    #[error("there is no static localregistry-init at {}; build it with `{BUILD}`, or name it with --init or LOCALREGISTRY_INIT", .0.join(", "))]
    Nowhere(Vec<String>),
    /// It cannot be read.
    #[error("cannot read the init {}", path.display())]
    Read {
        /// The init.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a program that the guest can run.
    #[error("{} cannot be the guest's init", path.display())]
    Elf {
        /// The init.
        path: PathBuf,
        /// What is wrong with it.
        source: ElfError,
    },
    /// It needs libraries, and there are none.
    #[error(
        "{} cannot be the guest's init: it is not static (it asks for {interpreter}), and the guest has no libraries; \
         this project's is built with `{BUILD}`",
        path.display()
    )]
    Dynamic {
        /// The init.
        path: PathBuf,
        /// The dynamic loader that it asks for.
        interpreter: String,
    },
}

/// A static program.
#[derive(Debug)]
pub struct Init {
    /// Its bytes.
    pub content: Vec<u8>,
    /// The processor that it is for.
    pub processor: Processor,
}

/// Finds the init where none is given: `$LOCALREGISTRY_INIT`, else the first static one of the usual places.
pub fn find() -> Result<PathBuf, InitError> {
    let program = std::env::current_exe().ok();
    let folder = program.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
    find_from(std::env::var_os("LOCALREGISTRY_INIT"), folder)
}

fn find_from(variable: Option<OsString>, folder: &Path) -> Result<PathBuf, InitError> {
    if let Some(path) = variable.filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let places = PLACES.map(|place| folder.join(place));
    // A debug build leaves a dynamic one beside this program: not the one that is meant.
    let found = places.iter().find(|place| is_file(place) && read(place).is_ok());
    found.cloned().ok_or_else(|| InitError::Nowhere(places.iter().map(|place| place.display().to_string()).collect()))
}

/// Reads the init at `path`.
///
/// # Errors
/// When it cannot be read, is no program of a processor that a guest can have, or is not static.
pub fn read(path: &Path) -> Result<Init, InitError> {
    let path = || path.to_owned();
    let content = files::read(&path(), MAX_INIT).map_err(|source| InitError::Read { path: path(), source })?;
    let elf = Elf::parse(&content).map_err(|source| InitError::Elf { path: path(), source })?;
    match elf.interpreter() {
        Some(interpreter) => Err(InitError::Dynamic { path: path(), interpreter }),
        None => Ok(Init { processor: elf.processor(), content }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::elf::tests::elf;

    #[test]
    fn the_variable_then_the_first_static_one() {
        let target = tempfile::tempdir().unwrap();
        let folder = target.path().join("debug");
        let built = target.path().join("x86_64-unknown-linux-musl/release");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&built).unwrap();
        fs::write(folder.join("localregistry-init"), elf(&[(3, 1, b"/lib64/ld.so\0")])).unwrap();

        let beside = folder.display();
        let expected = format!(
            "there is no static localregistry-init at {beside}/localregistry-init, \
             {beside}/../x86_64-unknown-linux-musl/release/localregistry-init, \
             {beside}/../../x86_64-unknown-linux-musl/release/localregistry-init; build it with `cargo build --release --target \
             x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init`, or name it with --init \
             or LOCALREGISTRY_INIT"
        );
        assert_eq!(find_from(None, &folder).unwrap_err().to_string(), expected);
        assert_eq!(find_from(Some("".into()), &folder).unwrap_err().to_string(), expected);

        fs::write(built.join("localregistry-init"), elf(&[])).unwrap();
        let found = find_from(None, &folder).unwrap();
        assert_eq!(found.canonicalize().unwrap(), built.join("localregistry-init").canonicalize().unwrap());
        assert_eq!(find_from(Some("/other".into()), &folder).unwrap(), Path::new("/other"));
    }
}
