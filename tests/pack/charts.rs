//! Helm charts as sources. What Helm requires of a chart in a registry is in its `pkg/registry` (`constants.go`, `client.go`): these media
//! types, a config with the chart's metadata, and the version as the tag, with `_` for `+`. `tests/clients/charts.rs` pulls with Helm.

use serde_json::{Value, json};
use tar::EntryType;
use testing::layout::content;
use testing::pack::{Bench, archive, gzip};

const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const PACKAGE: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
const PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";

const METADATA: &str = "\
apiVersion: v2
name: web
version: 1.2.3-rc.1+build.5
# A number, where Helm takes text.
appVersion: 1.16
description: A \"web\" server & more — fast
sources: ['https://example.test/git', other]
type: application
deprecated: yes
keywords: [a, 'b']
home: null
annotations:
  example.test/number: 7
  example.test/null: null
  org.opencontainers.image.version: '9'
  org.opencontainers.image.url: https://example.test
maintainers:
  - name: Anna
    email: anna@example.test
  - name: B
dependencies:
  - name: db
    version: ~4.5
    repository: oci://registry.test/charts
    import-values: [data, {child: a, parent: b}]
unknown: {is: dropped}
";

fn package(members: &[(&str, &[u8])]) -> Vec<u8> {
    let members: Vec<_> = members.iter().map(|(name, content)| (*name, EntryType::Regular, *content)).collect();
    gzip(&archive(&members))
}

fn chart(metadata: &str) -> Vec<u8> {
    package(&[
        ("web/Chart.yaml", metadata.as_bytes()),
        ("web/values.yaml", b"a: 1\n"),
        ("web/charts/db/Chart.yaml", b"name: db\n"),
    ])
}

#[test]
fn charts_are_packed_as_helm_pushes_them() {
    let bench = Bench::default();
    let package = chart(METADATA);
    bench.file("web.tgz", &package);
    bench.pack(&["--chart", "web.tgz"]);
    let disk = bench.extract("disk.erofs");
    let [(name, digest)] = disk.images().try_into().unwrap();
    assert_eq!(name, "web:1.2.3-rc.1_build.5");
    let manifest = disk.json(&digest);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest.get("artifactType"), None, "Helm writes none, and the config's type says it");
    let blob = |descriptor: &Value, kind: &str| {
        let content = disk.blob(descriptor["digest"].as_str().unwrap());
        assert_eq!((&descriptor["mediaType"], &descriptor["size"]), (&json!(kind), &json!(content.len())));
        content.to_owned()
    };
    let config: Value = serde_json::from_slice(&blob(&manifest["config"], CONFIG)).unwrap();
    assert_eq!(
        config,
        json!({
            "apiVersion": "v2", "name": "web", "version": "1.2.3-rc.1+build.5", "appVersion": "1.16",
            "description": "A \"web\" server & more — fast", "type": "application", "deprecated": true, "keywords": ["a", "b"],
            "sources": ["https://example.test/git", "other"],
            "annotations": {
                "example.test/null": "", "example.test/number": "7", "org.opencontainers.image.url": "https://example.test",
                "org.opencontainers.image.version": "9",
            },
            "maintainers": [{"name": "Anna", "email": "anna@example.test"}, {"name": "B"}],
            "dependencies": [{
                "name": "db", "version": "~4.5", "repository": "oci://registry.test/charts",
                "import-values": ["data", {"child": "a", "parent": "b"}],
            }],
        })
    );
    // The independent computation is in `tests/clients/charts.rs`: Helm pushes the same.
    assert_eq!(
        manifest["annotations"],
        json!({
            "org.opencontainers.image.title": "web", "org.opencontainers.image.version": "1.2.3-rc.1+build.5",
            "org.opencontainers.image.description": "A \"web\" server & more — fast",
            "org.opencontainers.image.authors": "Anna (anna@example.test), B",
            "org.opencontainers.image.source": "https://example.test/git", "org.opencontainers.image.url": "https://example.test",
            "example.test/null": "", "example.test/number": "7",
        })
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(blob(&manifest["layers"][0], PACKAGE), package);

    // With the provenance beside it, and the registry's answer to a client that asks for the version.
    bench.file("web.tgz.prov", b"signed");
    bench.pack(&["--chart", "charts/web=web.tgz"]);
    let disk = bench.extract("disk.erofs");
    let [(name, digest)] = disk.images().try_into().unwrap();
    assert_eq!(name, "charts/web:1.2.3-rc.1_build.5");
    let layers = disk.json(&digest)["layers"].clone();
    assert_eq!((&layers[1]["mediaType"], layers[2].is_null()), (&json!(PROVENANCE), true));
    assert_eq!(disk.blob(layers[1]["digest"].as_str().unwrap()), b"signed");
    let served = testing::http::get(bench.serve().plain, "/v2/charts/web/manifests/1.2.3-rc.1_build.5");
    assert_eq!(served.header("docker-content-digest"), Some(digest.as_str()));
}

#[test]
fn charts_are_named_by_the_command_line_and_lists() {
    let bench = Bench::default();
    bench.file("web.tgz", &chart("apiVersion: v2\nname: web\nversion: 1.0.0\n"));
    bench.file("a=b.tgz", &chart("apiVersion: v2\nname: other\nversion: v2\n"));
    let names = |arguments: &[&str]| {
        bench.pack(arguments);
        bench.extract("disk.erofs").names()
    };
    assert_eq!(names(&["--chart", "web.tgz", "--chart", "./a=b.tgz"]), ["other:v2", "web:1.0.0"]);
    assert_eq!(names(&["--chart", "ghcr.io/org/charts/web=web.tgz"]), ["ghcr.io/org/charts/web:1.0.0"]);
    // Helm asks for the version, so the tag for all images is not for charts; one for this chart is.
    assert_eq!(names(&["--chart", "web.tgz", "--tag", "v9", "--upstream", "quay.io"]), ["quay.io/web:1.0.0"]);
    assert_eq!(names(&["--chart", "charts/web:latest=web.tgz"]), ["charts/web:latest"]);
    bench.file("list", b"images { chart: \"web.tgz\" } images { repository: \"charts/web\" chart: \"web.tgz\" }");
    assert_eq!(names(&["--spec", "list"]), ["charts/web:1.0.0", "web:1.0.0"]);
    // The same content in the same bytes.
    let disk = std::fs::read(bench.path("disk.erofs")).unwrap();
    bench.pack(&["--chart", "charts/web=web.tgz", "--chart", "web.tgz"]);
    assert!(std::fs::read(bench.path("disk.erofs")).unwrap() == disk);
}

/// Behind the end of the tar archive and of its gzip member, as Helm, which reads no further.
#[test]
fn what_is_behind_a_chart_is_ignored() {
    let bench = Bench::default();
    let whole = chart(METADATA);
    let plain = archive(&[("web\\Chart.yaml", EntryType::Regular, METADATA.as_bytes())]);
    let (first, second) = plain.split_at(700);
    for content in [
        [&whole[..], &[0; 512]].concat(),
        [&whole[..], b"junk"].concat(),
        [&whole[..], b"\x1f\x8b damaged"].concat(),
        [gzip(first), gzip(second), b"junk".to_vec()].concat(),
    ] {
        bench.file("web.tgz", &content);
        bench.pack(&["--chart", "web.tgz"]);
        let disk = bench.extract("disk.erofs");
        let [(_, digest)] = disk.images().try_into().unwrap();
        assert!(disk.blob(disk.json(&digest)["layers"][0]["digest"].as_str().unwrap()) == content);
    }
    bench.file("web.tgz", &[gzip(first), b"junk".to_vec(), gzip(second)].concat());
    let no_chart = "it is no Helm chart: a tar archive compressed with gzip is expected, as helm package writes it";
    bench.refused(&["--chart", "web.tgz"], &format!("cannot pack web.tgz: {no_chart}: invalid gzip header"));
}

#[test]
fn members_that_helm_does_not_load_are_refused() {
    let bench = Bench::default();
    let refused = |content: &[u8], name: &str, fault: &str| {
        bench.file("web.tgz", content);
        let fault = format!("its member {name:?} {fault}, and Helm does not load such a chart");
        bench.refused(&["--chart", "web.tgz"], &format!("cannot pack web.tgz: {fault}"));
    };
    let metadata = b"name: web\nversion: 1.0.0\n";
    for (name, fault) in [
        ("web/../../x", "leads out of the chart's folder"),
        ("web\\a\\..\\..\\x", "leads out of the chart's folder"),
        ("web/..x", "leads out of the chart's folder"),
        ("web//x", "has an absolute path"),
        ("x", "is in no folder"),
        ("web/a/..", "is in no folder"),
        ("web/c:/x", "is on a drive"),
    ] {
        refused(&package(&[("web/Chart.yaml", metadata), (name, b"")]), name, fault);
    }
    // By its long name, in both forms.
    let long = format!("web/{}/../../../x", "a".repeat(200));
    let record = format!("path={long}\n");
    let record = format!("{} {record}", record.len() + 4);
    for (kind, header) in [(EntryType::GNULongName, format!("{long}\0")), (EntryType::XHeader, record)] {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in [
            ("web/Chart.yaml", EntryType::Regular, &metadata[..]),
            ("h", kind, header.as_bytes()),
            ("web/x", EntryType::Regular, b""),
        ] {
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        refused(&gzip(&builder.into_inner().unwrap()), &long, "leads out of the chart's folder");
    }
    bench.file("web.tgz", &package(&[("web/Chart.yaml", metadata), ("web/large", &content((5 << 20) + 1))]));
    bench.refused(
        &["--chart", "web.tgz"],
        "cannot pack web.tgz: web/large has 5242881 bytes; Helm loads files of at most 5242880",
    );
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_size((1 << 20) + 1);
    header.set_cksum();
    bench.file("web.tgz", &gzip(&[&header.as_bytes()[..], &[b' '; 3 << 19]].concat()));
    let no_chart = "it is no Helm chart: a tar archive compressed with gzip is expected, as helm package writes it";
    bench.refused(
        &["--chart", "web.tgz"],
        &format!("cannot pack web.tgz: {no_chart}: a header has 1048577 bytes; Helm reads at most 1048576"),
    );
    // Folders, and paths that stay inside.
    let members = [
        ("web", EntryType::Directory, &b""[..]),
        ("web/./Chart.yaml", EntryType::Regular, metadata),
        ("web/a/../x", EntryType::Regular, b""),
        ("web\\y", EntryType::Regular, b""),
    ];
    bench.file("web.tgz", &gzip(&archive(&members)));
    bench.pack(&["--chart", "web.tgz"]);
    assert_eq!(bench.extract("disk.erofs").names(), ["web:1.0.0"]);
}

#[test]
fn what_is_no_chart_is_refused() {
    let bench = Bench::default();
    let refused = |content: &[u8], message: &str| {
        bench.file("web.tgz", content);
        bench.refused(&["--chart", "web.tgz"], &format!("cannot pack web.tgz: {message}"));
    };
    let no_chart = "it is no Helm chart: a tar archive compressed with gzip is expected, as helm package writes it";
    refused(b"a chart, it says", &format!("{no_chart}: invalid gzip header"));
    refused(&archive(&[("web/Chart.yaml", EntryType::Regular, b"name: web")]), &format!("{no_chart}: invalid gzip header"));
    let whole = chart(METADATA);
    refused(&whole[..whole.len() - 9], &format!("{no_chart}: incomplete deflate stream"));
    // In the checksum behind the archive.
    refused(&whole[..whole.len() - 4], &format!("{no_chart}: unexpected end of file"));
    let none = "it has no Chart.yaml in a folder; the package of a Helm chart is expected, as helm package writes it";
    refused(&package(&[("Chart.yaml", b"name: web"), ("a/b/Chart.yaml", b"name: web")]), none);
    refused(
        &package(&[("a/Chart.yaml", b"name: a"), ("b/Chart.yaml", b"name: b")]),
        "it has a/Chart.yaml and b/Chart.yaml; one chart is expected",
    );
    let large = content((5 << 20) + 1);
    refused(&package(&[("web/Chart.yaml", &large)]), "web/Chart.yaml has 5242881 bytes; Helm loads files of at most 5242880");
    refused(&gzip(&vec![0; (100 << 20) + 512]), "it unpacks to more than 104857600 bytes, which Helm does not load");

    let metadata = |yaml: &str, message: &str| refused(&chart(yaml), &format!("web/Chart.yaml{message}"));
    let grammar = "a repository name has lower-case letters and digits, joined by one of . _ __ - and split by /";
    metadata(
        "name: myWeb\nversion: 1.0.0\n",
        &format!(": the chart's name \"myWeb\" makes no repository; give it one with --chart REPOSITORY=FILE: {grammar}"),
    );
    let long = format!("1.0.0-{}", "x".repeat(128));
    metadata(
        &format!("name: web\nversion: {long}\n"),
        &format!(
            ": the version {long:?} makes no tag: a tag has at most 128 letters, digits and _ . -, and starts with none of . -"
        ),
    );
    // What `NewVersion` of Masterminds/semver refuses.
    for wrong in ["1.0.0 beta", "latest", "0x10", "1e3", "1.2.3_1", "1.2.3+", "1.2.3-", "1.2.3+a_b", "1.2.3.4", "1..3", "v", "-1"]
    {
        metadata(
            &format!("name: web\nversion: {wrong:?}\n"),
            &format!(
                " is not the metadata of a chart: the version {wrong:?} is not MAJOR.MINOR.PATCH of Semantic Versioning, which Helm \
                 wants"
            ),
        );
    }
    metadata(
        "name: web\nversion: 99999999999999999999.1.1\n",
        " is not the metadata of a chart: the version \"99999999999999999999.1.1\" is not MAJOR.MINOR.PATCH of Semantic Versioning, \
         which Helm wants",
    );
    for empty in ["name: ''\n", "name: null\n", ""] {
        metadata(&format!("{empty}version: 1.0.0\n"), " is not the metadata of a chart: the name is empty");
    }
    metadata(
        "name: team/web\nversion: 1.0.0\n",
        " is not the metadata of a chart: the name \"team/web\" has a slash, which Helm does not load",
    );
    refused(
        &package(&[("web/Chart.yaml", b"name: web\nversion: 1.0.0\ndescription: caf\xe9\n")]),
        "web/Chart.yaml is not the metadata of a chart: it cannot be read as YAML: line 3 is not UTF-8; save the file as UTF-8",
    );
    metadata("name: web\nversion: null\n", " is not the metadata of a chart: the version is empty");
    let judged = |yaml: &str, fault: &str| metadata(yaml, &format!(" is not the metadata of a chart: {fault}"));
    judged("name: web\n", "the version is empty");
    judged("version: 1.0.0\n", "the name is empty");
    judged("", "the name is empty");
    judged("- web\n", "it is a list; a map of fields is expected");
    judged(
        "name: [\n",
        "it cannot be read as YAML in line 1, column 7; check the indentation, quotes, brackets and aliases there",
    );
    judged(
        "name: web\n\tversion: 1\n",
        "it cannot be read as YAML in line 1, column 7; check the indentation, quotes, brackets and aliases there",
    );
    judged("name: \"\\u200b\"\nversion: 1.0.0\n", "the name is empty");
    judged("name: ..\nversion: 1.0.0\n", "the name \"..\" is a folder's, which Helm does not load");
    let further = |line: &str, fault: &str| judged(&format!("name: web\nversion: 1.0.0\n{line}\n"), fault);
    further("keywords: {a: b}", "keywords is a map; a list of texts is expected");
    further("keywords: [[b]]", "keywords has an item of another kind; a list of texts is expected");
    further("maintainers: Anna", "maintainers is text; a list of maps with texts is expected");
    further("maintainers: [Anna]", "maintainers has an item that is text; a map is expected");
    further("deprecated: 'yes'", "deprecated is text; true or false is expected");
    further("home: [a]", "home is a list; text is expected");
    further("type: plugin", "the type is \"plugin\"; application or library is expected");
    further("maintainers: [~]", "maintainers has an empty item; remove it");
    further("dependencies: [~]", "dependencies has an empty item; remove it");
    let twice = "two dependencies have the name or alias \"db\"; give one of them another alias";
    further("dependencies: [{name: db}, {name: db}]", twice);
    further("dependencies: [{name: db}, {name: other, alias: db}]", twice);
    further("dependencies: [{name: db}, {name: \"d\\u200bb\"}]", twice);
    further(
        "dependencies: [{name: db, alias: a.b}]",
        "the dependency \"db\" has the alias \"a.b\"; an alias has only letters, digits, underscores and hyphens",
    );
    // The messages of the YAML library are for its users.
    let deep = format!("home: {}{}", "[".repeat(3000), "]".repeat(3000));
    let mut bomb = "a: &a0 [x]\n".to_owned();
    (0..40).for_each(|n| bomb.push_str(&format!("b{n}: &a{} [{}]\n", n + 1, format!("*a{n},").repeat(9))));
    for (yaml, fault) in [
        (deep, "cannot be read as YAML in line 3, column 262; check "),
        (bomb, "cannot be read as YAML in line 9, column 10; check "),
    ] {
        bench.file("web.tgz", &chart(&format!("name: web\nversion: 1.0.0\n{yaml}\n")));
        let output = bench.command(&["--quiet", "pack", "--chart", "web.tgz", "-o", "disk"]).output().unwrap();
        let said = testing::pack::text(&output.stderr);
        let start = "localregistry: cannot pack web.tgz: web/Chart.yaml is not the metadata of a chart: it";
        assert!(said.starts_with(start) && said.contains(fault) && said.lines().count() == 1, "{said}");
        assert_eq!((output.status.code(), bench.path("disk").exists()), (Some(1), false));
    }
    // A provenance that is a link to nowhere was meant to be there.
    bench.file("web.tgz", &whole);
    std::os::unix::fs::symlink("elsewhere.prov", bench.path("web.tgz.prov")).unwrap();
    bench.refused(
        &["--chart", "web.tgz"],
        "cannot pack web.tgz: cannot read its provenance web.tgz.prov: it is a symbolic link to elsewhere.prov, which does not exist",
    );
    std::fs::remove_file(bench.path("web.tgz.prov")).unwrap();
    bench.refused(&["--chart", "none.tgz"], "cannot pack none.tgz: cannot read it: No such file or directory (os error 2)");
    bench.file("web.tgz", &chart("name: myWeb\nversion: 1.0.0\n"));
    bench.pack(&["--chart", "my/web=web.tgz"]);
    let disk = bench.extract("disk.erofs");
    let [(name, digest)] = disk.images().try_into().unwrap();
    assert_eq!(name, "my/web:1.0.0");
    let config = disk.json(&digest)["config"]["digest"].as_str().unwrap().to_owned();
    // As Helm's loader: a chart without an API version is one of the first.
    assert_eq!(disk.json(&config), json!({"name": "myWeb", "version": "1.0.0", "apiVersion": "v1"}));
}
