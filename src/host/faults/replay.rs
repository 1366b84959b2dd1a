//! `localregistry faults replay`: the plan of exactly those hits that an event log has.
//!
//! A rule counts from the change of the plan that put it in force, or that reset the counts. In a replay every rule counts from the first
//! request on, so each of these spans of a rule is compared with the requests outside it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::host::runs::pull_log::log_reader;
use crate::proto::event::Event as Kind;
use crate::proto::fault_command::Verb;
use crate::proto::{Fault, FaultPlan, FaultRule, FaultWhen, FaultsChanged, Request};
use crate::registry::faults::plan::Plan;
use crate::registry::faults::{MAX_RULE, Rule};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error("cannot read the events in {}", .path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line of it is not an event, or events are missing.
    #[error("the log {} does not show all hits: {problem}", .path.display())]
    Gap {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// No plan has these hits.
    #[error("no plan has exactly the hits in {}: {problem}", .path.display())]
    Impossible {
        /// The log.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// A rule in force, while it counts.
#[derive(Debug)]
struct Span {
    rule: FaultRule,
    seed: u32,
    /// Seconds since 1970.
    began: f64,
    ended: Option<f64>,
    /// The numbers of the matches that were hits.
    hits: BTreeSet<u32>,
}

/// When the first and the last of the requests began that look the same, in seconds since 1970.
type Times = (f64, f64);

/// What a log shows.
#[derive(Debug, Default)]
struct History {
    /// In the order of the rules in a plan that has them all.
    spans: Vec<Span>,
    /// Those in force.
    current: Vec<usize>,
    change: u32,
    by_id: HashMap<(String, u32), usize>,
    requests: HashMap<String, (Request, Times)>,
}

impl History {
    fn changed(&mut self, time: f64, changed: FaultsChanged) {
        let is_first_part = self.change != changed.change;
        self.change = changed.change;
        let mut rules = Vec::new();
        let ended: Vec<usize> = match changed.verb() {
            Verb::Add | Verb::Replace => {
                let is_replaced = is_first_part && changed.verb() == Verb::Replace;
                rules = changed.rules;
                if is_replaced { self.current.clone() } else { Vec::new() }
            }
            Verb::Reset if is_first_part => {
                rules = self.current.iter().filter_map(|at| Some(self.spans.get(*at)?.rule.clone())).collect();
                self.current.clone()
            }
            _ => {
                let gone: HashSet<&str> = changed.rules.iter().map(|rule| rule.id.as_str()).collect();
                let is_gone = |at: &usize| self.spans.get(*at).is_some_and(|span| gone.contains(span.rule.id.as_str()));
                self.current.iter().copied().filter(is_gone).collect()
            }
        };
        self.current.retain(|at| !ended.contains(at));
        ended.iter().for_each(|at| self.spans.get_mut(*at).into_iter().for_each(|span| span.ended = Some(time)));
        for rule in rules {
            self.current.push(self.spans.len());
            self.by_id.insert((rule.id.clone(), changed.change), self.spans.len());
            self.spans.push(Span { rule, seed: changed.seed, began: time, ended: None, hits: BTreeSet::new() });
        }
    }

    fn hit(&mut self, fault: Fault) -> Result<(), String> {
        let Fault { rule, since, r#match, .. } = fault;
        let key = (rule, since);
        let span = self.by_id.get(&key).and_then(|at| self.spans.get_mut(*at));
        let span = span.ok_or_else(|| format!("it has hits of {}, and not the rule", key.0))?;
        span.hits.insert(r#match);
        Ok(())
    }

    fn requested(&mut self, time: f64, request: Request) {
        let Request { endpoint, method, repository, reference, status, fault, peer, duration, .. } = &request;
        let client = peer.rsplit_once(':').map_or(peer.as_str(), |(address, _)| address);
        let key = format!("{endpoint} {method} {repository} {reference} {} {fault} {client}", *status == 404);
        let start = time - duration;
        let (_, (first, last)) = self.requests.entry(key).or_insert_with(|| (request.clone(), (start, start)));
        (*first, *last) = (first.min(start), last.max(start));
    }

    /// The plan, or why there is none.
    fn plan(&self) -> Result<FaultPlan, String> {
        let hit: Vec<&Span> = self.spans.iter().filter(|span| !span.hits.is_empty()).collect();
        let mut places = HashMap::new();
        for (place, span) in hit.iter().enumerate() {
            if places.insert(span.rule.id.as_str(), place).is_some() {
                let id = &span.rule.id;
                return Err(format!(
                    "the rule {id} acted before and after it was added again, or its counts were reset, so a number means two of its matches"
                ));
            }
        }
        let mut plan = FaultPlan { seed: hit.last().map_or(0, |span| span.seed), ..FaultPlan::default() };
        let mut has_seed = false;
        for (place, span) in hit.iter().enumerate() {
            let id = &span.rule.id;
            // Without `when`, which may name a rule that this plan does not have.
            let alone = FaultRule { when: None, ..span.rule.clone() };
            let checked = Self::checked(&alone)?;
            let rule = checked.rules().first().ok_or_else(|| format!("the rule {id} is missing"))?;
            // A rule before this one acts on its own hits in the replay, too, so this one does not count them.
            let is_taken = |request: &Request| {
                !rule.is_for_connections() && places.get(request.fault.as_str()).is_some_and(|other| *other < place)
            };
            let counts = |request: &Request| rule.may_have_matched(request) && !is_taken(request);
            let outside = |is_outside: &dyn Fn(&Times) -> bool| {
                self.requests.values().any(|(request, times)| is_outside(times) && counts(request))
            };
            if outside(&|(first, _)| *first < span.began) {
                return Err(format!(
                    "the rule {id} came into force after requests that it may match, and the log does not tell how many it would have counted"
                ));
            }
            let goes_on = || !span.ended.is_some_and(|ended| outside(&|(_, last)| *last >= ended));
            let (when, needs_seed) = when(span, goes_on)?;
            if needs_seed && has_seed && plan.seed != span.seed {
                return Err(format!("the rule {id} needs another seed than a rule before it"));
            }
            if needs_seed {
                (plan.seed, has_seed) = (span.seed, true);
            }
            plan.rules.push(FaultRule { when: Some(when), ..alone });
        }
        Self::checked_plan(&plan)?;
        Ok(plan)
    }

    fn checked(rule: &FaultRule) -> Result<Plan, String> {
        Self::checked_plan(&FaultPlan { rules: vec![rule.clone()], ..FaultPlan::default() })
    }

    fn checked_plan(plan: &FaultPlan) -> Result<Plan, String> {
        Plan::check(plan.clone()).map_err(|error| format!("the plan of all hits is not valid: {error}"))
    }
}

/// A condition with exactly these hits, and whether it needs the seed. `goes_on` tells whether no later request can match.
fn when(span: &Span, goes_on: impl Fn() -> bool) -> Result<(FaultWhen, bool), String> {
    let (id, last) = (&span.rule.id, span.hits.last().copied().unwrap_or_default());
    let nth = FaultWhen { nth: span.hits.iter().copied().collect(), ..FaultWhen::default() };
    let numbered = FaultRule { when: Some(nth.clone()), ..span.rule.clone() };
    if serde_json::to_vec(&numbered).is_ok_and(|json| json.len() <= MAX_RULE) {
        return Ok((nth, false));
    }
    if span.hits.len() == last as usize {
        return Ok((FaultWhen { first: Some(last), ..FaultWhen::default() }, false));
    }
    let own = span.rule.when.clone().filter(|when| when.after_rule.is_none()).unwrap_or_default();
    let plan = History::checked(&FaultRule { when: Some(own.clone()), ..span.rule.clone() })?;
    let is_own = |rule: &Rule| (1..=last).all(|number| rule.is_due(span.seed, number.into()) == span.hits.contains(&number));
    if span.rule.when.as_ref().is_none_or(|when| when.after_rule.is_none())
        && plan.rules().iter().all(|rule| is_own(rule))
        && goes_on()
    {
        let needs_seed = own.probability.is_some();
        return Ok((own, needs_seed));
    }
    Err(format!("the rule {id} acted {} times, and a rule has no room for so many numbers", span.hits.len()))
}

/// Reads a log, and returns its plan: each rule that was hit, with the numbers of its hits. The same requests give the same hits.
///
/// # Errors
/// Fails if the log does not show all hits, or if no plan has them.
pub fn plan(path: &Path) -> Result<FaultPlan, ReplayError> {
    let (mut history, mut problem) = (History::default(), None);
    let read = log_reader::read(path, false, |entry| {
        let number = entry.number;
        match entry.event.map(|event| (event.time, event.event)) {
            Ok((time, Some(Kind::FaultsChanged(changed)))) => history.changed(time, changed),
            Ok((_, Some(Kind::Fault(fault)))) => problem = history.hit(fault).err(),
            Ok((time, Some(Kind::Request(request)))) => history.requested(time, request),
            Ok((_, Some(Kind::Warning(warning)))) if warning.code == "DROPPED_EVENTS" => problem = Some(warning.message),
            Ok((_, Some(Kind::Done(done)))) if done.dropped_events > 0 => {
                problem = Some(format!("{} events were dropped", done.dropped_events));
            }
            Ok(_) => {}
            Err(error) => problem = Some(format!("line {number}: {error}")),
        }
        if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let incomplete = read.map_err(|source| ReplayError::Read { path: path.to_owned(), source })?;
    if let Some(problem) = problem.or_else(|| incomplete.then(|| "it ends in the middle of an event".to_owned())) {
        return Err(ReplayError::Gap { path: path.to_owned(), problem });
    }
    let plan = history.plan().map_err(|problem| ReplayError::Impossible { path: path.to_owned(), problem })?;
    Ok(FaultPlan { about: format!("The hits in {}", path.display()), ..plan })
}
