//! `localregistry pack --pull` with the credentials that `podman login`, `skopeo login`, `buildah login` and `docker login` write.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::private::privately;
use testing::serve::Serving;
use testing::upstream::DockerRegistry;
use testing::vm::succeed;

/// A folder with a password file for anna.
fn users() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("users"), format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap();
    folder
}

/// A client without any configuration, with the folder of the bench as its home.
fn client(bench: &Bench, program: &str) -> Command {
    let mut command = testing::program(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", bench.path(""));
    // Without a daemon, docker logs in by itself.
    command.env("DOCKER_HOST", "unix:///nonexistent").current_dir(bench.path(""));
    if program == "podman" {
        command.args(["--root", "store", "--runroot", "store-run", "--storage-driver", "vfs"]);
    }
    command
}

/// Logs in with each program, each time in an empty home, and pulls `repository`. Each leaves its credentials in another file, under the
/// key that it was given.
fn log_in_and_pull(host: &str, repository: &str) {
    let name = format!("{host}/{repository}:1");
    let namespace = repository.split('/').next().unwrap();
    let plain = "--tls-verify=false";
    for (program, key, more, variable, file) in [
        ("podman", host.to_owned(), &[plain][..], None, "/run/containers/0/auth.json"),
        ("podman", format!("{host}/{namespace}"), &[plain], Some("XDG_RUNTIME_DIR"), "run/containers/auth.json"),
        ("skopeo", format!("{host}/{repository}"), &[plain], Some("XDG_RUNTIME_DIR"), "run/containers/auth.json"),
        (
            "buildah",
            host.to_owned(),
            &[plain, "--authfile", ".config/containers/auth.json"],
            None,
            ".config/containers/auth.json",
        ),
        ("skopeo", format!("{host}/{namespace}"), &[plain], Some("REGISTRY_AUTH_FILE"), "run"),
        ("docker", host.to_owned(), &[], None, ".docker/config.json"),
        ("docker", format!("http://{host}/"), &[], Some("DOCKER_CONFIG"), "run/config.json"),
    ] {
        let bench = Bench::default();
        let refused = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]).output().unwrap();
        assert!(text(&refused.stderr).contains("there are none for it in"), "{}", text(&refused.stderr));
        let mut login = client(&bench, program);
        let mut pack = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
        if let Some(variable) = variable {
            login.env(variable, bench.path("run"));
            pack.env(variable, bench.path("run"));
        }
        if variable == Some("XDG_RUNTIME_DIR") {
            fs::create_dir(bench.path("run")).unwrap();
        }
        if more.contains(&"--authfile") {
            fs::create_dir_all(bench.path(".config/containers")).unwrap();
        }
        succeed(login.args(["login", "--username", "anna", "--password", "secret"]).args(more).arg(&key));
        let written = fs::read_to_string(bench.path(file)).unwrap();
        assert!(written.contains("YW5uYTpzZWNyZXQ="), "{program}: {written}");
        let output = pack.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{program} {key}: {}", text(&output.stderr));
        assert_eq!(bench.extract("disk.erofs").names(), std::slice::from_ref(&name));
        let _ = fs::remove_file("/run/containers/0/auth.json");
    }
}

#[test]
fn credentials_of_real_logins_are_found() {
    privately(|| {
        let mut layout = Layout::default();
        layout.image("test/hello:1", b"a layer");
        layout.write();
        let serving = Serving::start(layout.path(), users(), &["--tls", "off", "--htpasswd", "users"]);
        log_in_and_pull(&serving.address(), "test/hello");

        let (mut layout, users) = (Layout::default(), users());
        layout.image("one", b"a layer");
        layout.write();
        let registry = DockerRegistry::start(Some(&users.path().join("users")));
        registry.push(layout.path(), "one", "a/one:1", &["--dest-creds", "anna:secret"]);
        log_in_and_pull(&registry.address, "a/one");
    });
}
