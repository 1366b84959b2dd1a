//! What a subcommand tells its user: progress on standard error (a bar on a terminal, plain lines elsewhere, nothing with
//! `--quiet`), the result on standard output (for a person, or one JSON line with `--json`).

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// `text` on one line of a terminal, which obeys control characters: names of files and what archives hold may have any.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `count` of what `noun` names: `1 image`, `2 images`.
#[must_use]
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// How a subcommand reports, from the flags that every subcommand has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Report {
    /// Print the result as one JSON line on standard output
    #[arg(long, global = true)]
    pub json: bool,

    /// Print no progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Report {
    /// Says in one line what is being done, where progress is wanted.
    pub fn step(&self, line: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", escaped(line.as_ref()));
        }
    }

    /// Prints the result: `value` as one JSON line with `--json`, else `text`.
    ///
    /// # Errors
    /// When standard output cannot be written to (a closed pipe). When `value` has no JSON (a path that is not UTF-8); then nothing is
    /// printed.
    pub fn result(&self, value: &impl Serialize, text: &str) -> std::io::Result<()> {
        // The whole line first: a value that fails halfway must not leave half a line.
        let line = if self.json { serde_json::to_string(value)? } else { text.trim_end().to_owned() };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// A bar over `total` bytes named `what`. It draws only on a terminal (elsewhere use [`Report::step`]), and in colour only
    /// where `NO_COLOR` is unset.
    #[must_use]
    pub fn bytes_bar(&self, what: &str, total: u64) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        }
        let colour = if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) { "" } else { ".cyan" };
        let template = format!("{{prefix}} [{{bar:30{colour}}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
