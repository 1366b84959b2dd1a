//! `localregistry faults` against `localregistry serve`: what each command prints and changes, its exit status, replays of a log, and
//! `assert --fault`.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use testing::http;
use testing::layout::Layout;
use testing::pack::{PROGRAM, text};
use testing::serve::Serving;

struct Site {
    _layout: Layout,
    serving: Serving,
}

impl Site {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, arguments)
    }

    fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        let (layout, _) = Layout::hello();
        let arguments = [&["--tls", "off", "--control", "control", "--events", "events.jsonl"], arguments].concat();
        let serving = Serving::start(layout.path(), folder, &arguments);
        Self { _layout: layout, serving }
    }

    fn status(&self, path: &str) -> u16 {
        http::get(self.serving.address().parse::<SocketAddr>().unwrap(), path).status
    }

    fn file(&self, name: &str, plan: &Value) {
        fs::write(self.serving.folder.path().join(name), plan.to_string()).unwrap();
    }

    /// Runs the program in the folder of the server.
    fn program(&self, arguments: &[&str]) -> Output {
        testing::program(PROGRAM).current_dir(self.serving.folder.path()).args(arguments).output().unwrap()
    }

    fn faults(&self, arguments: &[&str]) -> Value {
        let output = self.program(&[&["--json", "faults", "./control"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The message of a command that fails with status 1, on one line.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.program(&[&["faults", "./control"], arguments].concat());
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{arguments:?}");
        let message = text(&output.stderr);
        assert_eq!(message.lines().count(), 1, "{message}");
        message.trim_end().trim_start_matches("localregistry: ").to_owned()
    }

    fn ids(&self) -> Vec<String> {
        let listed = self.faults(&["list"]);
        listed["rules"].as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn rule(id: &str, endpoint: &str, status: u16) -> Value {
    json!({"id": id, "about": format!("{endpoint} fails"), "match": {"endpoint": endpoint}, "do": {"status": status}})
}

#[test]
fn commands_change_the_plan_before_they_return() {
    let site = Site::start(&[]);
    let mode = fs::metadata(site.serving.folder.path().join("control")).unwrap();
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    assert_eq!(site.ids(), [""; 0]);
    site.file("one.json", &json!({"rules": [rule("base", "base", 503), rule("tags", "tags", 502)]}));
    site.file("two.json", &json!({"rules": [rule("catalog", "catalog", 500)]}));
    assert_eq!(site.faults(&["add", "one.json"])["rules"].as_array().unwrap().len(), 2);
    assert_eq!((site.status("/v2/"), site.status("/v2/_catalog")), (503, 200));
    site.faults(&["add", "two.json"]);
    assert_eq!((site.status("/v2/"), site.status("/v2/_catalog")), (503, 500));
    let listed = site.faults(&["list"]);
    assert_eq!(
        (&listed["rules"][0]["id"], &listed["rules"][0]["matches"], &listed["rules"][0]["hits"]),
        (&"base".into(), &2.into(), &2.into())
    );
    assert_eq!(listed["rules"][0]["about"], "base fails");
    let whole: Value = serde_json::from_str(listed["rules"][0]["rule"].as_str().unwrap()).unwrap();
    assert_eq!(whole["do"]["status"], 503);
    site.faults(&["reset"]);
    assert_eq!(site.faults(&["list"])["rules"][0]["hits"], 0);
    assert_eq!(site.faults(&["remove", "base", "catalog"])["rules"].as_array().unwrap().len(), 2);
    assert_eq!((site.ids(), site.status("/v2/"), site.status("/v2/_catalog")), (vec!["tags".to_owned()], 200, 200));
    site.faults(&["replace", "two.json"]);
    assert_eq!((site.ids(), site.status("/v2/_catalog")), (vec!["catalog".to_owned()], 500));
    let table = text(&site.program(&["faults", "./control", "list"]).stdout);
    assert_eq!(table.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(), ["catalog", "1", "1", "catalog", "fails"]);
    let mut forged = rule("base", "base", 500);
    forged["about"] = "\u{1b}[31mred\nbase 7 7".into();
    site.file("forged.json", &json!({ "rules": [forged] }));
    site.faults(&["add", "forged.json"]);
    let table = text(&site.program(&["faults", "./control", "list"]).stdout);
    assert!(table.lines().count() == 3 && !table.contains('\u{1b}'), "{table}");
    site.faults(&["clear"]);
    assert_eq!((site.ids().len(), site.status("/v2/_catalog")), (0, 200));
    assert_eq!(text(&site.program(&["faults", "./control", "list"]).stdout), "no rules\n");
}

#[test]
fn plan_comes_from_standard_input_and_ten_thousand_rules_arrive_at_once() {
    let site = Site::start(&[]);
    let rules: Vec<Value> = (0..10_000)
        .map(|number| json!({"id": format!("r{number}"), "about": "x".repeat(100), "match": {"repository": format!("test/{number}")}, "do": {"status": 500}}))
        .collect();
    let mut command = testing::program(PROGRAM);
    command.current_dir(site.serving.folder.path()).args(["--json", "faults", "./control", "add", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(json!({ "rules": rules }).to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((result["rules"].as_array().unwrap().len(), result["warnings"].as_array().unwrap().len()), (10_000, 21));
    let warnings = text(&output.stderr);
    assert!(
        warnings.starts_with("localregistry: warning: rule r0 can never match: no disk has a repository of that name\n"),
        "{warnings}"
    );
    assert_eq!(warnings.lines().last(), Some("localregistry: warning: 9980 more rules can never match"));
    assert_eq!(site.ids().len(), 10_000);
    assert_eq!(site.status("/v2/test/hello/tags/list"), 200);
}

#[test]
fn refused_commands_change_nothing() {
    let site = Site::start(&[]);
    site.file("good.json", &json!({"rules": [rule("base", "base", 503)]}));
    site.faults(&["add", "good.json"]);
    site.file("bad.json", &json!({"rules": [rule("new", "base", 200)]}));
    let message = site.refused(&["replace", "bad.json"]);
    assert!(message.starts_with("bad.json:1:"), "{message}");
    assert!(message.ends_with("rule new: do.status: 200 is not a status of an error; expected 400 to 599"), "{message}");
    let length = json!({"id": "new", "do": {"headers": [{"name": "Content-Length", "value": "+5"}]}});
    site.file("length.json", &json!({ "rules": [length] }));
    let message = site.refused(&["add", "length.json"]);
    assert!(message.ends_with("do.headers.value: Content-Length needs a number of bytes"), "{message}");
    // Those that frame a message: with one of them, HTTP/2 could not send the response at all (RFC 9113, section 8.2.2).
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "te"] {
        site.file("framing.json", &json!({"rules": [{"id": "new", "do": {"headers": [{"name": name, "value": "x"}]}}]}));
        let message = site.refused(&["add", "framing.json"]);
        let expected = format!("do.headers.name: {name} cannot be changed; `close` ends the connection");
        assert!(message.ends_with(&expected), "{message}");
    }
    let message = site.refused(&["add", "good.json"]);
    assert_eq!(message, "rule base: id: the plan has this id already; expected another one");
    assert_eq!(site.refused(&["remove", "base", "other"]), "there is no rule \"other\"; there are base");
    let message = site.refused(&["add", "missing.json"]);
    assert!(message.starts_with("cannot read the plan of faults missing.json: "), "{message}");
    assert_eq!((site.ids(), site.status("/v2/")), (vec!["base".to_owned()], 503));
    site.faults(&["clear"]);
    assert_eq!(site.refused(&["remove", "base"]), "there is no rule \"base\": the plan has no rules");
}

#[test]
fn plans_in_unusual_files_are_read_or_refused_in_everyday_words() {
    let site = Site::start(&[]);
    let folder = site.serving.folder.path();
    fs::write(folder.join("bom.json"), format!("\u{feff}{}", json!({"rules": [rule("base", "base", 503)]}))).unwrap();
    fs::write(folder.join("bom.textproto"), "\u{feff}rules { id: \"tags\" match { endpoint: \"tags\" } do { status: 503 } }")
        .unwrap();
    site.faults(&["add", "bom.json"]);
    site.faults(&["add", "bom.textproto"]);
    for (name, empty) in [("empty", ""), ("empty.json", "{}"), ("comment", "# nothing\n")] {
        fs::write(folder.join(name), empty).unwrap();
        let output = site.program(&["faults", "./control", "add", name]);
        let expected = format!("localregistry: warning: the plan of faults {name} has 0 rules\n");
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("0 rules added\n".to_owned(), expected));
    }
    let list = "it is not a JSON object; expected one such as {\"rules\": []}";
    for (content, expected) in [
        (&b" [\n]"[..], format!("1:2: {list}")),
        (b"\n\n\"rules\"", format!("3:1: {list}")),
        (b"17", format!("1:1: {list}")),
        (b"null", format!("1:1: {list}")),
        (b"{\"about\": \"\xff\"}", "1:12: it is not UTF-8".to_owned()),
        (b"\xff\xfe{\0}\0", "1:1: it is not UTF-8".to_owned()),
        (
            b"{\"rules\": [{\"id\": \"a\\nrule b\\u001b[31m\", \"do\": {\"status\": 500}}]}",
            "1:13: rule number 1: id: \"a\\nrule b\\u{1b}[31m\" is not an id; expected 1 to 64 letters, digits and . _ -"
                .to_owned(),
        ),
    ] {
        fs::write(folder.join("bad"), content).unwrap();
        assert_eq!(site.refused(&["replace", "bad"]), format!("bad:{expected}"));
    }
    let endless = site.refused(&["replace", "/dev/zero"]);
    assert_eq!(endless, "cannot read the plan of faults /dev/zero: it is larger than 8388608 bytes");
    assert_eq!((site.ids(), site.status("/v2/")), (vec!["base".to_owned(), "tags".to_owned()], 503));
}

#[test]
fn command_without_a_registry_fails() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = testing::program(PROGRAM);
        command.current_dir(folder.path()).env("XDG_RUNTIME_DIR", folder.path());
        let output = command.arg("faults").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (status, message) = run(&["none", "list"]);
    assert_eq!(status, Some(1));
    assert!(message.starts_with("localregistry: there is no run none that takes commands: "), "{message}");
    for (arguments, expected) in [
        (&["list"][..], "error: the argument '<NAME|DIR|SOCKET>' is missing: which registry is meant\n"),
        (&["one", "replay", "log"], "error: 'replay' takes a log, and no run\n"),
        (&["one", "remove"], "error: the following required arguments were not provided"),
    ] {
        let (status, message) = run(arguments);
        assert_eq!(status, Some(2), "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn bad_plan_keeps_serve_from_starting() {
    let (layout, folder) = (Layout::hello().0, tempfile::tempdir().unwrap());
    fs::write(folder.path().join("plan"), "rules {\n  id: \"a\"\n  when { probability: 2 }\n  do { status: 503 }\n}\n").unwrap();
    let mut command = testing::program(PROGRAM);
    command.current_dir(folder.path()).args([
        "serve",
        "--tls",
        "off",
        "--listen",
        "127.0.0.1:0",
        "--faults",
        "plan",
        "--control",
        "control",
    ]);
    let output = command.arg(layout.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected =
        "localregistry: plan:3:10: rule a: when.probability: 2 is not a probability; expected a number above 0, and at most 1\n";
    assert_eq!(text(&output.stderr), expected);
    assert!(!folder.path().join("control").exists());
}

#[test]
fn replayed_plan_has_exactly_the_hits_of_the_log_and_assert_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let plan = json!({"seed": 3, "rules": [
        {"id": "coin", "match": {"endpoint": "base"}, "when": {"probability": 0.5}, "do": {"status": 503}},
        {"id": "never", "match": {"endpoint": "base"}, "when": {"nth": [1000]}, "do": {"status": 500}},
        {"id": "manifest", "match": {"endpoint": "manifest"}, "when": {"first": 1}, "do": {"corrupt": {"offset": 1}}},
    ]});
    fs::write(folder.path().join("plan.json"), plan.to_string()).unwrap();
    let exchange = |site: &Site| -> Vec<u16> {
        let manifest = "/v2/test/hello/manifests/latest";
        (0..20).map(|_| site.status("/v2/")).chain([site.status(manifest), site.status(manifest)]).collect()
    };
    let site = Site::start_in(folder, &["--faults", "plan.json"]);
    let seen = exchange(&site);
    let hits = seen.iter().filter(|status| **status == 503).count();
    assert!((1..20).contains(&hits), "{seen:?}");
    // The log is complete once the server has ended.
    let copy = site.serving.end();

    let run = |arguments: &[&str]| {
        let output = testing::program(PROGRAM).current_dir(copy.path()).args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (status, replayed, _) = run(&["--json", "faults", "replay", "events.jsonl"]);
    assert_eq!(status, Some(0));
    let replayed: Value = serde_json::from_str(&replayed).unwrap();
    let ids: Vec<&str> = replayed["rules"].as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!((ids, replayed["rules"][0]["when"]["nth"].as_array().unwrap().len()), (vec!["coin", "manifest"], hits));
    let again = tempfile::tempdir().unwrap();
    fs::write(again.path().join("replayed.json"), replayed.to_string()).unwrap();
    assert_eq!(exchange(&Site::start_in(again, &["--faults", "replayed.json"])), seen);

    let count = hits.to_string();
    assert_eq!(run(&["assert", "--fault", "coin", "--hits", &count, "events.jsonl"]).0, Some(0));
    assert_eq!(run(&["assert", "--fault", "coin", "events.jsonl"]).0, Some(0));
    assert_eq!(run(&["assert", "--fault", "never", "--hits", "0", "events.jsonl"]).0, Some(0));
    assert_eq!(run(&["assert", "--pulled", "test/hello", "--hits", "1", "events.jsonl"]).0, Some(2));
    let (_, json, _) = run(&["--json", "assert", "--fault", "coin", "--hits", &count, "events.jsonl"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json, json!({"fault": "coin", "by": null, "hits": hits, "expected": json["expected"], "holds": true}));
    for expected in [&["--hits", "0"][..], &["--hits", "1"], &[]] {
        let (status, _, message) = run(&[&["assert", "--fault", "cion"], expected, &["events.jsonl"]].concat());
        let unknown = "localregistry: no plan of faults in the log has the rule cion; it has:\n  coin\n  manifest\n  never\n";
        assert_eq!((status, message.as_str()), (Some(1), unknown));
    }
    assert_eq!(run(&["assert", "--fault", "", "events.jsonl"]).0, Some(2));
    let whole = fs::read_to_string(copy.path().join("events.jsonl")).unwrap();
    fs::write(copy.path().join("damaged"), whole.replacen('{', "(", 1)).unwrap();
    for mode in [
        &["--pulled", "test/hello"][..],
        &["--pulled", "test/hello", "--times", "1"],
        &["--not-pulled", "test/hello"],
        &["--fault", "coin"],
        &["--fault", "coin", "--hits", "0"],
        &["--fault", "cion", "--hits", "0"],
    ] {
        let (status, _, message) = run(&[&["assert"], mode, &["damaged"]].concat());
        assert_eq!(status, Some(2), "{mode:?}: {message}");
    }
    let (status, _, message) = run(&["assert", "--fault", "manifest", "--hits", "2", "events.jsonl"]);
    assert_eq!(status, Some(1));
    assert!(message.starts_with("localregistry: the rule manifest did act once; it was expected to act 2 times\n"), "{message}");
    // The first manifest had wrong bytes: there was one pull.
    assert_eq!(run(&["assert", "--pulled", "test/hello", "--times", "1", "events.jsonl"]).0, Some(0));
    fs::write(copy.path().join("cut"), &fs::read_to_string(copy.path().join("events.jsonl")).unwrap()[..2000]).unwrap();
    let (status, _, message) = run(&["assert", "--fault", "coin", "--hits", "0", "cut"]);
    assert_eq!(status, Some(2), "{message}");
    let (status, _, message) = run(&["faults", "replay", "cut"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("the log cut does not show all hits: "), "{message}");
}

#[test]
fn log_of_hits_before_and_after_a_rule_came_again_has_no_plan() {
    let site = Site::start(&[]);
    site.file("base.json", &json!({"rules": [rule("base", "base", 503)]}));
    for _ in 0..2 {
        site.faults(&["add", "base.json"]);
        assert_eq!(site.status("/v2/"), 503);
        site.faults(&["remove", "base"]);
    }
    let folder = site.serving.end();
    let output =
        testing::program(PROGRAM).current_dir(folder.path()).args(["faults", "replay", "events.jsonl"]).output().unwrap();
    let expected = "localregistry: no plan has exactly the hits in events.jsonl: the rule base acted before and after it was added again, \
                    or its counts were reset, so a number means two of its matches\n";
    assert_eq!((output.status.code(), text(&output.stdout), text(&output.stderr)), (Some(1), String::new(), expected.to_owned()));
}

#[test]
fn clients_that_leave_or_say_nothing_change_nothing() {
    let site = Site::start(&[]);
    site.file("one.json", &json!({"rules": [rule("base", "base", 503)]}));
    let connect = || UnixStream::connect(site.serving.folder.path().join("control")).unwrap();
    // A client that is killed in the middle of a command, of which it has sent the first part.
    let mut part = connect();
    part.write_all(b"{\"verb\":\"ADD\",\"more\":true,\"rules\":[{\"id\":\"left\",\"do\":{\"status\":500}}]}\n").unwrap();
    drop(part);
    let silent: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    site.faults(&["replace", "one.json"]);
    assert_eq!(site.ids(), ["base"]);
    drop(silent);
    // More ids than a line has room for.
    let ids: Vec<String> = (0..8000).map(|number| format!("rule-{number}")).collect();
    let rules: Vec<Value> = ids.iter().map(|id| json!({"id": id, "match": {"repository": id}, "do": {"status": 500}})).collect();
    site.file("many.json", &json!({ "rules": rules }));
    site.faults(&["add", "many.json"]);
    let all: Vec<&str> = ["remove"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    assert_eq!(site.faults(&all)["rules"].as_array().unwrap().len(), 8000);
    assert_eq!((site.ids(), site.status("/v2/")), (vec!["base".to_owned()], 503));
}

#[test]
fn socket_of_a_process_that_was_killed_is_replaced_and_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens once it is dropped, and the name stays.
    drop(UnixListener::bind(folder.path().join("control")).unwrap());
    let site = Site::start_in(folder, &[]);
    assert_eq!(site.ids(), [""; 0]);
    let second = ["serve", site._layout.path().to_str().unwrap(), "--listen", "127.0.0.1:0", "--tls", "off", "--control"];
    for taken in ["control", "file"] {
        fs::write(site.serving.folder.path().join("file"), "mine").unwrap();
        let output = site.program(&[&second[..], &[taken]].concat());
        assert_eq!(output.status.code(), Some(1), "{taken}");
        assert!(text(&output.stderr).contains("File exists"), "{taken}: {}", text(&output.stderr));
    }
    assert_eq!(fs::read(site.serving.folder.path().join("file")).unwrap(), b"mine");
    assert_eq!(site.ids(), [""; 0]);
}
