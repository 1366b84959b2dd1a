//! QEMU's command line. A machine's description enters, the arguments leave, each with its reason. It never starts anything and
//! reads nothing.

mod board;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

pub use board::Board;

use super::accel::Accel;

/// Name of the virtio-serial port that events come out of.
const EVENTS_PORT: &str = "localregistry.events";
/// Name of the virtio-serial port that commands go into.
const CONTROL_PORT: &str = "localregistry.control";

/// What every kernel is told, beside its console:
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
    /// The packed disk: a raw image, only ever read.
    pub disk: PathBuf,
    /// Serial that the guest finds the disk by.
    pub serial: String,
    /// The ports that are forwarded.
    pub forwards: Vec<Forward>,
    /// Files that the guest reads through fw_cfg: name (at most 55 characters) and path.
    pub fw_cfg: Vec<(&'static str, PathBuf)>,
    /// The stream sockets that QEMU inherits.
    pub channels: Channels,
}

/// A TCP port of the host, and the guest's that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where the host listens. Port 0: QEMU takes a free one.
    pub host: SocketAddrV4,
    /// Where the guest listens.
    pub guest_port: u16,
}

/// Descriptors of connected stream sockets that QEMU inherits: each gives end of file when QEMU ends, and leaves no name behind.
#[derive(Debug, Clone, Copy)]
pub struct Channels {
    /// QEMU's own control (QMP).
    pub qmp: RawFd,
    /// The serial console.
    pub console: RawFd,
    /// The port that events come out of.
    pub events: RawFd,
    /// The port that commands go into.
    pub control: RawFd,
}

impl Machine {
    /// The arguments, without the program.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let groups = [self.board(), self.guest(), self.storage(), self.network(), self.ports(), self.firmware()];
        groups.into_iter().flatten().collect()
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
        format!("console={} {KERNEL_ARGUMENTS}{rate}", self.board.console())
    }

    /// The packed disk. Without QEMU's file locks: nobody writes, and any number of machines share one disk.
    fn storage(&self) -> Vec<OsString> {
        let mut backend =
            OsString::from("driver=raw,node-name=disk,read-only=on,file.driver=file,file.locking=off,file.filename=");
        backend.push(escaped(self.disk.as_os_str()));
        let device = keyed(&format!("{},drive=disk,serial=", self.board.virtio("blk")), OsStr::new(&self.serial));
        vec!["-blockdev".into(), backend, "-device".into(), device]
    }

    /// User networking: the forwarded ports in, nothing out.
    fn network(&self) -> Vec<OsString> {
        let forward = |forward: &Forward| format!(",hostfwd=tcp:{}-:{}", forward.host, forward.guest_port);
        let backend = self.forwards.iter().map(forward).fold("user,id=net,restrict=on".to_owned(), |all, one| all + &one);
        vec!["-netdev".into(), backend.into(), "-device".into(), format!("{},netdev=net", self.board.virtio("net")).into()]
    }

    /// Console, events, control and QMP.
    fn ports(&self) -> Vec<OsString> {
        let Channels { qmp, console, events, control } = self.channels;
        let socket = |id: &str, fd: RawFd| OsString::from(format!("socket,id={id},fd={fd}"));
        let port = |id: &str, name: &str| OsString::from(format!("virtserialport,chardev={id},name={name}"));
        vec![
            "-chardev".into(),
            socket("console", console),
            "-serial".into(),
            "chardev:console".into(),
            "-device".into(),
            self.board.virtio("serial").into(),
            "-chardev".into(),
            socket("events", events),
            "-device".into(),
            port("events", EVENTS_PORT),
            "-chardev".into(),
            socket("control", control),
            "-device".into(),
            port("control", CONTROL_PORT),
            "-chardev".into(),
            socket("qmp", qmp),
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
    use std::net::Ipv4Addr;

    use super::*;

    fn machine() -> Machine {
        Machine {
            board: Board::Q35,
            tsc_khz: None,
            accel: Accel::Tcg,
            memory_mib: 256,
            cpus: 1,
            kernel: "/cache/vmlinux".into(),
            initramfs: "/cache/initramfs.cpio".into(),
            disk: "/tmp/a,b/images.erofs".into(),
            serial: "localregistry".into(),
            forwards: vec![Forward { host: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), guest_port: 5000 }],
            fw_cfg: vec![("opt/localregistry/config", "/dev/fd/9".into())],
            channels: Channels { qmp: 5, console: 6, events: 7, control: 8 },
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
        assert_eq!(listing(&machine()), include_str!("../../tests/golden/qemu-argv.txt"));
        assert_eq!(listing(&microvm), include_str!("../../tests/golden/qemu-argv-microvm.txt"));
        assert_eq!(listing(&virt), include_str!("../../tests/golden/qemu-argv-virt.txt"));
    }

    #[test]
    fn what_differs_between_machines_is_passed_on() {
        let machine = Machine {
            accel: Accel::Kvm,
            memory_mib: 512,
            cpus: 4,
            serial: "a,serial=b".into(),
            forwards: vec![
                Forward { host: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 5001), guest_port: 443 },
                Forward { host: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), guest_port: 9090 },
            ],
            fw_cfg: vec![],
            ..machine()
        };
        let listing = listing(&machine);
        for line in [
            "-accel kvm",
            "-m 512M",
            "-smp 4",
            "-device virtio-blk-pci,drive=disk,serial=a,,serial=b",
            "-netdev user,id=net,restrict=on,hostfwd=tcp:0.0.0.0:5001-:443,hostfwd=tcp:127.0.0.1:0-:9090",
        ] {
            assert!(listing.lines().any(|found| found == line), "{line} is missing in\n{listing}");
        }
        assert!(!listing.contains("-fw_cfg"));
    }
}
