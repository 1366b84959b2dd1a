//! The boot report. What enters is each step of boot as it runs; what leaves is its name, start and duration, for the `ready`
//! event and, with `trace`, the console. It never changes what a step gives.

use crate::proto::Step;

use crate::guest::early::console;
use crate::guest::early::machine;

/// The steps so far.
#[derive(Debug, Default)]
pub struct Steps {
    done: Vec<Step>,
    trace: bool,
}

impl Steps {
    /// Runs one step and times it from the kernel's start.
    pub fn run<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        let start = machine::uptime();
        let result = step();
        self.end(name, start);
        result
    }

    /// Runs one step that waits and times it from the kernel's start.
    pub async fn wait<T>(&mut self, name: &str, step: impl Future<Output = T>) -> T {
        let start = machine::uptime();
        let result = step.await;
        self.end(name, start);
        result
    }

    /// Prints the steps so far on the console, and each later one as it ends.
    pub fn trace(&mut self) {
        if !self.trace {
            self.trace = true;
            self.done.iter().for_each(|step| console::say(&line(step)));
        }
    }

    /// The steps so far, in order.
    #[must_use]
    pub fn report(&self) -> Vec<Step> {
        self.done.clone()
    }

    fn end(&mut self, name: &str, start: f64) {
        let step = Step { name: name.to_owned(), start, duration: machine::uptime() - start };
        if self.trace {
            console::say(&line(&step));
        }
        self.done.push(step);
    }
}

fn line(step: &Step) -> String {
    format!("step {} at {:.3} s took {:.3} s", step.name, step.start, step.duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_kept_in_order_with_what_they_give() {
        let mut steps = Steps::default();
        assert_eq!(steps.run("first", || 7), 7);
        assert_eq!(steps.run("second", || "x"), "x");
        let report = steps.report();
        assert_eq!(report.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
        assert!(report.iter().all(|step| step.start > 0.0 && step.duration >= 0.0));
    }

    #[test]
    fn a_step_is_one_line() {
        let step = Step { name: "disk".into(), start: 0.5, duration: 0.012_34 };
        assert_eq!(line(&step), "step disk at 0.500 s took 0.012 s");
    }
}
