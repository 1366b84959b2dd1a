//! Starts podman and buildah with their own stores, independent of the machine's configuration.

use std::fs;
use std::path::Path;
use std::process::Command;

/// podman or buildah with store, home and signature policy in the folder.
pub fn with_store(program: &str, folder: &Path) -> Command {
    let config = folder.join(".config/containers");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let mut command = crate::program(program);
    command.current_dir(folder).env("HOME", folder).env("CONTAINERS_CONF", "/dev/null");
    command.args(["--root", "store", "--runroot", "store-run", "--storage-driver", "vfs"]);
    if program == "podman" {
        // podman prefers crun if it is installed, and crun fails with hybrid cgroups.
        command.args(["--tmpdir", "tmp", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
    }
    command
}

pub fn podman(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = with_store("podman", folder);
    command.args(arguments);
    command
}
