//! podman and buildah with stores of their own.

use std::path::Path;
use std::process::Command;

/// podman or buildah with a store of its own in the folder.
pub fn with_store(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    command.args(["--root", "store", "--runroot", "store-run", "--storage-driver", "vfs"]);
    command
}

pub fn podman(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = with_store("podman", folder);
    command.args(["--tmpdir", "tmp", "--cgroup-manager", "cgroupfs"]).args(arguments);
    command
}
