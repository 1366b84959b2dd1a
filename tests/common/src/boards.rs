//! Boots the sample image on a kernel and board, pulls it with a real client, and shuts down.

use std::fs;

use localregistry::proto::event::Event;
use nix::sys::signal::Signal;

use crate::pack::Bench;
use crate::vm::{Ended, Vm, skopeo, succeed};

/// Boots the sample image, pulls every byte of it with skopeo, shuts down, and returns the outcome.
pub fn serves(bench: &Bench, arguments: &[&str]) -> Ended {
    let vm = Vm::boot(&bench.sample_disk(), arguments);
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
pub fn release(ended: &Ended) -> &str {
    let booting = ended.events.iter().find_map(|event| if let Event::Booting(booting) = event { Some(booting) } else { None });
    &booting.unwrap().kernel
}
