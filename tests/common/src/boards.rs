//! Boots the sample image on a kernel and board, pulls it with a real client, and shuts down.

use localregistry::proto::event::Event;

use crate::pack::Bench;
use crate::vm::{Ended, Vm};

/// Boots the sample image, pulls every byte of it with skopeo, shuts down, and returns the outcome.
pub fn serves(bench: &Bench, arguments: &[&str]) -> Ended {
    let vm = Vm::boot(&bench.sample_disk(), arguments);
    assert_eq!(vm.serves("test/hello:latest", &bench.path("sample")), 3, "manifest, config and layer");
    println!("{}: ready after {} s", arguments.join(" "), vm.ready["boot_seconds"]);
    vm.shut_down()
}

/// The release of the kernel that booted.
pub fn release(ended: &Ended) -> &str {
    let booting = ended.events.iter().find_map(|event| if let Event::Booting(booting) = event { Some(booting) } else { None });
    &booting.unwrap().kernel
}
