//! The kernels and machines that the guest comes up on: our own kernel (`image/kernel` builds it) and Debian's two, on q35 and microvm,
//! under TCG. Each serves a pull by a real client and ends in order.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::pack::{Bench, PROGRAM};
use common::vm::{self, Ended, Vm, skopeo, succeed};
use localregistry::host::kernel::{self, Flavor, Kernel};
use localregistry::proto::event::Event;
use nix::sys::signal::Signal;

/// The sample image, packed.
fn disk(bench: &Bench) -> PathBuf {
    succeed(Command::new(PROGRAM).args(["--quiet", "sample", "--output"]).arg(bench.path("sample")));
    bench.pack(&["sample"]);
    bench.path("disk.erofs")
}

/// Our own kernel, which is not built here: that takes minutes.
fn own() -> Kernel {
    kernel::cached(Flavor::Own).unwrap().expect("image/kernel builds our own kernel; tests/run does so")
}

/// Boots, pulls every byte of the sample with skopeo, ends, and gives what was seen.
fn serves(bench: &Bench, arguments: &[&str]) -> Ended {
    let vm = Vm::boot(&disk(bench), arguments);
    fs::create_dir(vm.path("certs")).unwrap();
    fs::copy(vm.path("ca.crt"), vm.path("certs/ca.crt")).unwrap();
    let from = format!("docker://{}/test/hello:latest", vm.address);
    let copy = ["copy", "--quiet", "--preserve-digests", "--src-cert-dir", "certs", &from, "oci:pulled:latest"];
    succeed(&mut skopeo(&copy, vm.dir.path()));
    let mut blobs = 0;
    for entry in fs::read_dir(bench.path("sample/blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let pulled = vm.path("pulled/blobs/sha256").join(entry.file_name());
        assert!(fs::read(entry.path()).unwrap() == fs::read(pulled).unwrap(), "{}", entry.path().display());
        blobs += 1;
    }
    assert_eq!(blobs, 3, "manifest, config and layer");
    println!("{}: ready after {} s", arguments.join(" "), vm.ready["boot_seconds"]);
    let ended = vm.stop(Signal::SIGTERM);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended
}

/// The release of the kernel that booted.
fn release(ended: &Ended) -> &str {
    let booting = ended.events.iter().find_map(|event| if let Event::Booting(booting) = event { Some(booting) } else { None });
    &booting.unwrap().kernel
}

#[test]
fn our_own_kernel_serves_on_q35_and_on_microvm() {
    let release_built = own().release;
    assert!(release_built.ends_with("-localregistry"), "{release_built}");
    for machine in ["q35", "microvm"] {
        let ended = serves(&Bench::default(), &["--flavor", "own", "--machine", machine]);
        assert_eq!(release(&ended), release_built, "{machine}");
    }
}

#[test]
fn our_own_kernel_does_without_the_modules_that_another_s_initramfs_brings() {
    let bench = Bench::default();
    let own = own();
    let initramfs = bench.path("initramfs").display().to_string();
    succeed(Command::new(PROGRAM).args(["--quiet", "initramfs", "--flavor", "cloud", "--output", &initramfs]));
    let elf = own.elf.display().to_string();
    let ended = serves(&bench, &["--kernel", &elf, "--initramfs", &initramfs, "--console", "console"]);
    assert_eq!(release(&ended), own.release);
}

#[test]
fn debian_s_full_kernel_serves() {
    let ended = serves(&Bench::default(), &["--flavor", "full"]);
    let release = release(&ended);
    assert!(release.ends_with("-amd64") && !release.ends_with("-cloud-amd64"), "{release}");
}

#[test]
fn debian_s_cloud_kernel_serves_on_microvm() {
    let ended = serves(&Bench::default(), &["--flavor", "cloud", "--machine", "microvm"]);
    let release = release(&ended);
    assert!(release.ends_with("-cloud-amd64"), "{release}");
}

#[test]
fn a_panic_of_our_own_kernel_is_told_on_both_machines() {
    let bench = Bench::default();
    let disk = disk(&bench);
    own();
    // With this argument the init prints its version and returns, which PID 1 must not.
    let version = vm::qemu_changed(&bench.path(""), "args=(\"${@/panic=-1/panic=-1 -- --version}\")");
    for machine in ["q35", "microvm"] {
        let ended = vm::fails(&disk, &["--flavor", "own", "--machine", machine, "--qemu", &version]);
        assert_eq!(ended.status, Some(4), "{}", ended.stderr);
        let panic = "localregistry: the guest's kernel panicked: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000\n";
        assert!(ended.stderr.contains(panic), "{}", ended.stderr);
    }
}
