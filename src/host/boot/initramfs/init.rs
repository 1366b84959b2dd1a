//! The guest's init, PID 1 of a machine without libraries: where it is looked for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::boot::program::{INIT, Program, ProgramError};
use crate::host::support::cache::is_file;

/// Where it is, seen from the folder of this program: installed beside it, or built in the same `target/`.
const PLACES: [&str; 3] = [
    "localregistry-init",
    "../x86_64-unknown-linux-musl/release/localregistry-init",
    "../../x86_64-unknown-linux-musl/release/localregistry-init",
];

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is nowhere.
    #[error("there is no static localregistry-init at {}; build it with `{}`, or name one in the variable LOCALREGISTRY_INIT", .0.join(", "), INIT.build)]
    Nowhere(Vec<String>),
    /// It cannot be PID 1.
    #[error(transparent)]
    Program(#[from] ProgramError),
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
/// As of [`Program::read`].
pub fn read(path: &Path) -> Result<Program, InitError> {
    Ok(Program::read(path, INIT)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::boot::elf::tests::elf;

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
             x86_64-unknown-linux-musl --no-default-features --features guest --bin localregistry-init`, or name one in the variable \
             LOCALREGISTRY_INIT"
        );
        assert_eq!(find_from(None, &folder).unwrap_err().to_string(), expected);
        assert_eq!(find_from(Some("".into()), &folder).unwrap_err().to_string(), expected);

        fs::write(built.join("localregistry-init"), elf(&[])).unwrap();
        let found = find_from(None, &folder).unwrap();
        assert_eq!(found.canonicalize().unwrap(), built.join("localregistry-init").canonicalize().unwrap());
        assert_eq!(find_from(Some("/other".into()), &folder).unwrap(), Path::new("/other"));
    }
}
