//! Finds the static init program, PID 1 of the guest.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::host::boot::static_program::{INIT, Program, ProgramError};
use crate::host::support::cache::is_file;

/// Paths relative to this program's folder: installed next to it, in a release, or built in the same `target/`.
const CANDIDATES: [&str; 4] = [
    "localregistry-init",
    "../lib/localregistry/localregistry-init",
    "../x86_64-unknown-linux-musl/release/localregistry-init",
    "../../x86_64-unknown-linux-musl/release/localregistry-init",
];

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// No candidate is a static program.
    #[error("there is no static localregistry-init at {}; build it with `{}`, or name one in the variable LOCALREGISTRY_INIT", .0.join(", "), INIT.build)]
    Nowhere(Vec<String>),
    /// The program cannot be PID 1.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Finds the init: `$LOCALREGISTRY_INIT`, else the first candidate that is static.
pub fn find() -> Result<PathBuf, InitError> {
    let program = std::env::current_exe().ok();
    let folder = program.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
    find_from(variable(), folder)
}

/// Whether `$LOCALREGISTRY_INIT` names an init.
pub fn is_named() -> bool {
    named(variable()).is_some()
}

fn variable() -> Option<OsString> {
    std::env::var_os("LOCALREGISTRY_INIT")
}

fn named(variable: Option<OsString>) -> Option<PathBuf> {
    variable.filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn find_from(variable: Option<OsString>, folder: &Path) -> Result<PathBuf, InitError> {
    if let Some(path) = named(variable) {
        return Ok(path);
    }
    let candidates = CANDIDATES.map(|path| folder.join(path));
    // A debug build leaves a dynamically linked init next to this program. Skip it.
    let found = candidates.iter().find(|path| is_file(path) && read(path).is_ok());
    found.cloned().ok_or_else(|| InitError::Nowhere(candidates.iter().map(|path| path.display().to_string()).collect()))
}

/// Reads the init at `path`.
///
/// # Errors
/// Fails as [`Program::read`] does.
pub fn read(path: &Path) -> Result<Program, InitError> {
    Ok(Program::read(path, INIT)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::boot::elf::tests::elf;

    #[test]
    fn variable_comes_before_the_first_static_candidate() {
        let target = tempfile::tempdir().unwrap();
        let folder = target.path().join("debug");
        let built = target.path().join("x86_64-unknown-linux-musl/release");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&built).unwrap();
        fs::write(folder.join("localregistry-init"), elf(&[(3, 1, b"/lib64/ld.so\0")])).unwrap();

        let dir = folder.display();
        let expected = format!(
            "there is no static localregistry-init at {dir}/localregistry-init, {dir}/../lib/localregistry/localregistry-init, \
             {dir}/../x86_64-unknown-linux-musl/release/localregistry-init, \
             {dir}/../../x86_64-unknown-linux-musl/release/localregistry-init; build it with `cargo build --release --target \
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
