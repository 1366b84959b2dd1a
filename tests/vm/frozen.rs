//! Frozen machines: runs that start from one, what two of them have in common, and what makes a run boot instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use sha2::{Digest, Sha256};
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM};
use testing::private::{ip, privately};
use testing::vm::{Vm, succeed};

/// A frozen machine of this test's own, told from others by its memory. Dropping it removes it.
struct Frozen {
    folder: PathBuf,
    memory: String,
}

impl Frozen {
    fn new(memory: u32) -> Self {
        let memory = memory.to_string();
        let folder = freeze(&memory);
        Self { folder, memory }
    }

    fn boot(&self, disk: &Path, arguments: &[&str]) -> Vm {
        Vm::boot(disk, &[&["--memory", &self.memory], arguments].concat())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn freeze(memory: &str) -> PathBuf {
    let line = succeed(testing::program(PROGRAM).args(["freeze", "--json", "--quiet", "--accel", "tcg", "--memory", memory]));
    let result: Value = serde_json::from_str(&line).unwrap();
    result["frozen"].as_str().unwrap().into()
}

fn pull(vm: &Vm) {
    succeed(&mut vm.copy("test/hello:latest", &[], "oci:pulled"));
}

/// What `openssl s_client` says of a handshake with `vm`, given further arguments.
fn handshake(vm: &Vm, arguments: &[&str]) -> String {
    let mut client = testing::program("openssl");
    client.args(["s_client", "-connect", &vm.address, "-tls1_2"]).args(arguments).current_dir(vm.dir.path()).stdin(Stdio::null());
    String::from_utf8(client.output().unwrap().stdout).unwrap()
}

#[test]
fn runs_start_from_one_machine_and_share_no_secret() {
    let frozen = Frozen::new(192);
    assert_eq!(freeze(&frozen.memory), frozen.folder, "it is saved once");
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let one = frozen.boot(&disk, &[]);
    let other = frozen.boot(&disk, &["--tls", "generate", "--metrics", "0", "--set", "hostname=other"]);
    for vm in [&one, &other] {
        assert_eq!((&vm.ready["start"], vm.ready.get("cold_reason")), (&"warm".into(), None), "{}", vm.ready);
        // It trusts the CA of its own run only.
        pull(vm);
    }
    let distinct = |name: &str| {
        let both = [&one, &other].map(|vm| fs::read(vm.path(name)).unwrap());
        assert_ne!(both[0], both[1], "{name}");
    };
    distinct("ca.crt");
    let public_key = |vm: &Vm| {
        fs::write(vm.path("leaf"), handshake(vm, &[])).unwrap();
        succeed(testing::program("openssl").args(["x509", "-noout", "-pubkey", "-in"]).arg(vm.path("leaf")))
    };
    assert_ne!(public_key(&one), public_key(&other));
    // A session ticket of one is none of the other.
    handshake(&one, &["-sess_out", "session"]);
    let session = one.path("session").display().to_string();
    assert!(handshake(&one, &["-sess_in", &session]).contains("Reused, TLSv1.2"));
    assert!(handshake(&other, &["-sess_in", &session]).contains("New, TLSv1.2"));
    for vm in [one, other] {
        vm.shut_down();
    }
}

#[test]
fn run_from_a_frozen_machine_has_its_own_disks_networks_and_time() {
    privately(|| {
        let frozen = Frozen::new(200);
        let bench = Bench::default();
        let disk = bench.sample_disk();
        ip("tuntap add dev tap0 mode tap");
        ip("address add 10.78.0.1/24 dev tap0");
        ip("link set tap0 up");
        let further = ["one", "two"].map(|name| {
            let mut layout = Layout::default();
            layout.image(&format!("test/{name}:1"), name.as_bytes());
            bench.layout(name, &layout);
            let disk = bench.path(name).with_extension("erofs").display().to_string();
            succeed(&mut bench.command(&["--quiet", "pack", name, "-o", &disk]));
            disk
        });
        let nets = ["--net", "tap=tap0,mac=52:54:00:12:34:56,ip=10.78.0.82/24", "--net", "user,mac=52:54:00:12:34:57"];
        let vm = frozen.boot(&disk, &[&nets[..], &further.each_ref().map(String::as_str)].concat());
        assert_eq!(vm.ready["start"], "warm", "{}", vm.ready);
        assert_eq!(vm.address, "10.78.0.82:5000");
        pull(&vm);
        assert!(ip("neighbour show 10.78.0.82").contains("52:54:00:12:34:56"));
        for name in ["one", "two"] {
            succeed(&mut vm.copy(&format!("test/{name}:1"), &[], &format!("oci:{name}")));
        }
        vm.shut_down();
    });
}

#[test]
fn machine_that_is_damaged_or_not_wanted_is_not_started() {
    let frozen = Frozen::new(208);
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let cold = |arguments: &[&str]| {
        let vm = frozen.boot(&disk, arguments);
        assert_eq!(vm.ready["start"], "cold");
        let why = vm.ready["cold_reason"].as_str().unwrap().to_owned();
        vm.shut_down();
        why
    };
    assert_eq!(cold(&["--cold"]), "--cold forbids it");

    // As it should be, by its record, and yet no state of a machine.
    let record = frozen.folder.join("record.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let nonsense = b"no state of a machine";
    told["state_sha256"] = Sha256::digest(nonsense).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    fs::write(frozen.folder.join("state"), nonsense).unwrap();
    fs::write(&record, told.to_string()).unwrap();
    let why = cold(&[]);
    assert!(why.starts_with("the frozen machine does not start, and was removed: "), "{why}");
    assert!(!frozen.folder.exists());
    assert_eq!(cold(&[]), "none is saved for this machine; `localregistry freeze` saves one");
}
