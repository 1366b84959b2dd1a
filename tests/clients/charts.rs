//! Charts and Helm itself: it pulls what `pack --chart` packs, and what it pushes is the same config and package.

use std::fs;
use std::path::Path;
use std::process::Command;

use localregistry::oci::Digest;
use serde_json::{Value, json};
use tar::EntryType;
use testing::http::get;
use testing::pack::{Bench, PROGRAM, archive, gzip};
use testing::upstream::DockerRegistry;
use testing::vm::succeed;

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";

/// `tests/support/helm.py`, with the library that `tests/run` installs beside the program's folder.
fn helm(bench: &Bench, arguments: &[&str]) -> Command {
    let library = Path::new(PROGRAM).ancestors().nth(2).unwrap().join("helm");
    assert!(library.exists(), "Helm's library is not in {}: tests/run installs it", library.display());
    let mut command = testing::program("/usr/bin/python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/helm.py")).args(arguments);
    command.env("PYTHONPATH", library).env("HOME", bench.path("")).current_dir(bench.path(""));
    command
}

fn chart(name: &str, version: &str, more: &str) -> Vec<u8> {
    let metadata = format!("apiVersion: v2\nname: {name}\nversion: {version}\n{more}");
    let members = [(format!("{name}/Chart.yaml"), metadata.as_bytes()), (format!("{name}/values.yaml"), b"a: 1\n".as_slice())];
    let members: Vec<_> = members.iter().map(|(path, content)| (path.as_str(), EntryType::Regular, *content)).collect();
    gzip(&archive(&members))
}

#[test]
fn helm_pulls_charts() {
    let bench = Bench::default();
    let charts = [("web", "1.2.3"), ("web", "1.3.0-rc.1+build.5"), ("db", "4.5.6")];
    let packages = charts.map(|(name, version)| chart(name, version, "description: A chart\n"));
    for (package, (name, version)) in packages.iter().zip(charts) {
        bench.file(&format!("{name}-{version}.tgz"), package);
    }
    bench.pack(&[
        "--chart",
        "web-1.2.3.tgz",
        "--chart",
        "charts/web=web-1.3.0-rc.1+build.5.tgz",
        "--chart",
        "charts/web=web-1.2.3.tgz",
        "--chart",
        "ghcr.io/org/db=db-4.5.6.tgz",
    ]);
    let server = bench.serve();
    fs::create_dir(bench.path("pulled")).unwrap();
    for (repository, (name, version), package) in [
        ("web", charts[0], &packages[0]),
        ("charts/web", charts[1], &packages[1]),
        ("charts/web", charts[0], &packages[0]),
        ("ghcr.io/org/db", charts[2], &packages[2]),
    ] {
        let reference = format!("oci://{}/{repository}", server.plain);
        succeed(&mut helm(&bench, &["pull", &reference, version, "pulled"]));
        let pulled = fs::read_dir(bench.path("pulled")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let [pulled] = pulled.as_slice() else { panic!("{name} {version}: {pulled:?}") };
        assert!(fs::read(pulled).unwrap() == *package, "{repository} {version}");
        fs::remove_file(pulled).unwrap();
    }
    let tags = succeed(&mut helm(&bench, &["tags", &format!("oci://{}/charts/web", server.plain)]));
    assert_eq!(serde_json::from_str::<Value>(&tags).unwrap(), json!(["1.3.0-rc.1+build.5", "1.2.3"]));
    // A range of versions is resolved by the tags.
    succeed(&mut helm(&bench, &["pull", &format!("oci://{}/charts/web", server.plain), "~1.2", "pulled"]));
    assert!(fs::read(bench.path("pulled/web-1.2.3.tgz")).unwrap() == packages[0]);
}

/// The independent computation: Helm pushes the same package to another registry.
#[test]
fn config_and_package_are_those_that_helm_pushes() {
    let bench = Bench::default();
    let metadata = "appVersion: 1.16.0\ndescription: A \"web\" <server> & more\ntype: application\ndeprecated: yes\nkeywords: [a, b]\n\
                    home: https://example.test\nicon: null\nsources: [https://example.test/git]\nkubeVersion: '>=1.20'\nunknown: 1\n\
                    annotations: {example.test/n: '7', z: a}\nmaintainers: [{name: Anna, email: a@example.test}, {name: B, url: u}]\n\
                    dependencies: [{name: db, version: ~4.5, repository: 'oci://r.test/c', condition: db.on, tags: [t], alias: d, \
                    import-values: [data, {child: a, parent: b}]}, {name: other, version: '1'}]\n";
    let package = chart("web", "1.2.3+build.5", metadata);
    bench.file("web-1.2.3+build.5.tgz", &package);
    bench.pack(&["--chart", "charts/web=web-1.2.3+build.5.tgz"]);
    let server = bench.serve();
    let registry = DockerRegistry::start(None);
    succeed(&mut helm(&bench, &["push", "web-1.2.3+build.5.tgz", &format!("oci://{}/charts", registry.address)]));
    let manifest = |address: std::net::SocketAddr| {
        let target = "/v2/charts/web/manifests/1.2.3_build.5";
        testing::http::send(address, "GET", target, &[("Accept", ACCEPT)]).json()
    };
    let theirs = registry.address.parse().unwrap();
    let (pushed, packed) = (manifest(theirs), manifest(server.plain));
    assert_eq!(packed["layers"], pushed["layers"]);
    assert_eq!(packed["layers"][0]["digest"], Digest::sha256_of(&package).to_string());
    assert_eq!(packed["config"]["mediaType"], pushed["config"]["mediaType"]);
    let config = |address, manifest: &Value| {
        get(address, &format!("/v2/charts/web/blobs/{}", manifest["config"]["digest"].as_str().unwrap())).json()
    };
    assert_eq!(config(server.plain, &packed), config(theirs, &pushed));
}
