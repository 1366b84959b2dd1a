//! The project's own kernel on q35 and microvm, under TCG. `image/kernel --test` builds the kernel, which takes minutes, and runs
//! these tests; `tests/run` skips them.

use std::fs;

use localregistry::host::boot::board::Board;
use localregistry::host::boot::kernel::{self, Flavor, Kernel};
use testing::boards::{release, serves};
use testing::layout::{Layout, content};
use testing::pack::{Bench, PROGRAM};
use testing::vm::{self, Vm, succeed};

use crate::frozen::Frozen;

/// The project's own kernel. It is not built here, because that takes minutes.
fn own() -> Kernel {
    kernel::cached(Flavor::Own, Board::Q35).unwrap().expect("`image/kernel --test` builds our own kernel first")
}

#[test]
fn own_kernel_serves_eight_clients_at_once_in_the_least_memory() {
    let release_built = own().release;
    assert!(release_built.ends_with("-localregistry"), "{release_built}");
    let bench = Bench::default();
    let mut layout = Layout::default();
    // Larger than the memory that is left.
    let layer = layout.blob(&content(32 << 20));
    layout.image("test/hello:latest", &content(32 << 20));
    bench.layout("layout", &layout);
    bench.pack(&["layout"]);
    let memory = Flavor::Own.min_memory_mib().to_string();
    for machine in ["q35", "microvm"] {
        let vm = Vm::boot(&bench.path("disk.erofs"), &["--flavor", "own", "--memory", &memory, "--machine", machine]);
        let url = format!("https://{}/v2/test/hello/blobs/{}", vm.address, layer.digest);
        let pull = |number: usize| {
            let mut curl = testing::program("curl");
            curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(vm.path("ca.crt"));
            curl.arg("--output").arg(vm.path(&number.to_string())).arg(&url).spawn().unwrap()
        };
        for (number, mut pull) in (0..8).map(pull).collect::<Vec<_>>().into_iter().enumerate() {
            assert!(pull.wait().unwrap().success(), "{machine}");
            assert!(fs::read(vm.path(&number.to_string())).unwrap() == content(32 << 20), "{machine}");
        }
        assert_eq!(release(&vm.shut_down()), release_built, "{machine}");
    }
}

#[test]
fn own_kernel_starts_from_a_frozen_machine() {
    own();
    let frozen = Frozen::default();
    let machine = ["--flavor", "own"];
    frozen.freeze(&machine);
    let vm = frozen.warm(&machine);
    assert_eq!(vm.serves("test/hello:latest", &frozen.bench.path("sample")), 3);
    vm.shut_down();
}

#[test]
fn own_kernel_confines_the_server() {
    own();
    crate::confinement::confines(&["--flavor", "own"]);
}

#[test]
fn own_kernel_ignores_modules_of_another_kernel() {
    let bench = Bench::default();
    let own = own();
    let initramfs = bench.path("initramfs").display().to_string();
    succeed(testing::program(PROGRAM).args(["--quiet", "initramfs", "--flavor", "cloud", "--output", &initramfs]));
    let elf = own.elf.display().to_string();
    let ended = serves(&bench, &["--kernel", &elf, "--initramfs", &initramfs, "--console", "console"]);
    assert_eq!(release(&ended), own.release);
}

#[test]
fn own_kernel_panic_is_reported_on_both_machines() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    own();
    // With this argument the init prints its version and returns, which PID 1 must not do. It comes last, because the kernel
    // ignores what follows. The kernel must let the init write to the console: an init that cannot write exits with 101.
    let append = "args=(); for a; do case $a in console=*) a+=' -- --version' ;; esac; args+=(\"$a\"); done";
    let version = vm::qemu_changed(&bench.path(""), append);
    let console = bench.path("console");
    let said = concat!("localregistry-init ", env!("CARGO_PKG_VERSION"));
    for machine in ["q35", "microvm"] {
        let ended = vm::fails(
            &disk,
            &["--flavor", "own", "--machine", machine, "--qemu", &version, "--console", console.to_str().unwrap()],
        );
        assert_eq!(ended.status, Some(4), "{}", ended.stderr);
        let panic = "localregistry: the guest's kernel panicked: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000\n";
        assert!(ended.stderr.contains(panic), "{}", ended.stderr);
        let lines = fs::read_to_string(&console).unwrap();
        assert!(lines.lines().any(|line| line.trim_end() == said), "{lines}");
    }
}
