//! `localregistry faults replay`: the plan of exactly those hits that an event log has.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::host::runs::pull_log::log_reader;
use crate::proto::event::Event as Kind;
use crate::proto::fault_command::Verb;
use crate::proto::{FaultPlan, FaultRule, FaultWhen};

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
}

/// Reads a log, and returns its plan: each rule that was hit, with the numbers of its hits.
///
/// # Errors
/// Fails if the log does not show all hits.
pub fn plan(path: &Path) -> Result<FaultPlan, ReplayError> {
    let gap = |problem: String| ReplayError::Gap { path: path.to_owned(), problem };
    // The rules in the order of the plan, and the matches that were hits.
    let mut rules: Vec<FaultRule> = Vec::new();
    let mut hits: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let (mut seed, mut problem) = (0, None);
    let read = log_reader::read(path, false, |entry| {
        let number = entry.number;
        match entry.event.map(|event| event.event) {
            Ok(Some(Kind::FaultsChanged(changed))) => {
                seed = changed.seed;
                let known =
                    |rules: &[FaultRule], rule: &FaultRule| rules.iter().any(|other| other.id == rule.id && other != rule);
                match changed.verb() {
                    Verb::Add | Verb::Replace => {
                        if let Some(rule) = changed.rules.iter().find(|rule| known(&rules, rule) && hits.contains_key(&rule.id)) {
                            problem = Some(format!("line {number} changes the rule {}, which was hit before", rule.id));
                        }
                        rules.retain(|rule| !changed.rules.iter().any(|other| other.id == rule.id));
                        rules.extend(changed.rules);
                    }
                    Verb::Reset if !hits.is_empty() => {
                        problem = Some(format!("line {number} resets the counts, which numbered the hits before"));
                    }
                    _ => {}
                }
            }
            Ok(Some(Kind::Fault(fault))) => drop(hits.entry(fault.rule).or_default().insert(fault.r#match)),
            Ok(Some(Kind::Warning(warning))) if warning.code == "DROPPED_EVENTS" => problem = Some(warning.message),
            Ok(Some(Kind::Done(done))) if done.dropped_events > 0 => {
                problem = Some(format!("{} events were dropped", done.dropped_events));
            }
            Ok(_) => {}
            Err(error) => problem = Some(format!("line {number}: {error}")),
        }
        if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let incomplete = read.map_err(|source| ReplayError::Read { path: path.to_owned(), source })?;
    if let Some(problem) = problem.or_else(|| incomplete.then(|| "it ends in the middle of an event".to_owned())) {
        return Err(gap(problem));
    }
    let replayed = rules.into_iter().filter_map(|rule| {
        let nth: Vec<u32> = hits.remove(&rule.id)?.into_iter().collect();
        Some(FaultRule { when: Some(FaultWhen { nth, ..FaultWhen::default() }), ..rule })
    });
    let rules = replayed.collect();
    if let Some((id, _)) = hits.pop_first() {
        return Err(gap(format!("it has hits of {id}, and not the rule")));
    }
    Ok(FaultPlan { about: format!("The hits in {}", path.display()), rules, seed })
}
