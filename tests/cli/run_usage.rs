//! `localregistry run` and `serve` with unknown flags, invalid values and conflicting flags: exit 2, nothing started, no file left.

use testing::refused::{folder, run};

#[test]
fn bad_flags_exit_2() {
    let folder = folder();
    for (arguments, message) in [
        (&[][..], "the following required arguments were not provided:\n  <DISK>..."),
        (&["disk", "--memory", "47"], "invalid value '47' for '--memory <MIB>': 47 is not in 48..=1048576"),
        (&["disk", "--cpus", "0"], "invalid value '0' for '--cpus <N>': expected auto, or a number from 1 to 255"),
        (&["disk", "--timeout", "0"], "invalid value '0' for '--timeout <SECONDS>': 0 is not in 1..=86400"),
        (&["disk", "--accel", "xen"], "invalid value 'xen' for '--accel <WHICH>'\n  [possible values: auto, kvm, tcg]"),
        (&["disk", "--tls", "on"], "invalid value 'on' for '--tls <MODE>'\n  [possible values: generate, provided, off]"),
        (
            &["disk", "--publish", "127.0.0.1"],
            "invalid value '127.0.0.1' for '--publish <[ADDR:]PORT>': PORT is a number from 0 to 65535",
        ),
        (
            &["disk", "--publish", "[::1]:5000"],
            "invalid value '[::1]:5000' for '--publish <[ADDR:]PORT>': QEMU's user network forwards from IPv4 addresses only: give \
             one, such as 127.0.0.1",
        ),
        (
            &["disk", "--publish", "host:5000"],
            "invalid value 'host:5000' for '--publish <[ADDR:]PORT>': ADDR is an IPv4 address of this machine, such as 127.0.0.1 \
             or 0.0.0.0",
        ),
        (
            &["disk", "--set", "tls.mod=OFF"],
            "invalid value 'tls.mod=OFF' for '--set <KEY=VALUE>': tls.mod cannot be set to \"OFF\": unknown key tls.mod; \
             expected tls.mode",
        ),
        (
            &["disk", "--set", "port=x"],
            "invalid value 'port=x' for '--set <KEY=VALUE>': port cannot be set to \"x\": expected a TCP port from 1 to 65535",
        ),
        (
            &["disk", "--kernel", "kernel"],
            "the following required arguments were not provided:\n  <--modules <DIR>|--initramfs <FILE>>",
        ),
        (&["disk", "--modules", "dir"], "the following required arguments were not provided:\n  --kernel <FILE>"),
        (
            &["disk", "--kernel", "kernel", "--initramfs", "initramfs", "--flavor", "own"],
            "the argument '--kernel <FILE>' cannot be used with '--flavor <WHICH>'",
        ),
        (&["disk", "--flavor", "tiny"], "invalid value 'tiny' for '--flavor <WHICH>'\n  [possible values: cloud, full, own]"),
        (&["disk", "--machine", "pc"], "invalid value 'pc' for '--machine <WHICH>'\n  [possible values: q35, microvm, virt]"),
        (
            &["disk", "--machine", "virt"],
            "the argument '--machine virt' needs '--flavor own' or '--kernel <FILE>': the others are for 64-bit x86",
        ),
        (&["disk", "--tls", "provided"], "the following required arguments were not provided:\n  --cert <FILE>\n  --key <FILE>"),
        (&["disk", "--cert", "a"], "the following required arguments were not provided:\n  --key <FILE>"),
        (
            &["disk", "--tls", "off", "--cert", "a", "--key", "b"],
            "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': the other modes do not use them",
        ),
        (&["disk", "--disk-wait", "0"], "invalid value '0' for '--disk-wait <SECONDS>': 0 is not in 1..=3600"),
        (&["disk", "--san", "a b"], "invalid value 'a b' for '--san <NAME>': expected a DNS name or an IP address"),
        (
            &["disk", "--san", "f*o.example.test"],
            "invalid value 'f*o.example.test' for '--san <NAME>': expected * as the whole first label, before two labels or more, such \
             as *.example.test",
        ),
        (
            &["disk", "--name", "a/b"],
            "invalid value 'a/b' for '--name <NAME>': expected 1 to 64 letters, digits, dots, hyphens and underscores, a letter or \
             digit first",
        ),
        (
            &["disk", "--net", "tap=a,ip=10.1.0.82/16,gw=10.2.0.1"],
            "invalid value 'tap=a,ip=10.1.0.82/16,gw=10.2.0.1' for '--net <KIND[,…]>': gw=10.2.0.1 is not in the network of \
             ip=10.1.0.82/16",
        ),
        (&["disk", "--net", "user", "--net", "user"], "--net: user is given to two networks; give each its own"),
        (
            &["disk", "--net", "tap=a", "--publish", "5000"],
            "the argument '--publish <[ADDR:]PORT>' needs '--net user': no other network forwards ports",
        ),
        (
            &["disk", "--net", "tap=a", "--metrics", "0"],
            "the argument '--metrics <[ADDR:]PORT>' needs '--net user': no other network forwards ports; for those, \
             --set metricsPort=PORT sets the guest's own port",
        ),
        (&["disk", "--follow"], "the argument '--follow' needs '--json'"),
        (&["disk", "--json", "--follow", "--detach"], "the argument '--follow' cannot be used with '--detach'"),
        (&["disk", "--print-command", "--trust", "t"], "the argument '--print-command' cannot be used with '--trust <DIR>'"),
        (&["disk", "--print-command", "--detach"], "the argument '--print-command' cannot be used with '--detach'"),
    ] {
        let output = run(&folder, arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}

#[test]
fn serve_refuses_flags_it_would_ignore() {
    let folder = folder();
    for (arguments, message) in [
        (
            &["--tls", "generate", "--cert", "a", "--key", "b"][..],
            "the arguments '--cert <FILE>' and '--key <FILE>' need '--tls provided': the other modes do not use them",
        ),
        (
            &["--tls", "off", "--ca-out", "ca"],
            "the argument '--ca-out <FILE>' cannot be used with '--tls off': without TLS there is no CA",
        ),
    ] {
        let mut command = testing::program(testing::pack::PROGRAM);
        let output = command.current_dir(folder.path("")).args(["serve", "."]).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("error: {message}\n")), "{arguments:?}: {stderr}");
    }
}

#[test]
fn invalid_limits_are_refused_before_serving() {
    for (limit, why) in [
        ("stallSeconds=0", "stallSeconds is 0; expected seconds from 1 to 3600"),
        ("streams=1000", "streams is 1000; expected a number of streams from 1 to 256"),
        ("idle", "expected KEY=NUMBER, such as stallSeconds=60"),
    ] {
        let mut command = testing::program(testing::pack::PROGRAM);
        let output = command.args(["serve", "no-such-layout", "--limit", limit]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("error: invalid value '{limit}' for '--limit <KEY=NUMBER>': {why}\n");
        assert_eq!((output.status.code(), said.starts_with(&expected)), (Some(2), true), "{said}");
    }
}

#[test]
fn a_wrong_config_file_is_wrong_use() {
    let folder = folder();
    for (content, message) in [
        ("{\"hostname\": \"a\",\n\"tls\": {\"mod\": \"OFF\"}}", "line 2: unknown key tls.mod; expected tls.mode"),
        ("{\"port\": \"x\"}", "line 1: port is \"x\"; expected a TCP port from 1 to 65535"),
        (
            "hostname: a",
            "it is not a config; expected one JSON object with the keys that proto/JSON.md lists: expected value at line 1 column 1",
        ),
    ] {
        folder.file("config.json", content.as_bytes());
        let output = run(&folder, &["disk", "--config", "config.json"]);
        let expected = format!("localregistry: the config config.json cannot be used: {message}\n");
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(2), expected));
    }
}

#[test]
fn unwritable_outputs_are_refused_before_the_boot() {
    let folder = folder();
    std::fs::create_dir(folder.path("events")).unwrap();
    for (flag, path, message) in [
        ("--events", "events", "cannot create events for the events: Is a directory (os error 21)"),
        ("--events", "no/events", "cannot create no/events for the events: No such file or directory (os error 2)"),
        ("--console", "events", "cannot create events for the console: Is a directory (os error 21)"),
    ] {
        // Without a kernel, nothing can have been booted.
        let output = run(&folder, &["disk", "--kernel", "no-kernel", "--initramfs", "no-initramfs", flag, path]);
        let expected = format!("localregistry: {message}\n");
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(12), expected));
    }
}

#[test]
fn serve_names_the_flag_and_the_file() {
    let folder = folder();
    let mut layout = testing::layout::Layout::default();
    layout.image("test/hello:latest", b"layer");
    folder.layout("layout", &layout);
    folder.file("junk", b"junk");
    let missing = "No such file or directory (os error 2)";
    let junk = "cannot serve with the certificate junk (--cert) and the key junk (--key): the given key is not PEM with one PRIVATE KEY block \
                (PKCS #8, SEC 1 or PKCS #1)";
    for (arguments, message) in [
        (&["none"][..], format!("cannot open none, expected the folder of an OCI image layout: {missing}")),
        (&["layout", "--cert", "none", "--key", "junk"], format!("cannot read the certificate (--cert) none: {missing}")),
        (&["layout", "--cert", "junk", "--key", "none"], format!("cannot read the key (--key) none: {missing}")),
        (&["layout", "--cert", "junk", "--key", "junk"], junk.to_owned()),
        (
            &["layout", "--ca", "none", "--key", "junk"],
            format!("cannot use the CA: cannot read the CA certificate none: {missing}; the CA is set with --ca"),
        ),
        (
            &["layout", "--ca", "junk", "--key", "none"],
            format!("cannot use the CA: cannot read the CA key none: {missing}; the CA's key is set with --key"),
        ),
        (
            &["layout", "--htpasswd", "none"],
            format!(
                "cannot set up access control: cannot read the password file none: {missing}; the password file is set with --htpasswd"
            ),
        ),
        (
            &["layout", "--client-ca", "none"],
            format!(
                "cannot set up access control: cannot read the client CA none: {missing}; the client CA is set with --client-ca"
            ),
        ),
    ] {
        let output = folder.command(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat()).output().unwrap();
        let expected = format!("localregistry: {message}\n");
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap()), (Some(1), expected));
    }
}
