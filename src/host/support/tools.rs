//! External programs, and the Debian package of each.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An external program.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The program's file name.
    pub name: &'static str,
    /// The Debian package that provides it.
    pub package: &'static str,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("the program {} is not on this machine: install Debian's package {} (`apt-get install {}`)", .0.name, .0.package, .0.package)]
    Missing(Tool),
    /// It cannot be started.
    #[error("cannot run {}", path.display())]
    Start {
        /// Where it was found.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
}

/// Folders of system programs, which are not in an ordinary user's `PATH` on Debian.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

impl Tool {
    /// Finds the program in `PATH`, `/usr/sbin` or `/sbin`.
    ///
    /// # Errors
    /// Fails if it is in none of them; the message names the package.
    pub fn find(self) -> Result<PathBuf, ToolError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
        let mut candidates = folders.map(|folder| folder.join(self.name));
        candidates.find(|path| is_program(path)).ok_or(ToolError::Missing(self))
    }

    /// Runs the program in `folder`, with untranslated messages, and returns its standard output.
    ///
    /// # Errors
    /// Fails if it is missing, cannot be started or ends with an error.
    pub fn run(self, folder: &Path, arguments: &[&OsStr]) -> Result<String, ToolError> {
        let path = self.find()?;
        let mut command = Command::new(&path);
        command.args(arguments).current_dir(folder).env("LC_ALL", "C").stdin(Stdio::null());
        let output = command.output().map_err(|source| ToolError::Start { path, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = arguments.iter().map(|argument| argument.to_string_lossy());
        let command = [self.name.into()].into_iter().chain(words).collect::<Vec<_>>().join(" ");
        Err(ToolError::Failed { command, status: output.status, stderr: last_lines(&output.stderr) })
    }
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

/// The last three lines of a failed program's standard error, joined, without apt's warnings.
pub fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("W: "));
    let lines: Vec<&str> = lines.collect();
    let last = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default();
    if last.is_empty() { "it printed no message".to_owned() } else { last.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tool_is_reported_with_its_package() {
        let tool = Tool { name: "no-such-tool", package: "some-package" };
        assert_eq!(
            tool.run(Path::new("/"), &[]).unwrap_err().to_string(),
            "the program no-such-tool is not on this machine: install Debian's package some-package (`apt-get install some-package`)"
        );
    }

    #[test]
    fn failed_tool_is_reported_with_its_last_lines() {
        let shell = Tool { name: "sh", package: "dash" };
        let script = "for n in 1 2 3 4; do echo line $n >&2; done; echo W: odd >&2; exit 3";
        assert_eq!(
            shell.run(Path::new("/"), &["-c".as_ref(), script.as_ref()]).unwrap_err().to_string(),
            format!("`sh -c {script}` failed (exit status: 3): line 2; line 3; line 4")
        );
        assert_eq!(
            shell.run(Path::new("/"), &["-c".as_ref(), "exit 1".as_ref()]).unwrap_err().to_string(),
            "`sh -c exit 1` failed (exit status: 1): it printed no message"
        );
    }

    #[test]
    fn returns_standard_output() {
        let shell = Tool { name: "sh", package: "dash" };
        assert_eq!(shell.run(Path::new("/usr"), &["-c".as_ref(), "pwd".as_ref()]).unwrap(), "/usr\n");
    }
}
