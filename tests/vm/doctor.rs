//! `localregistry doctor` on simulated machines with their own `PATH` and cache. Checks the exact lines and exit status.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use testing::private::{on_tmpfs, with_kvm};

const RELEASE: &str = "6.1.0-9-made-up";
const QEMU: &str = "case $1 in --version) echo 'QEMU emulator version 7.2.19 (made up)' ;; *) exit 33 ;; esac";
const OPTIONS: &str = "64BIT SECCOMP_FILTER SECURITY_LANDLOCK BLK_DEV_INITRD BINFMT_ELF PRINTK TTY DEVTMPFS PROC_FS SYSFS TMPFS EPOLL EVENTFD FUTEX UNIX NET INET PACKET \
                       VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE FW_CFG_SYSFS EROFS_FS SERIAL_8250_CONSOLE ACPI VIRTIO_PCI SQUASHFS EXT4_FS \
                       IPV6 VLAN_8021Q HW_RANDOM_VIRTIO RTC_HCTOSYS PVPANIC ACPI_BUTTON INPUT_EVDEV HOTPLUG_PCI_ACPI SMP";
const BUILTIN: &str = "pvpanic pvpanic_pci pvpanic_mmio virtio_pci virtio_mmio virtio_console virtio_rng qemu_fw_cfg virtio_blk virtio_net \
                       af_packet crc32c_generic erofs squashfs ext4 button evdev";

/// Programs that are only looked up: names, packages and purposes.
const PROGRAMS: [(&str, &str, &str); 8] = [
    ("apt-cache", "apt", DOWNLOAD),
    ("apt-get", "apt", DOWNLOAD),
    ("dpkg-deb", "dpkg", DOWNLOAD),
    ("depmod", "kmod", DOWNLOAD),
    ("mksquashfs", "squashfs-tools", "`pack --fs squashfs`"),
    ("mke2fs", "e2fsprogs", "`pack --fs ext4`"),
    ("debugfs", "e2fsprogs", "`pack --fs ext4`"),
    ("resize2fs", "e2fsprogs", "`pack --fs ext4`"),
];
const DOWNLOAD: &str = "`kernel` and `run` with a kernel that is not in the cache";

/// A simulated machine that passes every check.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        machine.program("qemu-system-x86_64", QEMU);
        // It writes its process ID when it listens.
        machine.program("passt", "echo $$; exec /bin/sleep 60");
        PROGRAMS.iter().for_each(|(name, ..)| machine.program(name, "exit 33"));
        machine.file("init", &testing::elf::elf(&[]));
        machine.file(&machine.kernel("vmlinux"), b"");
        machine.file(&machine.kernel(&format!("lib/modules/{RELEASE}/modules.dep")), b"");
        machine.config(&[]);
        machine.builtin(&[]);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn kernel(&self, name: &str) -> String {
        format!("cache/kernel/cloud/linux-image_6.1.9-1/{name}")
    }

    fn file(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        self.file(&format!("bin/{name}"), format!("#!/bin/sh\n{script}\n").as_bytes());
        fs::set_permissions(self.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Writes the kernel's configuration without these options.
    fn config(&self, without: &[&str]) {
        let options = OPTIONS.split_whitespace().filter(|name| !without.contains(name));
        let text: String = options.map(|name| format!("CONFIG_{name}=y\n")).collect();
        self.file(&self.kernel(&format!("boot/config-{RELEASE}")), text.as_bytes());
    }

    /// Writes the list of built-in modules without these.
    fn builtin(&self, without: &[&str]) {
        let modules = BUILTIN.split_whitespace().filter(|name| !without.contains(name));
        let text: String = modules.map(|name| format!("kernel/{name}.ko\n")).collect();
        self.file(&self.kernel(&format!("lib/modules/{RELEASE}/modules.builtin")), text.as_bytes());
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = testing::program(testing::pack::PROGRAM);
        command.current_dir(self.folder.path()).arg("doctor").args(arguments).env("PATH", self.path("bin"));
        command.env("LOCALREGISTRY_CACHE", self.path("cache")).env("LOCALREGISTRY_INIT", self.path("init"));
        command
    }

    /// Returns every line except those on KVM and memory, which depend on the real machine, without this folder's name; and the
    /// exit status.
    #[track_caller]
    fn lines(&self, command: &mut Command) -> (Vec<String>, Option<i32>) {
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
        let text = String::from_utf8(output.stdout).unwrap().replace(self.folder.path().to_str().unwrap(), "ROOT");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(lines[1].starts_with("ok    kvm         ") || lines[1].starts_with("note  kvm         "), "{text}");
        assert!(lines[2].starts_with("ok    memory      ") && lines[2].ends_with(" MiB available"), "{text}");
        let others = lines.into_iter().enumerate().filter(|(index, _)| ![1, 2].contains(index));
        (others.map(|(_, line)| line).collect(), output.status.code())
    }

    /// Asserts that only these lines, given by name, differ from those of a complete machine, and checks the exit status.
    #[track_caller]
    fn differs(&self, command: &mut Command, changed: &[(&str, &str)], status: i32) {
        let (lines, found) = self.lines(command);
        let line = |(name, line): (&str, String)| {
            let changed = changed.iter().find(|(changed, _)| *changed == name);
            changed.map_or(line, |(_, line)| (*line).to_owned())
        };
        assert_eq!(lines, well().into_iter().map(line).collect::<Vec<_>>());
        assert_eq!(found, Some(status));
    }
}

/// The lines of a complete machine.
fn well() -> Vec<(&'static str, String)> {
    let kernel = "ROOT/cache/kernel/cloud/linux-image_6.1.9-1";
    let own = [
        ("qemu", "ok    qemu        qemu-system-x86_64 7.2 runs a machine".to_owned()),
        ("passt", "ok    passt       ROOT/bin/passt carries the network `user` of `run`".to_owned()),
        ("cache", "ok    cache       ROOT/cache".to_owned()),
        (
            "frozen",
            "ok    frozen      no machine is saved; the first `run` saves one, from which the next start faster".to_owned(),
        ),
        ("kernel", format!("ok    kernel      cloud Linux {RELEASE} ({kernel}/vmlinux) has every option that q35 needs")),
        ("modules", format!("ok    modules     none to load, all is built in ({kernel}/lib/modules/{RELEASE})")),
        ("init", "ok    init        ROOT/init".to_owned()),
    ];
    let programs = PROGRAMS.iter().map(|(name, _, purpose)| (*name, there(name, purpose)));
    own.into_iter().chain(programs).collect()
}

/// The line of a program that is found.
fn there(name: &str, purpose: &str) -> String {
    format!("ok    {name:<10}  ROOT/bin/{name}, for {purpose}")
}

/// The message for a missing program.
fn missing(name: &str, package: &str) -> String {
    format!("the program {name} is not on this machine: install Debian's package {package} (`apt-get install {package}`)")
}

#[test]
fn complete_machine_passes_every_check() {
    let machine = Machine::new();
    machine.differs(&mut machine.command(&[]), &[], 0);

    let output = machine.command(&["--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1);
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["ok"], true);
    let names: Vec<_> = result["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    let own = ["qemu", "kvm", "memory", "passt", "cache", "frozen", "kernel", "modules", "init"];
    assert_eq!(names, own.into_iter().chain(PROGRAMS.iter().map(|(name, ..)| *name)).collect::<Vec<_>>());
    let qemu = serde_json::json!({
        "name": "qemu", "status": "ok", "found": "qemu-system-x86_64 7.2 runs a machine", "advice": null
    });
    assert_eq!(result["checks"][0], qemu);
}

#[test]
fn missing_and_broken_passt_leave_the_network_to_qemu() {
    let machine = Machine::new();
    let slower = "QEMU itself carries the network `user` (slirp): this works, but is slower";
    machine.program("passt", "echo Couldn\\'t create user namespace >&2; exit 1");
    let line = format!("note  passt       it exited with status 1: Couldn't create user namespace; {slower}");
    machine.differs(&mut machine.command(&[]), &[("passt", &line)], 0);
    fs::remove_file(machine.path("bin/passt")).unwrap();
    let line = format!("note  passt       {}; {slower}", missing("passt", "passt"));
    machine.differs(&mut machine.command(&[]), &[("passt", &line)], 0);
}

#[test]
fn missing_old_and_broken_qemu_are_reported() {
    let machine = Machine::new();
    let install = "install Debian's package qemu-system-x86 (`apt-get install qemu-system-x86`)";
    let version = |version: &str, else_: &str| format!("case $1 in --version) echo '{version}' ;; *) {else_} ;; esac");
    for (script, line) in [
        (
            version("QEMU emulator version 6.2.0 (made up)", "exit 33"),
            "FAIL  qemu        qemu-system-x86_64 6.2 is too old: 7.1 or later is needed; on Debian: apt-get install -t bookworm-backports \
             qemu-system-x86; choose another QEMU with --qemu"
                .to_owned(),
        ),
        (
            "echo hello".to_owned(),
            format!("FAIL  qemu        qemu-system-x86_64 prints \"hello\", which is not a QEMU version; {install}"),
        ),
        (
            version("QEMU emulator version 9.1.0", "echo no accelerator >&2; exit 1"),
            format!(
                "FAIL  qemu        qemu-system-x86_64 9.1 runs no machine: QEMU ended with exit status: 1: no accelerator; {install}"
            ),
        ),
        (
            version("QEMU emulator version 9.1.0", "exec /bin/sleep 60"),
            format!(
                "FAIL  qemu        qemu-system-x86_64 9.1 runs no machine: the VM hangs: it had not run five bytes of code after \
                 10 s; {install}"
            ),
        ),
    ] {
        machine.program("qemu-system-x86_64", &script);
        machine.differs(&mut machine.command(&[]), &[("qemu", &line)], 1);
    }
    fs::remove_file(machine.path("bin/qemu-system-x86_64")).unwrap();
    let line = format!("FAIL  qemu        qemu-system-x86_64 is not on this machine; {install}");
    machine.differs(&mut machine.command(&[]), &[("qemu", &line)], 1);
    let output = machine.command(&["--json"]).output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["ok"], &result["checks"][0]["status"]), (&Value::Bool(false), &"fail".into()));
    assert_eq!(result["checks"][0]["advice"], install);
}

#[test]
fn missing_broken_and_working_kvm_are_told_apart() {
    let machine = Machine::new();
    let slower = "; boots are emulated (TCG): this works, but is several times slower";
    let (intel, amd, other) = ("flags\t\t: fpu vmx sse\n", "flags\t\t: fpu svm sse\n", "flags\t\t: fpu sse\nvmx flags\t: vnmi\n");
    let under_kvm = |then: &str| format!("case \"$*\" in *'-accel kvm'*) {then} ;; esac\n{QEMU}");
    for (kvm, cpuinfo, qemu, line) in [
        (true, intel, QEMU.to_owned(), "ok    kvm         runs a machine".to_owned()),
        (true, amd, QEMU.to_owned(), "ok    kvm         runs a machine".to_owned()),
        (
            false,
            intel,
            QEMU.to_owned(),
            format!(
                "note  kvm         cannot be used: cannot open /dev/kvm for reading and writing: No such file or directory (os error \
                 2){slower}"
            ),
        ),
        (
            true,
            other,
            QEMU.to_owned(),
            format!("note  kvm         cannot be used: /dev/kvm opens, but /proc/cpuinfo lists neither vmx nor svm{slower}"),
        ),
        (
            true,
            intel,
            under_kvm("echo Could not access KVM kernel module >&2; exit 1"),
            format!(
                "note  kvm         cannot be used: QEMU ended with exit status: 1: Could not access KVM kernel module{slower}"
            ),
        ),
        (
            true,
            intel,
            under_kvm("exec /bin/sleep 60"),
            format!("note  kvm         cannot be used: the VM hangs: it had not run five bytes of code after 10 s{slower}"),
        ),
    ] {
        machine.program("qemu-system-x86_64", &qemu);
        with_kvm(machine.folder.path(), kvm, cpuinfo, || {
            let output = machine.command(&[]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.lines().nth(1), Some(line.as_str()));
            assert_eq!(output.status.code(), Some(0), "{text}");
        });
    }
}

#[test]
fn missing_kernel_options_and_modules_are_reported() {
    let machine = Machine::new();
    let name = format!("cloud Linux {RELEASE} (ROOT/cache/kernel/cloud/linux-image_6.1.9-1/vmlinux)");
    machine.config(&["EROFS_FS", "VIRTIO_PCI", "IPV6"]);
    let line = format!(
        "FAIL  kernel      {name} lacks CONFIG_EROFS_FS (the disk's file system), CONFIG_VIRTIO_PCI (the virtio devices on PCI); boot \
         a kernel that has them, such as --flavor cloud"
    );
    machine.differs(&mut machine.command(&[]), &[("kernel", &line)], 1);

    machine.config(&["IPV6"]);
    let line = format!("note  kernel      {name} lacks CONFIG_IPV6 (IPv6 addresses); the guest works without");
    machine.differs(&mut machine.command(&[]), &[("kernel", &line)], 0);

    let line = format!(
        "FAIL  kernel      {name} lacks CONFIG_VIRTIO_MMIO (the virtio devices of a microvm); boot a kernel that has them, such as --flavor cloud"
    );
    machine.differs(&mut machine.command(&["--machine", "microvm"]), &[("kernel", &line)], 1);

    fs::remove_file(machine.path(&machine.kernel(&format!("boot/config-{RELEASE}")))).unwrap();
    let line = format!(
        "note  kernel      {name}: its config is unknown; put the config next to the kernel as config-RELEASE, or build the kernel with \
         CONFIG_IKCONFIG"
    );
    machine.builtin(&["erofs"]);
    let modules = format!(
        "FAIL  modules     the modules in ROOT/cache/kernel/cloud/linux-image_6.1.9-1/lib/modules/{RELEASE} cannot be packed: the \
         module erofs (the disk's file system) is neither in modules.dep nor in modules.builtin, and the guest cannot do without it; \
         give the modules of a kernel that has it, and boot that kernel; name the folder of the kernel's modules with --modules"
    );
    machine.differs(&mut machine.command(&[]), &[("kernel", &line), ("modules", &modules)], 1);

    let tree = machine.kernel(&format!("lib/modules/{RELEASE}"));
    machine.file(&format!("{tree}/modules.dep"), b"kernel/fs/erofs.ko:\n");
    machine.file(&format!("{tree}/kernel/fs/erofs.ko"), &testing::elf::elf(&[]));
    let modules = format!("ok    modules     1 to load, {} bytes (ROOT/{tree})", testing::elf::elf(&[]).len());
    machine.differs(&mut machine.command(&[]), &[("kernel", &line), ("modules", &modules)], 0);
}

#[test]
fn provided_kernel_is_checked() {
    let machine = Machine::new();
    machine.file("vmlinuz-1", b"\x7fELF, not really");
    machine.file(
        "config-1",
        fs::read_to_string(machine.path(&machine.kernel(&format!("boot/config-{RELEASE}")))).unwrap().as_bytes(),
    );
    let modules = "note  modules     not checked; if the kernel has modules, name their folder with --modules";
    let line = "ok    kernel      vmlinuz-1 has every option that q35 needs";
    machine.differs(&mut machine.command(&["--kernel", "vmlinuz-1"]), &[("kernel", line), ("modules", modules)], 0);

    let tree = machine.kernel(&format!("lib/modules/{RELEASE}"));
    let found = format!("ok    modules     none to load, all is built in ({tree})");
    let arguments = ["--kernel", "vmlinuz-1", "--modules", &tree];
    machine.differs(&mut machine.command(&arguments), &[("kernel", line), ("modules", &found)], 0);

    let line = "FAIL  kernel      cannot read no-kernel: No such file or directory (os error 2); name an existing kernel";
    machine.differs(&mut machine.command(&["--kernel", "no-kernel"]), &[("kernel", line), ("modules", modules)], 1);

    machine.file("ca.pem", b"-----BEGIN CERTIFICATE-----\n");
    let line = "FAIL  kernel      ca.pem is not a kernel; name a bzImage (vmlinuz) or an ELF (vmlinux)";
    machine.differs(&mut machine.command(&["--kernel", "ca.pem"]), &[("kernel", line), ("modules", modules)], 1);
}

#[test]
fn kernel_not_yet_downloaded_is_reported() {
    let machine = Machine::new();
    fs::remove_dir_all(machine.path("cache/kernel")).unwrap();
    let modules = ("modules", "note  modules     not known yet; they come with the kernel");
    let line = "note  kernel      cloud is not in the cache; `localregistry run` downloads it on the first boot";
    let tools = PROGRAMS[..4].iter().map(|(name, ..)| (*name, there(name, "`kernel` and `run`"))).collect::<Vec<_>>();
    let changed = |kernel| {
        let tools = tools.iter().map(|(name, line)| (*name, line.as_str()));
        [("kernel", kernel), modules].into_iter().chain(tools).collect::<Vec<_>>()
    };
    machine.differs(&mut machine.command(&[]), &changed(line), 0);

    fs::remove_file(machine.path("bin/apt-get")).unwrap();
    let line = "FAIL  kernel      full is not in the cache, and cannot be downloaded: the program apt-get is not on this machine: \
                install Debian's package apt (`apt-get install apt`); or name one with --kernel";
    let apt_get = format!("FAIL  apt-get     {}; needed by `kernel` and `run`", missing("apt-get", "apt"));
    on_tmpfs(Path::new("/usr/sbin"), "size=64k", || {
        let with_apt_get = [&[("apt-get", apt_get.as_str())], &changed(line)[..]].concat();
        machine.differs(&mut machine.command(&["--flavor", "full"]), &with_apt_get, 1);
    });

    let line = "FAIL  kernel      our own kernel is not built; build it with image/kernel, or use --flavor cloud";
    let apt_get = format!("note  apt-get     {}; needed only by {DOWNLOAD}", missing("apt-get", "apt"));
    machine.differs(&mut machine.command(&["--flavor", "own"]), &[("kernel", line), modules, ("apt-get", &apt_get)], 1);
}

#[test]
fn missing_programs_init_and_cache_are_reported() {
    // Besides `PATH`, doctor looks into the folder of root's programs, which is empty here.
    on_tmpfs(Path::new("/usr/sbin"), "size=64k", || {
        for (name, package, purpose) in PROGRAMS {
            let machine = Machine::new();
            fs::remove_file(machine.path(&format!("bin/{name}"))).unwrap();
            let line = format!("note  {name:<10}  {}; needed only by {purpose}", missing(name, package));
            machine.differs(&mut machine.command(&[]), &[(name, &line)], 0);
        }
    });

    let machine = Machine::new();
    fs::remove_file(machine.path("init")).unwrap();
    let line = "FAIL  init        cannot read the init ROOT/init: No such file or directory (os error 2); `qemu/build` builds it";
    machine.differs(&mut machine.command(&[]), &[("init", line)], 1);

    let machine = Machine::new();
    let nowhere = "cannot create the cache folder /dev/null/cache/";
    let line = |name: &str, folder: &str, advice: &str| {
        format!(
            "FAIL  {name:<10}  {nowhere}{folder} (set LOCALREGISTRY_CACHE to use another): Not a directory (os error 20); {advice}"
        )
    };
    let cache = line("cache", "", "set LOCALREGISTRY_CACHE to a writable folder");
    let kernel = line("kernel", "kernel/cloud", "see the check `cache`");
    let frozen = line("frozen", "frozen", "see the check `cache`").replace("FAIL", "note");
    let modules = "note  modules     not known yet; they come with the kernel";
    machine.differs(
        machine.command(&[]).env("LOCALREGISTRY_CACHE", "/dev/null/cache"),
        &[("cache", &cache), ("frozen", &frozen), ("kernel", &kernel), ("modules", modules)],
        1,
    );
}

#[test]
fn conflicting_flags_exit_2() {
    for (arguments, message) in [
        (&["--modules", "m"][..], "the following required arguments were not provided:\n  --kernel <FILE>"),
        (&["--kernel", "k", "--flavor", "full"], "the argument '--kernel <FILE>' cannot be used with '--flavor <WHICH>'"),
    ] {
        let output = Machine::new().command(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{stderr}");
    }
}
