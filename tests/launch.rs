//! Whole appliances, booted under TCG from packed disks: by the library, and by `localregistry run`.
#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers too")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::http;
use common::layout::Layout;
use localregistry::host::accel::{Accel, Choice};
use localregistry::host::config::GuestConfig;
use localregistry::host::launch::{Exit, LaunchError, Options, Outcome, Vm};
use localregistry::host::report::Report;
use localregistry::host::{initramfs, kernel, qemu};
use localregistry::proto::event::Event as Kind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_localregistry");
const QUIET: Report = Report { json: false, quiet: true };

/// A folder with the packed disk of one image.
fn packed() -> (TempDir, PathBuf) {
    let mut layout = Layout::default();
    layout.image("test/hello:latest", b"a layer");
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let packed = Command::new(PROGRAM).args(["pack", "--quiet", "-o"]).arg(&disk).arg(layout.write()).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    (folder, disk)
}

/// Options for `disk` over plain HTTP, with the cached kernel and this project's init.
fn options(disk: &Path) -> Options {
    let kernel = kernel::cached_or_download(kernel::Flavor::Cloud, &QUIET).unwrap();
    Options {
        board: qemu::Board::Q35,
        disk: disk.to_owned(),
        initramfs: initramfs::cached(None, &kernel.modules, &QUIET).unwrap(),
        kernel: kernel.elf,
        qemu: qemu::Board::Q35.program().into(),
        memory_mib: 256,
        cpus: 1,
        accel: Choice::Tcg,
        publish: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
        metrics: None,
        config: GuestConfig::parse(br#"{"tls": {"mode": "OFF"}}"#).unwrap(),
        tls: None,
        secrets: Vec::new(),
        events: None,
        console: None,
        timeout: Duration::from_secs(300),
        report: QUIET,
    }
}

/// Status of a GET, by a thread that may wait.
async fn status_of(address: SocketAddrV4, target: &'static str) -> u16 {
    tokio::task::spawn_blocking(move || http::get(address.into(), target).status).await.unwrap()
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn an_appliance_boots_serves_tells_and_ends_in_order() {
    let (folder, disk) = packed();
    let events = folder.path().join("events");
    let mut vm = Vm::boot(Options { events: Some(events.clone()), ..options(&disk) }).await.unwrap();
    assert_eq!(vm.endpoint(), format!("http://{}", vm.address()));
    assert_ne!(vm.address().port(), 0);
    assert_eq!((vm.ready().images, vm.accel()), (1, Accel::Tcg));
    assert_eq!(status_of(vm.address(), "/v2/test/hello/manifests/latest").await, 200);

    let mut told = Vec::new();
    while !matches!(told.last(), Some(Kind::Request(_))) {
        told.push(vm.next_event().await.unwrap().unwrap().event.unwrap());
    }
    assert!(matches!(&told[..], [Kind::Booting(_), .., Kind::Ready(_), Kind::Request(_)]), "{told:?}");

    let pid = vm.pid();
    let ended = vm.shutdown().await;
    let Outcome::Done(done) = &ended.outcome else { panic!("{ended:?}") };
    assert_eq!((ended.outcome.exit_status(), done.requests), (0, 1));
    assert!(ended.unwritten.is_empty());
    assert!(!is_there(pid));

    let kept = fs::read_to_string(&events).unwrap();
    let last: Value = serde_json::from_str(kept.lines().last().unwrap()).unwrap();
    assert!(last["done"].is_object(), "{last}");
    assert_eq!(kept.lines().count(), told.len() + 1);
}

#[tokio::test]
async fn appliances_share_a_disk_and_not_their_fate() {
    let (_folder, disk) = packed();
    let (one, other) = tokio::join!(Vm::boot(options(&disk)), Vm::boot(options(&disk)));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(one.address(), other.address());

    let pid = one.pid();
    drop(one);
    assert!(!is_there(pid), "a dropped appliance is gone, and reaped");
    assert_eq!(status_of(other.address(), "/v2/").await, 200);

    kill(Pid::from_raw(other.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let ended = other.wait().await;
    assert_eq!(ended.outcome, Outcome::Died { exit: Exit::Signal(9), killed: None, done: false });
}

#[tokio::test]
async fn a_boot_that_is_given_up_leaves_no_qemu() {
    let (_folder, disk) = packed();
    let boot = Vm::boot(options(&disk));
    assert!(tokio::time::timeout(Duration::from_millis(300), boot).await.is_err());
    let mut children = String::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        for child in fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace() {
            let arguments = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if arguments.contains(disk.to_str().unwrap()) {
                children.push_str(child);
            }
        }
    }
    assert_eq!(children, "");
}

#[tokio::test]
async fn a_disk_that_is_none_is_the_guest_s_own_fault() {
    let (_folder, disk) = packed();
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let error = Vm::boot(options(&disk)).await.unwrap_err();
    assert_eq!(error.exit_status(), 3);
    let LaunchError::Ended(ended) = error else { panic!("{error:?}") };
    let sentence = ended.outcome.to_string();
    assert!(sentence.starts_with("the guest stopped: FATAL code=BAD_DISK /dev/vda, "), "{sentence}");
    assert!(ended.console.iter().any(|line| line.starts_with("FATAL code=BAD_DISK ")), "{:?}", ended.console);
}

#[test]
fn run_prints_where_it_is_writes_the_ca_and_ends_on_sigterm() {
    let (folder, _disk) = packed();
    let mut command = Command::new(PROGRAM);
    command.current_dir(folder.path()).args(["run", "disk", "--accel", "tcg", "--json", "--quiet", "--log", "--timeout", "300"]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let place: Value = serde_json::from_str(&line).unwrap();
    let address = place["address"].as_str().unwrap();
    assert_eq!(place["endpoint"], format!("https://{address}"));
    assert_eq!((&place["images"], &place["accel"]), (&1.into(), &"tcg".into()));
    let ca = folder.path().canonicalize().unwrap().join("ca.crt");
    assert_eq!(place["ca"], ca.to_str().unwrap());
    assert!(fs::read_to_string(&ca).unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));

    kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0));
    let mut stderr = String::new();
    run.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "");
    assert!(!is_there(place["qemu_pid"].as_u64().unwrap().try_into().unwrap()));
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["ca.crt", "disk"]);
}
