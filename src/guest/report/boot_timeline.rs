//! Measures each boot step, for the `ready` event and, with `trace`, for the console.

use crate::proto::Step;

use crate::guest::early::console;
use crate::guest::early::machine;

/// The completed boot steps.
#[derive(Debug, Default)]
pub struct BootTimeline {
    done: Vec<Step>,
    trace: bool,
}

impl BootTimeline {
    /// Runs one step and records its start, counted from the kernel's start, and its duration.
    pub fn run<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        let start = machine::uptime();
        let result = step();
        self.end(name, start);
        result
    }

    /// Runs one asynchronous step and records it as [`run`](Self::run) does.
    pub async fn run_async<T>(&mut self, name: &str, step: impl Future<Output = T>) -> T {
        let start = machine::uptime();
        let result = step.await;
        self.end(name, start);
        result
    }

    /// Prints the completed steps on the console, and from now on each step as it ends.
    pub fn trace(&mut self) {
        if !self.trace {
            self.trace = true;
            self.done.iter().for_each(|step| console::log(&line(step)));
        }
    }

    /// Continues after `steps` of another process, which has printed them if it had to.
    #[must_use]
    pub const fn after(steps: Vec<Step>, trace: bool) -> Self {
        Self { done: steps, trace }
    }

    /// The completed steps, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.done.clone()
    }

    /// Records a step that has ended now. Others may have run since its `start`.
    pub fn end(&mut self, name: &str, start: f64) {
        self.record(step(name, start));
    }

    /// Records a step that has ended.
    pub fn record(&mut self, step: Step) {
        if self.trace {
            console::log(&line(&step));
        }
        self.done.push(step);
    }
}

/// A step that ends now.
#[must_use]
pub fn step(name: &str, start: f64) -> Step {
    Step { name: name.to_owned(), start, duration: machine::uptime() - start }
}

fn line(step: &Step) -> String {
    format!("step {} at {:.3} s took {:.3} s", step.name, step.start, step.duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_recorded_in_order_and_return_their_results() {
        let mut timeline = BootTimeline::default();
        assert_eq!(timeline.run("first", || 7), 7);
        assert_eq!(timeline.run("second", || "x"), "x");
        let report = timeline.steps();
        assert_eq!(report.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
        assert!(report.iter().all(|step| step.start > 0.0 && step.duration >= 0.0));
    }

    #[test]
    fn step_is_printed_as_one_line() {
        let step = Step { name: "disk".into(), start: 0.5, duration: 0.012_34 };
        assert_eq!(line(&step), "step disk at 0.500 s took 0.012 s");
    }
}
