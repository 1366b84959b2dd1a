//! Layouts with many realistically named images: of public registries, of hosts with and without ports, of minimum and maximum
//! length. All share one small layer.

use std::fs;
use std::path::{Path, PathBuf};

use localregistry::oci::media_type;
use serde_json::json;

use crate::layout::{Layout, Stored};

/// The name of the image with this number.
pub fn name(number: usize) -> String {
    let long = |start: &str, length: usize, fill: &str| {
        let name = format!("{start}{}", fill.repeat(length / fill.len()));
        format!("{}{number:04}", name[..length - 4].trim_end_matches(['/', '-', '.', '_']))
    };
    match number % 10 {
        0 => format!("docker.io/library/busybox-{number}:1.36.1-musl"),
        1 => format!("quay.io/prometheus-operator/config-reloader.{number}:v0.8{number}.0"),
        2 => format!("ghcr.io/some-org/charts/deep/er/image_{number}:main-{number}"),
        3 => format!("registry.k8s.io/kube-apiserver-{number}:v1.3{number}.1"),
        4 => format!("localhost:5000/app{number}:latest"),
        5 => format!("registry.internal.example.test:8443/team/{number}/service:2026.11.28-rc.1_{number}"),
        6 => format!("test/hello-{number}:latest"),
        7 => format!(
            "{}:{}",
            long("gcr.io/k8s-staging-images/", 210, "very-long/path__of/a.component/"),
            long("v", 128, "1.2-rc_")
        ),
        8 => format!("{}:v1", long("us-central1-docker.pkg.dev/", 255, "project/repository/")),
        _ => format!("public.ecr.aws/eks-distro/etcd-io/{number}:sha-{number:040x}"),
    }
}

/// A layout with `count` images, and their names.
pub fn layout(count: usize) -> (Layout, Vec<String>) {
    let mut layout = Layout::default();
    let layer = layout.blob(b"a small layer that every image has");
    let config = layout.json(&json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}));
    let names: Vec<String> = (0..count).map(name).collect();
    for name in &names {
        let manifest = layout.json(&json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config.descriptor(media_type::OCI_CONFIG),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")], "annotations": {"name": name},
        }));
        layout.name(manifest, media_type::OCI_MANIFEST, name);
    }
    layout.write();
    (layout, names)
}

/// The path of an image's manifest for a client that uses this registry as a mirror.
pub fn manifest_path(name: &str) -> String {
    let (repository, tag) = name.rsplit_once(':').unwrap();
    match repository.split_once('/').unwrap() {
        (host, path) if host.contains(['.', ':']) => format!("/v2/{path}/manifests/{tag}?ns={host}"),
        _ => format!("/v2/{repository}/manifests/{tag}"),
    }
}

/// Writes an artifact that refers to `subject` and lists it in an unnamed index.
pub fn sign(layout: &mut Layout, subject: Stored) -> Stored {
    let signature = layout.artifact("application/x.signature", subject, b"signed");
    let index = layout.json(&json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [signature.descriptor(media_type::OCI_MANIFEST)],
    }));
    layout.name(index, media_type::OCI_INDEX, "").write();
    signature
}

/// A folder of links to these programs, for a `PATH` without any other program.
pub fn programs(folder: &Path, names: &[&str]) -> PathBuf {
    fs::create_dir(folder).unwrap();
    for name in names {
        let found = crate::program("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
        let path = String::from_utf8(found.stdout).unwrap();
        assert!(found.status.success(), "{name} is not installed");
        std::os::unix::fs::symlink(path.trim(), folder.join(name)).unwrap();
    }
    folder.to_owned()
}
