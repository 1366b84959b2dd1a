use http::{Method, Version};

use super::*;
use crate::proto::FaultMatch;
use crate::registry::api::route::Endpoint;

fn rule(id: impl ToString, conditions: FaultMatch) -> FaultRule {
    let action = crate::proto::FaultAction { status: 503, ..Default::default() };
    FaultRule { id: id.to_string(), r#match: Some(conditions), r#do: Some(action), ..Default::default() }
}

fn plan(rules: Vec<FaultRule>) -> Result<Plan, PlanError> {
    Plan::check(FaultPlan { rules, ..Default::default() })
}

fn facts<'a>(repository: &'a str, peer: &str, user_agent: &'a str) -> Facts<'a> {
    Facts {
        endpoint: Endpoint::Blob,
        repository: Some(repository),
        tag: None,
        digest: Some(Digest::sha256_of(repository.as_bytes())),
        upstream: None,
        method: &Method::GET,
        peer: peer.parse().unwrap(),
        port: 5000,
        user: None,
        has_certificate: false,
        user_agent,
        has_range: false,
        first_byte: 0,
        version: Version::HTTP_11,
    }
}

fn repository(name: String) -> FaultMatch {
    FaultMatch { repository: name, ..Default::default() }
}

/// Counts a request as if every rule could act on it.
fn hit(plan: &Plan, facts: &Facts<'_>) -> Option<Hit> {
    plan.matching(facts).find_map(|rule| plan.count(rule))
}

#[test]
fn request_is_compared_with_few_of_ten_thousand_rules() {
    let conditions = |number: usize| match number % 4 {
        0 => repository(format!("test/{number}")),
        1 => FaultMatch { peer: format!("10.1.{}.{}", number / 250, number % 250), ..repository(format!("test/{number}")) },
        2 => FaultMatch { digest: Digest::sha256_of(&number.to_le_bytes()).to_string(), ..Default::default() },
        _ => FaultMatch { endpoint: "blob".into(), user: format!("user-{number}"), ..Default::default() },
    };
    let patterns = (0..100).map(|number| rule(format!("p{number}"), repository(format!("*/{number}"))));
    let rules: Vec<FaultRule> = patterns.chain((100..MAX_RULES).map(|number| rule(number, conditions(number)))).collect();
    let plan = plan(rules).unwrap();
    assert_eq!((plan.rules.len(), plan.masks.len()), (MAX_RULES, 5));
    let facts = facts("test/9996", "10.1.39.100", "");
    // The patterns, which nothing exact tells apart, and the only rule for this repository.
    assert_eq!(plan.candidates(&facts).len(), 101);
    let hit = hit(&plan, &facts).unwrap();
    assert_eq!((hit.rule.id(), hit.number), ("9996", 1));
}

#[test]
fn first_rule_that_is_due_acts_and_later_ones_do_not_count() {
    let mut one = rule("one", repository("test/*".into()));
    one.when = Some(crate::proto::FaultWhen { nth: vec![2], ..Default::default() });
    let plan = plan(vec![one, rule("two", repository("test/a".into())), rule("three", FaultMatch::default())]).unwrap();
    let hits: Vec<(String, u64)> = (0..3)
        .map(|_| hit(&plan, &facts("test/a", "::1", "")).unwrap())
        .map(|hit| (hit.rule.id().to_owned(), hit.number))
        .collect();
    assert_eq!(hits, [("two".into(), 1), ("one".into(), 2), ("two".into(), 2)]);
    assert_eq!(plan.rules[2].counts.matches(), 0);
}

#[test]
fn plan_is_bounded() {
    let alike = |count: usize| (0..count).map(|number| rule(number, repository(format!("*{number}")))).collect::<Vec<_>>();
    assert!(plan(alike(MAX_ALIKE)).is_ok());
    let error = plan(alike(MAX_ALIKE + 1)).unwrap_err();
    assert_eq!((error.index, error.error.field), (MAX_ALIKE, "match"));
    let many = (0..=MAX_RULES).map(|number| rule(number, repository(format!("test/{number}")))).collect();
    assert_eq!(plan(many).unwrap_err().to_string(), "rule 10000: id: a plan has at most 10000 rules");
    let large = FaultRule { about: "x".repeat(17 << 10), ..rule("large", FaultMatch::default()) };
    assert_eq!(plan(vec![large]).unwrap_err().to_string(), "rule large: id: the rule is longer than 16384 bytes as JSON");
    let rules =
        (0..400).map(|number| FaultRule { about: "x".repeat(15 << 10), ..rule(number, repository(format!("test/{number}"))) });
    assert!(plan(rules.collect()).unwrap_err().to_string().ends_with("a plan has at most 4194304 bytes as JSON"));
}
