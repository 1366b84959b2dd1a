//! QEMU's command line. A machine's description enters, the arguments leave, each with its reason. It never starts anything and
//! reads nothing.

mod board;
pub mod network;
pub mod version;

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::accel::Accel;

pub use board::Board;
pub use network::{Backend, Forward, Network};
pub use version::Version;

/// Name of the virtio-serial port that events come out of.
const EVENTS_PORT: &str = "localregistry.events";
/// Name of the virtio-serial port that commands go into.
const CONTROL_PORT: &str = "localregistry.control";

/// What every kernel is told, beside its console and what its board asks for:
///
/// - `panic=-1`: a panic resets the machine at once, and `-no-reboot` makes that QEMU's end.
/// - `loglevel=5`: errors and warnings only. Every character is an exit from the guest: the full log of a stock kernel costs
///   0.4 s of boot under TCG. A panic raises the level by itself and prints all of its report.
const KERNEL_ARGUMENTS: &str = "panic=-1 loglevel=5";

/// One appliance as QEMU sees it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The board.
    pub board: Board,
    /// The rate of the processor's time stamp counter in kHz, where the guest's kernel cannot measure it: it waits forever for an
    /// interrupt on a microvm with ACPI that is emulated.
    pub tsc_khz: Option<u64>,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// The kernel: an ELF with a PVH note, or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The packed disks, in order.
    pub disks: Vec<Disk>,
    /// The network interfaces, in order.
    pub networks: Vec<Network>,
    /// Files that the guest reads through fw_cfg: name (at most 55 characters) and path.
    pub fw_cfg: Vec<(&'static str, PathBuf)>,
    /// The ways to talk to it.
    pub channels: Channels,
    /// Further arguments, which come last and win where QEMU lets them.
    pub further: Vec<OsString>,
}

/// A packed disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// A raw image, only ever read.
    pub path: PathBuf,
    /// Serial that the guest finds it by.
    pub serial: String,
}

/// The ways to talk to QEMU and the guest.
#[derive(Debug, Clone)]
pub struct Channels {
    /// QEMU's own control (QMP).
    pub qmp: Channel,
    /// The serial console.
    pub console: Channel,
    /// The port that events come out of.
    pub events: Channel,
    /// The port that commands go into.
    pub control: Channel,
}

/// One of them.
#[derive(Debug, Clone)]
pub enum Channel {
    /// A connected stream socket that QEMU inherits: it gives end of file when QEMU ends, and leaves no name behind.
    Inherited(RawFd),
    /// A Unix socket that QEMU listens at; the guest waits for nobody, and what it says waits for the first who connects.
    Listening(PathBuf),
    /// A file that is written to.
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
        let groups = [self.board(), self.guest(), self.storage(), self.network(), self.ports(), self.firmware()];
        groups.into_iter().flatten().chain(self.further.iter().cloned()).collect()
    }

    /// The board and how it ends.
    fn board(&self) -> Vec<OsString> {
        vec![
            "-machine".into(),
            self.board.machine().into(),
            "-accel".into(),
            self.accel.as_str().into(),
            // Every feature that the accelerator can give: under TCG that is RDRAND, so that entropy does not wait.
            "-cpu".into(),
            "max".into(),
            "-smp".into(),
            self.cpus.to_string().into(),
            "-m".into(),
            format!("{}M", self.memory_mib).into(),
            // Nothing that is not listed here, neither by default nor from /etc/qemu.
            "-nodefaults".into(),
            "-no-user-config".into(),
            "-display".into(),
            "none".into(),
            // A reset ends QEMU: an appliance that restarts by itself would hide its fault.
            "-no-reboot".into(),
            // A guest panic gives QEMU a status of its own where the guest's kernel has the driver.
            "-device".into(),
            self.board.panic_device().into(),
            "-action".into(),
            "panic=exit-failure".into(),
            // Certificates need a date.
            "-rtc".into(),
            "base=utc".into(),
            // Keys must not wait for entropy.
            "-device".into(),
            self.board.virtio("rng").into(),
        ]
    }

    /// What runs inside.
    fn guest(&self) -> Vec<OsString> {
        vec![
            "-kernel".into(),
            self.kernel.clone().into(),
            "-initrd".into(),
            self.initramfs.clone().into(),
            "-append".into(),
            self.kernel_arguments().into(),
        ]
    }

    /// What the kernel is told.
    fn kernel_arguments(&self) -> String {
        let rate = self.tsc_khz.map(|khz| format!(" tsc_early_khz={khz}")).unwrap_or_default();
        format!("console={} {KERNEL_ARGUMENTS}{}{rate}", self.board.console(), self.board.kernel_arguments())
    }

    /// The packed disks. Without QEMU's file locks: nobody writes, and any number of machines share one disk.
    fn storage(&self) -> Vec<OsString> {
        let one = |(place, disk): (usize, &Disk)| {
            let node = if place == 0 { "disk".to_owned() } else { format!("disk{place}") };
            let backend = format!("driver=raw,node-name={node},read-only=on,file.driver=file,file.locking=off,file.filename=");
            let device = format!("{},drive={node},serial=", self.board.virtio("blk"));
            let device = keyed(&device, OsStr::new(&disk.serial));
            ["-blockdev".into(), keyed(&backend, disk.path.as_os_str()), "-device".into(), device]
        };
        self.disks.iter().enumerate().flat_map(one).collect()
    }

    /// The network interfaces.
    fn network(&self) -> Vec<OsString> {
        self.networks.iter().enumerate().flat_map(|(place, network)| network.arguments(place, self.board)).collect()
    }

    /// Console, events, control and QMP.
    fn ports(&self) -> Vec<OsString> {
        let Channels { qmp, console, events, control } = &self.channels;
        let port = |id: &str, name: &str| OsString::from(format!("virtserialport,chardev={id},name={name}"));
        vec![
            "-chardev".into(),
            console.argument("console"),
            "-serial".into(),
            "chardev:console".into(),
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
            "-chardev".into(),
            qmp.argument("qmp"),
            "-mon".into(),
            "chardev=qmp,mode=control".into(),
        ]
    }

    /// Config and keys.
    fn firmware(&self) -> Vec<OsString> {
        let entry = |(name, path): &(&str, PathBuf)| {
            let argument = keyed(&format!("name={name},file="), path.as_os_str());
            [OsString::from("-fw_cfg"), argument]
        };
        self.fw_cfg.iter().flat_map(entry).collect()
    }
}

/// `prefix` followed by `value` with its commas doubled.
fn keyed(prefix: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(escaped(value));
    argument
}

/// A value inside a comma-separated argument: QEMU reads a doubled comma as one.
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
    fn the_command_line_is_the_golden_one() {
        let microvm = Machine { board: Board::Microvm, tsc_khz: Some(2_596_142), ..machine() };
        let virt = Machine { board: Board::Virt, ..machine() };
        assert_eq!(listing(&machine()), include_str!("../../../../tests/golden/qemu-argv.txt"));
        assert_eq!(listing(&microvm), include_str!("../../../../tests/golden/qemu-argv-microvm.txt"));
        assert_eq!(listing(&virt), include_str!("../../../../tests/golden/qemu-argv-virt.txt"));
    }

    #[test]
    fn what_differs_between_machines_is_passed_on() {
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
            "-m 512M",
            "-smp 4",
            "-device virtio-blk-pci,drive=disk,serial=a,,serial=b",
            "-blockdev driver=raw,node-name=disk1,read-only=on,file.driver=file,file.locking=off,file.filename=/tmp/t,,wo",
            "-device virtio-blk-pci,drive=disk1,serial=two",
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
