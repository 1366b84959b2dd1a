//! Disks in every file system that `localregistry pack` writes, and one of more than 4 GiB, served by a VM under TCG.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use localregistry::oci::{Algorithm, Hasher, media_type};
use localregistry::proto::event::Event;
use serde_json::json;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, PROGRAM};
use testing::vm::{Vm, succeed};
use testing::{http, named};

#[test]
fn squashfs_is_served() {
    pulled_from("squashfs");
}

#[test]
fn ext4_is_served() {
    pulled_from("ext4");
}

/// Packs an image of three layers, boots the disk, and pulls it byte for byte.
fn pulled_from(format: &str) {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let large: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = layout.manifest(&[&large, b"small", b""]);
    layout.name(image, media_type::OCI_MANIFEST, "test/layers:1");
    let source = bench.layout("layout", &layout);
    bench.pack(&["layout", "--fs", format]);
    let vm = Vm::boot(&bench.path("disk.erofs"), &[]);
    assert_eq!(vm.serves("test/layers:1", &source), 5, "manifest, config, three layers");
    vm.shut_down();
}

/// The references by which nodes pull the images `names` from a registry at `address`.
fn pullable(names: &[String], address: &str) -> BTreeSet<String> {
    let whole =
        |name: &String| if named::manifest_path(name).contains("?ns=") { name.clone() } else { format!("{address}/{name}") };
    names.iter().map(whole).collect()
}

/// Boots a disk with these images. Compares the ready line, the trust bundle and the log with them.
fn trusted_and_pulled(disk: &Path, names: &[String]) -> Vm {
    let vm = Vm::boot(disk, &["--tls", "off", "--trust", "trust", "--timeout", "600"]);
    assert_eq!(vm.ready["images"], names.len());
    let images = fs::read_to_string(vm.path("trust/images.txt")).unwrap();
    assert!(images.lines().map(str::to_owned).collect::<BTreeSet<_>>() == pullable(names, &vm.address), "{images}");
    // One name of each kind, the longest included.
    for name in names.iter().take(10) {
        let manifest = http::get(vm.address.parse().unwrap(), &named::manifest_path(name));
        assert_eq!((manifest.status, manifest.json()["annotations"]["name"].as_str()), (200, Some(name.as_str())));
        vm.event("the request", |event| matches!(event, Event::Request(_)).then_some(()));
        let pulled = ["assert", "--quiet", "--times", "1", "--pulled", name];
        succeed(testing::program(PROGRAM).args(pulled).arg(vm.path("events")));
    }
    vm
}

#[test]
fn trust_bundle_of_a_run_lists_1000_images_of_an_ext4_disk() {
    let bench = Bench::default();
    let (layout, names) = named::layout(1000);
    bench.layout("layout", &layout);
    bench.pack(&["layout", "--fs", "ext4"]);
    let vm = trusted_and_pulled(&bench.path("disk.erofs"), &names);
    vm.shut_down();
}

/// A disk of another tool, without a catalog: guest and trust bundle find the images that `pack` finds.
#[test]
fn plain_layout_with_untagged_signatures_is_served_and_trusted() {
    let bench = Bench::default();
    let (mut layout, names) = named::layout(60);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let first = &index["manifests"][0];
    let subject =
        Stored { digest: first["digest"].as_str().unwrap().parse().unwrap(), size: first["size"].as_u64().unwrap() as usize };
    let signature = named::sign(&mut layout, subject);
    bench.layout("layout", &layout);
    fs::File::create(bench.path("plain.ext4")).unwrap().set_len(16 << 20).unwrap();
    succeed(testing::program("mkfs.ext4").args(["-q", "-d", "layout", "plain.ext4"]).current_dir(bench.path("")));
    let vm = trusted_and_pulled(&bench.path("plain.ext4"), &names);
    let path = named::manifest_path(&names[0]);
    let (repository, host) =
        path.split_once("/manifests/").and_then(|(start, end)| Some((start, end.split_once('?')?.1))).unwrap();
    let target = format!("{repository}/referrers/{}?{host}", subject.digest);
    let found = http::get(vm.address.parse().unwrap(), &target).json();
    assert_eq!(found["manifests"][0]["digest"], signature.digest.to_string(), "{target}");
    vm.shut_down();
}

#[test]
fn end_of_a_blob_over_4_gib_is_served() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let size = (4 << 30) + 12_345_u64;
    // Zeros except for its end: its digest is computed without reading it. Most of them are holes; a file of nothing else is refused.
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let zeros = vec![0; 1 << 20];
    (0..4096).for_each(|_| hasher.update(&zeros));
    hasher.update(&zeros[..12_345 - 7]);
    hasher.update(b"the end");
    let digest = hasher.finish();
    let config = layout.blob(b"{}");
    let file = fs::File::create(layout.path().join(digest.blob_path())).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(size / 100), &mut &file).unwrap();
    file.write_all_at(b"the end", size - 7).unwrap();
    let manifest = layout.json(&json!({
        "schemaVersion": 2, "config": config.descriptor("application/vnd.oci.empty.v1+json"),
        "layers": [{"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": size}],
    }));
    layout.name(manifest, media_type::OCI_MANIFEST, "test/large:1");
    let source = layout.write().display().to_string();
    bench.pack(&[&source]);
    let vm = Vm::boot(&bench.path("disk.erofs"), &["--tls", "off"]);
    let request = format!(
        "GET /v2/test/large/blobs/{digest} HTTP/1.1\r\nHost: x\r\nRange: bytes={}-\r\nConnection: close\r\n\r\n",
        size - 10
    );
    let response = http::raw(vm.address.parse().unwrap(), request.as_bytes());
    assert_eq!((response.status, response.body.as_slice()), (206, &b"\0\0\0the end"[..]));
    assert_eq!(response.header("content-range"), Some(format!("bytes {}-{}/{size}", size - 10, size - 1).as_str()));
    vm.shut_down();
}
