//! Starts programs so that neither the user's settings nor the machine's change what they do.

use std::ffi::OsStr;
use std::process::Command;

use nix::sys::stat::{Mode, umask};

/// Variables that select proxies, credentials, trust stores and configuration, or change a program's output.
const IGNORED: [&str; 21] = [
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ALL_PROXY",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "CONTAINERS_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "CONTAINERS_STORAGE_CONF",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "NO_COLOR",
    "LANGUAGE",
];

/// A command without the user's variables, in the locale C.UTF-8. A test may set the variables again.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    usual_umask();
    let mut command = Command::new(name);
    for name in IGNORED {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// Whether every case of the properties is tried, and disks are read by erofs-utils too: under `tests/run`, but not under `cargo test`.
pub fn every_case() -> bool {
    std::env::var_os("LOCALREGISTRY_TESTS").is_some()
}

/// Sets the umask of this process and its children to 022, so that other users can read the files of a test.
pub(crate) fn usual_umask() {
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
}
