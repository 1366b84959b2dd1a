//! Standard output and standard error that cannot be written to, and what is written to them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testing::pack::{Bench, hello, text};

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// Commands with messages and results, and their exit statuses.
const COMMANDS: [(&[&str], i32); 9] = [
    (&["pack", "layout", "-o", "disk"], 0),
    (&["pack", "missing", "-o", "none"], 1),
    (&["pack"], 2),
    (&["inspect", "layout", "--verify"], 0),
    (&["diff", "layout", "layout"], 0),
    (&["diff", "layout", "missing"], 2),
    (&["assert", "--pulled", "a:1", "log"], 1),
    (&["run", "missing"], 9),
    (&["trust", "--endpoint", "http://a:1", "-o", "trust"], 0),
];

#[test]
fn standard_error_that_cannot_be_written_changes_no_result() {
    let (bench, _, _) = hello(b"layer");
    bench.file("log", b"{\"time\": 1, \"warning\": {\"code\": \"X\"}}\n");
    for (arguments, code) in COMMANDS {
        let output = |stderr: Stdio| bench.command(arguments).stderr(stderr).output().unwrap();
        let expected = output(Stdio::piped());
        assert_eq!(expected.status.code(), Some(code), "{arguments:?}: {}", text(&expected.stderr));
        for stderr in [full(), closed()] {
            let found = output(stderr);
            assert_eq!((found.status.code(), text(&found.stdout)), (Some(code), text(&expected.stdout)), "{arguments:?}");
        }
    }
}

#[test]
fn result_that_cannot_be_printed_is_an_error() {
    let (bench, _, _) = hello(b"layer");
    let help: &[(&[&str], i32)] = &[(&["--help"], 0), (&["run", "--help"], 0), (&["--version"], 0), (&["schema"], 0)];
    for (arguments, code) in COMMANDS.iter().chain(help).filter(|(_, code)| *code == 0) {
        let output = bench.command(arguments).stdout(full()).output().unwrap();
        let expected = if arguments[0] == "diff" { 2 } else { 1 };
        assert_eq!((output.status.code(), *code), (Some(expected), 0), "{arguments:?}: {}", text(&output.stderr));
        let said = text(&output.stderr);
        assert!(said.ends_with("No space left on device (os error 28)\n"), "{arguments:?}: {said}");
    }
}

/// Documentation is read in parts, as by `head`.
#[test]
fn documentation_ends_quietly_with_its_reader() {
    let bench = Bench::default();
    for arguments in [&["schema"][..], &["schema", "--json"], &["--help"], &["run", "--help"], &["--version"]] {
        let output = bench.command(arguments).stdout(closed()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
    }
}

/// Text from files cannot start a line of its own, or reach the terminal as a sequence.
#[test]
fn messages_have_one_line_each() {
    let bench = Bench::default();
    let forged = "x\\nlocalregistry: all is well\\u001b[2J\\u0085\\u2028\\u202e";
    bench.file("disk", &testing::pack::empty_disk());
    bench.file("layout.json", b"");
    for (file, content, arguments) in [
        ("config", format!("{{\"{forged}\": 1}}"), &["run", "disk", "--config", "config"][..]),
        ("config", format!("{{\"tls\": {{\"mode\": \"{forged}\"}}}}"), &["run", "disk", "--config", "config"]),
        ("log", format!("{{\"{forged}\": 1}}\n"), &["assert", "--pulled", "a:1", "log"]),
        ("log", format!("{{\"time\": 1, \"request\": {{\"{forged}\": 1}}}}\n"), &["assert", "--pulled", "a:1", "log"]),
        ("log", format!("{{\"{forged}\": 1}}\n"), &["events", "log"]),
        ("ready", format!("{{\"endpoint\": \"{forged}\"}}"), &["trust", "--ready", "ready", "-o", "trust"]),
        (
            "spec",
            format!("images {{ path: \"a\" name: \"{}\" }}", forged.replace("\\u", "\\\\u")),
            &["pack", "--spec", "spec", "-o", "d"],
        ),
    ] {
        bench.file(file, content.as_bytes());
        let said = text(&bench.command(&[&["--quiet"], arguments].concat()).output().unwrap().stderr);
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        let is_plain = |character: char| !character.is_control() && !matches!(character, '\u{2028}' | '\u{202e}');
        assert!(said.trim_end_matches('\n').chars().all(is_plain), "{arguments:?}: {said:?}");
    }
}

/// JSON is UTF-8: in a path that is not, U+FFFD stands for what is not.
#[test]
fn json_of_a_path_that_is_not_utf_8_is_one_valid_line() {
    let (bench, _, _) = hello(b"layer");
    let odd = |name: &str| -> OsString { OsStr::from_bytes(&[name.as_bytes(), b"\xff"].concat()).to_owned() };
    let line = |command: &mut Command| -> Value {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout).matches('\n').count(), 1);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let packed = line(bench.command(&["pack", "--json", "layout", "-o"]).arg(odd("disk")));
    assert_eq!(packed["disk"], "disk\u{fffd}");
    let inspected = line(bench.command(&["inspect", "--json", "--export"]).arg(odd("out")).arg(odd("disk")));
    assert_eq!((&inspected["disk"], &inspected["exported"]), (&"disk\u{fffd}".into(), &"out\u{fffd}".into()));
    let compared = line(bench.command(&["diff", "--json"]).arg(odd("disk")).arg(odd("out")));
    assert_eq!((&compared["a"], &compared["b"]), (&"disk\u{fffd}".into(), &"out\u{fffd}".into()));
    assert_eq!(line(bench.command(&["manual", "--json", "--output"]).arg(odd("manual")))["dir"], "manual\u{fffd}");

    fs::create_dir(bench.path("").join(odd("folder"))).unwrap();
    let here: &Path = &bench.path("").join(odd("folder"));
    assert_eq!(line(bench.command(&["inspect", "--json", "../layout"]).current_dir(here))["disk"], "../layout");
}

#[test]
fn arguments_in_usage_errors_are_escaped() {
    let (bench, _, _) = hello(b"layer");
    let evil = "a\nerror: b\x1b[2J\u{202e}c\r\nd";
    // clap itself removes the terminal sequence.
    let escaped = r"a\nerror: b\u{202e}c\r\nd";
    let option = format!("--{evil}");
    let setting = format!("{evil}=1");
    let cases: [&[&str]; 12] = [
        &[evil],
        &["pack", &option],
        &["pack", "--pull", evil, "-o", "out"],
        &["pack", "--platform", evil, "layout", "-o", "out"],
        &["pack", "layout", "--label", evil, "-o", "out"],
        &["serve", "layout", "--san", evil],
        &["serve", "layout", "--listen", evil],
        &["serve", "layout", "--limit", &setting],
        &["assert", "--pulled", evil, "log"],
        &["run", "layout", "--set", &setting],
        &["trust", "--endpoint", evil, "-o", "out"],
        &["inspect", "layout", evil],
    ];
    for arguments in cases {
        let output = bench.command(arguments).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{arguments:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(escaped), "{arguments:?}: {said}");
        assert!(!said.contains("\nerror: ") && !said.contains("f000a"), "{arguments:?}: {said}");
        assert!(said.chars().all(|one| one == '\n' || !one.is_control() && one != '\u{202e}'), "{arguments:?}: {said:?}");
        assert!(said.ends_with("\n\nFor more information, try '--help'.\n"), "{arguments:?}: {said}");
        assert!(!bench.path("out").exists());
    }
    // A byte that is not UTF-8 changes nothing of this.
    let output = bench.command(&["pack"]).arg(OsStr::from_bytes(b"--a\xff\nb")).output().unwrap();
    assert!(text(&output.stderr).starts_with("error: unexpected argument '--a\u{fffd}\\nb' found\n"), "{output:?}");
}
