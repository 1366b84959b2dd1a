//! Compares the `--json` output of every command with `localregistry schema`: no undocumented field, no required field missing, and
//! every documented field seen at least once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use localregistry::oci::media_type;
use serde_json::{Value, json};
use testing::child::KilledOnDrop;
use testing::elf::elf;
use testing::layout::{Layout, Stored};
use testing::pack::{Bench, blob, text};
use testing::serve::Serving;
use testing::upstream::{Answer, ReceivedRequest, registry};
use testing::vm::succeed;

/// The output of `localregistry schema --json`, and the fields seen so far.
struct Schema {
    schema: Value,
    seen: RefCell<BTreeSet<String>>,
}

impl Schema {
    fn named<'a>(&self, list: &'a Value, key: &str, name: &str) -> &'a Value {
        list.as_array().unwrap().iter().find(|one| one[key] == name).unwrap_or_else(|| panic!("no {name} in the schema"))
    }

    /// Checks the result of a command.
    fn holds(&self, command: &str, result: &Value) {
        let kind = &self.named(&self.schema["commands"], "command", command)["type"];
        self.check(kind.as_str().unwrap(), result, command);
    }

    fn check(&self, kind: &str, value: &Value, place: &str) {
        let fits = match kind {
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "decimal string" => value.as_str().is_some_and(|text| text.parse::<u64>().is_ok()),
            _ => return self.check_type(self.named(&self.schema["types"], "name", kind), value, place),
        };
        assert!(fits, "{place} is {value}, not a {kind}");
    }

    fn check_type(&self, kind: &Value, value: &Value, place: &str) {
        if let Some(words) = kind["values"].as_array() {
            assert!(words.iter().any(|word| word["name"] == *value), "{place} is {value}, which is not in {kind}");
            return;
        }
        let object = value.as_object().unwrap_or_else(|| panic!("{place} is {value}, and no object"));
        let fields = kind["fields"].as_array().unwrap();
        for name in object.keys() {
            assert!(fields.iter().any(|field| field["name"] == **name), "{place}.{name} is not in the schema");
        }
        for field in fields {
            let name = field["name"].as_str().unwrap();
            let place = format!("{place}.{name}");
            let Some(value) = object.get(name) else {
                assert_eq!(field["optional"], true, "{place} is missing");
                continue;
            };
            self.seen.borrow_mut().insert(format!("{}.{name}", kind["name"].as_str().unwrap()));
            let kind = field["type"].as_str().unwrap();
            match (value, field["list"].as_bool().unwrap()) {
                (Value::Null, _) => assert_eq!(field["nullable"], true, "{place} is null"),
                (Value::Array(values), true) => values.iter().for_each(|value| self.check(kind, value, &place)),
                (value, list) => {
                    assert!(!list, "{place} is {value}, not a list");
                    self.check(kind, value, &place);
                }
            }
        }
    }

    /// The documented fields that no result had.
    fn unseen(&self) -> Vec<String> {
        let results = self.schema["types"].as_array().unwrap().iter().filter(|one| one["proto"] == false);
        let fields = results.flat_map(|one| {
            let fields = one["fields"].as_array().into_iter().flatten();
            fields.map(|field| format!("{}.{}", one["name"].as_str().unwrap(), field["name"].as_str().unwrap()))
        });
        fields.filter(|field| !self.seen.borrow().contains(field)).collect()
    }
}

/// A folder with layouts, disks and programs, and the schema.
struct Fixture {
    bench: Bench,
    schema: Schema,
}

impl Fixture {
    /// Runs `localregistry COMMAND ARGUMENTS --json`, which must exit with `status`, and checks its output.
    fn run(&self, command: &str, arguments: &[&str], status: i32) -> Value {
        let words: Vec<&str> = command.split(' ').collect();
        let output = self.command(&[&words[..], &["--json", "--quiet"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{command}: {}", text(&output.stderr));
        let line = text(&output.stdout);
        assert_eq!(line.lines().count(), 1, "{command}: {line}");
        let result = serde_json::from_str(&line).unwrap();
        self.schema.holds(command, &result);
        result
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.command(arguments);
        command.env("XDG_RUNTIME_DIR", self.bench.path("runtime")).stdin(Stdio::null());
        command
    }
}

/// An index of two platforms.
fn multi(layout: &mut Layout) {
    let platform = |stored: Stored, architecture: &str| {
        let mut descriptor = stored.descriptor(media_type::OCI_MANIFEST);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let (amd64, arm64) = (layout.manifest(&[b"amd64"]), layout.manifest(&[b"arm64"]));
    let manifests = [platform(amd64, "amd64"), platform(arm64, "arm64")];
    let index = layout.json(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests}));
    layout.name(index, media_type::OCI_INDEX, "test/multi:1");
}

/// Lists a manifest without a name, as writers leave it of an image whose name they wrote again.
fn list_old(layout: &mut Layout) {
    let old = layout.manifest(&[b"old"]);
    layout.list(old.descriptor(media_type::OCI_MANIFEST));
}

/// Pulls from a registry that forbids to look up referrers.
fn pull(fixture: &Fixture) {
    let forbidden = |request: &ReceivedRequest| request.target.contains("/referrers/").then(|| Answer::new(403, &[], b""));
    let (_layout, _, upstream) = registry(forbidden);
    fixture.run("pack", &["--pull", &format!("{}/a/b:1", upstream.address), "-o", "pulled.erofs"], 0);
}

/// Packs `one.erofs` and `other.erofs`, which differ in every respect, a disk that lacks a layer, and a damaged one.
fn disks(fixture: &Fixture) {
    let Fixture { bench, .. } = fixture;
    let mut one = Layout::default();
    multi(&mut one);
    one.image("test/changed:1", b"before");
    one.image("test/removed:1", b"removed");
    list_old(&mut one);
    bench.layout("one", &one);
    let mut other = Layout::default();
    other.image("test/changed:1", b"after");
    let subject = other.image("docker.io/library/added:1", b"added");
    let signature = other.artifact("application/vnd.test.signature", subject, b"signed");
    other.name(signature, media_type::OCI_MANIFEST, "docker.io/library/added:signature");
    bench.layout("other", &other);
    let mut lacking = Layout::default();
    lacking.image("test/lacking:1", b"a layer that is gone");
    fs::remove_file(lacking.path().join(blob(b"a layer that is gone"))).unwrap();
    list_old(&mut lacking);
    bench.layout("lacking", &lacking);
    fixture.run("pack", &["one", "--platform", "linux/amd64", "-o", "one.erofs"], 0);
    fixture.run("pack", &["other", "-o", "other.erofs"], 0);
    fixture.run("pack", &["lacking", "--allow-missing", "-o", "lacking.erofs"], 0);
    let mut damaged = fs::read(bench.path("other.erofs")).unwrap();
    let layer = damaged.windows(5).position(|window| window == b"after").unwrap();
    damaged[layer] ^= 1;
    fs::write(bench.path("damaged.erofs"), damaged).unwrap();
}

/// Boots a machine, and checks the output of `run`, `ps` and `stop`.
fn machine(fixture: &Fixture) {
    let listeners = r#"listeners=[{"port":8080,"transport":"PLAIN"}]"#;
    let machine =
        ["sample.erofs", "other.erofs", "--san", "registry.test", "--metrics", "0", "--set", listeners, "--accel", "tcg"];
    fixture.run("run --print-command", &machine, 0);
    let flags = [
        "run",
        "--json",
        "--cold",
        "--follow",
        "--keep",
        "--name",
        "one",
        "--events",
        "events",
        "--trust",
        "nodes",
        "--timeout",
        "600",
    ];
    let mut command = fixture.command(&[&flags[..], &machine].concat());
    let mut run = KilledOnDrop(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let ready: Value = serde_json::from_str(&lines.next().expect("the run has ended before it was ready")).unwrap();
    fixture.schema.holds("run", &ready);
    let listed = &fixture.run("ps", &[], 0)["runs"][0];
    for key in ["endpoint", "address", "ca", "qemu_pid", "pid", "name", "run_dir"] {
        assert_eq!(listed[key], ready[key], "{key}");
    }
    let url = format!("{}/v2/test/hello/manifests/latest", ready["endpoint"].as_str().unwrap());
    succeed(testing::program("curl").args(["--silent", "--fail", "--cacert", ready["ca"].as_str().unwrap(), &url]));
    fixture.run("stop", &["one"], 0);
    let events: Vec<Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    assert!(events.len() >= 4, "booting, ready, request and done are among {events:?}");
    events.iter().for_each(|event| fixture.schema.holds("run --follow", event));
    assert_eq!(run.0.wait().unwrap().code(), Some(0));
    // The run's folder is kept, so `ps` lists it.
    assert_eq!(fixture.run("ps", &[], 0)["runs"][0]["status"], 0);
}

#[test]
fn json_output_of_every_command_matches_the_schema() {
    let bench = Bench::default();
    let schema = serde_json::from_str(&succeed(&mut bench.command(&["schema", "--json"]))).unwrap();
    let fixture = Fixture { bench, schema: Schema { schema, seen: RefCell::default() } };
    let Fixture { bench, schema } = &fixture;
    fs::create_dir(bench.path("runtime")).unwrap();

    fixture.run("schema", &[], 0);
    fixture.run("sample", &["-o", "sample"], 0);
    fixture.run("pack", &["sample", "-o", "sample.erofs"], 0);
    disks(&fixture);
    pull(&fixture);
    fixture.run("inspect", &["other.erofs", "--verify", "--export", "exported"], 0);
    fixture.run("inspect", &["lacking.erofs", "--verify"], 0);
    fixture.run("inspect", &["damaged.erofs", "--verify"], 1);
    fixture.run("inspect", &["one"], 0);
    fixture.run("diff", &["one.erofs", "other.erofs"], 1);
    fixture.run("kernel", &["-o", "vmlinux"], 0);
    fixture.run("initramfs", &["-o", "initramfs"], 0);
    let checked = fixture.command(&["doctor", "--json"]).output().unwrap();
    schema.holds("doctor", &serde_json::from_slice(&checked.stdout).unwrap());
    fixture.run("manual", &["-o", "manual"], 0);
    bench.file("server", &elf(&[(1, b"code")]));
    let programs = ["--server", "server", "--kernel", "vmlinux", "--initramfs", "initramfs"];
    let place = ["sample.erofs", "--registry", "registry.example/e2e", "--host", "registry.test", "-o", "cluster"];
    fixture.run("deploy", &[&place[..], &programs].concat(), 0);

    let frozen = fixture.run("freeze", &["--accel", "tcg", "--memory", "216"], 0);
    fs::remove_dir_all(frozen["frozen"].as_str().unwrap()).unwrap();
    machine(&fixture);
    fixture.run("assert", &["--pulled", "test/hello", "events"], 0);
    fixture.run("assert", &["--pulled", "test/hello", "--times", "5", "--by", "10.0.2.2", "events"], 1);
    let changed =
        json!({"time": 1.0, "faultsChanged": {"verb": "ADD", "change": 1, "rules": [{"id": "slow", "do": {"close": true}}]}});
    bench.file("faulty", format!("{changed}\n").as_bytes());
    let acted = succeed(&mut fixture.command(&["assert", "--json", "--quiet", "--fault", "slow", "--hits", "0", "faulty"]));
    schema.holds("assert --fault", &serde_json::from_str(&acted).unwrap());
    let shown = succeed(&mut fixture.command(&["events", "--json", "--all", "events"]));
    assert!(!shown.is_empty());
    shown.lines().for_each(|line| schema.holds("events", &serde_json::from_str(line).unwrap()));
    fixture.run("trust", &["--endpoint", "http://10.1.0.82:5000", "--disk", "other", "-o", "trust"], 0);

    let folder = tempfile::tempdir().unwrap();
    let control = bench.path("control").display().to_string();
    let flags = ["--metrics", "127.0.0.1:0", "--san", "registry.test", "--allow-missing", "--control", &control];
    let serving = Serving::start(&bench.path("lacking"), folder, &flags);
    schema.holds("serve", &serving.ready);
    let plan = json!({"rules": [{"id": "never", "about": "nothing", "match": {"repository": "no/such"}, "do": {"status": 500}}]});
    bench.file("faults.json", plan.to_string().as_bytes());
    let added = fixture.run("faults", &[&control, "add", "faults.json"], 0);
    assert_eq!(added["warnings"].as_array().unwrap().len(), 1);
    fixture.run("faults", &[&control, "list"], 0);
    assert_eq!(schema.unseen(), Vec::<String>::new());
}
