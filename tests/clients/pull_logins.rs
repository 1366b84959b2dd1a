//! `localregistry pack --pull` with the credentials that `podman login`, `skopeo login`, `buildah login` and `docker login` write.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::private::privately;
use testing::serve::Serving;
use testing::upstream::{Answer, DockerRegistry, Images, Upstream, layer};
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

/// A registry with the public image `public/a:1`, whose token service refuses wrong credentials.
fn public_registry() -> (Layout, Upstream) {
    let layout = Layout::default();
    let image = layout.manifest(&[&layer()]);
    let images = Images::new(&layout, &[("1", &image.digest.to_string())]);
    let upstream = Upstream::start(move |request| {
        if request.target.starts_with("/token") {
            let is_anonymous = request.header("authorization").is_none();
            return Answer::new(if is_anonymous { 200 } else { 401 }, &[], br#"{"token":"public"}"#);
        }
        if request.header("authorization") == Some("Bearer public") {
            return images.answer(request);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        Answer::new(401, &[("WWW-Authenticate", &realm)], b"")
    });
    (layout, upstream)
}

/// podman and buildah refuse to pull without the file that the user names, and so does `pack`; skopeo does not look.
#[test]
fn the_named_file_must_be_there() {
    let (_layout, upstream) = public_registry();
    let (bench, name) = (Bench::default(), format!("{}/public/a:1", upstream.address));
    let ours = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
    let theirs = ["podman", "buildah"].map(|program| {
        let mut command = client(&bench, program);
        command.args(["pull", "--tls-verify=false", &name]);
        command
    });
    for mut command in [ours].into_iter().chain(theirs) {
        let output = command.env("REGISTRY_AUTH_FILE", bench.path("none.json")).output().unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("none.json") && said.contains("o such file or directory"), "{said}");
    }
    assert!(upstream.requests().is_empty());
}

/// Each case is a file of credentials and what comes of a public image: ours, skopeo's and podman's pulls give the same.
#[test]
fn unusable_entries_end_the_pulls_that_they_end_elsewhere() {
    let (_layout, upstream) = public_registry();
    let host = upstream.address.to_string();
    let entry = |entry: &str| format!("{{\"auths\":{{\"{host}\":{entry}}}}}");
    for (file, content, is_pulled) in [
        (".config/containers/auth.json", entry("{}"), true),
        (".config/containers/auth.json", entry(r#"{"auth":"c2VjcmV0"}"#), true),
        (".config/containers/auth.json", entry(r#"{"auth":"OnNlY3JldA=="}"#), true),
        (".config/containers/auth.json", entry(r#"{"auth":"YW5uYTo="}"#), true),
        (".config/containers/auth.json", entry(r#"{"auth":"!"}"#), false),
        (".config/containers/auth.json", entry(r#"{"auth":5}"#), false),
        (".config/containers/auth.json", entry("null"), true),
        (".config/containers/auth.json", "[]".to_owned(), false),
        (".config/containers/auth.json", "null".to_owned(), true),
        (".config/containers/auth.json", entry(r#"{"Auth":"!"}"#).replace("auths", "Auths"), false),
        (".config/containers/auth.json", "{".to_owned(), false),
        (".docker/config.json", r#"{"credsStore":"not-here"}"#.to_owned(), true),
        (".docker/config.json", format!(r#"{{"credHelpers":{{"{host}":"not-here"}}}}"#), false),
        (".docker/config.json", r#"{"auths":null,"credHelpers":null,"credsStore":7}"#.to_owned(), true),
        (".dockercfg", r#"{"x":{"auth":"!"}}"#.to_owned(), true),
        (".dockercfg", "[]".to_owned(), false),
    ] {
        let bench = Bench::default();
        fs::create_dir_all(bench.path(file).parent().unwrap()).unwrap();
        bench.file(file, content.as_bytes());
        let name = format!("{host}/public/a:1");
        let found = [
            bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]).output().unwrap(),
            client(&bench, "skopeo")
                .args(["inspect", "--raw", "--tls-verify=false"])
                .arg(format!("docker://{name}"))
                .output()
                .unwrap(),
            client(&bench, "podman").args(["pull", "--tls-verify=false", &name]).output().unwrap(),
        ];
        // podman cannot unpack the layer, which is no archive: that it gets so far counts.
        let pulled = |output: &Output| output.status.success() || text(&output.stderr).contains("Copying blob");
        let found = found.map(|output| (pulled(&output), text(&output.stderr)));
        assert!(found.iter().all(|(pulled, _)| *pulled == is_pulled), "{file} {content}: {found:#?}");
    }
}

#[test]
fn podman_takes_the_folder_that_docker_config_names_before_its_own_file() {
    let bench = Bench::default();
    let entry = |auth: &str| format!(r#"{{"auths":{{"a.test":{{"auth":"{auth}"}}}}}}"#);
    for (file, auth) in [(".config/containers/auth.json", "Ym9iOm90aGVy"), ("named/config.json", "YW5uYTpzZWNyZXQ=")] {
        fs::create_dir_all(bench.path(file).parent().unwrap()).unwrap();
        bench.file(file, entry(auth).as_bytes());
    }
    for program in ["podman", "buildah"] {
        let user = |command: &mut Command| text(&command.args(["login", "--get-login", "a.test"]).output().unwrap().stdout);
        assert_eq!(user(&mut client(&bench, program)), "bob\n", "{program}");
        assert_eq!(user(client(&bench, program).env("DOCKER_CONFIG", bench.path("named"))), "anna\n", "{program}");
    }
}
