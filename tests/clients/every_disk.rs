//! Every command that takes a disk, with disks of 1 to 1,000 realistically named images in each file system that `pack` writes,
//! without erofs-utils.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use localregistry::oci::Digest;
use serde_json::{Value, json};
use testing::elf::elf;
use testing::http;
use testing::named;
use testing::pack::{Bench, PROGRAM, digest_of, text};
use testing::serve::Serving;

const FILE_SYSTEMS: [&str; 3] = ["erofs", "ext4", "squashfs"];

/// A folder with a layout of `count` images and the input of `deploy`, and a `PATH` with only the programs for squashfs and ext4.
struct Disks {
    bench: Bench,
    path: PathBuf,
    names: Vec<String>,
}

impl Disks {
    fn new(count: usize) -> Self {
        let bench = Bench::default();
        let (layout, names) = named::layout(count);
        bench.layout("layout", &layout);
        bench.file("server", &elf(&[(1, b"code")]));
        bench.file("vmlinux", b"a kernel");
        bench.file("initramfs", b"an initramfs");
        let path = named::programs(&bench.path("bin"), &["mksquashfs", "mkfs.ext4"]);
        Self { bench, path, names }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.command(&[&["--quiet"], arguments].concat());
        command.env("PATH", &self.path);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[&["--json"], arguments].concat())).unwrap()
    }

    fn sorted(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        // By repository, then by tag.
        names.sort_by_key(|name| name.rsplit_once(':').unwrap());
        names
    }

    /// The references that nodes pull. Names without a host belong to the registry at `address`.
    fn pullable(&self, address: &str) -> BTreeSet<String> {
        let whole =
            |name: &String| if named::manifest_path(name).contains("?ns=") { name.clone() } else { format!("{address}/{name}") };
        self.names.iter().map(whole).collect()
    }

    fn packed(&self, disk: &str, fs: &str) {
        let packed = self.json(&["pack", "layout", "--fs", fs, "-o", disk]);
        let count = self.names.len();
        assert_eq!(json!([packed["images"], packed["blobs"]]), json!([count, count + 2]), "{disk}");
        assert_eq!(packed["bytes"], fs::metadata(self.bench.path(disk)).unwrap().len(), "{disk}");
    }

    fn inspected(&self, disk: &str, form: &str) {
        let count = self.names.len();
        let found = self.json(&["inspect", disk, "--verify"]);
        let images: Vec<&str> = found["images"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect();
        assert!(images == self.sorted(), "{disk}: {images:?}");
        assert_eq!(json!([found["form"], found["digest"]]), json!([form, digest_of(&self.bench.path(disk))]));
        assert_eq!(json!([found["verified"]["blobs"], found["catalog"]["tags"], found["faults"]]), json!([count + 2, count, []]));
        let table = self.run(&["inspect", disk]);
        assert!(self.names.iter().all(|name| table.contains(&format!("\n{name} "))), "{disk}: {table}");
    }

    /// Exports the layout and asserts that packing it again gives the same bytes.
    fn exported(&self, disk: &str, fs: &str) -> String {
        let folder = format!("{disk}.exported");
        self.run(&["inspect", disk, "--export", &folder]);
        let again = format!("{disk}.again");
        self.run(&["pack", &folder, "--fs", fs, "-o", &again]);
        assert_eq!(digest_of(&self.bench.path(&again)), digest_of(&self.bench.path(disk)), "{disk}");
        folder
    }

    fn compared(&self, disk: &str, other: &str) {
        let expected = json!([true, self.names.len(), 0, 0, 0]);
        let found = self.json(&["diff", disk, other]);
        let counts = ["added", "removed", "changed"].map(|key| found[key].as_array().unwrap().len());
        assert_eq!(json!([found["same"], found["unchanged"], counts[0], counts[1], counts[2]]), expected, "{disk} {other}");
    }

    fn trusted(&self, disk: &str) {
        let address = "registry.test:5000";
        self.run(&["trust", "--endpoint", &format!("http://{address}"), "--disk", disk, "-o", "trust"]);
        let listed =
            |file: &str| fs::read_to_string(self.bench.path(file)).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        let images = listed("trust/images.txt");
        assert_eq!(images.len(), self.names.len(), "{disk}");
        assert!(images.into_iter().collect::<BTreeSet<_>>() == self.pullable(address), "{disk}");
        let folders = fs::read_dir(self.bench.path("trust/containerd/certs.d")).unwrap();
        let folders: BTreeSet<String> = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
        let hosts = self.names.iter().filter_map(|name| Some(named::manifest_path(name).split_once("?ns=")?.1.to_owned()));
        let hosts: BTreeSet<String> = hosts.collect();
        assert!(hosts.is_subset(&folders), "{disk}: {folders:?}");
    }

    fn deployed(&self, disk: &str) {
        let place = ["--registry", "registry.example/e2e", "--host", "registry.test:30500", "--ca-dir", "ca"];
        let parts = ["--server", "server", "--kernel", "vmlinux", "--initramfs", "initramfs"];
        let folder = format!("{disk}.deployed");
        self.run(&[&["deploy", disk, "-o", &folder], &place[..], &parts].concat());
        let images = fs::read_to_string(self.bench.path(&format!("{folder}/trust/images.txt"))).unwrap();
        let images: BTreeSet<String> = images.lines().map(str::to_owned).collect();
        assert!(images == self.pullable("registry.test:30500"), "{disk}: {images:?}");
        fs::remove_dir_all(self.bench.path(&folder)).unwrap();
    }

    /// Serves an exported layout, pulls every manifest, and finds the pulls in the log by the names of the images.
    fn served(&self, folder: &str) {
        let serving =
            Serving::start(&self.bench.path(folder), tempfile::tempdir().unwrap(), &["--tls", "off", "--events", "events"]);
        assert_eq!(serving.ready["images"], self.names.len());
        let address = serving.address().parse().unwrap();
        for name in &self.names {
            let manifest = http::get(address, &named::manifest_path(name));
            assert_eq!((manifest.status, manifest.json()["annotations"]["name"].as_str()), (200, Some(name.as_str())));
            let digest = Digest::sha256_of(&manifest.body).to_string();
            assert_eq!(manifest.header("docker-content-digest"), Some(digest.as_str()), "{name}");
        }
        // The log is complete when the server has ended.
        let folder = serving.end();
        let events = folder.path().join("events");
        for name in self.names.iter().take(10) {
            let mut command = testing::program(PROGRAM);
            command.args(["--quiet", "assert", "--times", "1", "--pulled", name]).arg(&events);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        }
        let absent =
            testing::program(PROGRAM).args(["assert", "--not-pulled", "quay.io/absent:1"]).arg(&events).output().unwrap();
        assert!(absent.status.success());
    }
}

fn every_command(count: usize) {
    let disks = Disks::new(count);
    let mut before: Option<String> = None;
    for fs in FILE_SYSTEMS {
        let disk = format!("disk.{fs}");
        disks.packed(&disk, fs);
        disks.inspected(&disk, fs);
        disks.compared(&disk, "layout");
        before.iter().for_each(|other| disks.compared(&disk, other));
        disks.trusted(&disk);
        disks.deployed(&disk);
        let exported = disks.exported(&disk, fs);
        disks.served(&exported);
        before = Some(disk);
    }
    disks.trusted("layout");
}

#[test]
fn every_command_reads_a_disk_of_1_image() {
    every_command(1);
}

#[test]
fn every_command_reads_a_disk_of_30_images() {
    every_command(30);
}

#[test]
fn every_command_reads_a_disk_of_60_images() {
    every_command(60);
}

#[test]
fn every_command_reads_a_disk_of_1000_images() {
    every_command(1000);
}

/// The difference consists of exactly the additional images.
#[test]
fn diff_of_30_and_60_images_shows_30() {
    let (small, large) = (Disks::new(30), Disks::new(60));
    for fs in FILE_SYSTEMS {
        small.packed("small", fs);
        large.packed("large", fs);
        let output = small.command(&["--json", "diff", "small"]).arg(large.bench.path("large")).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let added: BTreeSet<&str> = found["added"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(added == large.names[30..].iter().map(String::as_str).collect(), "{fs}: {added:?}");
        assert_eq!((output.status.code(), found["removed"].as_array().unwrap().len()), (Some(1), 0), "{fs}");
    }
}

/// Identical images on disks with different file systems are no conflict.
#[test]
fn trust_combines_disks_of_several_file_systems() {
    let disks = Disks::new(60);
    for fs in FILE_SYSTEMS {
        disks.packed(fs, fs);
    }
    let of = FILE_SYSTEMS.map(|fs| ["--disk", fs]).concat();
    disks.run(&[&["trust", "--endpoint", "http://a.test:5000", "--format", "env", "-o", "trust"], &of[..]].concat());
    let images = fs::read_to_string(disks.bench.path("trust/images.txt")).unwrap();
    assert_eq!(images.lines().count(), 60);
}
