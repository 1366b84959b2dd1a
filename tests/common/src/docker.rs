//! Starts a private dockerd.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A dockerd with a private root, socket and containerd. It has no bridge and leaves the firewall unchanged.
pub struct Dockerd {
    dir: TempDir,
    daemon: Child,
}

impl Dockerd {
    /// Starts it with these arguments. It trusts the CAs in `system` for registries without a CA of their own.
    pub fn start(arguments: &[&str], system: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut command = crate::program("dockerd");
        command.args(["--data-root", &path("root"), "--exec-root", &path("state"), "--pidfile", &path("pid")]);
        command.args(["--host", &format!("unix://{}", path("socket")), "--bridge", "none", "--storage-driver", "vfs"]);
        command.args(["--iptables=false", "--ip6tables=false"]).args(arguments);
        command.envs(system.map(|file| ("SSL_CERT_FILE", file)));
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let daemon = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let dockerd = Self { dir, daemon };
        crate::vm::answers(dockerd.dir.path(), || dockerd.docker(&["version"]));
        dockerd
    }

    pub fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = crate::program("docker");
        command.env("DOCKER_CONFIG", self.dir.path().join("config")).env_remove("DOCKER_CONTENT_TRUST");
        command.arg("--host").arg(format!("unix://{}/socket", self.dir.path().display())).args(arguments);
        command
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.daemon.id().try_into().unwrap()), Signal::SIGTERM);
        let _ = self.daemon.wait();
    }
}
