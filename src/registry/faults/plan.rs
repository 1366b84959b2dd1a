//! The rules in force, found by the exact values in their conditions.
//!
//! Rules are in buckets by these values (`Key`). A request looks into one bucket for each set of conditions that rules have, of which there
//! are at most 64, and only compares the rules in these. They differ in patterns, prefixes and the like alone, and a bucket has at most
//! [`MAX_ALIKE`].

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use super::action::Action;
use super::matcher::{Facts, Key};
use super::rule::{self, Rule, RuleError};
use crate::oci::Digest;
use crate::proto::fault_action::Connection;
use crate::proto::{Fault, FaultPlan, FaultRule};

/// Most rules of a plan.
pub const MAX_RULES: usize = 10_000;
/// Most bytes of a plan, as JSON.
pub const MAX_BYTES: usize = 4 << 20;
/// Most rules with the same exact conditions.
pub const MAX_ALIKE: usize = 256;

/// Why a plan is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {}: {error}", self.rule())]
pub struct PlanError {
    /// Position of the rule, from 0.
    pub index: usize,
    /// Its id, which may be empty.
    pub id: String,
    /// What is wrong.
    pub error: RuleError,
}

impl PlanError {
    fn rule(&self) -> String {
        if self.error.field == "id" && !rule::is_id(&self.id) { format!("number {}", self.index + 1) } else { self.id.clone() }
    }
}

/// A rule that acts on a request.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub rule: Arc<Rule>,
    /// Which of the requests that matched the rule.
    pub number: u64,
    /// The change of the plan since which the rule counts.
    pub since: u32,
    /// What is done: the rule's action without the parts that change nothing.
    pub action: Action,
}

impl Hit {
    /// The event of the hit, without its request.
    pub fn event(&self) -> Fault {
        let (rule, number) = (self.rule.id().to_owned(), u32::try_from(self.number).unwrap_or(u32::MAX));
        Fault { rule, r#match: number, action: self.action.summary(), since: self.since, ..Fault::default() }
    }
}

/// Rules and their index. It never changes: another one replaces it.
#[derive(Debug, Default)]
pub struct Plan {
    pub(super) rules: Vec<Arc<Rule>>,
    pub(super) seed: u32,
    hasher: RandomState,
    /// The sets of exact conditions that rules have.
    masks: Vec<u8>,
    buckets: HashMap<u64, Vec<u32>>,
    /// The rules for connections.
    connections: Vec<u32>,
    by_id: HashMap<String, usize>,
}

impl Plan {
    /// Checks a plan that no registry has yet, so without the images that it names.
    ///
    /// # Errors
    /// Fails with the first rule that is invalid.
    pub fn check(plan: FaultPlan) -> Result<Self, PlanError> {
        Self::new(Vec::new(), plan.rules, plan.seed, |_| None)
    }

    /// A plan of the rules `before`, followed by `rules`. `largest_layer` is the digest of an image's largest layer.
    pub(super) fn new(
        before: Vec<Arc<Rule>>,
        rules: Vec<FaultRule>,
        seed: u32,
        largest_layer: impl Fn(&str) -> Option<Digest>,
    ) -> Result<Self, PlanError> {
        let mut plan = Self { rules: before, seed, ..Self::default() };
        let start = plan.rules.len();
        for (index, message) in rules.into_iter().enumerate() {
            let id = message.id.clone();
            let image = message.r#match.as_ref().map(|conditions| conditions.largest_layer_of.as_str()).unwrap_or_default();
            let digest = if image.is_empty() { None } else { largest_layer(image) };
            let rule = Rule::new(message, digest).map_err(|error| PlanError { index, id, error })?;
            plan.rules.push(Arc::new(rule));
        }
        plan.index(start)?;
        Ok(plan)
    }

    /// The same plan of other rules.
    pub(super) fn with_rules(&self, rules: Vec<Arc<Rule>>) -> Result<Self, PlanError> {
        let mut plan = Self { rules, seed: self.seed, ..Self::default() };
        plan.index(0)?;
        Ok(plan)
    }

    /// Fills the index. Errors count the rules from `start`.
    fn index(&mut self, start: usize) -> Result<(), PlanError> {
        let bad = |rule: &Rule, at: usize, field, problem: String| PlanError {
            index: at.saturating_sub(start),
            id: rule.id().to_owned(),
            error: RuleError::new(field, problem),
        };
        let (mut masks, mut bytes) = (BTreeSet::new(), 0);
        for (at, rule) in self.rules.iter().enumerate() {
            if at >= MAX_RULES {
                return Err(bad(rule, at, "id", format!("a plan has at most {MAX_RULES} rules")));
            }
            bytes += rule.len;
            if bytes > MAX_BYTES {
                return Err(bad(rule, at, "id", format!("a plan has at most {MAX_BYTES} bytes as JSON")));
            }
            if self.by_id.insert(rule.id().to_owned(), at).is_some() {
                return Err(bad(rule, at, "id", "the plan has this id already; expected another one".to_owned()));
            }
            let number = u32::try_from(at).unwrap_or(u32::MAX);
            if rule.is_for_connections() {
                if self.connections.len() >= MAX_ALIKE {
                    return Err(bad(rule, at, "do.connection", format!("a plan has at most {MAX_ALIKE} rules for connections")));
                }
                self.connections.push(number);
                continue;
            }
            let key = rule.matcher.key();
            masks.insert(key.mask());
            let bucket = self.buckets.entry(hash(&self.hasher, &key)).or_default();
            if bucket.len() >= MAX_ALIKE {
                let problem = format!(
                    "more than {MAX_ALIKE} rules have the same endpoint, repository, tag, digest, peer and user; patterns and prefixes \
                     do not tell them apart"
                );
                return Err(bad(rule, at, "match", problem));
            }
            bucket.push(number);
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if let Some(other) = rule.follows().filter(|other| *other == rule.id() || !self.by_id.contains_key(*other)) {
                return Err(bad(rule, at, "when.after_rule.id", format!("the plan has no other rule {other:?}")));
            }
        }
        self.masks = masks.into_iter().collect();
        Ok(())
    }

    /// Whether there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// The rules that may match the request, in order.
    fn candidates(&self, facts: &Facts<'_>) -> Vec<u32> {
        let key = facts.key();
        let keys = self.masks.iter().map(|mask| (*mask, key.masked(*mask))).filter(|(mask, key)| key.mask() == *mask);
        let mut found: Vec<u32> =
            keys.filter_map(|(_, key)| self.buckets.get(&hash(&self.hasher, &key))).flatten().copied().collect();
        found.sort_unstable();
        found
    }

    /// The rules whose conditions hold, in order.
    pub(crate) fn matching(&self, facts: &Facts<'_>) -> impl Iterator<Item = &Arc<Rule>> {
        let rules = self.candidates(facts).into_iter().filter_map(|number| self.rules.get(number as usize));
        rules.filter(|rule| rule.matcher.matches(facts))
    }

    /// Counts the connection, and returns the rule that does one of these `things` to it.
    pub(crate) fn hit_connection(&self, peer: IpAddr, port: u16, things: &[Connection]) -> Option<Hit> {
        let mut rules = self.connections.iter().filter_map(|number| self.rules.get(*number as usize));
        let is_meant = |rule: &Rule| things.contains(&rule.action.message.connection());
        rules.find_map(|rule| {
            let matches = is_meant(rule) && rule.matcher.matches_connection(peer, port);
            if matches { self.count(rule) } else { None }
        })
    }

    /// The rule with this id.
    pub(super) fn rule(&self, id: &str) -> Option<&Rule> {
        self.rules.get(*self.by_id.get(id)?).map(AsRef::as_ref)
    }

    /// Counts a request that the rule can act on. Returns the hit if the rule is due.
    pub(crate) fn count(&self, rule: &Arc<Rule>) -> Option<Hit> {
        let followed = rule.follows().and_then(|id| self.rule(id));
        let number = rule.count_match(self.seed, followed)?;
        Some(Hit { rule: Arc::clone(rule), number, since: rule.counts.since(), action: rule.action.clone() })
    }
}

/// Rules whose keys have the same hash share a bucket: the rule itself compares the values.
fn hash(hasher: &RandomState, key: &Key<'_>) -> u64 {
    hasher.hash_one(key)
}

#[cfg(test)]
mod tests;
