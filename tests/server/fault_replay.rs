//! `faults replay`: for random plans, random requests and random changes of the plan in between, the plan of the log has the same hits for
//! the same requests, or none is written.

use std::fmt::Write as _;
use std::path::Path;

use localregistry::host::faults::replay::{ReplayError, plan};
use localregistry::proto::event::Event as Kind;
use localregistry::proto::fault_command::Verb;
use localregistry::proto::{Event, FaultCommand, FaultPlan, FaultRule};
use serde_json::{Value, json};
use testing::layout::Layout;
use testing::server::Server;

/// What a client or an operator does.
#[derive(Debug, Clone)]
enum Step {
    /// Method, path, and whether with a range.
    Request(&'static str, &'static str, bool),
    Change(Verb, Vec<Value>),
}

const PATHS: [&str; 5] =
    ["/v2/", "/v2/_catalog", "/v2/test/hello/tags/list", "/v2/test/hello/manifests/1", "/v2/test/none/tags/list"];

fn one<T: Clone>(random: &mut fastrand::Rng, list: &[T]) -> T {
    list[random.usize(..list.len())].clone()
}

fn rule(random: &mut fastrand::Rng, id: &str, first: Option<&str>) -> Value {
    let conditions = [
        json!({}),
        json!({"endpoint": "base"}),
        json!({"endpoint": "tags"}),
        json!({"endpoint": "manifest", "tag": "?"}),
        json!({"repository": "test/*"}),
        json!({"method": "GET"}),
        json!({"range": true}),
        json!({"peer": "10.0.0.0/8"}),
    ];
    let mut whens = vec![
        json!({}),
        json!({"first": 1 + random.u32(..3)}),
        json!({"nth": [1 + random.u32(..3), 5 + random.u32(..3)]}),
        json!({"every": 1 + random.u32(..3)}),
        json!({"after": random.u32(..4)}),
        json!({"probability": 0.4}),
    ];
    if let Some(first) = first {
        whens.push(json!({"afterRule": {"id": first, "seconds": 3600}}));
    }
    let actions = [
        json!({"status": 503}),
        json!({"warning": "w"}),
        json!({"corrupt": {"offset": 20}}),
        json!({"corrupt": {"offset": 100_000}}),
        json!({"ignoreRange": true}),
        json!({"shortBody": 3}),
    ];
    json!({"id": id, "match": one(random, &conditions), "when": one(random, &whens), "do": one(random, &actions)})
}

/// Serves the steps. Returns the rule that acted on each request, and the log.
fn serve(layout: &Path, seed: u32, steps: &[Step]) -> (Vec<String>, Vec<Event>) {
    let server = Server::start(layout);
    let (mut hits, mut log) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Change(verb, rules) => {
                let rules: Vec<FaultRule> = rules.iter().map(|rule| serde_json::from_value(rule.clone()).unwrap()).collect();
                let ids = rules.iter().map(|rule| rule.id.clone()).collect();
                let rules = if matches!(verb, Verb::Add | Verb::Replace) { rules } else { Vec::new() };
                let command = FaultCommand { verb: (*verb).into(), rules, ids, seed, ..FaultCommand::default() };
                assert_eq!(server.registry.receive_faults(command).unwrap().error, "");
            }
            Step::Request(method, path, has_range) => {
                let headers = if *has_range { vec![("range", "bytes=1-200")] } else { Vec::new() };
                testing::http::send(server.plain, method, path, &headers);
                loop {
                    let event = server.whole_event();
                    let request =
                        if let Some(Kind::Request(request)) = &event.event { Some(request.fault.clone()) } else { None };
                    log.push(event);
                    if let Some(fault) = request {
                        hits.push(fault);
                        break;
                    }
                }
            }
        }
    }
    (hits, log)
}

fn replay(folder: &Path, log: &[Event]) -> Result<FaultPlan, ReplayError> {
    let lines = log.iter().fold(String::new(), |mut lines, event| {
        writeln!(lines, "{}", serde_json::to_string(event).unwrap()).unwrap();
        lines
    });
    std::fs::write(folder.join("log"), lines).unwrap();
    plan(&folder.join("log"))
}

/// The steps of the replay: its plan, and the same requests.
fn again(plan: &FaultPlan, steps: &[Step]) -> Vec<Step> {
    let rules = plan.rules.iter().map(|rule| serde_json::to_value(rule).unwrap()).collect();
    let requests = steps.iter().filter(|step| matches!(step, Step::Request(..))).cloned();
    std::iter::once(Step::Change(Verb::Replace, rules)).chain(requests).collect()
}

#[test]
fn replayed_plan_has_the_hits_of_the_log_for_the_same_requests() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::default();
    layout.image("test/hello:1", b"hello");
    let layout = layout.write();
    let (mut same, mut refused) = (0, 0);
    for number in 0..150 {
        let mut random = fastrand::Rng::with_seed(number);
        let seed = random.u32(..);
        let ids = ["a", "b", "c"];
        let rules: Vec<Value> = ids.iter().map(|id| rule(&mut random, id, (*id != "a").then_some("a"))).collect();
        let mut present: Vec<Value> = rules[..1 + random.usize(..3)].to_vec();
        let mut steps = vec![Step::Change(Verb::Replace, present.clone())];
        // Every other plan stays the same.
        let changes = if number % 2 == 0 { 0 } else { 2 };
        for _ in 0..25 {
            let (method, has_range) = (one(&mut random, &["GET", "GET", "HEAD"]), random.u32(..3) == 0);
            steps.push(Step::Request(method, one(&mut random, &PATHS), has_range));
            if changes > 0 && random.u32(..8) == 0 {
                let is_free = |rule: &&Value| !present.iter().any(|one| one["id"] == rule["id"]);
                let absent: Vec<Value> =
                    rules.iter().filter(is_free).filter(|rule| rule["when"]["afterRule"].is_null()).cloned().collect();
                let is_followed = |rule: &Value| present.iter().any(|one| one["when"]["afterRule"]["id"] == rule["id"]);
                match random.u32(..3) {
                    0 if !absent.is_empty() => {
                        present.push(absent[0].clone());
                        steps.push(Step::Change(Verb::Add, vec![absent[0].clone()]));
                    }
                    1 if present.len() > 1 && !is_followed(&present[0]) => {
                        steps.push(Step::Change(Verb::Remove, vec![present.remove(0)]));
                    }
                    2 => steps.push(Step::Change(Verb::Reset, Vec::new())),
                    _ => {}
                }
            }
        }
        let (hits, log) = serve(layout, seed, &steps);
        match replay(folder.path(), &log) {
            Ok(plan) => {
                let (found, _) = serve(layout, plan.seed, &again(&plan, &steps));
                assert_eq!(found, hits, "case {number}: {steps:?}\n{plan:?}");
                same += 1;
            }
            Err(ReplayError::Impossible { problem, .. }) => {
                assert!(changes > 0, "case {number}: {problem}");
                refused += 1;
            }
            Err(error) => panic!("case {number}: {error}"),
        }
    }
    assert!(same >= 90 && refused >= 10, "{same} {refused}");
}

#[test]
fn rules_with_many_hits_have_a_plan_if_one_can_have_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = Layout::default();
    layout.image("test/hello:1", b"hello");
    let layout = layout.write();
    let base = |when: Value| json!({"id": "r", "match": {"endpoint": "base"}, "when": when, "do": {"status": 503}});
    // Numbers of a log with so many requests: those of real hits, continued.
    let many = |when: Value, numbers: &dyn Fn(u32) -> bool| {
        let request = Step::Request("GET", "/v2/", false);
        let steps = [Step::Change(Verb::Replace, vec![base(when)]), request.clone(), request.clone(), request.clone(), request];
        let (_, mut log) = serve(layout, 7, &steps);
        let fault = log.iter().find(|event| matches!(event.event, Some(Kind::Fault(_)))).unwrap().clone();
        for number in (1..20_000).filter(|number| numbers(*number)) {
            let mut next = fault.clone();
            let Some(Kind::Fault(fault)) = &mut next.event else { panic!() };
            fault.r#match = number;
            log.push(next);
        }
        replay(folder.path(), &log).map(|plan| serde_json::to_value(plan.rules[0].when.clone().unwrap()).unwrap())
    };
    assert_eq!(many(json!({}), &|_| true).unwrap(), json!({"first": 19_999}));
    assert_eq!(many(json!({"every": 2}), &|number| number % 2 == 0).unwrap(), json!({"every": 2}));
    assert_eq!(many(json!({"after": 3}), &|number| number > 3).unwrap(), json!({"after": 3}));
    let refused = many(json!({"every": 2}), &|number| number % 4 == 0 || number == 2).unwrap_err().to_string();
    assert!(refused.ends_with("the rule r acted 5000 times, and a rule has no room for so many numbers"), "{refused}");
}
