//! skopeo against `localregistry serve` with access control, and conflicting flags of `serve` and `run`.

use std::fs;
use std::process::Output;

use localregistry::oci::Digest;
use tempfile::TempDir;
use testing::certificates::ClientAuthority;
use testing::layout::{Layout, Stored};
use testing::pack::PROGRAM;
use testing::serve::Serving;

fn images() -> (Layout, Stored) {
    let mut layout = Layout::default();
    let image = layout.image("test/hello:latest", b"a layer");
    layout.write();
    (layout, image)
}

/// A folder with a password file for anna.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users"), format!("# people\nanna:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap();
    folder
}

fn assert_pulled(serving: &Serving, image: Stored, arguments: &[&str]) {
    let output = serving.pull("test/hello:latest", "out", arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest = fs::read(serving.pulled("out").join("manifest.json")).unwrap();
    assert_eq!(Digest::sha256_of(&manifest), image.digest);
}

fn assert_not_pulled(serving: &Serving, arguments: &[&str], why: &str) {
    let output: Output = serving.pull("test/hello:latest", "none", arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains(why), "{stderr}");
}

#[test]
fn skopeo_pulls_with_a_password() {
    let (layout, image) = images();
    let serving = Serving::start(layout.path(), folder(), &["--htpasswd", "users"]);
    assert_pulled(&serving, image, &["--src-creds", "anna:secret"]);
    assert_not_pulled(&serving, &["--src-creds", "anna:wrong"], "unauthorized");
    assert_not_pulled(&serving, &["--src-no-creds"], "unauthorized");
}

#[test]
fn skopeo_pulls_with_a_token_for_a_password() {
    let (layout, image) = images();
    let serving = Serving::start(layout.path(), folder(), &["--htpasswd", "users", "--token", "--events", "events"]);
    assert_pulled(&serving, image, &["--src-creds", "anna:secret"]);
    assert_not_pulled(&serving, &["--src-creds", "anna:wrong"], "unable to retrieve auth token: invalid username/password");
    assert_not_pulled(&serving, &["--src-no-creds"], "unable to retrieve auth token: invalid username/password");
    let events = fs::read_to_string(serving.folder.path().join("events")).unwrap();
    assert!(events.contains(r#""endpoint":"token""#) && events.contains(r#""endpoint":"blob""#), "{events}");
}

#[test]
fn skopeo_pulls_with_an_anonymous_token() {
    let (layout, image) = images();
    let serving = Serving::start(layout.path(), folder(), &["--token", "--anonymous-pull"]);
    assert_pulled(&serving, image, &["--src-no-creds"]);
    assert_not_pulled(&serving, &["--src-creds", "anna:secret"], "invalid username/password");
}

#[test]
fn skopeo_pulls_with_a_client_certificate() {
    let (layout, image) = images();
    let (authority, folder) = (ClientAuthority::new("nodes"), folder());
    fs::write(folder.path().join("clients.pem"), authority.pem()).unwrap();
    let serving = Serving::start(layout.path(), folder, &["--client-ca", "clients.pem"]);
    assert_not_pulled(&serving, &[], "certificate required");
    let own = authority.client();
    fs::write(serving.folder.path().join("client.cert"), own.certificate_pem).unwrap();
    fs::write(serving.folder.path().join("client.key"), own.key_pem).unwrap();
    assert_pulled(&serving, image, &[]);
}

#[test]
fn conflicting_flags_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["serve", "run"] {
        for (arguments, message) in [
            (&["--token"][..], "the following required arguments were not provided:\n  <--htpasswd <FILE>|--anonymous-pull>"),
            (&["--anonymous-pull"], "the following required arguments were not provided:\n  --token"),
            (&["--client-certificate", "optional"], "the following required arguments were not provided:\n  --client-ca <FILE>"),
            (
                &["--tls", "off", "--client-ca", "x"],
                "the argument '--client-ca <FILE>' cannot be used with '--tls off': client certificates need TLS",
            ),
        ] {
            let mut process = testing::program(PROGRAM);
            let output = process.current_dir(folder.path()).args([command, "x"]).args(arguments).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {arguments:?}: {stderr}");
            assert!(stderr.starts_with(&format!("error: {message}\n")), "{command} {arguments:?}: {stderr}");
        }
    }
}

#[test]
fn unusable_files_exit_1() {
    let (layout, _) = images();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users"), "anna:secret\n").unwrap();
    fs::write(folder.path().join("ca"), "nonsense").unwrap();
    for (arguments, message) in [
        (
            &["--htpasswd", "users"][..],
            "cannot set up access control: users:1: the hash of \"anna\" is not bcrypt; expected a hash that starts with $2y$, $2b$ or $2a$, \
             as `htpasswd -B` makes it; the password file is set with --htpasswd",
        ),
        (
            &["--htpasswd", "none"],
            "cannot set up access control: cannot read the password file none: No such file or directory (os error 2); the password file is set with --htpasswd",
        ),
        (
            &["--client-ca", "ca"],
            "cannot set up access control: cannot use the client CA ca: the given client CA is not PEM with one or more CERTIFICATE blocks; the client CA is set with --client-ca",
        ),
    ] {
        let mut process = testing::program(PROGRAM);
        let output = process.current_dir(folder.path()).arg("serve").arg(layout.path()).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(1), format!("localregistry: {message}\n").as_str()));
    }
}

/// The log of a server from which skopeo has pulled.
#[test]
fn server_log_shows_the_clients_that_pulled() {
    let (mut layout, _) = Layout::hello();
    layout.image("docker.io/library/hello:1", b"layer");
    layout.write();
    let serving = Serving::start(layout.path(), tempfile::tempdir().unwrap(), &["--events", "events"]);
    for (to, image) in [("a", "test/hello:latest"), ("b", "test/hello:latest"), ("c", "docker.io/library/hello:1")] {
        assert!(serving.pull(image, to, &[]).status.success());
    }
    assert!(!serving.pull("test/absent:1", "d", &[]).status.success());
    let assert = |arguments: &[&str]| {
        let mut command = testing::program(PROGRAM);
        command.arg("assert").args(arguments).arg(serving.folder.path().join("events")).output().unwrap().status.code()
    };
    assert_eq!(assert(&["--pulled", "test/hello", "--by", "127.0.0.1", "--times", "2"]), Some(0));
    assert_eq!(assert(&["--pulled", "hello:1", "--times", "1"]), Some(0));
    assert_eq!(assert(&["--not-pulled", "test/absent:1"]), Some(0));
    assert_eq!(assert(&["--pulled", "test/hello", "--times", "3"]), Some(1));
}
