//! Plans of faults of a virtual machine: in force from the first request, changed through the control port by the command and by the
//! library, and never by the network.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use localregistry::host::vm::accel::AccelChoice;
use localregistry::launch::{Appliance, FaultsError};
use localregistry::proto::FaultPlan;
use serde_json::{Value, json};
use testing::http;
use testing::pack::{Bench, text};
use testing::vm::{Containerd, succeed};
use testing::wait::until;

fn rule(id: &str, endpoint: &str, status: u16) -> Value {
    json!({"id": id, "match": {"endpoint": endpoint}, "do": {"status": status}})
}

#[test]
fn command_changes_the_plan_of_a_run() {
    let bench = Bench::default();
    bench.sample_disk();
    fs::create_dir(bench.path("runtime")).unwrap();
    let command = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        command.env("XDG_RUNTIME_DIR", bench.path("runtime")).stdin(Stdio::null());
        command
    };
    bench.file("first.json", json!({"rules": [rule("base", "base", 503)]}).to_string().as_bytes());
    bench.file("second.textproto", b"rules { id: 'tags' match { endpoint: 'tags' } do { status: 502 } }\n");
    bench.file("bad.json", json!({"rules": [rule("bad", "base", 1)]}).to_string().as_bytes());
    let refused = command(&["run", "disk.erofs", "--faults", "bad.json"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).starts_with("localregistry: bad.json:1:"), "{}", text(&refused.stderr));

    let options =
        "--accel tcg --timeout 600 --tls off --json --quiet --detach --name one --events events.jsonl --faults first.json";
    let ready = succeed(&mut command(&[&["run", "disk.erofs"], &options.split(' ').collect::<Vec<_>>()[..]].concat()));
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let address: SocketAddr = ready["address"].as_str().unwrap().parse().unwrap();
    let status = |path: &str| http::get(address, path).status;
    let socket = fs::metadata(bench.path("runtime/localregistry/one/control")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let tags = "/v2/test/hello/tags/list";
    // Nothing asks for tags before there is a rule for them: a replay would count that.
    assert_eq!((status("/v2/"), status("/v2/_catalog")), (503, 200));
    let faults = |arguments: &[&str]| succeed(&mut command(&[&["faults", "one"], arguments].concat()));
    assert_eq!(faults(&["add", "second.textproto"]), "1 rule added\n");
    assert_eq!((status("/v2/"), status(tags)), (503, 502));
    assert_eq!(faults(&["remove", "base"]), "1 rule removed\n");
    assert_eq!((status("/v2/"), status(tags)), (200, 502));
    let listed: Value = serde_json::from_str(&faults(&["--json", "list"])).unwrap();
    assert_eq!((&listed["rules"][0]["id"], &listed["rules"][0]["hits"]), (&"tags".into(), &2.into()));
    let unknown = command(&["faults", "one", "remove", "base"]).output().unwrap();
    assert_eq!(
        (unknown.status.code(), text(&unknown.stderr).as_str()),
        (Some(1), "localregistry: there is no rule \"base\"; there are tags\n")
    );
    // More than a line of the control port takes.
    let many: Vec<Value> = (0..2000)
        .map(|number| rule(&format!("r{number}"), "base", 500))
        .enumerate()
        .map(|(number, mut rule)| {
            rule["match"]["peer"] = format!("10.1.{}.{}", number / 250, number % 250 + 1).into();
            rule
        })
        .collect();
    bench.file("many.json", json!({ "rules": many }).to_string().as_bytes());
    assert_eq!(faults(&["replace", "many.json"]), "2000 rules added\n");
    let listed: Value = serde_json::from_str(&faults(&["--json", "list"])).unwrap();
    assert_eq!(listed["rules"].as_array().unwrap().len(), 2000);
    assert_eq!(status(tags), 200);
    assert_eq!(faults(&["clear"]), "2000 rules removed\n");

    // While containerd waits for the manifest, the layers go.
    let hold = json!({"id": "hold", "match": {"endpoint": "manifest", "userAgent": "containerd/*"}, "when": {"first": 1}, "do": {"delaySeconds": 10}});
    bench.file("hold.json", json!({"rules": [hold]}).to_string().as_bytes());
    bench.file("gone.json", json!({"rules": [rule("gone", "blob", 404)]}).to_string().as_bytes());
    assert_eq!(faults(&["add", "hold.json"]), "1 rule added\n");
    let containerd = Containerd::start();
    let image = format!("{address}/test/hello:latest");
    let pull = || containerd.ctr(&["content", "fetch", "--plain-http", &image]);
    let held = pull().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("containerd is held", || serde_json::from_str::<Value>(&faults(&["--json", "list"])).unwrap()["rules"][0]["hits"] == 1);
    assert_eq!(faults(&["add", "gone.json"]), "1 rule added\n");
    let failed = held.wait_with_output().unwrap();
    assert!(!failed.status.success() && text(&failed.stderr).contains("not found"), "{}", text(&failed.stderr));
    assert_eq!(faults(&["remove", "gone"]), "1 rule removed\n");
    succeed(&mut pull());

    succeed(&mut command(&["stop", "one"]));
    let assert = |arguments: &[&str]| command(&[&["assert"], arguments, &["events.jsonl"]].concat()).status().unwrap().code();
    assert_eq!(assert(&["--fault", "tags", "--hits", "2"]), Some(0));
    assert_eq!(assert(&["--fault", "base", "--hits", "2"]), Some(0));
    let replayed: Value = serde_json::from_str(&succeed(&mut command(&["faults", "replay", "events.jsonl"]))).unwrap();
    assert_eq!(replayed["rules"][0]["when"]["nth"], json!([1, 2]));
    let ids: Vec<_> = replayed["rules"].as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["base", "tags", "hold", "gone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn launcher_changes_the_plan_of_its_appliance() {
    let bench = Bench::default();
    bench.sample_disk();
    let plan = |rule: Value| serde_json::from_value::<FaultPlan>(json!({ "rules": [rule] })).unwrap();
    let builder = Appliance::builder(bench.path("disk.erofs")).accel(AccelChoice::Tcg).timeout(Duration::from_secs(600));
    let appliance = builder.plain_http().faults(&plan(rule("base", "base", 503))).boot().await.unwrap();
    let address: SocketAddr = appliance.address().parse().unwrap();
    let status =
        |path: &'static str| async move { tokio::task::spawn_blocking(move || http::get(address, path).status).await.unwrap() };
    let faults = appliance.faults();
    assert_eq!(status("/v2/").await, 503);
    let never = json!({"id": "never", "match": {"repository": "no/such"}, "do": {"status": 500}});
    let warnings = faults.add(plan(never)).await.unwrap();
    assert_eq!(warnings, ["rule never can never match: no disk has a repository of that name"]);
    faults.replace(plan(rule("catalog", "catalog", 500))).await.unwrap();
    assert_eq!((status("/v2/").await, status("/v2/_catalog").await), (200, 500));
    let listed = faults.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].hits), (1, 1));
    faults.reset().await.unwrap();
    assert_eq!(faults.list().await.unwrap()[0].hits, 0);
    let error = faults.add(plan(rule("catalog", "base", 500))).await.unwrap_err();
    assert!(
        matches!(&error, FaultsError::Refused(why) if why == "rule catalog: id: the plan has this id already; expected another one")
    );
    faults.remove(["catalog"]).await.unwrap();
    faults.clear().await.unwrap();
    assert_eq!(status("/v2/_catalog").await, 200);
    assert_eq!(appliance.shutdown().await.outcome.exit_status(), 0);
    assert!(matches!(faults.list().await, Err(FaultsError::NoReply(_))));
}
