//! `localregistry kernel`: provided kernels, and the distribution's kernel from a local package archive through the real apt,
//! dpkg-deb and depmod. Uses no network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use localregistry::oci::Digest;
use tempfile::TempDir;
use testing::elf::elf;

const RELEASE: &str = "6.1.0-9-made-up";
const PACKAGE: &str = "linux-image-6.1.0-9-made-up";
const VERSION: &str = "6.1.9-1";

/// A kernel with the PVH note: size of the name, size of the description, type, name, description.
fn kernel() -> Vec<u8> {
    let note = [&[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0", &[0; 8]].concat();
    elf(&[(1, b"code"), (4, &note)])
}

/// A bzImage of boot protocol 2.15 with the kernel compressed by zstd, in Linux's format.
fn bzimage() -> Vec<u8> {
    let mut payload = zstd::encode_all(kernel().as_slice(), 3).unwrap();
    payload.extend((kernel().len() as u32).to_le_bytes());
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 2]);
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x300..0x310].copy_from_slice(format!("{RELEASE} ").as_bytes());
    image.extend(payload);
    image
}

/// A folder with a private apt, whose only source is the folder `archive`.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        let root = machine.path("").display().to_string();
        for folder in
            ["archive", "apt/state/lists/partial", "apt/cache/archives/partial", "apt/etc/apt.conf.d", "apt/etc/preferences.d"]
        {
            fs::create_dir_all(machine.path(folder)).unwrap();
        }
        fs::write(machine.path("apt/status"), "").unwrap();
        fs::write(machine.path("apt/etc/sources.list"), format!("deb [trusted=yes] copy:{root}archive ./\n")).unwrap();
        // As root, apt would download as another user, who cannot enter this folder.
        let config = format!(
            "Dir \"{root}apt\";\nDir::State \"state\";\nDir::State::status \"{root}apt/status\";\nDir::Cache \"cache\";\n\
             Dir::Etc \"etc\";\nAPT::Architecture \"amd64\";\nAPT::Sandbox::User \"\";\n"
        );
        fs::write(machine.path("apt.conf"), config).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Builds a package of `files` in the archive and returns its record.
    fn package(&self, files: &[(String, Vec<u8>)]) -> String {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {PACKAGE}\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n\
             Description: a kernel\n"
        );
        fs::write(tree.join("DEBIAN/control"), &control).unwrap();
        for (file, content) in files {
            let path = tree.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let package = self.path("archive/kernel.deb");
        run(testing::program("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&package));
        let content = fs::read(&package).unwrap();
        let hash = Digest::sha256_of(&content).hex();
        format!("{control}Filename: ./kernel.deb\nSize: {}\nSHA256: {hash}\n\n", content.len())
    }

    /// Publishes `record` and the package that depends on it, and updates apt's lists.
    fn publish(&self, record: &str) {
        let meta = format!(
            "Package: linux-image-cloud-amd64\nVersion: {VERSION}\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n\
             Depends: {PACKAGE} (= {VERSION})\nFilename: ./meta.deb\nSize: 1\nSHA256: {}\nDescription: Linux\n\n",
            Digest::sha256_of(b"").hex()
        );
        fs::write(self.path("archive/Packages"), meta + record).unwrap();
        run(testing::program("apt-get").arg("update").env("APT_CONFIG", self.path("apt.conf")));
    }

    fn command(&self) -> Command {
        let mut command = testing::program(testing::pack::PROGRAM);
        command.arg("kernel").arg("-o").arg(self.path("vmlinux"));
        command.env("LOCALREGISTRY_CACHE", self.path("cache")).env("APT_CONFIG", self.path("apt.conf"));
        command
    }

    /// Asserts that `command` fails with `expected` as its last line, and that an old output and the cache stay unchanged.
    #[track_caller]
    fn fails(&self, command: &mut Command, expected: &str) {
        fs::write(self.path("vmlinux"), "old").unwrap();
        let output = command.arg("-q").output().unwrap();
        assert_eq!(self.said(&output), format!("localregistry: {expected}\n"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        assert_eq!(fs::read(self.path("vmlinux")).unwrap(), b"old");
        let kernels = fs::read_dir(self.path("cache/kernel/cloud")).into_iter().flatten();
        let left: Vec<_> = kernels.map(|entry| entry.unwrap().file_name()).filter(|name| name != ".lock").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Standard error without this folder's name.
    fn said(&self, output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).replace(self.folder.path().to_str().unwrap(), "ROOT")
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn files() -> Vec<(String, Vec<u8>)> {
    vec![
        (format!("boot/vmlinuz-{RELEASE}"), bzimage()),
        (format!("lib/modules/{RELEASE}/modules.builtin"), b"kernel/drivers/block/virtio_blk.ko\n".to_vec()),
        (format!("lib/modules/{RELEASE}/modules.order"), vec![]),
    ]
}

#[test]
fn distribution_kernel_is_unpacked_into_the_cache_and_reused() {
    let machine = Machine::new();
    machine.publish(&machine.package(&files()));
    let output = machine.command().output().unwrap();
    assert_eq!(
        machine.said(&output),
        format!(
            "downloading Debian's kernel {PACKAGE} {VERSION} into ROOT/cache/kernel/cloud\nextracting the bootable ELF of Linux {RELEASE}\n"
        )
    );
    assert!(output.status.success());
    assert!(fs::read(machine.path("vmlinux")).unwrap() == kernel());

    let folder = machine.path("cache/kernel/cloud").join(format!("{PACKAGE}_{VERSION}"));
    assert!(fs::read(folder.join("vmlinux")).unwrap() == kernel());
    assert_eq!(fs::read(folder.join(format!("lib/modules/{RELEASE}/modules.dep"))).unwrap(), b"");
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["boot", "lib", "vmlinux"]);

    // The second time no program is started, and nothing is downloaded.
    fs::remove_dir_all(machine.path("archive")).unwrap();
    fs::remove_file(machine.path("vmlinux")).unwrap();
    let output = machine.command().arg("--json").env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(machine.said(&output), "");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({"file": machine.path("vmlinux"), "bytes": kernel().len(), "release": RELEASE});
    assert_eq!(result, expected);
    assert!(fs::read(machine.path("vmlinux")).unwrap() == kernel());
}

#[test]
fn modules_below_usr_lib_are_found() {
    let machine = Machine::new();
    let merged = |(file, content): (String, Vec<u8>)| (file.replace("lib/modules", "usr/lib/modules"), content);
    machine.publish(&machine.package(&files().into_iter().map(merged).collect::<Vec<_>>()));
    let output = machine.command().output().unwrap();
    assert!(output.status.success(), "{}", machine.said(&output));
    let folder = machine.path("cache/kernel/cloud").join(format!("{PACKAGE}_{VERSION}"));
    assert!(folder.join(format!("lib/modules/{RELEASE}/modules.dep")).is_file());
}

#[test]
fn missing_apt_lists_are_reported() {
    let machine = Machine::new();
    machine.fails(
        &mut machine.command(),
        "apt finds no package linux-image-cloud-amd64: run `apt-get update` as root first, or use a kernel that you have: \
         `apt-cache show --no-all-versions linux-image-cloud-amd64` failed (exit status: 100): E: No packages found; set it with --kernel",
    );
}

#[test]
fn unavailable_package_is_reported() {
    let machine = Machine::new();
    machine.publish(&machine.package(&files()));
    fs::remove_file(machine.path("archive/kernel.deb")).unwrap();
    machine.fails(
        &mut machine.command(),
        "cannot download linux-image-6.1.0-9-made-up 6.1.9-1; if apt's lists are old, run `apt-get update` as root first: \
         `apt-get -q download linux-image-6.1.0-9-made-up=6.1.9-1` failed (exit status: 100): E: Failed to fetch \
         copy:ROOT/archive/./kernel.deb  Failed to stat - stat (2: No such file or directory)",
    );
}

#[test]
fn package_without_a_kernel_or_modules_is_refused() {
    for (kept, missing) in [(0, "folder lib/modules/RELEASE"), (1, "boot/vmlinuz-RELEASE")] {
        let machine = Machine::new();
        let kept: Vec<_> = files().into_iter().skip(kept).take(1).collect();
        machine.publish(&machine.package(&kept));
        machine.fails(
            &mut machine.command(),
            &format!(
                "the package linux-image-6.1.0-9-made-up 6.1.9-1 has no {missing}: use another kernel; set it with --kernel"
            ),
        );
    }
}

#[test]
fn missing_tools_are_reported_with_their_packages() {
    let machine = Machine::new();
    machine.fails(
        machine.command().env("PATH", "/nonexistent"),
        "cannot unpack the distribution's kernel package: the program dpkg-deb is not on this machine: install Debian's package \
         dpkg (`apt-get install dpkg`)",
    );
}

#[test]
fn provided_kernel_is_extracted_or_used_as_it_is() {
    let machine = Machine::new();
    for (content, release) in [(bzimage(), serde_json::json!(RELEASE)), (kernel(), serde_json::Value::Null)] {
        fs::write(machine.path("vmlinuz"), content).unwrap();
        let output = machine.command().arg("--json").arg("--kernel").arg(machine.path("vmlinuz")).output().unwrap();
        assert_eq!(machine.said(&output), "");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["release"], release);
        assert!(fs::read(machine.path("vmlinux")).unwrap() == kernel());
    }
    assert!(!machine.path("cache").exists());
}

#[test]
fn unbootable_kernel_is_refused() {
    let machine = Machine::new();
    let cases = [
        (
            b"#!/bin/sh".to_vec(),
            "it is neither a bzImage (no \"HdrS\" at byte 514) nor an ELF file; give the vmlinuz of an x86-64 Linux",
        ),
        (bzimage()[..1100].to_vec(), "it is cut short: its payload is bytes 1024 to END, but the file ends at byte 1100"),
        (
            elf(&[(1, b"code")]),
            "its kernel has no Xen PVH note (XEN_ELFNOTE_PHYS32_ENTRY), so QEMU cannot boot it as ELF; give one built with \
             CONFIG_PVH=y",
        ),
    ];
    let end = bzimage().len().to_string();
    for (content, expected) in cases {
        fs::write(machine.path("vmlinuz"), content).unwrap();
        machine.fails(
            machine.command().arg("--kernel").arg(machine.path("vmlinuz")),
            &format!("ROOT/vmlinuz contains no kernel that QEMU can boot: {}", expected.replace("END", &end)),
        );
    }
    machine.fails(
        machine.command().arg("--kernel").arg("/nonexistent/vmlinuz"),
        "cannot read the kernel /nonexistent/vmlinuz: No such file or directory (os error 2)",
    );
    machine.fails(
        machine.command().arg("--kernel").arg(Path::new("/dev/zero")),
        "cannot read the kernel /dev/zero: it is larger than 536870912 bytes",
    );
}
