//! `localregistry pack --pull` from real registries: `localregistry serve` and Debian's docker-registry. The pulled images are
//! packed, served again and compared byte by byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use localregistry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};
use tempfile::TempDir;
use testing::http;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, text};
use testing::private::{ADDRESS, privately};
use testing::serve::Serving;
use testing::server::Server;
use testing::upstream::{DockerRegistry, proxy};

/// A signed index of two platforms with an attestation, a referrer of one of its manifests, and a signature by cosign's tag.
struct Images {
    layout: Layout,
    index: Stored,
    amd64: Stored,
    arm64: Stored,
    /// Referrers of the index and of the amd64 manifest.
    referrers: [Stored; 2],
    /// The signature of the index.
    sbom: Stored,
    cosign: Stored,
}

fn platform(stored: Stored, os: &str, architecture: &str) -> Value {
    let mut descriptor = stored.descriptor(OCI_MANIFEST);
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

fn images() -> Images {
    let mut layout = Layout::default();
    let (amd64, arm64) = (layout.manifest(&[b"shared", b"amd64"]), layout.manifest(&[b"shared", &[6; 300_000]]));
    let attestation = layout.manifest(&[b"in-toto"]);
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            platform(amd64, "linux", "amd64"), platform(arm64, "linux", "arm64"), platform(attestation, "unknown", "unknown"),
        ],
    }));
    layout.name(index, OCI_INDEX, "test/hello:v1");
    let referrers = [
        layout.artifact("application/vnd.test.signature", index, b"of the index"),
        layout.artifact("application/vnd.test.signature", amd64, b"of amd64"),
    ];
    let sbom = layout.artifact("application/vnd.test.sbom", referrers[0], b"of the signature");
    for referrer in referrers.into_iter().chain([sbom]) {
        layout.name(referrer, OCI_MANIFEST, "");
    }
    let cosign = layout.manifest(&[b"signed"]);
    layout.name(cosign, OCI_MANIFEST, &format!("test/hello:sha256-{}.sig", index.digest.hex()));
    layout.write();
    Images { layout, index, amd64, arm64, referrers, sbom, cosign }
}

/// Serves the disk and asserts that `expected` under `repository` of `host` equals the layout byte for byte, each by its
/// reference.
fn assert_served(bench: &Bench, layout: &Path, host: &str, repository: &str, expected: &[(&str, Stored)]) {
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    for (path, content) in disk.files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
        assert_eq!(*content, fs::read(layout.join(path)).unwrap(), "{path}");
    }
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    for (reference, stored) in expected {
        let response = http::get(server.plain, &format!("/v2/{repository}/manifests/{reference}?ns={host}"));
        assert_eq!(response.status, 200, "{reference}");
        assert_eq!(response.body, fs::read(layout.join(stored.digest.blob_path())).unwrap(), "{reference}");
    }
    for (path, content) in disk.files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")) {
        let hex = path.rsplit('/').next().unwrap();
        let response = http::get(server.plain, &format!("/v2/{repository}/blobs/sha256:{hex}?ns={host}"));
        assert_eq!((response.status, &response.body), (200, content), "{path}");
    }
}

fn referrers_of(bench: &Bench, host: &str, subject: Stored) -> Vec<String> {
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    let list = http::get(server.plain, &format!("/v2/test/hello/referrers/{}?ns={host}", subject.digest)).json();
    let mut found: Vec<String> =
        list["manifests"].as_array().unwrap().iter().map(|one| one["digest"].as_str().unwrap().to_owned()).collect();
    found.sort();
    found
}

fn plain(layout: &Layout, arguments: &[&str]) -> Serving {
    Serving::start(layout.path(), TempDir::new().unwrap(), &[&["--tls", "off"], arguments].concat())
}

/// Writes docker's configuration with this entry for `host`.
fn log_in(bench: &Bench, host: &str, entry: Value) {
    fs::create_dir_all(bench.path(".docker")).unwrap();
    bench.file(".docker/config.json", json!({"auths": {host: entry}}).to_string().as_bytes());
}

fn basic(user: &str, password: &str) -> Value {
    json!({"auth": base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))})
}

#[test]
fn all_parts_of_an_image_are_pulled() {
    let images = images();
    let serving = plain(&images.layout, &[]);
    let (bench, host) = (Bench::default(), serving.address());
    bench.pack(&["--pull", &format!("{host}/test/hello:v1")]);
    let cosign = format!("sha256-{}.sig", images.index.digest.hex());
    let (amd64, arm64, sbom) = (images.amd64.digest.to_string(), images.arm64.digest.to_string(), images.sbom.digest.to_string());
    assert_served(
        &bench,
        images.layout.path(),
        &host,
        "test/hello",
        &[("v1", images.index), (&amd64, images.amd64), (&arm64, images.arm64), (&cosign, images.cosign), (&sbom, images.sbom)],
    );
    let count = |path: &Path| fs::read_dir(path.join("blobs/sha256")).unwrap().count();
    assert_eq!(count(&bench.path("disk.erofs.extracted")), count(images.layout.path()), "no file is left");
    assert_eq!(referrers_of(&bench, &host, images.index), [images.referrers[0].digest.to_string()]);
    assert_eq!(referrers_of(&bench, &host, images.amd64), [images.referrers[1].digest.to_string()]);
    assert_eq!(referrers_of(&bench, &host, images.referrers[0]), [images.sbom.digest.to_string()]);
}

#[test]
fn only_the_selected_platform_is_pulled_and_the_rest_is_named() {
    let images = images();
    let serving = plain(&images.layout, &["--events", "events"]);
    let (bench, host) = (Bench::default(), serving.address());
    let name = format!("{host}/test/hello:v1");
    let output =
        bench.command(&["pack", "--pull", &name, "--platform", "linux/amd64", "--flatten", "-o", "disk.erofs"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains(&format!("image {name}: linux/amd64 is kept, and left out: linux/arm64, 1 manifest for no platform\n")),
        "{said}"
    );
    assert_served(&bench, images.layout.path(), &host, "test/hello", &[("v1", images.amd64)]);
    assert_eq!(referrers_of(&bench, &host, images.amd64), [images.referrers[1].digest.to_string()]);
    // Omitted content is not fetched either.
    let events = fs::read_to_string(serving.folder.path().join("events")).unwrap();
    let large = localregistry::oci::Digest::sha256_of(&[6; 300_000]).to_string();
    assert!(events.contains(&images.amd64.digest.to_string()) && !events.contains(&large));

    bench.refused(
        &["--pull", &name, "--platform", "linux/s390x"],
        &format!("cannot pull {name}: the image has no manifest for linux/s390x, only for linux/amd64, linux/arm64"),
    );
    let single = format!("{host}/test/hello@{}", images.amd64.digest);
    bench.refused(
        &["--pull", &single, "--platform", "linux/arm64"],
        &format!("cannot pull {single}: the image has no manifest for linux/arm64, only for linux/amd64"),
    );
}

#[test]
fn images_are_pulled_by_digest_and_with_other_sources() {
    let images = images();
    let serving = plain(&images.layout, &[]);
    let (bench, host) = (Bench::default(), serving.address());
    let mut other = Layout::default();
    other.image("test/other:1", b"shared");
    bench.layout("other", &other);
    let (by_digest, both) =
        (format!("{host}/test/hello@{}", images.arm64.digest), format!("{host}/test/hello:mine@{}", images.amd64.digest));
    bench.pack(&["other", "--pull", &by_digest, "--pull", &both]);
    let disk = bench.extract("disk.erofs");
    assert_eq!(
        disk.names(),
        [
            format!("{host}/test/hello:mine"),
            format!("{host}/test/hello@{}", images.arm64.digest),
            format!("{host}/test/hello@{}", images.referrers[1].digest),
            "test/other:1".to_owned()
        ]
        .into_iter()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
}

#[test]
fn disk_equals_one_packed_from_a_layout() {
    let images = images();
    let serving = plain(&images.layout, &[]);
    let (bench, host) = (Bench::default(), serving.address());
    bench.pack(&["--pull", &format!("{host}/test/hello:v1")]);
    let first = testing::pack::digest_of(&bench.path("disk.erofs"));
    bench.pack(&["--pull", &format!("{host}/test/hello:v1")]);
    assert_eq!(testing::pack::digest_of(&bench.path("disk.erofs")), first);
}

#[test]
fn password_protected_images_are_pulled() {
    let images = images();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("users"), format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap();
    let serving = Serving::start(images.layout.path(), folder, &["--tls", "off", "--htpasswd", "users"]);
    let (bench, host) = (Bench::default(), serving.address());
    let name = format!("{host}/test/hello:v1");
    let config = bench.path(".docker/config.json").display().to_string();
    bench.refused(
        &["--pull", &name],
        &format!(
            "cannot pull {name}: {host} asks for credentials (401: UNAUTHORIZED: authentication required), and there are none for it in \
             {}; run `docker login {host}`",
            bench.credential_files()
        ),
    );
    log_in(&bench, &host, basic("anna", "wrong"));
    bench.refused(
        &["--pull", &name],
        &format!(
            "cannot pull {name}: {host} refuses the credentials for \"{host}\" in {config} (401: UNAUTHORIZED: authentication required)"
        ),
    );
    log_in(&bench, &host, basic("anna", "secret"));
    bench.pack(&["--pull", &name]);
    assert_served(&bench, images.layout.path(), &host, "test/hello", &[("v1", images.index)]);
    // In a provided file, and by a credential helper.
    fs::remove_dir_all(bench.path(".docker")).unwrap();
    bench.file("auth.json", json!({"auths": {&host: basic("anna", "secret")}}).to_string().as_bytes());
    let pack = ["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"];
    let output = bench.command(&pack).env("REGISTRY_AUTH_FILE", bench.path("auth.json")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::create_dir(bench.path("bin")).unwrap();
    let helper = bench.file(
        "bin/docker-credential-test",
        b"#!/bin/sh\nread -r server\n[ \"$1\" = get ] && echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"anna\\\",\\\"Secret\\\":\\\"secret\\\"}\"\n",
    );
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(bench.path("config")).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bench.path("bin").display());
    for config in [json!({"credHelpers": {&host: "test"}}), json!({"auths": {&host: {}}, "credsStore": "test"})] {
        bench.file("config/config.json", config.to_string().as_bytes());
        let mut command = bench.command(&pack);
        let output = command.env("DOCKER_CONFIG", bench.path("config")).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{config}: {}", text(&output.stderr));
    }
    // A store that fails is passed over, as podman and docker do. What it printed is not shown.
    fs::write(&helper, "#!/bin/sh\necho a secret\necho a secret >&2\nexit 1\n").unwrap();
    let output = bench.command(&pack).env("DOCKER_CONFIG", bench.path("config")).env("PATH", &path).output().unwrap();
    let (file, said) = (bench.path("config/config.json").display().to_string(), text(&output.stderr));
    let warning = format!(
        "localregistry: warning: the credential helper that {file} names for \"{host}\" fails; try it with \
         `echo {host} | docker-credential-test get`; it is passed over\n\
         localregistry: cannot pull {name}: {host} asks for credentials (401: UNAUTHORIZED: authentication required), and there are none \
         for it in {file}, "
    );
    assert!(output.status.code() == Some(1) && said.starts_with(&warning) && !said.contains("a secret"), "{said}");
}

#[test]
fn token_protected_images_are_pulled() {
    let images = images();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("users"), format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap();
    let serving = Serving::start(images.layout.path(), folder, &["--tls", "off", "--htpasswd", "users", "--token"]);
    let (bench, host) = (Bench::default(), serving.address());
    log_in(&bench, &host, basic("anna", "secret"));
    bench.pack(&["--pull", &format!("{host}/test/hello:v1")]);
    assert_served(&bench, images.layout.path(), &host, "test/hello", &[("v1", images.index)]);
    log_in(&bench, &host, basic("anna", "wrong"));
    let config = bench.path(".docker/config.json").display().to_string();
    bench.refused(
        &["--pull", &format!("{host}/test/hello:v1")],
        &format!(
            "cannot pull {host}/test/hello:v1: {host} refuses the credentials for \"{host}\" in {config} (401: UNAUTHORIZED: authentication required)"
        ),
    );

    let anybody = plain(&images.layout, &["--token", "--anonymous-pull"]);
    let (bench, host) = (Bench::default(), anybody.address());
    bench.pack(&["--pull", &format!("{host}/test/hello:v1")]);
    assert_served(&bench, images.layout.path(), &host, "test/hello", &[("v1", images.index)]);
}

#[test]
fn images_are_pulled_over_tls() {
    let images = images();
    let serving = Serving::start(images.layout.path(), TempDir::new().unwrap(), &[]);
    let (bench, host) = (Bench::default(), serving.address());
    let name = format!("{host}/test/hello:v1");
    bench.refused(
        &["--pull", &name],
        &format!(
            "cannot pull {name}: the certificate of {host} is signed by an unknown CA; trust that CA with --registry-ca FILE, \
             or put it into /etc/docker/certs.d/{host}/ca.crt"
        ),
    );
    fs::copy(serving.folder.path().join("ca.crt"), bench.path("ca.crt")).unwrap();
    bench.pack(&["--pull", &name, "--registry-ca", "ca.crt"]);
    assert_served(&bench, images.layout.path(), &host, "test/hello", &[("v1", images.index)]);
    // Like other programs, it honours SSL_CERT_FILE.
    let mut command = bench.command(&["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"]);
    let output = command.env("SSL_CERT_FILE", bench.path("ca.crt")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    for (content, why) in [
        (&b"nothing"[..], "it has no CERTIFICATE block; PEM is expected"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "invalid peer certificate: BadEncoding"),
    ] {
        bench.file("bad.crt", content);
        bench.refused(
            &["--pull", &name, "--registry-ca", "bad.crt"],
            &format!("cannot pull {name}: cannot trust the CA in bad.crt: {why}"),
        );
    }
    bench.refused(
        &["--pull", &name, "--registry-ca", "none.crt"],
        &format!("cannot pull {name}: cannot trust the CA in none.crt: No such file or directory (os error 2)"),
    );
}

#[test]
fn images_are_pulled_from_a_remote_address() {
    privately(|| {
        let images = images();
        // TLS, with the CA in docker's folder.
        let address = format!("{ADDRESS}:5443");
        let folder = TempDir::new().unwrap();
        let serving = Serving::start(images.layout.path(), folder, &["--listen", &address, "--san", ADDRESS]);
        let (bench, name) = (Bench::default(), format!("{address}/test/hello:v1"));
        fs::create_dir_all(format!("/etc/docker/certs.d/{address}")).unwrap();
        fs::copy(serving.folder.path().join("ca.crt"), format!("/etc/docker/certs.d/{address}/ca.crt")).unwrap();
        bench.pack(&["--pull", &name]);
        assert_served(&bench, images.layout.path(), &address, "test/hello", &[("v1", images.index)]);

        // Through a proxy, unless NO_PROXY excludes the host.
        let (proxy, requests) = proxy();
        let pack = ["--quiet", "pack", "--pull", &name, "-o", "disk.erofs"];
        let output = bench.command(&pack).env("HTTPS_PROXY", format!("http://{proxy}")).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(requests.lock().unwrap().first(), Some(&format!("CONNECT {address}")));
        requests.lock().unwrap().clear();
        let mut command = bench.command(&pack);
        let output = command.env("HTTPS_PROXY", format!("http://{proxy}")).env("NO_PROXY", ADDRESS).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(*requests.lock().unwrap(), [""; 0]);

        // Plain HTTP only on request.
        let address = format!("{ADDRESS}:5080");
        let _plain = plain(&images.layout, &["--listen", &address]);
        let (bench, name) = (Bench::default(), format!("{address}/test/hello:v1"));
        bench.refused(
            &["--pull", &name],
            &format!(
                "cannot pull {name}: {address} does not speak TLS; if plain HTTP is right for it, allow that with --plain-http {address}"
            ),
        );
        bench.pack(&["--pull", &name, "--plain-http", &address]);
        assert_served(&bench, images.layout.path(), &address, "test/hello", &[("v1", images.index)]);
        bench.refused(
            &["--pull", "registry.invalid/a/b:1"],
            "cannot pull registry.invalid/a/b:1: the name registry.invalid has no address; is it right, and does a DNS server answer?",
        );
    });
}

#[test]
fn images_are_pulled_from_docker_registry() {
    // skopeo finds images in a layout by bare names.
    let mut layout = Layout::default();
    let (amd64, arm64) = (layout.manifest(&[b"shared", b"amd64"]), layout.manifest(&[b"shared", b"arm64"]));
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [platform(amd64, "linux", "amd64"), platform(arm64, "linux", "arm64")],
    }));
    layout.name(index, OCI_INDEX, "multi");
    let signature = layout.artifact("application/vnd.test.signature", index, b"signed");
    let list = layout.json(&json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature.descriptor(OCI_MANIFEST)],
    }));
    layout.name(list, OCI_INDEX, "fallback");
    layout.write();
    let registry = DockerRegistry::start(None);
    registry.push(layout.path(), "multi", "library/multi:1", &[]);
    // The registry has no referrers API, so the tag schema is used.
    let fallback = format!("sha256-{}", index.digest.hex());
    registry.push(layout.path(), "fallback", &format!("library/multi:{fallback}"), &[]);
    let (bench, host) = (Bench::default(), registry.address.as_str());
    bench.pack(&["--pull", &format!("{host}/library/multi:1")]);
    assert_served(&bench, layout.path(), host, "library/multi", &[("1", index), (&fallback, list)]);
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    let referrers = http::get(server.plain, &format!("/v2/library/multi/referrers/{}?ns={host}", index.digest)).json();
    assert_eq!(referrers["manifests"][0]["digest"], signature.digest.to_string());
    bench.refused(
        &["--pull", &format!("{host}/library/multi:2")],
        &format!(
            "cannot pull {host}/library/multi:2: {host} has no manifest 2 of library/multi (404: MANIFEST_UNKNOWN: manifest unknown)"
        ),
    );
}

#[test]
fn images_are_pulled_from_docker_registry_with_a_password() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("users"), format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap())).unwrap();
    let mut layout = Layout::default();
    let image = layout.image("one", b"a layer");
    layout.write();
    let registry = DockerRegistry::start(Some(&folder.path().join("users")));
    registry.push(layout.path(), "one", "a/one:1", &["--dest-creds", "anna:secret"]);
    let (bench, host) = (Bench::default(), registry.address.as_str());
    let name = format!("{host}/a/one:1");
    bench.refused(
        &["--pull", &name],
        &format!(
            "cannot pull {name}: {host} asks for credentials (401: UNAUTHORIZED: authentication required), and there are none for it in \
             {}; run `docker login {host}`",
            bench.credential_files()
        ),
    );
    log_in(&bench, host, basic("anna", "secret"));
    bench.pack(&["--pull", &name]);
    assert_served(&bench, layout.path(), host, "a/one", &[("1", image)]);
}

#[test]
fn list_pulls_with_its_own_names_and_platforms() {
    let images = images();
    let serving = plain(&images.layout, &[]);
    let (bench, host) = (Bench::default(), serving.address());
    let list = format!(
        "images {{ name: 'mine/app' tag: '2' pull: '{host}/test/hello:v1' platform: 'linux/amd64' flatten: true }}
         images {{ pull: '{host}/test/hello:v1' platform: 'linux/arm64' flatten: true }}
         images {{ repository: 'mine/all' tag: '1' pull: '{host}/test/hello:v1' upstream: 'docker.io' }}
         images {{ name: 'mine/every' pull: '{host}/test/hello@{}' }}",
        images.arm64.digest
    );
    bench.file("list.textproto", list.as_bytes());
    bench.pack(&["--spec", "list.textproto"]);
    let disk = bench.extract("disk.erofs");
    disk.assert_blobs();
    let digest = |name: &str| disk.images().into_iter().find(|(known, _)| known == name).map(|(_, digest)| digest);
    for (name, expected) in [
        ("mine/app:2".to_owned(), images.amd64),
        (format!("{host}/test/hello:v1"), images.arm64),
        ("docker.io/mine/all:1".to_owned(), images.index),
        (format!("docker.io/mine/all:sha256-{}.sig", images.index.digest.hex()), images.cosign),
        ("mine/every:latest".to_owned(), images.arm64),
    ] {
        assert_eq!(digest(&name), Some(expected.digest.to_string()), "{name}: {:?}", disk.names());
    }
    let server = Server::start(&bench.path("disk.erofs.extracted"));
    let referrers = |repository: &str, of: Stored| {
        let list = http::get(server.plain, &format!("/v2/{repository}/referrers/{}", of.digest)).json();
        list["manifests"].as_array().unwrap().len()
    };
    assert_eq!([referrers("mine/app", images.amd64), referrers("docker.io/mine/all", images.index)], [1, 1]);
    assert_eq!(http::get(server.plain, "/v2/mine/every/manifests/any").status, 200);
    drop(server);

    // If one image cannot be pulled, nothing is packed.
    fs::remove_dir_all(bench.path("disk.erofs.extracted")).unwrap();
    bench.file("list.textproto", format!("images {{ pull: '{host}/test/none:1' }}").as_bytes());
    let output = bench.command(&["-q", "pack", "--spec", "list.textproto", "-o", "other"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("{host}/test/none:1")), "{}", text(&output.stderr));
    assert!(!bench.path("other").exists());
}
