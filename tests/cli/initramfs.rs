//! `localregistry initramfs` on generated module trees: the archive's content, its reproducibility, and the message for each bad
//! input.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cpio::newc;
use localregistry::host::boot::initramfs::build;
use localregistry::oci::Digest;
use tempfile::TempDir;
use testing::elf::elf;

const RELEASE: &str = "6.1.0-9-made-up";

/// The files of the tree with their dependencies in depmod's order: all of them, the last first.
const MODULES: [(&str, &str); 19] = [
    ("kernel/drivers/block/virtio_blk.ko.zst", "kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko"),
    ("kernel/drivers/char/hw_random/virtio-rng.ko", "kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko"),
    ("kernel/drivers/char/virtio_console.ko.gz", "kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko"),
    ("kernel/drivers/input/evdev.ko", ""),
    ("kernel/drivers/misc/pvpanic/pvpanic-mmio.ko", "kernel/drivers/misc/pvpanic/pvpanic.ko"),
    ("kernel/drivers/misc/pvpanic/pvpanic-pci.ko.xz", "kernel/drivers/misc/pvpanic/pvpanic.ko"),
    ("kernel/drivers/misc/pvpanic/pvpanic.ko", ""),
    ("kernel/drivers/net/dummy.ko", ""),
    ("kernel/drivers/net/net_failover.ko", "kernel/net/core/failover.ko"),
    (
        "kernel/drivers/net/virtio_net.ko.zst",
        "kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko kernel/drivers/net/net_failover.ko \
         kernel/net/core/failover.ko",
    ),
    ("kernel/drivers/virtio/virtio.ko", ""),
    ("kernel/drivers/virtio/virtio_mmio.ko.gz", "kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko"),
    (
        "kernel/drivers/virtio/virtio_pci.ko.xz",
        "kernel/drivers/virtio/virtio_pci_modern_dev.ko kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko",
    ),
    ("kernel/drivers/virtio/virtio_pci_modern_dev.ko", ""),
    ("kernel/drivers/virtio/virtio_ring.ko.xz", "kernel/drivers/virtio/virtio.ko"),
    ("kernel/fs/erofs/erofs.ko.zst", "kernel/lib/libcrc32c.ko.gz"),
    ("kernel/fs/squashfs/squashfs.ko", ""),
    ("kernel/lib/libcrc32c.ko.gz", ""),
    ("kernel/net/core/failover.ko", ""),
];

const BUILTIN: &str = "kernel/crypto/crc32c_generic.ko\nkernel/drivers/firmware/qemu_fw_cfg.ko\nkernel/fs/ext4/ext4.ko\n\
                       kernel/net/packet/af-packet.ko\n";

/// A folder with a tree of modules and an init.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self::with(MODULES)
    }

    /// The tree, whose files are created and listed in the order of `modules`.
    fn with(modules: [(&str, &str); 19]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        let mut list = String::new();
        for (file, needs) in modules {
            machine.write(file, &module(file));
            list.push_str(&format!("{file}: {needs}\n"));
        }
        machine.write("modules.dep", list.as_bytes());
        machine.write("modules.builtin", BUILTIN.as_bytes());
        fs::write(machine.init(), elf(&[(1, b"a static program")])).unwrap();
        machine
    }

    /// Writes a file of the tree.
    fn write(&self, file: &str, content: &[u8]) {
        let path = self.tree().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Rewrites modules.dep. `change` replaces or omits each line.
    fn relist(&self, change: impl Fn(&str) -> Option<String>) {
        let path = self.tree().join("modules.dep");
        let lines = fs::read_to_string(&path).unwrap();
        let lines: String = lines.lines().filter_map(change).map(|line| line + "\n").collect();
        fs::write(path, lines).unwrap();
    }

    fn tree(&self) -> PathBuf {
        self.folder.path().join("lib/modules").join(RELEASE)
    }

    fn init(&self) -> PathBuf {
        self.folder.path().join("init")
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("out.cpio")
    }

    /// The command with an empty environment, except for the cache, which has no kernel.
    fn command(&self) -> Command {
        let mut command = testing::program(testing::pack::PROGRAM);
        command.arg("initramfs").arg("-o").arg(self.output()).env_clear();
        command.env("LOCALREGISTRY_CACHE", self.folder.path().join("cache")).env("PATH", "/nonexistent");
        command
    }

    fn run(&self) -> Output {
        self.command().arg("--init").arg(self.init()).arg("--modules").arg(self.tree()).output().unwrap()
    }

    /// Asserts that the command fails with `expected`, leaves an old output unchanged, and creates no other file.
    #[track_caller]
    fn fails(&self, expected: &str) {
        self.fails_by(self.command().arg("--init").arg(self.init()).arg("--modules").arg(self.tree()), expected);
    }

    #[track_caller]
    fn fails_by(&self, command: &mut Command, expected: &str) {
        fs::write(self.output(), "old").unwrap();
        let before = fs::read_dir(self.folder.path()).unwrap().count();
        let output = command.output().unwrap();
        let root = self.folder.path().to_str().unwrap();
        let said = String::from_utf8(output.stderr).unwrap().replace(root, "ROOT");
        assert_eq!(said, format!("localregistry: {expected}\n"));
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
        assert_eq!(fs::read(self.output()).unwrap(), b"old");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), before);
    }
}

/// The content of a generated module, compressed according to its name.
fn module(file: &str) -> Vec<u8> {
    let stem = Path::new(file).file_name().unwrap().to_str().unwrap().split('.').next().unwrap();
    let plain = elf(&[(1, stem.as_bytes())]);
    match file.rsplit('.').next().unwrap() {
        "gz" => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(&plain).unwrap();
            writer.finish().unwrap()
        }
        "xz" => {
            let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 6);
            writer.write_all(&plain).unwrap();
            writer.finish().unwrap()
        }
        "zst" => zstd::encode_all(plain.as_slice(), 3).unwrap(),
        _ => plain,
    }
}

/// The metadata of each archive entry, one per line, and the text of the load order.
fn listing(archive: &[u8]) -> String {
    let mut lines = String::new();
    let mut rest = archive;
    loop {
        let mut reader = newc::Reader::new(rest).unwrap();
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        let entry = reader.entry();
        if entry.is_trailer() {
            return lines;
        }
        lines.push_str(&format!(
            "{:2} {:06o} {}:{} links {} time {} device {},{} {:3} bytes {} {}\n",
            entry.ino(),
            entry.mode(),
            entry.uid(),
            entry.gid(),
            entry.nlink(),
            entry.mtime(),
            entry.rdev_major(),
            entry.rdev_minor(),
            content.len(),
            if content.is_empty() { "-".to_owned() } else { Digest::sha256_of(&content).hex()[..16].to_owned() },
            entry.name()
        ));
        if entry.name() == "lib/modules/order" {
            lines.extend(String::from_utf8(content).unwrap().lines().map(|line| format!("     {line}\n")));
        }
        rest = reader.finish().unwrap();
    }
}

#[test]
fn archive_holds_the_init_and_the_needed_modules_in_load_order() {
    let machine = Machine::new();
    let output = machine.run();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "this kernel has no 8021q, button (the guest works without)\n");
    assert!(output.status.success());
    let archive = fs::read(machine.output()).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{}: the init and 18 modules, {} bytes\n", machine.output().display(), archive.len())
    );
    assert_eq!(listing(&archive), include_str!("../golden/initramfs.txt"));
}

#[test]
fn result_with_json_is_one_line() {
    let machine = Machine::new();
    let mut command = machine.command();
    let output =
        command.args(["--json", "-q", "--init"]).arg(machine.init()).arg("--modules").arg(machine.tree()).output().unwrap();
    assert_eq!(output.stderr, b"");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["file"], machine.output().to_str().unwrap());
    assert_eq!(result["bytes"], fs::metadata(machine.output()).unwrap().len());
    assert_eq!(result["modules"][1], "pvpanic-pci.ko");
    assert_eq!(result["modules"].as_array().unwrap().len(), 18);
    assert_eq!(result["absent"], serde_json::json!(["8021q", "button"]));
}

#[test]
fn same_contents_give_the_same_bytes() {
    let machine = Machine::new();
    let first = build(&machine.init(), &machine.tree()).unwrap();
    assert!(machine.run().status.success());
    assert!(fs::read(machine.output()).unwrap() == first);
    assert!(machine.run().status.success());
    assert!(fs::read(machine.output()).unwrap() == first);

    // Another folder, another order of files and lists, and other compressions.
    let mut reversed = MODULES;
    reversed.reverse();
    let other = Machine::with(reversed);
    other.relist(|line| {
        let (file, needs) = line.split_once(':').unwrap();
        let needs = needs.split_whitespace().rev().collect::<Vec<_>>().join(" ");
        Some(format!("{file}: {needs}").replace("virtio.ko", "virtio.ko.xz"))
    });
    other.write("kernel/drivers/virtio/virtio.ko.xz", &module("kernel/drivers/virtio/virtio.ko.xz"));
    assert!(build(&other.init(), &other.tree()).unwrap() == first);
}

#[test]
fn modules_default_to_those_of_the_cached_kernel() {
    let machine = Machine::new();
    let folder = machine.folder.path().join("cache/kernel/cloud/linux-image-made-up_6.1.9-1");
    fs::create_dir_all(&folder).unwrap();
    fs::rename(machine.folder.path().join("lib"), folder.join("lib")).unwrap();
    fs::write(folder.join("vmlinux"), "").unwrap();
    let output = machine.command().env("LOCALREGISTRY_INIT", machine.init()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(listing(&fs::read(machine.output()).unwrap()), include_str!("../golden/initramfs.txt"));
}

#[test]
fn missing_module_is_named_with_its_use() {
    let machine = Machine::new();
    machine.relist(|line| (!line.contains("virtio_blk")).then(|| line.to_owned()));
    machine.fails(
        "the modules in ROOT/lib/modules/6.1.0-9-made-up cannot be packed: the module virtio_blk (the disk of images) is \
         neither in modules.dep nor in modules.builtin, and the guest cannot do without it; give the modules of a kernel that \
         has it, and boot that kernel; set the modules with --modules",
    );
}

#[test]
fn malformed_module_list_is_refused() {
    let machine = Machine::new();
    machine.relist(|line| (!line.starts_with("kernel/lib/libcrc32c")).then(|| line.to_owned()));
    machine.fails(
        "the modules in ROOT/lib/modules/6.1.0-9-made-up cannot be packed: modules.dep says that kernel/fs/erofs/erofs.ko.zst \
         needs kernel/lib/libcrc32c.ko.gz, but does not list that; run depmod again",
    );

    let machine = Machine::new();
    machine.relist(|line| Some(line.replace("libcrc32c.ko.gz: ", "libcrc32c.ko.gz: kernel/fs/erofs/erofs.ko.zst")));
    machine.fails(
        "the modules in ROOT/lib/modules/6.1.0-9-made-up cannot be packed: modules.dep has modules that need each other, which \
         cannot load: kernel/fs/erofs/erofs.ko.zst needs kernel/lib/libcrc32c.ko.gz needs kernel/fs/erofs/erofs.ko.zst; run \
         depmod again",
    );

    for list in ["modules.dep", "modules.builtin"] {
        let machine = Machine::new();
        fs::remove_file(machine.tree().join(list)).unwrap();
        machine.fails(&format!(
            "cannot read ROOT/lib/modules/6.1.0-9-made-up/{list}; the modules of a kernel are a folder lib/modules/RELEASE in \
             which depmod has made modules.dep: No such file or directory (os error 2)"
        ));
    }
}

#[test]
fn malformed_module_is_refused() {
    let machine = Machine::new();
    fs::remove_file(machine.tree().join("kernel/fs/erofs/erofs.ko.zst")).unwrap();
    machine.fails(
        "cannot read the module ROOT/lib/modules/6.1.0-9-made-up/kernel/fs/erofs/erofs.ko.zst, which modules.dep lists: No such \
         file or directory (os error 2)",
    );

    let machine = Machine::new();
    let whole = module("erofs.ko.zst");
    machine.write("kernel/fs/erofs/erofs.ko.zst", &whole[..whole.len() - 1]);
    machine.fails("cannot decompress the module ROOT/lib/modules/6.1.0-9-made-up/kernel/fs/erofs/erofs.ko.zst: incomplete frame");

    let machine = Machine::new();
    machine.write("kernel/drivers/input/evdev.ko", b"");
    machine.fails("ROOT/lib/modules/6.1.0-9-made-up/kernel/drivers/input/evdev.ko is not a kernel module: it is not an ELF file");
}

#[test]
fn unusable_init_is_refused() {
    let machine = Machine::new();
    fs::remove_file(machine.init()).unwrap();
    machine.fails("cannot read the init ROOT/init: No such file or directory (os error 2)");
    machine.fails_by(
        machine.command().env("LOCALREGISTRY_INIT", "/nonexistent/init").arg("--modules").arg(machine.tree()),
        "cannot read the init /nonexistent/init: No such file or directory (os error 2)",
    );

    fs::write(machine.init(), "#!/bin/sh\n").unwrap();
    machine.fails("ROOT/init cannot be the guest's init: it is not an ELF file");

    let mut arm = elf(&[(1, b"a static program")]);
    arm[18] = 183;
    fs::write(machine.init(), &arm).unwrap();
    machine.fails_by(
        machine.command().arg("--quiet").arg("--modules").arg(machine.tree()).arg("--init").arg(machine.init()),
        "the init is for 64-bit ARM, and the module pvpanic.ko for 64-bit x86: the init, the modules and the kernel must be \
         for one processor; set them with --init and --modules",
    );
    arm[18] = 243;
    fs::write(machine.init(), &arm).unwrap();
    machine.fails("ROOT/init cannot be the guest's init: it is an ELF file, but for neither 64-bit x86 nor 64-bit ARM");

    fs::write(machine.init(), elf(&[(3, b"/lib64/ld-linux-x86-64.so.2\0")])).unwrap();
    machine.fails(
        "ROOT/init cannot be the guest's init: it is not static (it asks for /lib64/ld-linux-x86-64.so.2), and the guest has no \
         libraries; build this project's with `cargo build --release --target x86_64-unknown-linux-musl \
         --no-default-features --features guest --bin localregistry-init`",
    );

    let mut cut = elf(&[(1, b"a static program")]);
    cut.pop();
    fs::write(machine.init(), cut).unwrap();
    machine.fails("ROOT/init cannot be the guest's init: it is cut short: its headers need 136 bytes, but it has 135");
}

#[test]
fn unwritable_output_is_reported() {
    let machine = Machine::new();
    let write_to = |output: &Path| {
        let mut command = testing::program(testing::pack::PROGRAM);
        command
            .args(["initramfs", "-q", "--init"])
            .arg(machine.init())
            .arg("--modules")
            .arg(machine.tree())
            .arg("-o")
            .arg(output);
        command
    };
    machine.fails_by(
        &mut write_to(&machine.folder.path().join("missing/out.cpio")),
        "cannot write ROOT/missing/out.cpio: No such file or directory (os error 2)",
    );
    machine.fails_by(
        &mut write_to(&machine.tree()),
        "cannot write ROOT/lib/modules/6.1.0-9-made-up: it is there already and not a regular file",
    );
}

#[test]
fn bad_flags_exit_2() {
    let machine = Machine::new();
    let output = machine.command().arg("--unknown").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: unexpected argument '--unknown' found\n"));
}
