//! Disks of every file system that `localregistry pack` makes, and one of more than 4 GiB, served by a VM under TCG.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::http;
use common::layout::Layout;
use common::pack::Bench;
use common::vm::{Vm, skopeo, succeed};
use localregistry::oci::{Algorithm, Hasher, media_type};
use nix::sys::signal::Signal;
use serde_json::json;

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
    fs::create_dir(vm.path("certs")).unwrap();
    fs::copy(vm.path("ca.crt"), vm.path("certs/ca.crt")).unwrap();
    let from = format!("docker://{}/test/layers:1", vm.address);
    let arguments = ["copy", "--quiet", "--preserve-digests", "--src-cert-dir", "certs", &from, "oci:pulled"];
    succeed(&mut skopeo(&arguments, vm.dir.path()));
    let mut count = 0;
    for entry in fs::read_dir(source.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let pulled = vm.path("pulled/blobs/sha256").join(path.file_name().unwrap());
        assert!(fs::read(&path).unwrap() == fs::read(pulled).unwrap(), "{}", path.display());
        count += 1;
    }
    assert_eq!(count, 5, "manifest, config, three layers");
    assert_eq!(vm.stop(Signal::SIGTERM).status, Some(0));
}

#[test]
fn the_end_of_a_blob_beyond_4_gib_is_served() {
    let bench = Bench::default();
    let mut layout = Layout::default();
    let size = (4 << 30) + 12_345_u64;
    // A hole but for its end: hashed here without being read.
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let zeros = vec![0; 1 << 20];
    (0..4096).for_each(|_| hasher.update(&zeros));
    hasher.update(&zeros[..12_345 - 7]);
    hasher.update(b"the end");
    let digest = hasher.finish();
    let config = layout.blob(b"{}");
    let file = fs::File::create(layout.path().join(digest.blob_path())).unwrap();
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
    assert_eq!(vm.stop(Signal::SIGTERM).status, Some(0));
}
