//! The plan of faults: how this registry misbehaves on purpose, for tests of clients.
//!
//! ```text
//! FaultPlan ─▶ plan (rules, index) ─▶ Faults ─┬─ acceptor: connections
//!                                             └─ api::faults: requests ─▶ body
//! ```
//!
//! A registry without a plan looks at one flag for each connection and request, and at nothing else.

pub(crate) mod action;
pub(crate) mod body;
mod glob;
pub(crate) mod matcher;
pub mod plan;
mod reach;
mod rule;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use self::plan::{Plan, PlanError};
use crate::oci::{Digest, MAX_MANIFEST_SIZE, Manifest};
use crate::proto::fault_command::Verb;
use crate::proto::{FaultCommand, FaultPlan, FaultReply, FaultRule, FaultStatus, FaultsChanged, event};
use crate::registry::content::store::Store;
use crate::registry::telemetry::events::Events;

pub use reach::{Port, Surroundings};
pub use rule::{MAX_RULE, Rule, RuleError};

/// JSON of the rules in one message, in bytes.
const MESSAGE: usize = 32 << 10;
/// Most rules that are staged, so that a command without an end does not fill the memory.
const STAGED: usize = plan::MAX_RULES;

/// Most rules with a metric of their own.
const SERIES: usize = 100;
/// Most rules that a message names.
const NAMED: usize = 20;

/// The plan in force.
#[derive(Debug, Default)]
pub struct Faults {
    /// Whether the plan has rules.
    is_armed: AtomicBool,
    plan: RwLock<Arc<Plan>>,
    /// The command that more messages will complete. Also held while the plan changes.
    staged: Mutex<Option<FaultCommand>>,
    /// How often the plan has changed.
    changes: AtomicU32,
    totals: Mutex<Totals>,
}

/// Hits since the start, which no change of the plan takes away: counters of metrics never go down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// Of the first rules that were hit.
    pub by_rule: BTreeMap<String, u64>,
    /// Of all others.
    pub others: u64,
}

impl Faults {
    /// The plan, if it has rules.
    pub(crate) fn plan(&self) -> Option<Arc<Plan>> {
        if self.is_armed.load(Ordering::Acquire) { Some(self.current()) } else { None }
    }

    pub(crate) fn current(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a hit for the metrics.
    pub(crate) fn record(&self, id: &str) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let Totals { by_rule, others } = &mut *totals;
        if by_rule.len() < SERIES || by_rule.contains_key(id) {
            *by_rule.entry(id.to_owned()).or_default() += 1;
        } else {
            *others += 1;
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, plan: Plan) {
        let is_armed = !plan.is_empty();
        let mut current = self.plan.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(plan);
        self.is_armed.store(is_armed, Ordering::Release);
    }

    /// Looks up the largest layers again, after the disks have changed.
    pub(crate) fn disks_changed(&self, store: &Store) {
        let _staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let names_image = |rule: &Arc<Rule>| rule.message.r#match.as_ref().is_some_and(|one| !one.largest_layer_of.is_empty());
        if !current.rules.iter().any(names_image) {
            return;
        }
        let again = |rule: &Arc<Rule>| {
            let digest = rule.message.r#match.as_ref().and_then(|one| largest_layer(store, &one.largest_layer_of));
            let found = Rule::new(rule.message.clone(), digest).ok().filter(|_| names_image(rule));
            found.map_or_else(|| Arc::clone(rule), |found| Arc::new(found.counting_as(rule)))
        };
        if let Ok(plan) = current.with_rules(current.rules.iter().map(again).collect()) {
            self.set(plan);
        }
    }

    /// Takes one message of a command. Returns the reply after the last one.
    pub fn receive(&self, message: FaultCommand, around: &Surroundings<'_>, events: &Events) -> Option<FaultReply> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = match staged.take() {
            Some(before) if before.id == message.id && before.rules.len() < STAGED + 1 => join_command(before, message),
            _ => message,
        };
        if command.more {
            *staged = Some(command);
            return None;
        }
        let id = command.id;
        let done = self.execute(&mut command, around, events);
        Some(match done {
            Ok(reply) => FaultReply { id, ..reply },
            Err(error) => FaultReply { id, error, ..FaultReply::default() },
        })
    }

    fn execute(&self, command: &mut FaultCommand, around: &Surroundings<'_>, events: &Events) -> Result<FaultReply, String> {
        let current = self.current();
        let rules = std::mem::take(&mut command.rules);
        let largest = |image: &str| largest_layer(around.store, image);
        let rejected = |error: PlanError| error.to_string();
        let verb = command.verb();
        let (plan, changed, warnings) = match verb {
            Verb::Unspecified => return Err("the command has no verb".to_owned()),
            Verb::List => return Ok(FaultReply { rules: current.rules.iter().map(status).collect(), ..FaultReply::default() }),
            Verb::Add => {
                let seed = if current.is_empty() { command.seed } else { current.seed };
                let plan = Plan::new(current.rules.clone(), rules.clone(), seed, largest).map_err(rejected)?;
                let warnings = reach::warnings(&plan, current.rules.len(), around);
                (plan, rules, warnings)
            }
            Verb::Replace => {
                let plan = Plan::new(Vec::new(), rules.clone(), command.seed, largest).map_err(rejected)?;
                let warnings = reach::warnings(&plan, 0, around);
                (plan, rules, warnings)
            }
            Verb::Remove => {
                if let Some(unknown) = command.ids.iter().find(|id| !current.rules.iter().any(|rule| rule.id() == *id)) {
                    return Err(unknown_rule(unknown, &current));
                }
                let (gone, left): (Vec<_>, Vec<_>) =
                    current.rules.iter().cloned().partition(|rule| command.ids.iter().any(|id| id == rule.id()));
                (current.with_rules(left).map_err(rejected)?, messages(&gone), Vec::new())
            }
            Verb::Clear => (Plan::default(), messages(&current.rules), Vec::new()),
            Verb::Reset => {
                let plan = current.with_rules(current.rules.clone()).map_err(rejected)?;
                (plan, Vec::new(), Vec::new())
            }
        };
        let (seed, change) = (plan.seed, self.changes.fetch_add(1, Ordering::Relaxed) + 1);
        let old = if verb == Verb::Add { current.rules.len() } else { 0 };
        if matches!(verb, Verb::Add | Verb::Replace | Verb::Reset) {
            plan.rules.iter().skip(old).for_each(|rule| rule.counts.begin(change));
        }
        let removed = if matches!(verb, Verb::Remove | Verb::Clear) { changed.clone() } else { Vec::new() };
        // Before the plan is in force: the log has each rule before its first hit.
        for rules in parts(changed, json_len) {
            events.emit(event::Event::FaultsChanged(FaultsChanged { verb: verb.into(), rules, seed, change }));
        }
        self.set(plan);
        let removed = removed.into_iter().map(|rule| FaultStatus { rule: Some(rule), ..FaultStatus::default() });
        Ok(FaultReply { rules: removed.collect(), warnings, ..FaultReply::default() })
    }

    /// Puts the plan of a config or a file in force. Returns the warnings.
    ///
    /// # Errors
    /// Fails if a rule is invalid.
    pub fn start(&self, plan: FaultPlan, around: &Surroundings<'_>, events: &Events) -> Result<Vec<String>, String> {
        if plan.rules.is_empty() {
            return Ok(Vec::new());
        }
        let mut command =
            FaultCommand { verb: Verb::Replace.into(), rules: plan.rules, seed: plan.seed, ..FaultCommand::default() };
        let staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.execute(&mut command, around, events).map(|reply| reply.warnings);
        drop(staged);
        done
    }
}

fn messages(rules: &[Arc<Rule>]) -> Vec<FaultRule> {
    rules.iter().map(|rule| rule.message.clone()).collect()
}

fn status(rule: &Arc<Rule>) -> FaultStatus {
    FaultStatus { rule: Some(rule.message.clone()), matches: rule.counts.matches(), hits: rule.counts.hits() }
}

fn unknown_rule(id: &str, plan: &Plan) -> String {
    let names: Vec<&str> = plan.rules.iter().map(|rule| rule.id()).take(NAMED).collect();
    match plan.rules.len() {
        0 => format!("there is no rule {id:?}: the plan has no rules"),
        count if count > NAMED => format!("there is no rule {id:?}; there are {}, and {} more", names.join(", "), count - NAMED),
        _ => format!("there is no rule {id:?}; there are {}", names.join(", ")),
    }
}

fn json_len(message: &impl serde::Serialize) -> usize {
    serde_json::to_vec(message).map_or(0, |json| json.len())
}

/// Splits a list so that each part fits into a message. There is always one part.
pub(crate) fn parts<T>(list: Vec<T>, len: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut parts, mut bytes) = (vec![Vec::new()], 0);
    for one in list {
        bytes += len(&one);
        match parts.last_mut() {
            Some(part) if part.is_empty() || bytes <= MESSAGE => part.push(one),
            _ => {
                bytes = len(&one);
                parts.push(vec![one]);
            }
        }
    }
    parts
}

/// The messages of a command, each of which fits into a line of the control port.
#[must_use]
pub fn command_messages(command: FaultCommand) -> Vec<FaultCommand> {
    let FaultCommand { id, verb, seed, rules, ids, .. } = command;
    let (rules, ids) = (parts(rules, json_len), parts(ids, json_len));
    let count = rules.len().max(ids.len());
    let (mut rules, mut ids) = (rules.into_iter(), ids.into_iter());
    let message = |number| FaultCommand {
        id,
        verb,
        seed,
        rules: rules.next().unwrap_or_default(),
        ids: ids.next().unwrap_or_default(),
        more: number + 1 < count,
    };
    (0..count).map(message).collect()
}

/// The messages of a command so far, with the next one.
#[must_use]
pub fn join_command(whole: FaultCommand, part: FaultCommand) -> FaultCommand {
    let FaultCommand { mut rules, mut ids, .. } = whole;
    rules.extend(part.rules);
    ids.extend(part.ids);
    FaultCommand { rules, ids, ..part }
}

/// Adds the message `part` of a reply to those before.
pub fn join_reply(whole: &mut FaultReply, part: FaultReply) {
    whole.rules.extend(part.rules);
    whole.warnings.extend(part.warnings);
    if whole.error.is_empty() {
        whole.error = part.error;
    }
}

/// The messages of a reply. Those after the first have more rules.
#[must_use]
pub fn reply_messages(reply: FaultReply) -> Vec<FaultReply> {
    let FaultReply { id, error, rules, warnings, .. } = reply;
    let parts = parts(rules, json_len);
    let count = parts.len();
    let message = |(number, rules)| FaultReply { id, rules, more: number + 1 < count, ..FaultReply::default() };
    let mut messages: Vec<FaultReply> = parts.into_iter().enumerate().map(message).collect();
    if let Some(first) = messages.first_mut() {
        (first.error, first.warnings) = (error, warnings);
    }
    messages
}

/// The digest of an image's largest layer. For an index, of its first manifest's.
fn largest_layer(store: &Store, image: &str) -> Option<Digest> {
    let catalog = store.catalog();
    let (name, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"));
    let repository = catalog.repository(name)?;
    let mut blob = catalog.blob(catalog.tag(repository, tag)?)?;
    for _ in 0..2 {
        let digest = blob.digest;
        let file = store.disk_of(&digest)?.open_blob(&digest, blob.size).ok()?;
        let mut content = Vec::new();
        file.take(MAX_MANIFEST_SIZE).read_to_end(&mut content).ok()?;
        let manifest = Manifest::parse(&content).ok()?;
        match manifest.manifests.iter().find_map(|one| catalog.blob_in(repository, &one.digest)) {
            Some(inner) => blob = catalog.blob(inner)?,
            // The config comes first.
            None => return manifest.blobs.iter().skip(1).max_by_key(|layer| layer.size).map(|layer| layer.digest),
        }
    }
    None
}
