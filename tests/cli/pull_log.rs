//! `localregistry events` and `assert`, on the log of a real server and on damaged logs.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use testing::pack::{Bench, text};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn request(by: &str, method: &str, endpoint: &str, reference: &str, status: u32) -> Value {
    let digest = if status < 300 { DIGEST } else { "" };
    json!({ "time": 1_793_491_209.25, "request": {
        "peer": format!("{by}:40112"), "method": method, "endpoint": endpoint, "repository": "test/multi", "reference": reference,
        "digest": digest, "status": status, "bytes": if method == "HEAD" { "0" } else { "512" }, "complete": true,
    }})
}

/// A log in which 10.1.0.7 (with containerd's requests) and 10.1.0.8 (with podman's) pull test/multi:1, and 10.1.0.8 misses
/// test/multi:2.
fn log() -> Vec<Value> {
    vec![
        json!({ "time": 1.0, "booting": { "version": "0.1.0", "kernel": "6.1" } }),
        request("10.1.0.7", "HEAD", "manifest", "1", 200),
        request("10.1.0.7", "GET", "manifest", DIGEST, 200),
        request("10.1.0.7", "GET", "blob", DIGEST, 200),
        request("10.1.0.7", "GET", "blob", DIGEST, 206),
        request("10.1.0.8", "GET", "base", "", 200),
        request("10.1.0.8", "GET", "manifest", "1", 200),
        request("10.1.0.8", "GET", "manifest", "2", 404),
        json!({ "time": 9.0, "done": { "reason": "asked", "requests": "7" } }),
    ]
}

fn written(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

fn bench(text: &str) -> Bench {
    let bench = Bench::default();
    bench.file("log", text.as_bytes());
    bench
}

fn run(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = bench.command(arguments).output().unwrap();
    (status.code(), text(&stdout), text(&stderr))
}

const HEAD: &str = "TIME (UTC)    BY               IMAGE                                              STATUS      BYTES\n";

fn row(by: &str, image: &str, rest: &str) -> String {
    format!("00:00:09.250  {by:<15}  {image:<50} {rest}\n")
}

#[test]
fn table_lists_every_pull_and_every_miss() {
    let bench = bench(&written(&log()));
    let one = "test/multi:1@sha256:e3b0c44298fc";
    let (seven, eight) = (row("10.1.0.7", one, "   200        512"), row("10.1.0.8", one, "   200        512"));
    let missed = row("10.1.0.8", "test/multi:2", "   404        512");
    let shows = |arguments: &[&str], rows: &[&str]| {
        let expected = (Some(0), format!("{HEAD}{}", rows.concat()), String::new());
        assert_eq!(run(&bench, &[&["events", "log"], arguments].concat()), expected, "{arguments:?}");
    };
    shows(&[], &[&seven, &eight, &missed]);
    shows(&["--by", "10.1.0.8"], &[&eight, &missed]);
    shows(&["--by", "10.1.0.9"], &[]);
    shows(&["--image", "10.9.9.9:5000/test/multi:1"], &[&seven, &eight]);
    shows(&["--image", "test/multi:2"], &[&missed]);
    let head = row("10.1.0.7", "HEAD manifest test/multi 1", "   200          0");
    let blob = |rest| row("10.1.0.7", "GET blob test/multi@sha256:e3b0c44298fc", rest);
    shows(&["--all", "--by", "10.1.0.7"], &[&head, &seven, &blob("   200        512"), &blob("   206        512")]);
}

#[test]
fn json_output_passes_log_lines_through() {
    let bench = bench(&written(&log()));
    let expected = written(&[log()[2].clone()]);
    assert_eq!(run(&bench, &["events", "--json", "log", "--by", "10.1.0.7"]), (Some(0), expected, String::new()));
}

#[test]
fn truncated_last_line_is_ignored() {
    let whole = written(&log());
    let bench = bench(&format!("{whole}{{\"time\": 1, \"requ"));
    let note = "the last line of log is incomplete and is ignored\n";
    let (status, table, said) = run(&bench, &["events", "log"]);
    assert_eq!((status, table.lines().count(), said.as_str()), (Some(0), 4, note));
    // The missing part can be a pull: enough pulls are proven, and an exact number is not.
    let (status, _, said) = run(&bench, &["assert", "--pulled", "test/multi:1", "log"]);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    let unproven = |image: &str, counted: &str| {
        let gap = "log ends in the middle of an event: it does not show how often";
        (Some(2), String::new(), format!("localregistry: {gap} {image} was pulled, only that it was {counted}\n"))
    };
    let exactly = ["assert", "--pulled", "test/multi:1", "--times", "2", "log"];
    assert_eq!(run(&bench, &exactly), unproven("test/multi:1", "pulled 2 times"));
    assert_eq!(run(&bench, &["assert", "--not-pulled", "test/none:1", "log"]), unproven("test/none:1", "not pulled"));
    // A line that lacks only its newline is complete.
    bench.file("log", whole.trim_end().as_bytes());
    assert_eq!(run(&bench, &["events", "--quiet", "log", "--by", "10.1.0.8"]).1.lines().count(), 3);
    let (status, table, said) = run(&bench, &["events", "none"]);
    let expected = "localregistry: cannot read the events in none: No such file or directory (os error 2)\n";
    assert_eq!((status, table.as_str(), said.as_str()), (Some(1), "", expected));
}

#[test]
fn follow_ends_when_the_registry_ends() {
    let events = log();
    let (before, after) = events.split_at(3);
    let bench = bench(&written(before));
    let mut command = bench.command(&["events", "--follow", "log"]);
    let mut following = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(format!("{}\n", lines.next().unwrap()), HEAD);
    assert!(lines.next().unwrap().contains("10.1.0.7"));
    let mut log = OpenOptions::new().append(true).open(bench.path("log")).unwrap();
    // A line written in two pieces is one line.
    let rest = written(after);
    let (first, second) = rest.as_bytes().split_at(40);
    log.write_all(first).unwrap();
    log.write_all(second).unwrap();
    assert_eq!(lines.by_ref().filter(|line| line.contains("10.1.0.8")).count(), 2);
    assert_eq!(lines.next(), None);
    assert!(following.wait().unwrap().success());
}

#[test]
fn socket_is_read_to_its_end() {
    let bench = Bench::default();
    let listener = UnixListener::bind(bench.path("socket")).unwrap();
    let mut command = bench.command(&["events", "socket"]);
    let reading = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut connection, _) = listener.accept().unwrap();
    connection.write_all(format!("junk\n{}", written(&log())).as_bytes()).unwrap();
    drop(connection);
    let output = reading.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 4);
    assert_eq!(
        text(&output.stderr),
        "line 1 of socket: it is not an event: \"junk\": expected value at line 1 column 1; it is skipped\n"
    );
}

/// A closed pipe is not an error.
#[test]
fn closed_output_ends_the_command() {
    let bench = bench(&written(&log()).repeat(2000));
    let mut command = bench.command(&["events", "log"]);
    let mut showing = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(showing.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = showing.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn assertions_that_hold_exit_0() {
    let bench = bench(&written(&log()));
    for (arguments, said) in [
        (&["--pulled", "test/multi:1"][..], "test/multi:1 was pulled 2 times"),
        (&["--pulled", "test/multi:1", "--times", "2"], "test/multi:1 was pulled 2 times"),
        (&["--pulled", "test/multi:1", "--by", "10.1.0.7", "--times", "1"], "test/multi:1 was pulled once by 10.1.0.7"),
        (&["--pulled", "127.0.0.1:5000/test/multi:1", "--at-least", "2"], "127.0.0.1:5000/test/multi:1 was pulled 2 times"),
        (&["--pulled", "test/multi:1", "--at-most", "2"], "test/multi:1 was pulled 2 times"),
        (&["--not-pulled", "test/multi:2"], "test/multi:2 was not pulled"),
        (&["--not-pulled", "test/multi:1", "--by", "10.1.0.9"], "test/multi:1 was not pulled by 10.1.0.9"),
        (&["--not-pulled", "quay.io/test/multi:1"], "quay.io/test/multi:1 was not pulled"),
    ] {
        let expected = (Some(0), format!("{said}\n"), String::new());
        assert_eq!(run(&bench, &[&["assert"], arguments, &["log"]].concat()), expected, "{arguments:?}");
    }
    let digest = format!("test/multi@{DIGEST}");
    assert_eq!(run(&bench, &["assert", "--pulled", &digest, "--times", "2", "log"]).0, Some(0));
}

#[test]
fn assertions_that_fail_exit_1_with_the_difference() {
    let bench = bench(&written(&log()));
    let one = "test/multi:1@sha256:e3b0c44298fc";
    let both = format!("  {}  {}", row("10.1.0.7", one, "   200        512"), row("10.1.0.8", one, "   200        512"));
    let missed = format!("  {}", row("10.1.0.8", "test/multi:2", "   404        512"));
    let nearest = format!(
        "  no client asked for test/other:1; the most similar names in the log:\n  {}{missed}",
        row("10.1.0.8", one, "   200        512")
    );
    for (arguments, difference, context) in [
        (
            &["--pulled", "test/multi:1", "--by", "10.1.0.7", "--times", "2"][..],
            "test/multi:1 was pulled once by 10.1.0.7; it was expected to be pulled 2 times\n\
             - test/multi:1 by 10.1.0.7: to be pulled 2 times\n\
             + test/multi:1 by 10.1.0.7: pulled once\n",
            &both,
        ),
        (
            &["--pulled", "test/multi:2"],
            "test/multi:2 was not pulled; it was expected to be pulled at least once\n\
             - test/multi:2: to be pulled at least once\n\
             + test/multi:2: not pulled\n",
            &missed,
        ),
        (
            &["--pulled", "test/other:1"],
            "test/other:1 was not pulled; it was expected to be pulled at least once\n\
             - test/other:1: to be pulled at least once\n\
             + test/other:1: not pulled\n",
            &nearest,
        ),
        (
            &["--pulled", "test/multi:1", "--at-most", "1"],
            "test/multi:1 was pulled 2 times; it was expected to be pulled at most once\n\
             - test/multi:1: to be pulled at most once\n\
             + test/multi:1: pulled 2 times\n",
            &both,
        ),
        (
            &["--not-pulled", "test/multi:1"],
            "test/multi:1 was pulled 2 times; it was expected not to be pulled\n\
             - test/multi:1: not to be pulled\n\
             + test/multi:1: pulled 2 times\n",
            &both,
        ),
    ] {
        let expected = (Some(1), String::new(), format!("localregistry: {difference}{context}"));
        assert_eq!(run(&bench, &[&["assert"], arguments, &["log"]].concat()), expected, "{arguments:?}");
    }
    let (status, said, _) = run(&bench, &["assert", "--json", "--pulled", "test/multi:1", "--times", "3", "log"]);
    let expected = json!({ "image": "test/multi:1", "by": null, "pulls": 2, "expected": "to be pulled 3 times", "holds": false });
    assert_eq!((status, serde_json::from_str::<Value>(&said).unwrap()), (Some(1), expected));
}

fn pulled(by: &str, repository: &str, tag: &str) -> Value {
    let mut event = request(by, "GET", "manifest", tag, 200);
    event["request"]["repository"] = json!(repository);
    event
}

/// The images listed under a failure, in order.
fn listed(bench: &Bench, arguments: &[&str]) -> Vec<String> {
    let (status, _, said) = run(bench, &[&["assert"], arguments, &["log"]].concat());
    assert_eq!(status, Some(1), "{said}");
    let rows = said.lines().filter(|line| line.starts_with("  00:"));
    rows.map(|row| row.split_whitespace().nth(2).unwrap().split('@').next().unwrap().to_owned()).collect()
}

#[test]
fn failure_suggests_similar_names_and_the_default_tag() {
    let mut events: Vec<Value> = (0..20).map(|number| pulled("10.1.0.7", &format!("aaa/unrelated-{number}"), "1")).collect();
    for (by, repository, tag) in [
        ("10.1.0.7", "quay.io/team/backend", "v1"),
        ("10.1.0.7", "team/backend", "v1"),
        ("10.1.0.8", "team/backend", "v1"),
        ("10.1.0.8", "team/backend", "rc-12"),
        ("10.1.0.7", "team/backends", "latest"),
    ] {
        events.push(pulled(by, repository, tag));
    }
    let bench = bench(&written(&events));
    let near = listed(&bench, &["--pulled", "team/backend:v2"]);
    assert_eq!(near.len(), 10);
    // The same repository, then the same one on another host and one with a similar name, each once.
    assert_eq!(near[..4], ["team/backend:v1", "team/backend:rc-12", "quay.io/team/backend:v1", "team/backends:latest"]);
    assert_eq!(listed(&bench, &["--pulled", "team/backend:v2", "--by", "10.1.0.8"]), ["team/backend:v1", "team/backend:rc-12"]);
    assert_eq!(listed(&bench, &["--pulled", "team/backend:v2", "--by", "10.1.0.9"]), near, "that address sent no request");

    let (status, _, said) = run(&bench, &["assert", "--pulled", "team/backend", "log"]);
    let head = "localregistry: team/backend:latest was not pulled; it was expected to be pulled at least once\n\
                - team/backend:latest: to be pulled at least once\n+ team/backend:latest: not pulled\n  \
                no tag was given: latest was looked for, as clients do\n  no client asked for team/backend:latest; the most similar \
                names in the log:\n";
    assert!(said.starts_with(head), "{said}");
    assert_eq!(status, Some(1));
    let said = run(&bench, &["assert", "--pulled", "team/backends", "log"]);
    assert_eq!(said, (Some(0), "team/backends:latest was pulled once\n".to_owned(), String::new()));
    let (_, json, _) = run(&bench, &["assert", "--json", "--pulled", "team/backends", "log"]);
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["image"], "team/backends:latest");
}

#[test]
fn incomplete_log_exits_2() {
    let whole = log();
    let bench = bench(&written(&whole));
    bench.file("damaged", format!("{}junk\n{}", written(&whole[..2]), written(&whole[2..])).as_bytes());
    let dropping = json!({ "time": 5.0, "warning": { "code": "DROPPED_EVENTS", "message": "3 events" } });
    bench.file("dropping", written(&[&whole[..], &[dropping]].concat()).as_bytes());
    let lacks = "lacks events that were dropped: it does not show how often";
    for (arguments, message) in [
        (&["none", "--pulled", "a"][..], "cannot read the events in none: No such file or directory (os error 2)"),
        (
            &["damaged", "--pulled", "test/multi:1"],
            "the log is damaged and proves nothing: line 3 of damaged: it is not an event: \"junk\": expected value at line 1 column 1",
        ),
        (
            &["dropping", "--not-pulled", "test/multi:2"],
            &format!("dropping {lacks} test/multi:2 was pulled, only that it was not pulled"),
        ),
        (
            &["dropping", "--pulled", "test/multi:1", "--times", "2"],
            &format!("dropping {lacks} test/multi:1 was pulled, only that it was pulled 2 times"),
        ),
    ] {
        let expected = (Some(2), String::new(), format!("localregistry: {message}\n"));
        assert_eq!(run(&bench, &[&["assert"], arguments].concat()), expected);
    }
    // With --at-least, dropped events do not matter after enough pulls.
    assert_eq!(run(&bench, &["assert", "--pulled", "test/multi:1", "--at-least", "2", "dropping"]).0, Some(0));
}

#[test]
fn bad_flags_exit_2() {
    let bench = bench("");
    let what = "the following required arguments were not provided:\n  <--pulled <REF>|--not-pulled <REF>|--fault <ID>>";
    for (arguments, message) in [
        (&["assert", "log"][..], what),
        (
            &["assert", "log", "--pulled", "a", "--not-pulled", "b"],
            "the argument '--pulled <REF>' cannot be used with '--not-pulled <REF>'",
        ),
        (
            &["assert", "log", "--pulled", "a", "--times", "1", "--at-least", "1"],
            "the argument '--times <N>' cannot be used with '--at-least <N>'",
        ),
        (
            &["assert", "log", "--pulled", "Upper/case"],
            "invalid value 'Upper/case' for '--pulled <REF>': expected an image's name, such as test/hello:1, \
             docker.io/library/busybox or 10.1.0.82:5000/test/hello@sha256:…: a repository name has lower-case letters and digits, \
             joined by one of . _ __ - and split by /",
        ),
        (
            &["assert", "log", "--pulled", "a", "--by", "node1"],
            "invalid value 'node1' for '--by <IP>': invalid IP address syntax",
        ),
        (&["events"], "the following required arguments were not provided:\n  <FILE|SOCKET>"),
    ] {
        let (status, _, said) = run(&bench, arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with(&format!("error: {message}\n")), "{arguments:?}: {said}");
    }
}

#[test]
fn a_file_without_events_exits_1() {
    let bench = Bench::default();
    bench.file("empty", b"");
    bench.file("cut", b"{\"time\":1,");
    bench.file("text", b"hello\nworld\n");
    bench.file("json", b"{\"time\":1}\n");
    bench.file("binary", &[0x1b; 4096]);
    for (file, end) in [
        ("empty", ""),
        ("cut", ""),
        ("text", "; of its first line: it is not an event: \"hello\": expected value at line 1 column 1"),
        ("json", "; of its first line: it is an event without content: \"{\\\"time\\\":1}\""),
        ("binary", ""),
    ] {
        for json in [&["events"][..], &["events", "--json"]] {
            let expected = format!("{file} holds no events; expected the log that `run --events` or `serve --events` wrote{end}");
            let expected = (Some(1), String::new(), format!("localregistry: {expected}\n"));
            assert_eq!(run(&bench, &[json, &[file]].concat()), expected);
        }
    }
}

/// The expectations of a log that grows are judged when nothing can change them, at the latest at the end of the wait.
#[test]
fn waiting_assertion_reads_the_growing_log_again() {
    let events = log();
    let (before, after) = events.split_at(2);
    let plan =
        json!({ "time": 1.0, "faultsChanged": { "verb": "REPLACE", "rules": [{ "id": "slow", "do": { "status": 503 } }] } });
    let bench = bench(&written(&[&[plan], before].concat()));
    let start = |arguments: &[&str]| {
        let mut command = bench.command(&[&["assert"], arguments, &["log"]].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ends = |child: std::process::Child| {
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        (status.code(), text(&stdout), text(&stderr))
    };
    // A day is longer than the test may take: each ends because of what the log says.
    let day = "86400";
    let waiting = [
        start(&["--pulled", "test/multi:1", "--wait", day]),
        start(&["--pulled", "test/multi:1", "--times", "2", "--wait", day]),
        start(&["--not-pulled", "test/multi:1", "--wait", day]),
        start(&["--not-pulled", "test/multi:2", "--wait", day]),
        start(&["--fault", "slow", "--wait", day]),
        start(&["--fault", "slow", "--hits", "0", "--wait", day]),
    ];
    // Without --wait the same log is judged as it is, and at the end of a wait as well.
    for wait in [&[][..], &["--wait", "0"], &["--wait", "1"]] {
        let judged = |arguments: &[&str]| ends(start(&[arguments, wait].concat()));
        assert_eq!(judged(&["--pulled", "test/multi:1"]).0, Some(1), "{wait:?}");
        assert_eq!(judged(&["--not-pulled", "test/multi:1"]).0, Some(0), "{wait:?}");
        assert_eq!(judged(&["--fault", "slow", "--hits", "0"]).0, Some(0), "{wait:?}");
    }
    let mut growing = OpenOptions::new().append(true).open(bench.path("log")).unwrap();
    // A line of which a part is there is no error yet.
    let fault = json!({ "time": 3.0, "fault": { "rule": "slow", "peer": "10.1.0.7:1" } });
    let rest = written(&[&[fault], after].concat());
    let (first, second) = rest.as_bytes().split_at(20);
    growing.write_all(first).unwrap();
    assert_eq!(ends(start(&["--pulled", "test/multi:1", "--wait", "1"])).0, Some(2), "ends in the middle of an event");
    growing.write_all(second).unwrap();
    let ended: Vec<_> = waiting.into_iter().map(ends).collect();
    let said: Vec<_> = ended.iter().map(|(status, said, _)| (*status, said.as_str())).collect();
    let expected = [
        (Some(0), "test/multi:1 was pulled 2 times\n"),
        (Some(0), "test/multi:1 was pulled 2 times\n"),
        (Some(1), ""),
        (Some(0), "test/multi:2 was not pulled\n"),
        (Some(0), "the rule slow did act once\n"),
        (Some(1), ""),
    ];
    assert!(said[0].1 == expected[0].1 || said[0].1 == "test/multi:1 was pulled once\n", "{said:?}");
    assert_eq!((said[0].0, &said[1..]), (Some(0), &expected[1..]), "{ended:?}");

    // A registry that has ended logs nothing more.
    let missing = ends(start(&["--pulled", "test/multi:2", "--wait", day]));
    assert!(missing.0 == Some(1) && missing.2.contains("it was expected to be pulled at least once"), "{missing:?}");
    let missing = ends(start(&["--pulled", "test/multi:1", "--times", "3", "--wait", day]));
    assert_eq!(missing.0, Some(1), "{missing:?}");
    bench.file("log", written(&log()).as_bytes());
    let without = "localregistry: the log has no plan of faults, and so no rule slow\n".to_owned();
    assert_eq!(ends(start(&["--fault", "slow", "--hits", "0", "--wait", day])), (Some(1), String::new(), without));
    // What no later event mends is not waited for.
    bench.file("log", format!("{}junk\n", written(before)).as_bytes());
    assert_eq!(ends(start(&["--not-pulled", "test/multi:1", "--wait", day])).0, Some(2));
    std::fs::remove_file(bench.path("log")).unwrap();
    assert_eq!(ends(start(&["--not-pulled", "test/multi:1", "--wait", day])).0, Some(2));
    let (status, _, said) = ends(start(&["--pulled", "a", "--wait", "86401"]));
    assert!(status == Some(2) && said.contains("86401 is not in 0..=86400"), "{said}");
}
