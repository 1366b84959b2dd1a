//! Starts `localregistry serve` as a separate process, and pulls from it with skopeo.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// A running `localregistry serve`. Ends it gracefully on drop.
pub struct Serving {
    child: Child,
    /// The ready line.
    pub ready: Value,
    /// The working directory, with ca.crt.
    pub folder: TempDir,
}

impl Serving {
    /// Serves the layout on a free port with additional arguments.
    pub fn start(layout: &Path, folder: TempDir, arguments: &[&str]) -> Self {
        let mut command = crate::program(crate::pack::PROGRAM);
        command.current_dir(folder.path()).args(["serve", "--json", "--quiet", "--listen", "127.0.0.1:0"]);
        if !arguments.contains(&"--tls") {
            command.args(["--ca-out", "ca.crt"]);
        }
        let mut child = command.args(arguments).arg(layout).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, ready, folder }
    }

    /// Ends it, and waits for that. The folder stays, with a complete log.
    pub fn end(mut self) -> TempDir {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        drop(self);
        folder
    }

    /// Host and port of the registry.
    pub fn address(&self) -> String {
        self.ready["endpoints"][0].as_str().unwrap().split_once("://").unwrap().1.to_owned()
    }

    /// Copies an image with skopeo, which trusts the CA in the folder, into the subfolder `to`.
    pub fn pull(&self, image: &str, to: &str, arguments: &[&str]) -> Output {
        let folder = self.folder.path();
        let mut command = crate::program("skopeo");
        // Hides the user's credentials.
        command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder).env("REGISTRY_AUTH_FILE", folder.join("auth.json"));
        command.args(["--insecure-policy", "copy", "--src-cert-dir"]).arg(folder).args(arguments);
        command.arg(format!("docker://{}/{image}", self.address())).arg(format!("dir:{}", self.pulled(to).display()));
        command.output().unwrap()
    }

    /// The folder that [`Self::pull`] writes.
    pub fn pulled(&self, to: &str) -> PathBuf {
        self.folder.path().join(to)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}
