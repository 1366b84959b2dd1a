//! The plans in `faults/`, met by real clients that have nothing yet: whether they pull the image, how often each rule acted, and what those
//! say that give up. docs/faults.md has the tables, which are what is compared here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use localregistry::oci::media_type::{OCI_CONFIG, OCI_MANIFEST};
use serde_json::{Value, json};
use tar::EntryType;
use testing::docker::Dockerd;
use testing::layout::{Layout, content};
use testing::pack::{Bench, PROGRAM, archive, text};
use testing::podman;
use testing::private::{ADDRESS, privately};
use testing::serve::Serving;
use testing::vm::{Containerd, skopeo, succeed};

const PAGE: &str = include_str!("../../docs/faults.md");

/// A server with the image `test/app:1`, whose layer has 8 MB, and a folder for a client.
struct Site {
    bench: Bench,
    _layout: Layout,
    serving: Serving,
    address: String,
}

impl Site {
    fn new() -> Self {
        let mut layout = Layout::default();
        let layer = layout.blob(&archive(&[("file", EntryType::Regular, &content(8_000_000))]));
        let config = layout.json(&json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest.to_string()]}
        }));
        let manifest = layout.json(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor(OCI_CONFIG),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")]
        }));
        layout.name(manifest, OCI_MANIFEST, "test/app:1").write();
        // dockerd checks no certificates on a loopback address.
        let listen = format!("{ADDRESS}:0");
        let arguments = ["--listen", &listen, "--control", "control", "--token", "--anonymous-pull"];
        let serving = Serving::start(layout.path(), tempfile::tempdir().unwrap(), &arguments);
        let address = serving.ready["endpoints"][1].as_str().unwrap().split_once("://").unwrap().1.to_owned();
        Self { bench: Bench::default(), _layout: layout, serving, address }
    }

    fn ca(&self) -> PathBuf {
        self.serving.folder.path().join("ca.crt")
    }

    fn image(&self) -> String {
        format!("{}/test/app:1", self.address)
    }

    fn faults(&self, arguments: &[&str]) -> Value {
        let mut command = testing::program(PROGRAM);
        command.args(["--json", "faults"]).arg(self.serving.folder.path().join("control")).args(arguments);
        serde_json::from_str(&succeed(&mut command)).unwrap()
    }

    /// What the client does under each plan, compared with the page. `pull` gets the number of the plan.
    fn compare(&self, client: &str, mut pull: impl FnMut(usize) -> Command) {
        let (expected, said) = (column(client), messages(client));
        let mut found = BTreeMap::new();
        for (number, plan) in plans().into_iter().enumerate() {
            self.faults(&["replace", plan.to_str().unwrap()]);
            let name = plan.file_stem().unwrap().to_str().unwrap().to_owned();
            let output = pull(number).output().unwrap();
            let rules = self.faults(&["list"]);
            let hits: Vec<_> = { rules["rules"].as_array().unwrap().iter() }
                .map(|rule| format!("{} {}", rule["id"].as_str().unwrap(), rule["hits"]))
                .collect();
            let stderr = text(&output.stderr);
            match said.get(&name) {
                Some(words) => assert!(!output.status.success() && stderr.contains(words), "{client}, {name}: {stderr}"),
                None => assert!(output.status.success(), "{client}, {name}, {hits:?}: {stderr}"),
            }
            found.insert(name, format!("{} ({})", if output.status.success() { "pulls" } else { "gives up" }, hits.join(", ")));
        }
        assert_eq!(found, expected, "{client}");
    }
}

/// The plans in `faults/`, in the order of their names.
fn plans() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults");
    let mut plans: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    plans.sort();
    plans
}

/// The cells of the rows of a table of the page, whose head starts with these words.
fn rows(head: &str) -> Vec<Vec<String>> {
    let table = PAGE.lines().skip_while(|line| !line.starts_with(head)).take_while(|line| line.starts_with('|'));
    let rows = table.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect());
    rows.collect()
}

/// What a client does, by plan.
fn column(client: &str) -> BTreeMap<String, String> {
    let rows = rows("| plan |");
    let place = rows[0].iter().position(|cell| cell == client).unwrap();
    rows[2..].iter().map(|row| (row[0].clone(), row[place].clone())).collect()
}

/// What a client says that gives up, by plan.
fn messages(client: &str) -> BTreeMap<String, String> {
    let rows = rows("| gives up |").into_iter().filter(|row| row[0] == client);
    rows.map(|row| (row[1].clone(), row[2].clone())).collect()
}

#[test]
fn skopeo_meets_each_plan_as_the_page_says() {
    privately(|| {
        let site = Site::new();
        let (source, certs) = (format!("docker://{}", site.image()), site.serving.folder.path().display().to_string());
        site.compare("skopeo", |number| {
            skopeo(&["copy", "--quiet", "--src-cert-dir", &certs, &source, &format!("dir:{number}")], &site.bench.path(""))
        });
    });
}

#[test]
fn podman_meets_each_plan_as_the_page_says() {
    privately(|| {
        let site = Site::new();
        let (image, certs) = (site.image(), site.serving.folder.path().display().to_string());
        site.compare("podman", |_| {
            succeed(&mut podman::podman(&site.bench.path(""), &["rmi", "--all", "--force"]));
            podman::podman(&site.bench.path(""), &["pull", "--quiet", "--cert-dir", &certs, &image])
        });
    });
}

#[test]
fn containerd_meets_each_plan_as_the_page_says() {
    privately(|| {
        let site = Site::new();
        let mut containerd = None;
        site.compare("containerd", |_| {
            // One without the beginnings of earlier pulls.
            let daemon = containerd.insert(Containerd::start());
            daemon.host(&site.address, &site.address, &site.ca());
            daemon.fetch(&["images", "pull"], &site.image())
        });
    });
}

#[test]
fn dockerd_meets_each_plan_as_the_page_says() {
    privately(|| {
        let site = Site::new();
        let folder = Path::new("/etc/docker/certs.d").join(&site.address);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(site.ca(), folder.join("ca.crt")).unwrap();
        let mut dockerd = None;
        site.compare("dockerd", |_| {
            let daemon = dockerd.insert(Dockerd::start(&[], None));
            daemon.docker(&["pull", "--quiet", &site.image()])
        });
    });
}
