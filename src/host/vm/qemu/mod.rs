//! Builds QEMU's command line from the description of a machine. Pure functions; each argument has its reason.

mod board;
pub mod network;
pub mod version;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::accel::Accel;

pub use crate::host::boot::board::Board;
pub use network::{Backend, Forward, Network};
pub use version::Version;

/// Name of the virtio-serial port of the guest's events.
const EVENTS_PORT: &str = "localregistry.events";
/// Name of the virtio-serial port on which a frozen machine gets the files that others read through fw_cfg.
const FILES_PORT: &str = "localregistry.files";
/// Name of the virtio-serial port for commands to the guest.
const CONTROL_PORT: &str = "localregistry.control";

/// Kernel arguments on every board, besides the console:
///
/// - `panic=-1`: a panic resets the machine at once, and with `-no-reboot` a reset ends QEMU.
/// - `loglevel=5`: errors and warnings only. Every character is an exit from the guest: the full log of a stock kernel adds 0.4 s to a
///   boot under TCG. A panic raises the level and prints its complete report.
/// - `cryptomgr.notests`: a distribution's kernel tests its cryptography at each boot, with half of all instructions until PID 1.
const KERNEL_ARGUMENTS: &str = "panic=-1 loglevel=5 cryptomgr.notests";

/// Kernel arguments of a machine that is frozen, besides those: the init waits, and the random number generator gets no seed before the
/// machine goes on, when it has virtio-rng. Machines with a seed in common would draw the same keys.
const FREEZE_ARGUMENTS: &str = "random.trust_cpu=off random.trust_bootloader=off localregistry_freeze";

/// A machine that starts from a frozen one has the ACPI tables of that, which do not know the run's PCI ports. So the ports announce late
/// devices themselves.
const NATIVE_HOTPLUG: &str = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";

/// The machine that QEMU emulates.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The board.
    pub board: Board,
    /// The rate of the time stamp counter in kHz, if the guest's kernel cannot measure it: on an emulated microvm with ACPI it waits
    /// forever for an interrupt.
    pub tsc_khz: Option<u64>,
    /// The accelerator.
    pub accel: Accel,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// A file with the memory. `None`: QEMU's own memory.
    pub memory: Option<MemoryFile>,
    /// Number of virtual processors.
    pub cpus: u32,
    /// The kernel: an ELF with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The packed disks, in order.
    pub disks: Vec<Disk>,
    /// The network interfaces, in order.
    pub networks: Vec<Network>,
    /// Files that the guest reads through fw_cfg: a name of at most 55 characters, and the path.
    pub fw_cfg: Vec<(&'static str, PathBuf)>,
    /// The channels to QEMU and the guest.
    pub channels: Channels,
    /// Further arguments. They come last, and override others if QEMU allows it.
    pub further: Vec<OsString>,
}

/// A file with the memory of a frozen machine.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    /// Its path.
    pub path: PathBuf,
    /// What the machine does with it.
    pub purpose: MemoryPurpose,
}

/// What a machine does with its memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryPurpose {
    /// It writes to the file, and is to be frozen.
    Freeze,
    /// It starts from the file, and has its changes for itself. The kernel is in the memory already.
    Start {
        /// The option ROM that loaded the kernel. It is part of the machine's state.
        loader: &'static str,
    },
}

/// The option ROM with which QEMU loads a kernel that starts with these bytes, on q35.
#[must_use]
pub fn loader_rom(kernel: &[u8]) -> &'static str {
    if kernel.starts_with(b"\x7fELF") { "pvh.bin" } else { "linuxboot_dma.bin" }
}

/// A packed disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// A raw image. QEMU opens it read-only.
    pub path: PathBuf,
    /// The serial number by which the guest finds it.
    pub serial: String,
}

/// The channels to QEMU and the guest.
#[derive(Debug, Clone)]
pub struct Channels {
    /// QMP.
    pub qmp: Channel,
    /// The serial console.
    pub console: Channel,
    /// The port of the guest's events.
    pub events: Channel,
    /// The port for commands to the guest.
    pub control: Channel,
    /// The port for the files of a frozen machine.
    pub files: Option<Channel>,
}

/// One channel.
#[derive(Debug, Clone)]
pub enum Channel {
    /// A connected stream socket that QEMU inherits. Its other end reads end of file when QEMU ends; no file is left.
    Inherited(RawFd),
    /// A Unix socket that QEMU listens on. The guest does not wait for a client; its output waits for the first one.
    Listening(PathBuf),
    /// An output file.
    File(PathBuf),
}

impl Channel {
    /// The argument of `-chardev`.
    fn argument(&self, id: &str) -> OsString {
        match self {
            Self::Inherited(fd) => format!("socket,id={id},fd={fd}").into(),
            Self::Listening(path) => {
                let mut argument = keyed(&format!("socket,id={id},path="), path.as_os_str());
                argument.push(",server=on,wait=off");
                argument
            }
            Self::File(path) => keyed(&format!("file,id={id},path="), path.as_os_str()),
        }
    }
}

impl Machine {
    /// The arguments, without the program.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        // Entropy for the keys.
        let entropy = vec!["-device".into(), self.board.virtio("rng").into()];
        let rest = [self.storage(), self.network()].concat();
        let groups = match &self.memory {
            Some(MemoryFile { purpose: MemoryPurpose::Start { loader }, .. }) => {
                // The devices of the machine that was frozen come first, so that they have the places that they had. Reading the kernel
                // and the initramfs would take QEMU longer than all the rest.
                let rom = vec!["-option-rom".into(), format!("{loader},bootindex=0").into()];
                let waiting = vec!["-incoming".into(), "defer".into()];
                [self.board(), self.ports(), entropy, rom, rest, self.firmware(), waiting]
            }
            _ => {
                let guest = self.guest(self.kernel_arguments());
                [self.board(), entropy, guest, rest, self.ports(), self.firmware(), vec![]]
            }
        };
        groups.into_iter().flatten().chain(self.further.iter().cloned()).collect()
    }

    /// The arguments of the machine that is frozen. Of virtio devices it has only those that are alike in all machines and carry no secret.
    #[must_use]
    pub fn frozen_arguments(&self) -> Vec<OsString> {
        let guest = self.guest(format!("{} {FREEZE_ARGUMENTS}", self.kernel_arguments()));
        [self.board(), self.ports(), guest].into_iter().flatten().collect()
    }

    /// The board, and when QEMU exits.
    fn board(&self) -> Vec<OsString> {
        let mut machine = OsString::from(self.board.machine());
        let mut memory = vec![];
        if let Some(MemoryFile { path, purpose }) = &self.memory {
            let shared = *purpose == MemoryPurpose::Freeze;
            machine.push(",memory-backend=ram");
            let file = format!("memory-backend-file,id=ram,size={}M,share={},mem-path=", self.memory_mib, on_off(shared));
            memory = vec!["-object".into(), keyed(&file, path.as_os_str()), "-global".into(), NATIVE_HOTPLUG.into()];
        }
        let board = vec![
            "-machine".into(),
            machine,
            "-accel".into(),
            self.accel.as_str().into(),
            "-cpu".into(),
            self.board.cpu(self.accel).into(),
            "-smp".into(),
            self.processors().into(),
            "-m".into(),
            format!("{}M", self.memory_mib).into(),
            // No devices but those listed here, neither default ones nor any from /etc/qemu.
            "-nodefaults".into(),
            "-no-user-config".into(),
            "-display".into(),
            "none".into(),
            // A reset ends QEMU: an appliance that restarts would hide its fault.
            "-no-reboot".into(),
            // If the guest's kernel has the driver, a panic makes QEMU exit with a status of its own.
            "-device".into(),
            self.board.panic_device().into(),
            "-action".into(),
            "panic=exit-failure".into(),
            // Certificates need the date.
            "-rtc".into(),
            "base=utc".into(),
        ];
        [board, memory].concat()
    }

    /// The value of `-smp`. For a machine that can never have a second processor, TCG leaves out the barriers of memory access, as if
    /// nothing else ran. Its devices do, in other threads: one of them then misses that the guest has given it buffers, and a network card
    /// under load receives nothing any more (QEMU commit c914d46d0a, of version 8.1, mends a part of it). So there is room for a second.
    fn processors(&self) -> String {
        match (self.cpus, self.accel) {
            (1, Accel::Tcg) => "1,maxcpus=2".to_owned(),
            (cpus, _) => cpus.to_string(),
        }
    }

    /// The kernel and the initramfs.
    fn guest(&self, kernel_arguments: String) -> Vec<OsString> {
        vec![
            "-kernel".into(),
            self.kernel.clone().into(),
            "-initrd".into(),
            self.initramfs.clone().into(),
            "-append".into(),
            kernel_arguments.into(),
        ]
    }

    fn kernel_arguments(&self) -> String {
        let rate = self.tsc_khz.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        format!("console={} {KERNEL_ARGUMENTS}{}{rate}", self.board.console(), self.board.kernel_arguments(self.accel))
    }

    /// The packed disks. QEMU's file locks are off: nobody writes, and machines may share a disk. Linux reads ahead by twice the optimal
    /// size: with 1 MiB a first pull takes a fifth less processor time under TCG than with the default of 128 KiB.
    fn storage(&self) -> Vec<OsString> {
        let arguments = |(index, disk): (usize, &Disk)| {
            let node = if index == 0 { "disk".to_owned() } else { format!("disk{index}") };
            let backend = format!("driver=raw,node-name={node},read-only=on,file.driver=file,file.locking=off,file.filename=");
            let device = format!("{},drive={node},opt_io_size=524288,serial=", self.board.virtio("blk"));
            let device = keyed(&device, OsStr::new(&disk.serial));
            ["-blockdev".into(), keyed(&backend, disk.path.as_os_str()), "-device".into(), device]
        };
        self.disks.iter().enumerate().flat_map(arguments).collect()
    }

    fn network(&self) -> Vec<OsString> {
        self.networks.iter().enumerate().flat_map(|(index, network)| network.arguments(index, self.board)).collect()
    }

    /// Console, events, control and QMP.
    fn ports(&self) -> Vec<OsString> {
        let Channels { events, control, files, .. } = &self.channels;
        let port = |id: &str, name: &str| OsString::from(format!("virtserialport,chardev={id},name={name}"));
        let ports = vec![
            "-device".into(),
            self.board.virtio("serial").into(),
            "-chardev".into(),
            events.argument("events"),
            "-device".into(),
            port("events", EVENTS_PORT),
            "-chardev".into(),
            control.argument("control"),
            "-device".into(),
            port("control", CONTROL_PORT),
        ];
        let files = files
            .iter()
            .flat_map(|files| ["-chardev".into(), files.argument("files"), "-device".into(), port("files", FILES_PORT)]);
        [self.console(), ports, files.collect(), self.qmp()].concat()
    }

    fn console(&self) -> Vec<OsString> {
        vec!["-chardev".into(), self.channels.console.argument("console"), "-serial".into(), "chardev:console".into()]
    }

    fn qmp(&self) -> Vec<OsString> {
        vec!["-chardev".into(), self.channels.qmp.argument("qmp"), "-mon".into(), "chardev=qmp,mode=control".into()]
    }

    /// The files for fw_cfg.
    fn firmware(&self) -> Vec<OsString> {
        let entry = |(name, path): &(&str, PathBuf)| {
            let argument = keyed(&format!("name={name},file="), path.as_os_str());
            [OsString::from("-fw_cfg"), argument]
        };
        self.fw_cfg.iter().flat_map(entry).collect()
    }
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Appends `value`, escaped, to `prefix`.
fn keyed(prefix: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(escaped(value));
    argument
}

/// Escapes a value in a comma-separated argument: QEMU reads a doubled comma as one.
fn escaped(value: &OsStr) -> OsString {
    let bytes = value.as_bytes().iter();
    let doubled = bytes.flat_map(|&byte| if byte == b',' { vec![b',', b','] } else { vec![byte] });
    OsString::from_vec(doubled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Mac;

    fn forward(host: &str, guest_port: u16) -> Forward {
        Forward { host: host.parse().unwrap(), guest_port }
    }

    fn user(forwards: Vec<Forward>) -> Backend {
        Backend::User { forwards, guest: None, gateway: None }
    }

    fn on(backend: Backend, last: u8) -> Network {
        Network { backend, mac: Mac([0x52, 0, 0, 0, 0, last]) }
    }

    fn machine() -> Machine {
        Machine {
            board: Board::Q35,
            tsc_khz: None,
            accel: Accel::Tcg,
            memory_mib: 256,
            memory: None,
            cpus: 1,
            kernel: "/cache/vmlinux".into(),
            initramfs: "/cache/initramfs.cpio".into(),
            disks: vec![Disk { path: "/tmp/a,b/images.erofs".into(), serial: "localregistry".into() }],
            networks: vec![on(user(vec![forward("127.0.0.1:0", 5000)]), 1)],
            fw_cfg: vec![("opt/localregistry/config", "/dev/fd/9".into())],
            channels: Channels {
                qmp: Channel::Inherited(5),
                console: Channel::Inherited(6),
                events: Channel::Inherited(7),
                control: Channel::Inherited(8),
                files: None,
            },
            further: vec![],
        }
    }

    /// One line an option, as in the golden file.
    fn listing(machine: &Machine) -> String {
        let mut text = String::new();
        for argument in machine.arguments() {
            let argument = argument.into_string().unwrap();
            text.push_str(if argument.starts_with('-') { "\n" } else { " " });
            text.push_str(&argument);
        }
        text.trim_start().to_owned() + "\n"
    }

    #[test]
    fn command_line_matches_the_golden_file() {
        let microvm = Machine { board: Board::Microvm, tsc_khz: Some(2_596_142), ..machine() };
        let virt = Machine { board: Board::Virt, ..machine() };
        assert_eq!(listing(&machine()), include_str!("../../../../tests/golden/qemu-argv.txt"));
        assert_eq!(listing(&microvm), include_str!("../../../../tests/golden/qemu-argv-microvm.txt"));
        assert_eq!(listing(&virt), include_str!("../../../../tests/golden/qemu-argv-virt.txt"));
    }

    #[test]
    fn machine_that_starts_has_the_devices_of_the_frozen_one_in_their_places() {
        let with_memory = |purpose| Machine {
            memory: Some(MemoryFile { path: "/cache/ram".into(), purpose }),
            channels: Channels { files: Some(Channel::Inherited(9)), ..machine().channels },
            ..machine()
        };
        let words = |arguments: Vec<OsString>| -> Vec<String> {
            arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
        };
        let devices = |words: &[String]| -> Vec<String> {
            words.windows(2).filter(|pair| pair[0] == "-device").map(|pair| pair[1].clone()).collect()
        };
        let frozen = words(with_memory(MemoryPurpose::Freeze).frozen_arguments());
        let started = words(with_memory(MemoryPurpose::Start { loader: loader_rom(b"\x7fELF") }).arguments());
        let (before, after) = (devices(&frozen), devices(&started));
        assert!(before.len() == 5 && after.len() == 8 && after.starts_with(&before), "{before:?} {after:?}");
        let has = |words: &[String], wanted: &str| words.iter().any(|word| word == wanted);
        assert!(has(&frozen, "-kernel") && has(&frozen, "-initrd") && !has(&frozen, "-option-rom"), "{frozen:?}");
        assert!(!has(&started, "-kernel") && !has(&started, "-initrd") && has(&started, "pvh.bin,bootindex=0"), "{started:?}");
        assert_eq!(loader_rom(b"MZ\xea\x07"), "linuxboot_dma.bin");
    }

    #[test]
    fn options_of_a_machine_are_in_the_command_line() {
        let machine = Machine {
            accel: Accel::Kvm,
            memory_mib: 512,
            cpus: 4,
            disks: vec![
                Disk { path: "/tmp/one".into(), serial: "a,serial=b".into() },
                Disk { path: "/tmp/t,wo".into(), serial: "two".into() },
            ],
            networks: vec![
                on(user(vec![forward("0.0.0.0:5001", 443), forward("127.0.0.1:0", 9090)]), 1),
                on(Backend::TapFd(9), 2),
            ],
            channels: Channels {
                qmp: Channel::Listening("/run/a,b/qmp.sock".into()),
                console: Channel::File("/run/a,b/console".into()),
                ..machine().channels
            },
            further: vec!["-device".into(), "virtio-balloon-pci".into()],
            fw_cfg: vec![],
            ..machine()
        };
        let listing = listing(&machine);
        for line in [
            "-accel kvm",
            "-cpu max",
            "-m 512M",
            "-smp 4",
            "-device virtio-blk-pci,drive=disk,opt_io_size=524288,serial=a,,serial=b",
            "-blockdev driver=raw,node-name=disk1,read-only=on,file.driver=file,file.locking=off,file.filename=/tmp/t,,wo",
            "-device virtio-blk-pci,drive=disk1,opt_io_size=524288,serial=two",
            "-netdev user,id=net0,restrict=on,hostfwd=tcp:0.0.0.0:5001-:443,hostfwd=tcp:127.0.0.1:0-:9090",
            "-device virtio-net-pci,netdev=net0,mac=52:00:00:00:00:01",
            "-netdev tap,id=net1,fd=9",
            "-device virtio-net-pci,netdev=net1,mac=52:00:00:00:00:02",
            "-chardev socket,id=qmp,path=/run/a,,b/qmp.sock,server=on,wait=off",
            "-chardev file,id=console,path=/run/a,,b/console",
        ] {
            assert!(listing.lines().any(|found| found == line), "{line} is missing in\n{listing}");
        }
        assert!(!listing.contains("-fw_cfg"));
        assert!(listing.ends_with("\n-device virtio-balloon-pci\n"), "{listing}");
    }
}
