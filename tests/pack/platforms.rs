//! `pack --platform` keeps the index of an image with its digest, and leaves out its manifests for other platforms on purpose: from every
//! source, in the catalog, in the server's answers, and in what `inspect`, `diff` and a second `pack` make of the disk.

use std::collections::BTreeSet;
use std::fs;

use localregistry::disk::catalog::{self, Catalog};
use localregistry::oci::media_type;
use serde_json::{Value, json};
use tar::EntryType;
use testing::http::{get, head};
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, Extracted, archive_of, blob, gzip, text};
use testing::serve::Serving;
use testing::server::Server;

use super::selection::{Signed, referrers, signed};

fn platform(stored: Stored, media_type: &str, os: &str, architecture: &str) -> Value {
    let mut descriptor = stored.descriptor(media_type);
    descriptor["platform"] = json!({"os": os, "architecture": architecture});
    descriptor
}

/// The paths of the blobs on a disk.
fn blobs(disk: &Extracted) -> BTreeSet<String> {
    disk.files.keys().filter(|path| path.starts_with("blobs/")).cloned().collect()
}

/// Every path of a blob in the layout that belongs to the image without its arm64 manifest.
fn expected(signed: &Signed) -> BTreeSet<String> {
    let folder = signed.layout.path();
    let all = fs::read_dir(folder.join("blobs/sha256")).unwrap();
    let all = all.map(|entry| format!("blobs/sha256/{}", entry.unwrap().file_name().into_string().unwrap()));
    let read = |digest: &Value| -> Value {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        serde_json::from_slice(&fs::read(folder.join("blobs/sha256").join(hex)).unwrap()).unwrap()
    };
    let index = read(&json!(signed.index.digest.to_string()));
    let attested = index["manifests"][2]["digest"].clone();
    let attested_path = format!("blobs/sha256/{}", attested.as_str().unwrap().strip_prefix("sha256:").unwrap());
    let gone = [signed.arm64.digest.blob_path(), blob(b"arm64"), attested_path, blob(b"attested arm64")];
    all.filter(|path| !gone.contains(path)).collect()
}

#[test]
fn every_source_keeps_the_index_and_the_same_content() {
    let bench = Bench::default();
    let signed = signed();
    let folder = bench.layout("layout", &signed.layout);
    bench.file("layout.tar", &archive_of(&folder));
    bench.file("layout.tar.gz", &gzip(&archive_of(&folder)));
    // docker save of Docker 25 and later: an image layout with a manifest.json beside it.
    let mut saved = tar::Builder::new(Vec::new());
    saved.append_dir_all(".", &folder).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(2);
    header.set_entry_type(EntryType::Regular);
    saved.append_data(&mut header, "manifest.json", &b"[]"[..]).unwrap();
    bench.file("saved.tar", &saved.into_inner().unwrap());
    bench.file("list.textproto", b"images { path: 'layout' platform: 'linux/amd64' }");
    let serving = Serving::start(&folder, tempfile::tempdir().unwrap(), &["--tls", "off"]);
    let pulled = format!("{}/test/multi:1", serving.address());

    let mut disks = BTreeSet::new();
    for arguments in [
        &["layout", "--platform", "linux/amd64"][..],
        &["layout.tar", "--platform", "linux/amd64"],
        &["layout.tar.gz", "--platform", "linux/amd64"],
        &["saved.tar", "--platform", "linux/amd64"],
        &["--name", "test/multi=layout", "--platform", "linux/amd64"],
        &["--spec", "list.textproto"],
        &["--spec", "list.textproto", "--platform", "linux/arm64", "--flatten"],
        &["--pull", &pulled, "--platform", "linux/amd64"],
    ] {
        bench.pack(arguments);
        let disk = bench.extract("disk.erofs");
        disk.assert_blobs();
        assert_eq!(blobs(&disk), expected(&signed), "{arguments:?}");
        let (name, digest) = disk.images().remove(0);
        assert!(name.ends_with("test/multi:1") && digest == signed.index.digest.to_string(), "{name} {digest}");
        assert!(disk.blob(&digest) == fs::read(folder.join(signed.index.digest.blob_path())).unwrap(), "{arguments:?}");
        if !arguments.contains(&"--pull") {
            disks.insert(fs::read(bench.path("disk.erofs")).unwrap());
            let folder = bench.path("disk.erofs.extracted");
            let found = [signed.index, signed.amd64, signed.of_index, signed.arm64].map(|to| referrers(&folder, to));
            assert_eq!(found, [1, 1, 1, 0], "{arguments:?}");
        }
    }
    assert_eq!(disks.len(), 1, "the same disk from every source");
}

#[test]
fn signatures_of_what_is_left_out_stay_behind() {
    let bench = Bench::default();
    let Signed { mut layout, index, amd64, arm64, .. } = signed();
    let tag = |of: Stored| format!("test/multi:sha256-{}.sig", of.digest.hex());
    for of in [index, amd64, arm64] {
        let signature = layout.manifest(&[of.digest.hex().as_bytes()]);
        layout.name(signature, media_type::OCI_MANIFEST, &tag(of));
    }
    let of_arm64 = layout.artifact("application/vnd.test.signature", arm64, b"of arm64");
    let on_top = layout.artifact("application/vnd.test.note", of_arm64, b"of the signature of arm64");
    layout.name(on_top, media_type::OCI_MANIFEST, "").name(of_arm64, media_type::OCI_MANIFEST, "");
    // oras and zot list every manifest of an index beside it.
    layout.name(amd64, media_type::OCI_MANIFEST, "").name(arm64, media_type::OCI_MANIFEST, "");
    let folder = bench.layout("layout", &layout);
    let serving = Serving::start(&folder, tempfile::tempdir().unwrap(), &["--tls", "off"]);
    let pulled = format!("{}/test/multi:1", serving.address());
    for source in [&["layout"][..], &["--pull", &pulled]] {
        bench.pack(&[source, &["--platform", "linux/amd64"]].concat());
        let disk = bench.extract("disk.erofs");
        let names = disk.names().join(" ");
        assert!(names.contains(&tag(index)) && names.contains(&tag(amd64)) && !names.contains(&tag(arm64)), "{names}");
        for gone in [arm64, of_arm64, on_top] {
            assert!(!blobs(&disk).contains(&gone.digest.blob_path()));
        }
    }
    drop(serving);
    let Signed { mut layout, index, amd64, .. } = signed();
    let of_amd64 = layout.manifest(&[b"signed"]);
    layout.name(of_amd64, media_type::OCI_MANIFEST, &tag(amd64)).name(index, media_type::OCI_INDEX, "test/multi:2");
    bench.layout("other", &layout);
    bench.pack(&["other", "--platform", "linux/arm64"]);
    let names = bench.extract("disk.erofs").names();
    assert!(names.contains(&"test/multi:2".to_owned()) && !names.contains(&tag(amd64)), "{names:?}");
}

#[test]
fn server_names_the_platform_that_is_left_out() {
    let bench = Bench::default();
    let signed = signed();
    let folder = bench.layout("layout", &signed.layout);
    let output = bench.command(&["pack", "layout", "--platform", "linux/amd64", "--json", "-o", "disk.erofs"]).output().unwrap();
    assert!(output.status.success());
    let line = "image test/multi:1: linux/amd64 is kept, and left out: linux/arm64, 1 attestation\n";
    assert!(text(&output.stderr).contains(line), "{}", text(&output.stderr));
    let packed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let one = json!({"image": "test/multi:1", "platform": "linux/amd64", "left_out": ["linux/arm64", "1 attestation"]});
    assert_eq!(packed["left_out"], json!([one]));

    bench.extract("disk.erofs");
    let serving = Serving::start(
        &bench.path("disk.erofs.extracted"),
        tempfile::tempdir().unwrap(),
        &["--tls", "off", "--events", bench.path("events").to_str().unwrap()],
    );
    let address = serving.address().parse().unwrap();
    let index = fs::read(folder.join(signed.index.digest.blob_path())).unwrap();
    for reference in ["1".to_owned(), signed.index.digest.to_string()] {
        let response = get(address, &format!("/v2/test/multi/manifests/{reference}"));
        assert_eq!((response.status, response.body == index), (200, true), "{reference}");
        assert_eq!(response.header("docker-content-digest"), Some(signed.index.digest.to_string().as_str()));
    }
    assert_eq!(get(address, &format!("/v2/test/multi/manifests/{}", signed.amd64.digest)).status, 200);
    let target = format!("/v2/test/multi/manifests/{}", signed.arm64.digest);
    let refused = get(address, &target);
    let error = refused.json()["errors"][0].clone();
    assert_eq!((refused.status, &error["code"]), (404, &json!("MANIFEST_UNKNOWN")));
    let detail = format!(
        "no manifest {} in test/multi: it is for linux/arm64, which was left out when the disk was packed",
        signed.arm64.digest
    );
    assert_eq!(error["detail"], detail);
    assert_eq!(head(address, &target).status, 404);
    // As a blob, too, and in a repository that has never had it there is no word about it.
    assert_eq!(get(address, &target.replace("manifests", "blobs")).code(), "BLOB_UNKNOWN");
    let unrelated = get(address, &format!("/v2/test/multi/manifests/sha256:{}", "0".repeat(64))).json();
    assert!(!unrelated.to_string().contains("left out"), "{unrelated}");

    // The log is complete when the server has ended.
    drop(serving);
    let log = bench.path("events");
    let events: Vec<Value> = fs::read_to_string(&log).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = |reference: &str, method: &str| {
        let request = |event: &&Value| event["request"]["reference"] == reference && event["request"]["method"] == method;
        events.iter().find(request).map(|event| event["request"]["leftOut"].clone())
    };
    let arm64 = signed.arm64.digest.to_string();
    assert_eq!([found(&arm64, "GET"), found(&arm64, "HEAD")], [Some(json!("linux/arm64")), Some(json!("linux/arm64"))]);
    assert_eq!(found("1", "GET"), Some(Value::Null));
    let table = bench.command(&["events", "events"]).output().unwrap();
    let table = text(&table.stdout);
    let lines = table.lines().filter(|line| line.ends_with(" (linux/arm64 was left out)"));
    assert!(lines.clone().count() == 2 && lines.clone().all(|line| line.contains("test/multi@sha256:")), "{table}");
}

#[test]
fn several_platforms_are_kept() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let images = ["amd64", "arm64", "s390x"].map(|name| layout.manifest(&[name.as_bytes()]));
    let [amd64, arm64, s390x] = images;
    // A Docker manifest list, an index in an index, and a manifest whose platform only its config says.
    let list = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_INDEX,
        "manifests": [platform(arm64, media_type::DOCKER_MANIFEST, "linux", "arm64")],
    }));
    let outer = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [
            amd64.descriptor(media_type::OCI_MANIFEST), list.descriptor(media_type::DOCKER_INDEX),
            platform(s390x, media_type::OCI_MANIFEST, "linux", "s390x"),
        ],
    }));
    layout.name(outer, media_type::OCI_INDEX, "test/nested:1");
    let folder = bench.layout("layout", &layout);
    bench.file("list.textproto", b"images { path: 'layout' platform: ['linux/amd64', 'linux/arm64'] }");
    let serving = Serving::start(&folder, tempfile::tempdir().unwrap(), &["--tls", "off"]);
    let pulled = format!("{}/test/nested:1", serving.address());
    for (arguments, kept) in [
        (&["layout", "--platform", "linux/amd64,linux/arm64"][..], [true, true, false]),
        (&["layout", "--platform", "linux/arm64", "--platform", "linux/amd64"], [true, true, false]),
        (&["--spec", "list.textproto"], [true, true, false]),
        (&["--pull", &pulled, "--platform", "linux/arm64,linux/amd64"], [true, true, false]),
        (&["layout", "--platform", "linux/amd64"], [true, false, false]),
        (&["--pull", &pulled, "--platform", "linux/amd64"], [true, false, false]),
        (&["layout", "--platform", "linux/s390x"], [false, false, true]),
    ] {
        bench.pack(arguments);
        let disk = bench.extract("disk.erofs");
        let found = images.map(|image| disk.files.contains_key(&image.digest.blob_path()));
        assert_eq!(found, kept, "{arguments:?}");
        assert!(disk.files.contains_key(&list.digest.blob_path()), "an index of other platforms explains what is left out");
        assert_eq!(disk.images()[0].1, outer.digest.to_string());
        let verified = bench.command(&["inspect", "disk.erofs", "--verify"]).output().unwrap();
        assert!(verified.status.success(), "{arguments:?}: {}", text(&verified.stderr));
    }
    // Each of the platforms must be there.
    bench.refused(
        &["layout", "--platform", "linux/amd64,linux/ppc64le"],
        "cannot pack layout: image test/nested:1 has nothing for linux/ppc64le, only for linux/amd64, linux/arm64, linux/s390x",
    );
    bench.refused(
        &["--pull", &pulled, "--platform", "linux/amd64,linux/ppc64le"],
        &format!(
            "cannot pull {pulled}: the image has no manifest for linux/ppc64le, only for linux/amd64, linux/arm64, linux/s390x"
        ),
    );
    // Flattened, there is one.
    for (arguments, message) in [
        (&["--platform", "linux/amd64,linux/arm64", "--flatten"][..], "cannot be used with several platforms"),
        (&["--flatten"], "required arguments were not provided"),
        (&["--platform", "linux/amd64,"], "a platform has the form"),
    ] {
        let output = bench.command(&[&["pack", "layout", "-o", "other"], arguments].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(message), "{arguments:?}: {said}");
        assert!(!bench.path("other").exists());
    }
    for (entry, message) in [
        ("path: 'layout' flatten: true", "flatten goes with one platform, and the entry has 0"),
        ("path: 'layout' flatten: true platform: 'a/b' platform: 'c/d'", "flatten goes with one platform, and the entry has 2"),
    ] {
        bench.file("bad.textproto", format!("images {{ {entry} }}").as_bytes());
        bench.refused(&["--spec", "bad.textproto"], &format!("bad.textproto:1:1: {message}"));
    }
}

#[test]
fn sources_that_lack_what_is_left_out_pack_without_allow_missing() {
    let bench = Bench::default();
    let Signed { layout, index, amd64, arm64, .. } = signed();
    let [partial, other] = ["partial", "other"].map(|name| bench.layout(name, &layout));
    // Copies of one platform each, as the image stores of Docker and containerd export them.
    for path in [arm64.digest.blob_path(), blob(b"arm64")] {
        fs::remove_file(partial.join(path)).unwrap();
    }
    for path in [amd64.digest.blob_path(), blob(b"amd64")] {
        fs::remove_file(other.join(path)).unwrap();
    }
    bench.pack(&["partial", "--platform", "linux/amd64"]);
    let disk = bench.extract("disk.erofs");
    let held = |disk: &Extracted| [amd64, arm64].map(|image| disk.files.contains_key(&image.digest.blob_path()));
    assert_eq!(held(&disk), [true, false]);
    // Two such copies make the whole image, under one name and under two.
    let list = |second: &str| {
        format!(
            "images {{ path: 'partial' platform: 'linux/amd64' }} images {{ path: 'other' platform: 'linux/arm64' {second} }}"
        )
    };
    for second in ["", "name: 'test/second'", "repository: 'test/second' tag: '2'"] {
        bench.file("list.textproto", list(second).as_bytes());
        bench.pack(&["--spec", "list.textproto"]);
        let disk = bench.extract("disk.erofs");
        disk.assert_blobs();
        assert_eq!(held(&disk), [true, true], "{second}");
        assert!(!text(&disk.files["index.json"]).contains("left-out"), "{second}");
        let server = Server::start(&bench.path("disk.erofs.extracted"));
        for image in [index, amd64, arm64] {
            assert_eq!(get(server.plain, &format!("/v2/test/multi/manifests/{}", image.digest)).status, 200, "{second}");
        }
    }
}

#[test]
fn inspect_and_diff_understand_what_is_left_out() {
    let bench = Bench::default();
    let signed = signed();
    bench.layout("layout", &signed.layout);
    bench.pack(&["layout", "--platform", "linux/amd64"]);
    fs::rename(bench.path("disk.erofs"), bench.path("sparse.erofs")).unwrap();
    bench.pack(&["layout"]);

    let inspect = |disk: &str, flags: &[&str]| {
        let output = bench.command(&[&["-q", "inspect", disk, "--verify"], flags].concat()).output().unwrap();
        (output.status.code(), text(&output.stderr), text(&output.stdout))
    };
    let (code, said, found) = inspect("sparse.erofs", &["--json", "--export", "exported"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let found: Value = serde_json::from_str(&found).unwrap();
    let image = found["images"].as_array().unwrap().iter().find(|image| image["tag"] == "1").unwrap();
    assert_eq!(image["platforms"], json!(["linux/amd64"]));
    let left_out = image["left_out"].as_array().unwrap();
    assert_eq!(
        left_out[0],
        json!({"digest": signed.arm64.digest.to_string(), "bytes": signed.arm64.size, "platform": "linux/arm64"})
    );
    assert_eq!((left_out.len(), &left_out[1]["platform"]), (2, &json!("unknown/unknown")));
    assert_eq!((&found["totals"]["left_out"], &found["faults"]), (&json!(2), &json!([])));
    let (_, _, table) = inspect("sparse.erofs", &[]);
    assert!(
        table.contains("  linux/amd64, without linux/arm64  ") && table.contains("\nleft out on purpose: 2 blobs\n"),
        "{table}"
    );
    assert_eq!(found["totals"]["blobs"], json!(expected(&signed).len()));

    // The exported layout says what it lacks: it is served, and packed into the same disk.
    bench.pack(&["exported"]);
    assert!(fs::read(bench.path("disk.erofs")).unwrap() == fs::read(bench.path("sparse.erofs")).unwrap());
    let server = Server::start(&bench.path("exported"));
    let refused = get(server.plain, &format!("/v2/test/multi/manifests/{}", signed.arm64.digest)).json();
    assert!(refused.to_string().contains("linux/arm64, which was left out"), "{refused}");
    drop(server);
    bench.refused(
        &["exported", "--platform", "linux/arm64"],
        "cannot pack exported: image test/multi:1 has nothing for linux/arm64, only for linux/amd64",
    );
    assert_eq!(inspect("exported", &[]).0, Some(0));

    // Images of one digest differ if one has more of its platforms.
    fs::rename(bench.path("sparse.erofs"), bench.path("disk.erofs")).unwrap();
    bench.command(&["-q", "pack", "layout", "-o", "whole.erofs"]).output().unwrap();
    for (a, b, code) in [
        ("disk.erofs", "exported", 0),
        ("disk.erofs", "whole.erofs", 1),
        ("whole.erofs", "disk.erofs", 1),
        ("layout", "whole.erofs", 0),
    ] {
        let output = bench.command(&["-q", "diff", a, b, "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{a} {b}: {}", text(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        if code == 1 {
            let (digest, change) = (signed.index.digest.to_string(), &found["changed"][0]);
            assert_eq!([&change["name"], &change["from"], &change["to"]], ["test/multi:1", &digest, &digest]);
            let (more, less) =
                if a == "whole.erofs" { ("layers_removed", "layers_added") } else { ("layers_added", "layers_removed") };
            assert_eq!((change[more].as_array().unwrap().len(), change[less].as_array().unwrap().len()), (2, 0));
            assert_eq!(found["changed"].as_array().unwrap().len(), 1);
        }
    }

    // What is kept must still be there, on a disk and in a layout.
    fs::remove_file(bench.path("exported").join(signed.amd64.digest.blob_path())).unwrap();
    let (code, said, _) = inspect("exported", &[]);
    assert!(code == Some(1) && said.contains(&format!("blob {} is missing", signed.amd64.digest)), "{said}");
    let output = bench.command(&["-q", "pack", "exported", "-o", "other"]).output().unwrap();
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("something that an image names is missing"));
}

/// A copy of the whole image under another name, as skopeo adds it to an exported layout, makes the image whole.
#[test]
fn whole_copy_in_a_layout_makes_the_image_whole() {
    let bench = Bench::default();
    let Signed { mut layout, index, arm64, .. } = signed();
    layout.name(index, media_type::OCI_INDEX, "test/multi:2");
    let folder = bench.layout("layout", &layout);
    let mut json: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    json["manifests"][0]["annotations"]["localregistry.left-out"] = json!(arm64.digest.to_string());
    fs::write(folder.join("index.json"), json.to_string()).unwrap();
    bench.pack(&["layout"]);
    assert!(bench.extract("disk.erofs").files.contains_key(&arm64.digest.blob_path()));
}

#[test]
fn content_missing_on_purpose_is_no_fault() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let image = layout.image("test/hello:1", b"a layer");
    let folder = bench.layout("layout", &layout);
    fs::remove_file(folder.join(blob(b"a layer"))).unwrap();
    bench.command(&["-q", "pack", "layout", "--allow-missing", "-o", "disk.erofs"]).output().unwrap();
    let output = bench.command(&["-q", "inspect", "disk.erofs", "--verify", "--export", "exported", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["images"][0]["left_out"][0]["platform"], Value::Null);
    assert!(bench.path("exported").join(image.digest.blob_path()).exists());
    bench.pack(&["exported"]);
    let server = bench.serve();
    let digest = blob(b"a layer").replace("blobs/sha256/", "sha256:");
    let refused = get(server.plain, &format!("/v2/test/hello/blobs/{digest}")).json();
    let detail = format!("no blob {digest} in test/hello: it was missing when the disk was packed, and was left out");
    assert_eq!(refused["errors"][0]["detail"], detail);
}

#[test]
fn catalog_that_disagrees_on_what_is_left_out_is_reported() {
    let bench = Bench::default();
    let signed = signed();
    bench.layout("layout", &signed.layout);
    bench.pack(&["layout", "--platform", "linux/amd64"]);
    let sparse = bench.extract("disk.erofs").files[catalog::PATH].clone();
    let left_out = |encoded: &[u8]| {
        let catalog = Catalog::decode(encoded.to_vec().into()).unwrap();
        let of = catalog.repository("test/multi").unwrap();
        catalog.left_out_of(of).map(|one| one.digest).collect::<Vec<_>>()
    };
    assert!(left_out(&sparse).contains(&signed.arm64.digest));
    bench.pack(&["layout"]);
    let whole = bench.extract("disk.erofs").files[catalog::PATH].clone();
    assert_eq!(left_out(&whole), []);

    bench.pack(&["layout", "--platform", "linux/amd64"]);
    bench.extract("disk.erofs");
    let folder = bench.path("disk.erofs.extracted");
    testing::pack::make_writable(&folder);
    fs::write(folder.join(catalog::PATH), &whole).unwrap();
    let output = bench.command(&["-q", "inspect", "disk.erofs.extracted", "--verify"]).output().unwrap();
    let said = text(&output.stderr);
    let lacks = format!("it lacks that {} is left out of the repository test/multi", signed.arm64.digest);
    assert!(output.status.code() == Some(1) && said.contains(&lacks) && said.contains("more blobs"), "{said}");

    fs::write(folder.join(catalog::PATH), &sparse).unwrap();
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    fs::write(folder.join("index.json"), index.replace("localregistry.left-out", "other")).unwrap();
    let output = bench.command(&["-q", "inspect", "disk.erofs.extracted", "--verify"]).output().unwrap();
    let said = text(&output.stderr);
    let has = format!("it has {} as left out of the repository test/multi, but index.json does not", signed.arm64.digest);
    assert!(said.contains(&has) && said.contains(&format!("blob {} is missing", signed.arm64.digest)), "{said}");
}
