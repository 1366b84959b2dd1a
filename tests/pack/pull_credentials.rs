//! `localregistry pack --pull` finds credentials where podman and docker keep them, under the keys that they write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use testing::layout::Layout;
use testing::pack::{Bench, text};
use testing::upstream::{Answer, Images, Upstream, layer};

/// anna:secret
const ANNA: &str = "YW5uYTpzZWNyZXQ=";
/// bob:other
const BOB: &str = "Ym9iOm90aGVy";

/// A registry with the images `a/b:1` and `a/c:1`: anna may pull the first, and bob the second.
fn registry() -> (Layout, Upstream) {
    let layout = Layout::default();
    let image = layout.manifest(&[&layer()]);
    let images = Images::new(&layout, &[("1", &image.digest.to_string())]);
    let upstream = Upstream::start(move |request| {
        let user = if request.target.starts_with("/v2/a/b/") { ANNA } else { BOB };
        if request.target == "/v2/" || request.header("authorization") == Some(&format!("Basic {user}")) {
            return images.answer(request);
        }
        Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b"")
    });
    (layout, upstream)
}

/// Writes a credentials file with these entries. HOST in a key stands for the registry.
fn write(bench: &Bench, upstream: &Upstream, file: &str, entries: &[(&str, Value)]) {
    let host = upstream.address.to_string();
    let auths: serde_json::Map<String, Value> =
        entries.iter().map(|(key, entry)| (key.replace("HOST", &host), entry.clone())).collect();
    fs::create_dir_all(bench.path(file).parent().unwrap()).unwrap();
    bench.file(file, json!({ "auths": auths }).to_string().as_bytes());
}

fn auth(encoded: &str) -> Value {
    json!({ "auth": encoded })
}

#[test]
fn every_form_of_a_key_and_an_entry_is_taken() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let name = format!("{}/a/b:1", upstream.address);
    let wrong = auth(BOB);
    for entries in [
        &[("HOST", auth(ANNA))][..],
        &[("HOST/", auth(ANNA))],
        &[("HOST/a", auth(ANNA))],
        &[("HOST/a/", auth(ANNA))],
        &[("HOST/a/b", auth(ANNA))],
        &[("http://HOST", auth(ANNA))],
        &[("https://HOST/", auth(ANNA))],
        &[("https://HOST/v2/", auth(ANNA))],
        &[("HOST", wrong.clone()), ("HOST/a", auth(ANNA))],
        &[("HOST", wrong.clone()), ("HOST/a", wrong.clone()), ("HOST/a/b", auth(ANNA))],
        &[("HOST", auth(ANNA)), ("HOST/b", wrong.clone()), ("HOST/a/bb", wrong.clone()), ("https://HOST", wrong.clone())],
        &[("HOST", auth("YW5uYTpz\nZWNyZXQ=\n"))],
        &[("HOST", json!({"auth": "", "username": "anna", "password": "secret"}))],
        &[("HOST", json!({"username": "anna", "password": "secret"}))],
        &[("HOST", auth(ANNA)), ("HOST/a", json!({}))],
    ] {
        write(&bench, &upstream, ".docker/config.json", entries);
        bench.pack(&["--pull", &name]);
    }
}

#[test]
fn every_place_of_podman_and_docker_is_searched() {
    let (_layout, upstream) = registry();
    let name = format!("{}/a/b:1", upstream.address);
    for (file, variable, value) in [
        (".docker/config.json", "UNUSED", ""),
        (".config/containers/auth.json", "UNUSED", ""),
        ("c/containers/auth.json", "XDG_CONFIG_HOME", "c"),
        ("r/containers/auth.json", "XDG_RUNTIME_DIR", "r"),
        ("d/config.json", "DOCKER_CONFIG", "d"),
        ("f.json", "REGISTRY_AUTH_FILE", "f.json"),
    ] {
        let bench = Bench::default();
        write(&bench, &upstream, file, &[("HOST", auth(ANNA))]);
        // Empty files, and a path that does not exist, come before it.
        if file != ".config/containers/auth.json" && !file.starts_with('c') {
            fs::create_dir_all(bench.path(".config/containers")).unwrap();
            bench.file(".config/containers/auth.json", b"");
        }
        let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
        if variable != "XDG_RUNTIME_DIR" {
            command.env("XDG_RUNTIME_DIR", "/dev/null");
        }
        let output = command.env(variable, bench.path(value)).output().unwrap();
        assert!(output.status.success(), "{file}: {}", text(&output.stderr));
    }
    // podman's file comes before docker's.
    let bench = Bench::default();
    write(&bench, &upstream, ".docker/config.json", &[("HOST", auth(BOB))]);
    write(&bench, &upstream, ".config/containers/auth.json", &[("HOST", auth(ANNA))]);
    bench.pack(&["--pull", &name]);
}

#[test]
fn repositories_of_one_registry_have_credentials_of_their_own() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let host = upstream.address.to_string();
    write(&bench, &upstream, ".docker/config.json", &[("HOST/a", auth(BOB)), ("HOST/a/b", auth(ANNA))]);
    bench.pack(&["--pull", &format!("{host}/a/b:1"), "--pull", &format!("{host}/a/c:1")]);
    assert_eq!(bench.extract("disk.erofs").names(), [format!("{host}/a/b:1"), format!("{host}/a/c:1")]);
    // Neither was sent for the other.
    for request in upstream.requests() {
        let user = if request.target.starts_with("/v2/a/b/") { ANNA } else { BOB };
        let sent = request.header("authorization");
        assert!(sent.is_none_or(|sent| sent == format!("Basic {user}")), "{}: {sent:?}", request.target);
    }
}

#[test]
fn unusable_credentials_are_named_by_file_and_key() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let (host, name) = (upstream.address.to_string(), format!("{}/a/b:1", upstream.address));
    let config = ".docker/config.json";
    let file = bench.path(config).display().to_string();
    let refused = |expected: &str| bench.refused(&["--pull", &name], &format!("cannot pull {name}: {expected}"));
    refused(&format!(
        "{host} asks for credentials (401), and there are none for it in {}; run `docker login {host}`",
        bench.credential_files()
    ));
    for key in ["HOST", "HOST/a", "https://HOST/v2/"] {
        let named = key.replace("HOST", &host);
        write(&bench, &upstream, config, &[(key, auth(BOB))]);
        refused(&format!("{host} refuses the credentials for \"{named}\" in {file} (401)"));
        write(&bench, &upstream, config, &[(key, auth("secret!"))]);
        refused(&format!("the entry for \"{named}\" in {file} is damaged: base64 of user:password is expected in \"auth\""));
    }
    bench.file(config, b"{\"auths\": secret}");
    refused(&format!(
        "the credentials in {file} cannot be read: line 1, column 11 is not JSON; the JSON of docker's config.json is expected"
    ));
    fs::remove_file(bench.path(config)).unwrap();
    fs::create_dir(bench.path(config)).unwrap();
    refused(&format!("cannot read the credentials in {file}: Is a directory (os error 21)"));
    assert!(Path::new(&file).is_dir());
}

/// As podman and buildah: `tests/clients/pull_logins.rs` asks them.
#[test]
fn the_named_file_must_be_there() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    bench.file("disk.erofs", b"the old disk");
    write(&bench, &upstream, ".docker/config.json", &[("HOST", auth(ANNA))]);
    let name = format!("{}/a/b:1", upstream.address);
    let before = bench.everything();
    for (file, cause) in
        [("none.json", "No such file or directory (os error 2)"), ("disk.erofs/a", "Not a directory (os error 20)")]
    {
        let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
        let output = command.env("REGISTRY_AUTH_FILE", bench.path(file)).output().unwrap();
        let expected = format!(
            "localregistry: cannot pull {name}: cannot find the credentials in {}, which REGISTRY_AUTH_FILE names; correct that variable, \
             or unset it: {cause}\n",
            bench.path(file).display()
        );
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), expected));
        assert_eq!(bench.everything(), before);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn files_are_read_as_go_reads_them() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let (host, name) = (upstream.address.to_string(), format!("{}/a/b:1", upstream.address));
    let config = json!({"Auths": {&host: {"Auth": ANNA}}});
    fs::create_dir_all(bench.path(".config/containers")).unwrap();
    bench.file(".config/containers/auth.json", b"null");
    fs::create_dir(bench.path(".docker")).unwrap();
    bench.file(".docker/config.json", config.to_string().as_bytes());
    bench.pack(&["--pull", &name]);
}

#[test]
fn credential_helpers_may_ignore_their_input_leave_processes_or_hang() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let answer = r#"echo '{"ServerURL":"x","Username":"anna","Secret":"secret"}'"#;
    fs::create_dir_all(bench.path("bin")).unwrap();
    fs::create_dir_all(bench.path("config")).unwrap();
    bench.file("config/config.json", br#"{"credsStore": "test"}"#);
    bench.file("disk.erofs", b"the old disk");
    let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
    let name = format!("{}/a/b:1", upstream.address);
    let pull = |script: &str| {
        let helper = bench.file("bin/docker-credential-test", format!("#!/bin/sh\n{script}\n").as_bytes());
        fs::set_permissions(helper, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
        let output = command.env("DOCKER_CONFIG", bench.path("config")).env("PATH", &path).output().unwrap();
        (output.status.code(), text(&output.stderr).replace(&upstream.address.to_string(), "HOST"))
    };
    // The script of a helper that waits for a signal sends it first.
    let before = bench.everything();
    let (status, said) = pull("kill -TERM $PPID\nexec sleep 600");
    assert_eq!((status, said.as_str()), (Some(143), "localregistry: disk.erofs is not written: interrupted by SIGTERM\n"));
    fs::remove_file(bench.path("bin/docker-credential-test")).unwrap();
    assert_eq!(bench.everything(), before);
    // Without credentials this registry refuses.
    let (status, said) = pull("echo credentials not found in native keychain\nexit 1");
    assert!(status == Some(1) && said.contains("401") && !said.contains("helper"), "{said}");
    assert_eq!(pull(&format!("exec 0<&-\n{answer}")), (Some(0), String::new()));
    assert_eq!(pull(&format!("sleep 20 &\n{answer}")), (Some(0), String::new()));
    assert_eq!(pull(r#"echo '{"USERNAME":"anna","secret":"secret"}'"#), (Some(0), String::new()));
    assert_eq!(pull(&format!("exec >/dev/stdout\n{answer}")), (Some(0), String::new()));
    // Its writer learns that an answer is too long, and does not fill the memory.
    let (status, said) = pull("yes\nexit 1");
    assert!(status == Some(1) && said.contains("the credential helper") && said.contains("fails"), "{said}");
}

/// A registry with the image `a/b:1` that asks for a token of its own, which it gives to anybody who sends no credentials.
fn public_registry() -> (Layout, Upstream) {
    let layout = Layout::default();
    let image = layout.manifest(&[&layer()]);
    let images = Images::new(&layout, &[("1", &image.digest.to_string()), ("latest", &image.digest.to_string())]);
    let upstream = Upstream::start(move |request| {
        if request.target.starts_with("/token") {
            let is_anonymous = request.header("authorization").is_none();
            return Answer::new(if is_anonymous { 200 } else { 401 }, &[], br#"{"token":"public"}"#);
        }
        if request.target == "/v2/" || request.header("authorization") == Some("Bearer public") {
            return images.answer(request);
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        Answer::new(401, &[("WWW-Authenticate", &realm)], b"")
    });
    (layout, upstream)
}

#[test]
fn what_most_clients_pass_over_does_not_end_a_public_pull() {
    let (_layout, upstream) = public_registry();
    let host = upstream.address.to_string();
    let name = format!("{host}/a/b:1");
    let no_colon = "base64 of user:password is expected in \"auth\", and it has no colon";
    for (config, warning) in [
        (json!({"auths": {&host: auth("c2VjcmV0")}}), format!("the entry for \"{host}\" in FILE is passed over: {no_colon}")),
        (
            json!({"auths": {&host: auth("OnNlY3JldA==")}}),
            format!("the entry for \"{host}\" in FILE has no user; most registries refuse that"),
        ),
        (
            json!({"credsStore": "not-here"}),
            format!(
                "the credential helper that FILE names for \"{host}\" is not there or cannot be run; try it with `echo {host} | \
                 docker-credential-not-here get`; it is passed over"
            ),
        ),
    ] {
        let bench = Bench::default();
        fs::create_dir(bench.path(".docker")).unwrap();
        let file = bench.file(".docker/config.json", config.to_string().as_bytes());
        let warning = warning.replace("FILE", &file.display().to_string());
        // Once, for two pulls from one registry.
        bench.pack_warned(&["--pull", &name, "--pull", &format!("{host}/a/b")], &[&warning]);
    }
}

#[test]
fn a_file_in_place_of_a_folder_is_warned_of_and_the_old_file_is_read() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    let host = upstream.address.to_string();
    let file = bench.file("config.json", json!({"auths": {}}).to_string().as_bytes());
    bench.file(".dockercfg", json!({ format!("http://{host}/v1/"): auth(ANNA) }).to_string().as_bytes());
    let mut command = bench.command(&["--quiet", "pack", "--pull", &format!("{host}/a/b:1"), "-o", "disk.erofs"]);
    let output = command.env("DOCKER_CONFIG", &file).output().unwrap();
    let file = file.display();
    let warning = format!(
        "localregistry: warning: there are no credentials in {file}/config.json, because {file} is a file; a variable such as \
         DOCKER_CONFIG names a folder\n"
    );
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), warning));
}

#[test]
fn the_folder_that_is_named_comes_before_the_places_that_are_not() {
    let (_layout, upstream) = registry();
    let bench = Bench::default();
    write(&bench, &upstream, ".config/containers/auth.json", &[("HOST", auth(BOB))]);
    write(&bench, &upstream, ".docker/config.json", &[("HOST", auth(BOB))]);
    write(&bench, &upstream, "named/config.json", &[("HOST", auth(ANNA))]);
    let name = format!("{}/a/b:1", upstream.address);
    let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
    let output = command.env("DOCKER_CONFIG", bench.path("named")).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
