//! Output of a command. Progress goes to standard error: a bar on a terminal, plain lines elsewhere, nothing with `--quiet`. The
//! result goes to standard output: text, or one line of JSON with `--json`.

use std::io::{IsTerminal, Write};

use crate::text::escaped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// Most lines of one kind that [`Report::steps`] prints.
const MAX_STEPS: usize = 10;

/// Formats a count and its noun: `1 image`, `2 images`.
#[must_use]
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Prints `line` on standard error, escaped: text from a file, a client or a guest cannot start another line. Nothing else writes there.
/// If standard error cannot be written to (a full disk, a closed pipe), the line is lost, and the command goes on.
pub(crate) fn message(line: impl AsRef<str>) {
    let line = escaped(line.as_ref()) + "\n";
    let _lost = std::io::stderr().write_all(line.as_bytes());
}

/// The output flags that every command has.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Report {
    /// Print the result as one JSON line on standard output; in a path that is not UTF-8, U+FFFD stands for what is not
    #[arg(long, global = true)]
    pub json: bool,

    /// Do not print progress
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Report {
    /// Prints one line of progress.
    pub fn step(&self, line: impl AsRef<str>) {
        if !self.quiet {
            message(line);
        }
    }

    /// Prints the first of `lines`, and what `rest` says of the number of the others, if there are any.
    pub fn steps(&self, lines: impl IntoIterator<Item = String>, rest: impl FnOnce(usize) -> String) {
        let mut lines = lines.into_iter();
        lines.by_ref().take(MAX_STEPS).for_each(|line| self.step(line));
        let others = lines.count();
        if others > 0 {
            self.step(rest(others));
        }
    }

    /// Prints a warning, with `--quiet` too: it is not progress.
    pub fn warn(&self, line: impl AsRef<str>) {
        message(format!("localregistry: warning: {}", line.as_ref()));
    }

    /// Prints the result: `value` as one JSON line with `--json`, else `text`.
    ///
    /// # Errors
    /// Fails if standard output cannot be written to, for example a closed pipe.
    pub fn result(&self, value: &impl Serialize, text: &str) -> std::io::Result<()> {
        // Serialized first, so that a failure leaves no partial line.
        let line = if self.json { serde_json::to_string(value)? } else { text.trim_end().to_owned() };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// A progress bar over `total` bytes, with the title `what`. It draws only on a terminal (elsewhere use [`Report::step`]), and
    /// in colour only if `NO_COLOR` is unset.
    #[must_use]
    pub fn bytes_bar(&self, what: &str, total: u64) -> ProgressBar {
        if self.quiet || !std::io::stderr().is_terminal() {
            return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        }
        let colour = if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) { "" } else { ".cyan" };
        let template = format!("{{prefix}} [{{bar:30{colour}}}] {{bytes}}/{{total_bytes}} {{bytes_per_sec}}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(what.to_owned())
    }
}
