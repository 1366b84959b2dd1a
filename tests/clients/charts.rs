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
    let mut annotations = pushed["annotations"].clone();
    assert!(annotations.as_object_mut().unwrap().remove("org.opencontainers.image.created").is_some());
    assert_eq!(packed["annotations"], annotations);
    assert_eq!(packed["layers"][0]["digest"], Digest::sha256_of(&package).to_string());
    assert_eq!(packed["config"]["mediaType"], pushed["config"]["mediaType"]);
    let config = |address, manifest: &Value| {
        get(address, &format!("/v2/charts/web/blobs/{}", manifest["config"]["digest"].as_str().unwrap())).json()
    };
    assert_eq!(config(server.plain, &packed), config(theirs, &pushed));
}

/// The independent computation: Helm loads what `pack --chart` packs, whatever the names of the members are and what follows them.
#[test]
fn verdict_on_packages_is_that_of_helm() {
    let bench = Bench::default();
    let metadata = b"name: web\nversion: 1.2.3\n";
    let mut packages = Vec::new();
    for name in [
        "web/x",
        "web\\x",
        "web/../../x",
        "web/a/../x",
        "web/a/../../x",
        "web/..x",
        "web/a/..",
        "web/",
        "web//x",
        "web/./x",
        "./x",
        "x",
        "/x",
        "//x",
        "web/c:/x",
        "web/c:x",
        "c:/x",
        "web\\..\\x",
        "a\\b/../../../x",
        "../x",
        "../../x",
        "Chart.yaml/x",
        "web/a\\x",
    ] {
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Symlink] {
            packages.push(gzip(&archive(&[("web/Chart.yaml", EntryType::Regular, metadata), (name, kind, b"")])));
        }
    }
    for name in ["web\\Chart.yaml", "web/./Chart.yaml", "./Chart.yaml", "/Chart.yaml", "./web/Chart.yaml", "web/a/../Chart.yaml"]
    {
        packages.push(gzip(&archive(&[(name, EntryType::Regular, metadata)])));
    }
    let plain = archive(&[("web/Chart.yaml", EntryType::Regular, metadata)]);
    let (first, second) = plain.split_at(700);
    let whole = gzip(&plain);
    packages.extend([
        [&whole[..], &[0; 512]].concat(),
        [&whole[..], b"junk"].concat(),
        [gzip(first), gzip(second)].concat(),
        [gzip(first), b"junk".to_vec(), gzip(second)].concat(),
        gzip(&archive(&[("web/Chart.yaml", EntryType::Regular, b"name: web\nversion: 1.2.3\n# caf\xe9\n")])),
        gzip(&archive(&[("web/Chart.yaml", EntryType::Regular, b"\xef\xbb\xbfname: web\nversion: 1.2.3\n")])),
        gzip(&archive(&[
            ("web/Chart.yaml", EntryType::Regular, metadata),
            ("web/l", EntryType::Regular, &vec![0; (5 << 20) + 1]),
        ])),
    ]);
    let names: Vec<String> = (0..packages.len()).map(|number| format!("{number}.tgz")).collect();
    for (name, package) in names.iter().zip(&packages) {
        bench.file(name, package);
    }
    let arguments: Vec<&str> = ["metadata"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let theirs = succeed(&mut helm(&bench, &arguments));
    let theirs: Vec<bool> = theirs.lines().map(|line| line != "null").collect();
    let ours = names.iter().map(|name| {
        let output = bench.command(&["--quiet", "pack", "--chart", name, "-o", "disk.erofs"]).output().unwrap();
        (output.status.success(), testing::pack::text(&output.stderr))
    });
    let wrong: Vec<_> = ours.zip(&theirs).enumerate().filter(|(_, ((ours, _), theirs))| ours != *theirs).collect();
    assert!(wrong.is_empty() && theirs.len() == packages.len(), "{wrong:#?}");
}

/// Documents of which Helm loads some. Each is a `Chart.yaml`.
fn documents() -> Vec<String> {
    let mut all: Vec<String> = [
        "",
        "- a\n",
        "text\n",
        "name: [\n",
        "name: web\n",
        "version: 1.0.0\n",
        "a: b\n---\nname: web\nversion: 1.0.0\n",
        "name: web\nversion: 1.0.0\n---\nname: [\n",
        "Name: web\nVERSION: 1.0.0\nAppVersion: x\nTYPE: library\n",
        "name: a\nname: web\nversion: 1.0.0\n",
        "NAME: a\nname: web\nversion: 1.0.0\n",
        "name: web\nNAME: a\nversion: 1.0.0\n",
        "<<: {name: web, version: 1.0.0}\n",
        "name: &a web\nversion: 1.0.0\ndescription: *a\n",
        "name: *a\nversion: 1.0.0\n",
        "\tname: web\nversion: 1.0.0\n",
        "%YAML 1.1\n---\nname: web\nversion: 1.0.0\n",
        "name: web\nversion: 1.0.0\n: x\n",
        "{name: web, version: 1.0.0}\n",
        "{\"name\": \"web\", \"version\": \"1.0.0\"}\n",
        "name: web\n  version: 1.0.0\n",
    ]
    .map(str::to_owned)
    .into();
    let mut with = |lines: &[&str]| all.extend(lines.iter().map(|line| format!("name: web\nversion: 1.2.3\n{line}\n")));
    // Every kind of value in every kind of field.
    let values = [
        "",
        "~",
        "null",
        "''",
        "text",
        "\"1\"",
        "1",
        "1.10",
        "0777",
        "0x1F",
        "1_000",
        "1e3",
        "1000000.0",
        "0.00001",
        "12345678901234567890",
        "yes",
        "on",
        "y",
        "true",
        "'true'",
        "2020-01-01",
        "[]",
        "[a]",
        "[1, 1.10, yes, ~]",
        "[[a]]",
        "[{}]",
        "[~]",
        "{}",
        "{a: 1}",
        "{a: ~}",
        "{a: [b]}",
        "[{name: a}]",
        "[{name: [a]}]",
        "[{name: 1.10, version: 1.10, url: yes}]",
        "!!str 1.10",
        "|\n  block\n  text",
    ];
    let fields = [
        "home",
        "sources",
        "description",
        "keywords",
        "maintainers",
        "icon",
        "apiVersion",
        "condition",
        "tags",
        "appVersion",
        "deprecated",
        "annotations",
        "kubeVersion",
        "dependencies",
        "type",
        "unknown",
    ];
    for field in fields {
        values.iter().for_each(|value| with(&[&format!("{field}: {value}")]));
    }
    with(&[
        "type: application",
        "type: library",
        "type: Library",
        "type: ' library'",
        "maintainers: [{name: a}, ~]",
        "maintainers: [{Name: a}]",
        "dependencies: [{name: a}, {name: a}]",
        "dependencies: [{name: a}, {name: a, alias: b}]",
        "dependencies: [{name: a}, {name: b, alias: a}]",
        "dependencies: [{name: a, alias: x}, {name: b, alias: x}]",
        "dependencies: [{name: a, alias: ''}]",
        "dependencies: [{}, {}]",
        "dependencies: [{name: a, alias: 'b c'}]",
        "dependencies: [{name: a, alias: b.c}]",
        "dependencies: [{name: a, alias: ä}]",
        "dependencies: [{name: a, alias: A_b-9}]",
        "dependencies: [{name: a, alias: 7}]",
        "dependencies: [{name: \"a\\u200b\"}, {name: a}]",
        "dependencies: [{name: a, import-values: [data, 1.10, {child: a, parent: b}, ~]}]",
        "dependencies: [{name: a, enabled: yes, tags: [1]}]",
        "dependencies: [{name: a, enabled: 'yes'}]",
        "dependencies: [{name: a, Import-Values: [x], ALIAS: z}]",
        "dependencies: {name: a}",
        "description: \"a\\tb\\nc\\u00a0d\\u2028e\\u3000f\"",
        "description: \"a\\x07b\\u200bc\\ufeffd\\u00ade\\0f\"",
        "description: \"e\\u0301 'quoted' \\\\ \\\"x\\\" \\U0001F600\"",
        "keywords: [\"a\\x1b[1m\"]",
        "sources: [\"a\\u200b\"]",
        "maintainers: [{name: \"a\\u200bb\", url: \"\\t\"}]",
        "annotations: {\"a\\u200b\": \"b\\u200b\"}",
        "home: \"\\u200b\"",
    ]);
    for name in [
        "''",
        "~",
        "1",
        "1.10",
        "yes",
        "[a]",
        "{}",
        "a/b",
        "/a",
        "a/",
        "/",
        ".",
        "..",
        "...",
        "a b",
        "myWeb",
        "\"w\\u200beb\"",
        "\"\\u200b\"",
        "\"\\t\"",
        "\"a\\\\b\"",
        "ä",
        "-a",
        "\".\\u200b\"",
    ] {
        all.push(format!("name: {name}\nversion: 1.2.3\n"));
    }
    for version in [
        "1",
        "1.2",
        "1.10",
        "1.0",
        "v1.2.3",
        "V1.2.3",
        "v1",
        "01.2.3",
        "1.02.3",
        "1.2.3-01",
        "1.2.3-a.01",
        "1.2.3-0",
        "1.2.3-rc.1+b.01",
        "1.2.3+",
        "1.2.3-",
        "1.2.3--",
        "1.2.3-a..b",
        "1.2.3+a_b",
        "1.2.3.4",
        "1..3",
        "'v'",
        "-1",
        "'1.2.3 '",
        "' 1.2.3'",
        "1.2.3 beta",
        "latest",
        "0x10",
        "1e3",
        "010",
        "99999999999999999999.1.1",
        "18446744073709551615.0.0",
        "~",
        "[1]",
        "yes",
        "\"1.2.3\\u200b\"",
        "1.2.3+B.7",
        "=1.2.3",
        "2020-01-01",
        "1.x",
        "'*'",
        "1_0.2.3",
        "'1.2.3-ä'",
    ] {
        all.push(format!("name: web\nversion: {version}\n"));
    }
    all
}

/// The independent computation: Helm loads what `pack --chart` packs, and nothing else, and finds the same metadata.
#[test]
fn verdict_and_metadata_are_those_of_helm() {
    let bench = Bench::default();
    let documents = documents();
    let names: Vec<String> = (0..documents.len()).map(|number| format!("{number}.tgz")).collect();
    for (name, document) in names.iter().zip(&documents) {
        bench.file(name, &gzip(&archive(&[("web/Chart.yaml", EntryType::Regular, document.as_bytes())])));
    }
    let arguments: Vec<&str> = ["metadata"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let theirs = succeed(&mut helm(&bench, &arguments));
    let theirs: Vec<Value> = theirs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(theirs.len(), documents.len());
    let mut wrong = Vec::new();
    for ((name, document), theirs) in names.iter().zip(&documents).zip(theirs) {
        let pack = ["--quiet", "pack", "--chart", &format!("charts/web={name}"), "-o", "disk.erofs"];
        let output = bench.command(&pack).output().unwrap();
        let ours = output.status.success().then(|| {
            let disk = bench.extract("disk.erofs");
            let [(_, digest)] = disk.images().try_into().unwrap();
            disk.json(disk.json(&digest)["config"]["digest"].as_str().unwrap())
        });
        if ours.clone().unwrap_or_default() != theirs {
            wrong.push(format!("{document:?}: Helm has {theirs}, and pack {ours:?}{}", testing::pack::text(&output.stderr)));
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), documents.len(), wrong.join("\n"));
}
