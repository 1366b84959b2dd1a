//! Faults of the machine, one by one: the last message, the `done` event and the exit status of `run`, or the warning with which
//! the appliance keeps serving.

use std::fs;

use localregistry::proto::event::Event;
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::json;
use testing::agent::Agent;
use testing::http;
use testing::pack::Bench;
use testing::qmp::{self, Qmp};
use testing::vm::{self, Ended, Vm, succeed};
use testing::wait::eventually;

fn words<'a>(strings: &'a [String], further: &[&'a str]) -> Vec<&'a str> {
    strings.iter().map(String::as_str).chain(further.iter().copied()).collect()
}

/// Asserts that the guest ended with this fault, on the console and in its last event, and that `run` reported it.
fn fatal(ended: &Ended, code: &str, reason: &str) {
    assert!(ended.stderr.contains(&format!("  FATAL code={code} {reason}\n")), "the console's line: {}", ended.stderr);
    let done = ended.done();
    assert_eq!(
        (ended.status, done.status, done.code.as_str(), done.reason.as_str()),
        (Some(3), 1, code, reason),
        "{}",
        ended.stderr
    );
}

/// The numbers in `text`, and `text` with `N` in their place.
fn numbers(text: &str) -> (Vec<u64>, String) {
    let (mut found, mut rest) = (Vec::new(), String::new());
    for part in text.split_inclusive(|character: char| !character.is_ascii_digit()) {
        let digits: String = part.chars().filter(char::is_ascii_digit).collect();
        if !digits.is_empty() {
            found.push(digits.parse().unwrap());
            rest.push('N');
        }
        rest.extend(part.chars().filter(|character| !character.is_ascii_digit()));
    }
    (found, rest)
}

#[test]
fn wrong_clock_gives_a_warning_and_nodes_still_trust_the_registry() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let built = localregistry::guest::early::clock::built().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let cases: [(&str, &[&str], &str); 3] = [
        (
            "base=1970-01-02",
            &[],
            "the machine's clock showed N seconds since N, before this program was built; set to the host's time, N",
        ),
        (
            "base=1970-01-02",
            &["--set", "clock.epochSeconds=1"],
            "the clock showed N seconds since N, before this program was built; set to N",
        ),
        (
            // Relative to the machine's time, because QEMU 7.2 computes the host's offset in 32 bits.
            "base=2100-01-01,clock=vm",
            &[],
            "the clock shows N seconds since N, over N years after this program was built; is the host's clock right?",
        ),
    ];
    for (base, further, expected) in cases {
        let base = format!("--qemu-arg={base}");
        let vm = Vm::boot(&disk, &[&["--qemu-arg=-rtc", base.as_str()], further].concat());
        let said = vm.event("CLOCK", |event| match event {
            Event::Warning(warning) if warning.code == "CLOCK" => Some(warning.message.clone()),
            _ => None,
        });
        let (found, said) = numbers(&said);
        assert_eq!(said, expected);
        match found[..] {
            [stands, 1970, 20] => assert!((4_102_444_800..4_102_450_000).contains(&stands), "{stands}"),
            [stood, 1970, set] => {
                assert!((86_400..90_000).contains(&stood), "{stood}");
                assert!(if further.is_empty() { set > built } else { set == built }, "{set}");
            }
            _ => panic!("{found:?}"),
        }
        // The clients' clocks are in 1990 and in 2090.
        for time in ["631152000", "3786912000"] {
            let mut client = testing::program("openssl");
            client.args([
                "s_client",
                "-connect",
                &vm.address,
                "-verify_return_error",
                "-verify_ip",
                "127.0.0.1",
                "-attime",
                time,
            ]);
            let said = succeed(client.arg("-CAfile").arg(vm.path("ca.crt")));
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        }
        vm.shut_down();
    }
}

/// A certificate for 127.0.0.1 with its key, valid from 2000 until this year.
fn certificate(bench: &Bench, name: &str, until: i32) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(until, 1, 1));
    bench.file(&format!("{name}.key"), key.serialize_pem().as_bytes());
    bench.file(&format!("{name}.crt"), params.self_signed(&key).unwrap().pem().as_bytes());
    bench.path(name).display().to_string()
}

#[test]
fn expired_or_mismatched_certificate_is_refused_before_and_during_boot() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let (good, old) = (certificate(&bench, "good", 2100), certificate(&bench, "old", 2001));
    let run = |cert: &str, key: &str, further: &[&str]| {
        vm::fails(
            &disk,
            &[&["--tls", "provided", "--cert", &format!("{cert}.crt"), "--key", &format!("{key}.key")], further].concat(),
        )
    };
    let expired =
        "certificate 1 of the given chain expired on Mon, 01 Jan 2001 00:00:00 GMT; make a new one, or set this machine's clock";
    let ended = run(&old, &old, &[]);
    let said = format!("localregistry: cannot serve with the certificate {old}.crt and the key {old}.key: {expired}\n");
    assert_eq!((ended.status, ended.stderr.as_str(), ended.events.len()), (Some(13), said.as_str(), 0));

    // `run` has checked valid files, and QEMU passes other ones.
    let of = "fw_cfg opt/localregistry/tls.crt and opt/localregistry/tls.key cannot be used";
    let swapped = vm::qemu_changed(&bench.path(""), "args=(\"${@/\\/good./\\/old.}\")");
    fatal(&run(&good, &good, &["--qemu", &swapped]), "BAD_TLS", &format!("{of}: {expired}"));
    let mixed = vm::qemu_changed(&bench.path(""), "args=(\"${@/\\/good.key/\\/old.key}\")");
    let other = "the given certificate chain and key do not go together: keys may not be consistent: KeyMismatch";
    fatal(&run(&good, &good, &["--qemu", &mixed]), "BAD_TLS", &format!("{of}: {other}"));
}

#[test]
fn invalid_config_and_a_port_in_use_are_named() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let line = |words: &str| vm::qemu_changed(&bench.path(""), &format!("args=(\"${{@/panic=-1/panic=-1 {words}}}\")"));
    let unknown = vm::fails(&disk, &["--qemu", &line("localregistry.hostnam=x")]);
    let known = localregistry::config::keys::list();
    fatal(&unknown, "BAD_CONFIG", &format!("kernel command line: unknown key hostnam; expected one of {known}"));

    let twice = vm::fails(&disk, &["--set", "metricsPort=5000"]);
    let reason = "config from all sources: metricsPort is 5000; expected a TCP port from 1 to 65535 other than the registry's";
    fatal(&twice, "BAD_CONFIG", reason);

    for (bound, arguments) in [("5000", &[][..]), ("9090", &["--metrics", "127.0.0.1:0"])] {
        let agent = Agent::new(&bench.path(bound), "", &format!("bind {bound}"));
        let ended = vm::fails(&disk, &words(&agent.arguments(), arguments));
        fatal(&ended, "NO_PORT", &format!("cannot listen on TCP port {bound}: Address in use (os error 98)"));
    }
}

#[test]
fn lack_of_threads_is_reported() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let boot = |tasks: &str| {
        let agent = Agent::new(&bench.path(tasks), "", &format!("tasks {tasks}"));
        vm::fails(&disk, &words(&agent.arguments(), &[]))
    };
    // The second task is the process that serves, and the next one the thread that writes the events.
    let reason = "cannot start the runtime, its threads or its signal handlers: Resource temporarily unavailable (os error 11)";
    fatal(&boot("1"), "NO_RUNTIME", reason);
    fatal(&boot("2"), "NO_RUNTIME", reason);
    // Two buttons, and commands and replies of the control port, do without their threads, which are next. The kernel's notifications do not.
    let reason = "cannot watch for disks that are attached or removed: Resource temporarily unavailable (os error 11)";
    fatal(&boot("3"), "BAD_DISK", reason);
    // The ninth task is the thread of the runtime that reads disks. The library panics without it.
    let reason = "a bug in localregistry-init: OS can't spawn worker thread: Resource temporarily unavailable (os error 11)";
    fatal(&boot("8"), "PANIC", reason);
}

#[test]
fn hanging_shutdown_is_cut_off() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let agent = Agent::new(&bench.path("agent"), "localregistry.port=http", "hold");
    let ended = vm::fails(&disk, &words(&agent.arguments(), &[]));
    fatal(&ended, "BAD_CONFIG", "kernel command line: port is \"http\"; expected a TCP port from 1 to 65535");
    assert!(ended.stderr.contains("  localregistry: shutdown took over 4 s; cutting the power\n"), "{}", ended.stderr);
}

#[test]
fn init_fault_and_out_of_memory_are_kernel_panics() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    for (command, panic) in [
        ("fault", "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b"),
        ("exhaust", "Kernel panic - not syncing: System is deadlocked on memory"),
    ] {
        let agent = Agent::new(&bench.path(command), "", "");
        let vm = Vm::boot(&disk, &words(&agent.arguments(), &[]));
        agent.tell(command);
        let ended = vm.end();
        assert_eq!(ended.status, Some(4), "{command}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("localregistry: the guest's kernel panicked: {panic}\n")), "{}", ended.stderr);
        assert!(!ended.events.iter().any(|event| matches!(event, Event::Done(_))), "it did not end in order");
    }
}

#[test]
fn machine_without_a_console_serves_and_its_panic_is_still_reported() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let agent = Agent::changing(&bench.path("agent"), &[("console=ttyS0", "console=ttyS1")], "");
    let vm = Vm::boot(&disk, &words(&agent.arguments(), &["--console", "console"]));
    agent.tell("fault");
    let ended = vm.end();
    assert_eq!((ended.status, ended.console.as_str()), (Some(4), ""), "{}", ended.stderr);
    assert_eq!(ended.stderr, "localregistry: the guest's kernel panicked: QEMU's pvpanic device says so\n");
}

#[test]
fn minimum_memory_suffices_to_serve_and_less_is_refused() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    for (flavor, least, less) in [("cloud", "96", "95"), ("full", "112", "111")] {
        let ended = vm::fails(&disk, &["--memory", less, "--flavor", flavor]);
        assert_eq!((ended.status, ended.events.len()), (Some(2), 0), "{}", ended.stderr);
        let message =
            format!("localregistry: {less} MiB of memory are too little for the kernel \"{flavor}\"; give it at least {least}\n");
        assert_eq!(ended.stderr, message);

        let vm = Vm::boot(&disk, &["--memory", least, "--flavor", flavor, "--tls", "off"]);
        assert_eq!(http::get(vm.address.parse().unwrap(), "/v2/test/hello/manifests/latest").status, 200);
        vm.shut_down();
    }

    // Without the check of `run`.
    let less = vm::qemu_changed(&bench.path(""), "args=(\"${@/256M/72M}\")");
    let ended = vm::fails(&disk, &["--qemu", &less, "--timeout", "60"]);
    let panic = "localregistry: the guest's kernel panicked: Kernel panic - not syncing: System is deadlocked on memory\n";
    assert!(ended.status == Some(4) && ended.stderr.starts_with(panic), "{:?} {}", ended.status, ended.stderr);
}

#[test]
fn hung_guest_is_distinguished_from_an_idle_one() {
    let bench = Bench::default();
    let disk = bench.sample_disk();
    let traced = vm::qemu_changed(
        &bench.path(""),
        "args=(\"${@/panic=-1/panic=-1 localregistry.trace=1 localregistry.heartbeatSeconds=1}\")",
    );
    let socket = bench.path("qmp");
    let qmp = qmp::arguments(&socket);
    // The kernel command line overrides fw_cfg.
    let vm = Vm::boot(
        &disk,
        &words(
            &qmp,
            &["--qemu", &traced, "--set", "heartbeatSeconds=7", "--set", "trace=false", "--tls", "off", "--console", "console"],
        ),
    );
    let steps = vm.event("ready", |event| match event {
        Event::Ready(ready) => {
            assert_eq!(ready.heartbeat_seconds, 1);
            Some(ready.steps.clone())
        }
        _ => None,
    });
    let console = fs::read_to_string(vm.path("console")).unwrap();
    let traced: Vec<&str> = console.lines().filter_map(|line| line.strip_prefix("localregistry: step ")).collect();
    assert_eq!(traced.len(), steps.len(), "{console}");
    for (line, step) in traced.into_iter().zip(&steps) {
        assert_eq!(line, format!("{} at {:.3} s took {:.3} s", step.name, step.start, step.duration));
    }

    let beat = || {
        vm.event("heartbeat", |event| match event {
            Event::Heartbeat(beat) => Some(*beat),
            _ => None,
        })
    };
    let first = beat();
    assert_eq!((first.requests, first.connections, first.in_flight), (0, 0, 0));
    assert_eq!(http::get(vm.address.parse().unwrap(), "/v2/").status, 200);
    while beat().requests == 0 {}
    assert!(beat().uptime > first.uptime && first.memory_used > 0);

    let mut qmp = Qmp::connect(&socket);
    let said = |words: &str| fs::read_to_string(vm.path("stderr")).unwrap().matches(words).count();
    // On a busy host the warning may already have been given.
    let says_once_more = |words: &str, before: usize| {
        eventually(|| {
            let stderr = fs::read_to_string(vm.path("stderr")).unwrap();
            if said(words) > before { Ok(()) } else { Err(format!("{words}: {stderr}")) }
        });
    };
    let hangs = "warning: the guest hangs or is not scheduled: no sign of life for ";
    let goes_on = "warning: the guest is alive again after ";
    let (hung, went_on) = (said(hangs), said(goes_on));
    qmp.run("stop", json!({}));
    says_once_more(hangs, hung);
    qmp.run("cont", json!({}));
    says_once_more(goes_on, went_on);
    beat();
    let hung = said(hangs);
    qmp.run("stop", json!({}));
    says_once_more(hangs, hung);
    // The guest reacts neither to the command nor to the power button.
    let ended = vm.stop(Signal::SIGTERM);
    assert_eq!(ended.status, Some(6), "{}", ended.stderr);
    let said = "localregistry: QEMU was killed by SIGKILL, by this program: the guest hung: its heartbeat had stopped, and it did not \
                power off after it was asked to\n";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
}
