//! Frozen machines: who saves them, runs that start from one, what such runs have in common, and what makes a run boot instead.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::scope;

use localregistry::proto::event::Event;
use serde_json::Value;
use sha2::{Digest, Sha256};
use testing::layout::Layout;
use testing::pack::{Bench, PROGRAM};
use testing::private::{ip, privately};
use testing::qmp::{self, Qmp};
use testing::segment::{Segment, server};
use testing::vm::{Vm, own_cache, qemu_changed, succeed};
use testing::wait::{eventually, until};

use crate::disks::{plug, slots};

/// A folder with a disk, and a cache with frozen machines of its own.
pub struct Frozen {
    pub bench: Bench,
    cache: PathBuf,
    disk: PathBuf,
}

impl Default for Frozen {
    fn default() -> Self {
        let bench = Bench::default();
        let (cache, disk) = (own_cache(&bench.path("")), bench.sample_disk());
        Self { bench, cache, disk }
    }
}

impl Frozen {
    /// Saves a machine ahead, and returns its folder.
    pub fn freeze(&self, arguments: &[&str]) -> PathBuf {
        let mut command = testing::program(PROGRAM);
        command.args(["freeze", "--json", "--quiet", "--accel", "tcg"]).args(arguments).env("LOCALREGISTRY_CACHE", &self.cache);
        let result: Value = serde_json::from_str(&succeed(&mut command)).unwrap();
        result["frozen"].as_str().unwrap().into()
    }

    fn run(&self, arguments: &[&str]) -> Vm {
        Vm::start(&self.disk, arguments, Some(&self.cache))
    }

    /// A run that starts from a frozen machine.
    pub fn warm(&self, arguments: &[&str]) -> Vm {
        let vm = self.run(arguments);
        assert_eq!((&vm.ready["start"], vm.ready.get("cold_reason")), (&"warm".into(), None), "{}", vm.ready);
        vm
    }

    /// Why a run boots, and what it says on standard error. It serves all the same.
    fn cold(&self, arguments: &[&str]) -> (String, String) {
        let vm = self.run(arguments);
        let why = why_cold(&vm);
        pull(&vm);
        (why, vm.shut_down().stderr)
    }

    /// The names in the folder of frozen machines.
    fn saved(&self) -> Vec<PathBuf> {
        fs::read_dir(self.cache.join("frozen")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }
}

fn why_cold(vm: &Vm) -> String {
    assert_eq!(vm.ready["start"], "cold", "{}", vm.ready);
    vm.ready["cold_reason"].as_str().unwrap().to_owned()
}

fn pull(vm: &Vm) {
    succeed(&mut vm.copy("test/hello:latest", &[], "oci:pulled"));
}

/// The process that boots a machine to be saved, among the children of the run.
fn saver_of(vm: &Vm) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vm.ready["pid"])).unwrap().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect::<String>();
    let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    children.find(|pid| command_line(*pid).contains(" localregistry_freeze"))
}

fn command_line(pid: u64) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// What `openssl s_client` says of a handshake with `address`, given further arguments.
fn handshake(vm: &Vm, arguments: &[&str]) -> String {
    let mut client = testing::program("openssl");
    client.args(["s_client", "-connect", &vm.address, "-tls1_2"]).args(arguments).current_dir(vm.dir.path()).stdin(Stdio::null());
    String::from_utf8(client.output().unwrap().stdout).unwrap()
}

const NONE_YET: &str = "none is saved for this machine yet; it is saved while this run goes on";

#[test]
fn first_run_boots_and_saves_a_machine_for_those_that_follow() {
    let frozen = Frozen::default();
    // As a process that was killed leaves it.
    let left = frozen.cache.join("frozen/new-killed");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("ram"), "memory").unwrap();

    let one = frozen.run(&[]);
    assert_eq!(why_cold(&one), NONE_YET);
    let saver = eventually(|| saver_of(&one).ok_or("nobody saves a machine"));
    // It gets the time and the memory that nothing else needs.
    let stat = fs::read_to_string(format!("/proc/{saver}/stat")).unwrap();
    assert_eq!(stat.rsplit(')').next().unwrap().split(' ').nth(17), Some("19"), "{stat}");
    // It is written when the process has started.
    until("its memory is the first to be taken", || {
        fs::read_to_string(format!("/proc/{saver}/oom_score_adj")).unwrap() == "1000\n"
    });
    pull(&one);
    // It ends with its run, and leaves nothing.
    one.shut_down();
    assert_eq!((command_line(saver).as_str(), frozen.saved()), ("", vec![]));

    // Two at once.
    let (one, other) = scope(|scope| {
        let other = scope.spawn(|| frozen.run(&[]));
        (frozen.run(&[]), other.join().unwrap())
    });
    for vm in [&one, &other] {
        assert_eq!(why_cold(vm), NONE_YET);
    }
    until("a machine is saved", || matches!(&frozen.saved()[..], [one] if one.join("record.json").exists()));
    until("nobody saves another", || saver_of(&one).is_none() && saver_of(&other).is_none());
    let folder = frozen.saved().remove(0);
    assert_eq!(frozen.freeze(&[]), folder, "it is saved once");
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    for name in ["ram", "state", "record.json"] {
        assert_eq!(fs::metadata(folder.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    let mut doctor = testing::program(PROGRAM);
    doctor.args(["doctor"]).env("LOCALREGISTRY_CACHE", &frozen.cache);
    let said = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    assert!(said.contains("ok    frozen      1 saved machine, "), "{said}");

    let third = frozen.warm(&[]);
    pull(&third);
    for vm in [third, one, other] {
        vm.shut_down();
    }
}

/// The sequence numbers of the answers to the same connections.
fn sequence_numbers(segment: &Segment, guest: &str) -> Vec<u32> {
    let guest = guest.parse().unwrap();
    let mac = segment.resolve(guest, None);
    (0..8).map(|port| segment.syn((server(), 40_000 + port), (guest, mac)).sequence_number).collect()
}

#[test]
fn two_runs_from_one_machine_share_no_secret() {
    let frozen = Frozen::default();
    frozen.freeze(&[]);
    frozen.bench.file("users", format!("anna:{}\n", bcrypt::hash("secret", 5).unwrap()).as_bytes());
    let users = frozen.bench.path("users").display().to_string();
    let lease = ("10.91.0.7".parse().unwrap(), [3600, 1800, 3000]);
    let segments = ["one", "other"].map(|name| {
        let segment = Segment::at(&frozen.bench.path(name));
        segment.set(|behaviour| {
            behaviour.lease = Some(lease);
            behaviour.taken = vec![server().into()];
        });
        segment
    });
    // The same address and MAC address at both.
    let start = |segment: &Segment| {
        let net = segment.net(",mac=52:54:00:12:34:56");
        let nets = ["--net", "user,mac=52:54:00:12:34:57", "--net", &net];
        frozen.warm(&[&nets[..], &["--htpasswd", &users, "--token"]].concat())
    };
    let vms = scope(|scope| segments.each_ref().map(|segment| scope.spawn(|| start(segment))).map(|run| run.join().unwrap()));
    let [one, other] = &vms;

    let distinct = |what: &str, of: &dyn Fn(&Vm) -> String| assert_ne!(of(one), of(other), "{what}");
    distinct("the CA", &|vm| fs::read_to_string(vm.path("ca.crt")).unwrap());
    distinct("the key", &|vm| {
        fs::write(vm.path("leaf"), handshake(vm, &[])).unwrap();
        succeed(testing::program("openssl").args(["x509", "-noout", "-pubkey", "-in"]).arg(vm.path("leaf")))
    });
    // A session ticket of one is none of the other.
    handshake(one, &["-sess_out", "session"]);
    let session = one.path("session").display().to_string();
    assert!(handshake(one, &["-sess_in", &session]).contains("Reused, TLSv1.2"));
    assert!(handshake(other, &["-sess_in", &session]).contains("New, TLSv1.2"));
    // So is a token.
    let curl = |vm: &Vm, arguments: &[&str]| {
        let mut curl = testing::program("curl");
        curl.args(["--silent", "--cacert"]).arg(vm.path("ca.crt")).args(arguments);
        succeed(&mut curl)
    };
    let url = |vm: &Vm, path: &str| format!("{}{path}", vm.ready["endpoint"].as_str().unwrap());
    let scope = "/token?service=localregistry&scope=repository:test/hello:pull";
    let token: Value = serde_json::from_str(&curl(one, &["--user", "anna:secret", &url(one, scope)])).unwrap();
    let bearer = format!("Authorization: Bearer {}", token["token"].as_str().unwrap());
    let status = |vm: &Vm| {
        let manifest = url(vm, "/v2/test/hello/manifests/latest");
        curl(vm, &["--output", "/dev/null", "--write-out", "%{http_code}", "--header", &bearer, &manifest])
    };
    assert_eq!((status(one).as_str(), status(other).as_str()), ("200", "401"));

    let transactions = segments.each_ref().map(|segment| {
        let mut transactions = BTreeSet::new();
        segment.set(|behaviour| transactions.extend(behaviour.transactions.iter().copied()));
        transactions
    });
    assert!(transactions.iter().all(|ids| !ids.is_empty()) && transactions[0].is_disjoint(&transactions[1]), "{transactions:?}");
    // A sequence number is the time in units of 64 ns, and a hash of the connection with a secret (tcp(7), RFC 6528). With one secret, all
    // would differ by the same time, within the 8 s that the questions take at most.
    let [ones, others] = segments.each_ref().map(|segment| sequence_numbers(segment, "10.91.0.7"));
    let differences: Vec<u32> = ones.iter().zip(&others).map(|(one, other)| one.wrapping_sub(*other)).collect();
    let apart = |difference: &u32| difference.wrapping_sub(differences[0]).cast_signed().unsigned_abs() > 1 << 27;
    assert!(differences.iter().any(apart), "{differences:?}");

    // Before anything else of the run, there is a seed.
    for vm in vms {
        let ended = vm.shut_down();
        let ready = ended.events.iter().find_map(|event| match event {
            Event::Ready(ready) => Some(ready),
            _ => None,
        });
        let steps: Vec<&str> = ready.unwrap().steps.iter().map(|step| step.name.as_str()).collect();
        let (before, after) = steps.split_at(steps.iter().position(|step| *step == "seed").expect("it waits for a seed"));
        assert_eq!((before, after[1]), (&["mounts", "modules", "runtime", "devices"][..], "config"));
    }
}

/// The memory of the QEMUs in bytes. What several map counts once.
fn memory(vms: &[Vm]) -> u64 {
    let of = |vm: &Vm| {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.ready["qemu_pid"])).unwrap();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        pss.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    };
    vms.iter().map(of).sum()
}

#[test]
fn eight_runs_from_one_machine_take_less_than_three_that_boot() {
    let frozen = Frozen::default();
    frozen.freeze(&[]);
    let booted = memory(&[frozen.run(&["--cold"])]);
    let mut vms = vec![frozen.warm(&[])];
    let one = memory(&vms);
    vms.extend(scope(|scope| {
        let others: Vec<_> = (0..7).map(|_| scope.spawn(|| frozen.warm(&[]))).collect();
        others.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    }));
    let eight = memory(&vms);
    println!("booted: {booted} bytes, from a frozen machine: one {one}, eight {eight}");
    assert!(one < booted / 2, "one that boots takes {booted} bytes, one from a frozen machine {one}");
    assert!(eight <= 3 * booted, "one that boots takes {booted} bytes, eight from a frozen machine {eight}");
}

#[test]
fn machine_with_a_seed_is_not_saved_and_not_tried_again() {
    let frozen = Frozen::default();
    let change = r#"args=("${@/random.trust_cpu=off/random.trust_cpu=on}")"#;
    let qemu = qemu_changed(&frozen.bench.path(""), change);
    let first = frozen.run(&["--qemu", &qemu]);
    assert_eq!(why_cold(&first), NONE_YET);
    until("it is noted", || matches!(&frozen.saved()[..], [one] if one.join("unusable").exists()));
    first.shut_down();

    let why = "the guest did not wait: QEMU exited with status 0 before it could be frozen: ";
    let fault = "FATAL code=FROZEN the kernel's random number generator has a seed already, which every machine started from this one would \
                 share";
    let second = frozen.run(&["--qemu", &qemu]);
    let said = why_cold(&second);
    assert!(said.starts_with(why) && said.contains(fault) && said.ends_with("; `localregistry freeze` tries again"), "{said}");
    assert_eq!(saver_of(&second), None);
    second.shut_down();

    let mut freeze = testing::program(PROGRAM);
    freeze.args(["freeze", "--accel", "tcg", "--quiet", "--qemu", &qemu]).env("LOCALREGISTRY_CACHE", &frozen.cache);
    let refused = freeze.output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.starts_with(&format!("localregistry: no machine was frozen: {why}")) && said.contains(fault), "{said}");
}

#[test]
fn run_from_a_frozen_machine_has_its_own_disks_networks_and_time() {
    privately(|| {
        let frozen = Frozen::default();
        frozen.freeze(&["--memory", "200"]);
        ip("tuntap add dev tap0 mode tap");
        ip("address add 10.78.0.1/24 dev tap0");
        ip("link set tap0 up");
        let further = ["one", "two", "late"].map(|name| {
            let mut layout = Layout::default();
            layout.image(&format!("test/{name}:1"), name.as_bytes());
            frozen.bench.layout(name, &layout);
            let disk = frozen.bench.path(name).with_extension("erofs").display().to_string();
            succeed(&mut frozen.bench.command(&["--quiet", "pack", name, "-o", &disk]));
            disk
        });
        let nets = ["--net", "tap=tap0,mac=52:54:00:12:34:56,ip=10.78.0.82/24", "--net", "user,mac=52:54:00:12:34:57"];
        let [one, two, late] = &further;
        // A port for a late disk is one of the devices that the guest finds when it goes on.
        let (socket, set) =
            (frozen.bench.path("qmp"), r#"disks=[{"serial":"localregistry"},{"serial":"localregistry-*"},{"serial":"more-*"}]"#);
        let further = [&qmp::arguments(&socket)[..], &slots(&["late"])].concat();
        let further: Vec<&str> = further.iter().map(String::as_str).chain([one, two, "--set", set, "--disk-wait", "1"]).collect();
        let vm = frozen.warm(&[&nets[..], &["--memory", "200"], &further].concat());
        assert_eq!(vm.address, "10.78.0.82:5000");
        // It trusts the CA of its own run only, whose dates are those of today.
        pull(&vm);
        assert!(ip("neighbour show 10.78.0.82").contains("52:54:00:12:34:56"));
        plug(&mut Qmp::connect(&socket), "late", Path::new(late), "more-1");
        vm.event("the late disk", |event| matches!(event, Event::Disks(disks) if disks.images == 4).then_some(()));
        for name in ["one", "two", "late"] {
            succeed(&mut vm.copy(&format!("test/{name}:1"), &[], &format!("oci:{name}")));
        }
        vm.shut_down();
    });
}

#[test]
fn machine_that_cannot_be_used_is_removed_and_the_run_boots() {
    let frozen = Frozen::default();
    let folder = frozen.freeze(&[]);
    let (state, copy) = (folder.join("state"), frozen.bench.path("copy"));
    let copy_to = |to: &Path, from: &Path| drop(succeed(testing::program("cp").arg("-a").args([from, to])));
    copy_to(&copy, &folder);
    let cut = || fs::write(&state, &fs::read(&state).unwrap()[..1000]).unwrap();
    let others: [(&str, &dyn Fn()); 3] = [
        ("its files have changed", &cut),
        ("ram belongs to another user", &|| chown(folder.join("ram"), Some(65_534), None).unwrap()),
        ("others may write to state", &|| fs::set_permissions(&state, fs::Permissions::from_mode(0o666)).unwrap()),
    ];
    for (said, change) in others {
        let _removed_before = fs::remove_dir_all(&folder);
        copy_to(&folder, &copy);
        change();
        let (why, _) = frozen.cold(&[]);
        let later = "; it is saved while this run goes on";
        assert_eq!(why, format!("the frozen machine {} is damaged and was removed: {said}{later}", folder.display()));
    }

    // As it should be, by its record, and yet QEMU cannot load it.
    let _removed_before = fs::remove_dir_all(&folder);
    copy_to(&folder, &copy);
    cut();
    let record = folder.join("record.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let digest = Sha256::digest(fs::read(&state).unwrap());
    told["state_sha256"] = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
    fs::write(&record, told.to_string()).unwrap();
    let (why, said) = frozen.cold(&[]);
    let does_not =
        "the frozen machine does not start, and was removed: QEMU exited with status 1 before it started the machine: ";
    assert!(why.starts_with(does_not) && why.ends_with("load of migration failed: Input/output error"), "{why}");
    assert!(said.contains(&format!("Booting from the start instead: {why}\n")), "{said}");
    assert_eq!(fs::read_to_string(folder.join("unusable")).unwrap(), why);
    assert!(!folder.join("ram").exists());
    assert_eq!(frozen.freeze(&[]), folder, "only then is another one saved");
    frozen.warm(&[]).shut_down();
}

#[test]
fn host_that_forbids_shared_and_anonymous_memory_boots() {
    let frozen = Frozen::default();
    let refuse = "echo \"unable to map backing store for guest RAM: Operation not permitted\" >&2; exit 1";
    let change = format!("args=(\"$@\"); case \"$*\" in *share=off*) {refuse};; esac");
    let qemu = qemu_changed(&frozen.bench.path(""), &change);
    frozen.freeze(&["--qemu", &qemu]);
    // The program stays the child, and strace is its grandchild.
    let strace = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "trace", "-e", "inject=memfd_create:error=EPERM"];
    let vm = Vm::start_by(&strace, &frozen.disk, &["--qemu", &qemu], Some(&frozen.cache));
    let why = "the frozen machine does not start, and was removed: QEMU exited with status 1 before it started the machine: unable to map \
               backing store for guest RAM: Operation not permitted";
    assert_eq!(why_cold(&vm), why);
    let is_forbidden = "memfd_create(\"localregistry-config\", MFD_CLOEXEC) = -1 EPERM";
    until("memory is forbidden", || fs::read_to_string(vm.path("trace")).is_ok_and(|trace| trace.contains(is_forbidden)));
    pull(&vm);
    vm.shut_down();
}
