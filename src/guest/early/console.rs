//! The console: the one way to be heard before anything else works. What enters is a line of text; what leaves is that line on
//! `/dev/console`, in one write. It never fails: there is nobody left to tell.

use std::fs::OpenOptions;
use std::io::Write;
use std::panic;
use std::thread;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::registry::telemetry::events::Events;

/// Makes `/dev/console` standard input, output and error. Where it cannot be opened they stay what the kernel gave.
pub fn open() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
}

/// Prints every panic as one line with its place and its thread. Whether a panic ends the appliance is decided where it is
/// caught: one in a request ends that request only.
pub fn hook_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        say(&format!("panic in thread {name} at {place}: {}", info.payload_as_str().unwrap_or("no message")));
    }));
}

/// Prints what the server warns of.
pub fn log_warnings() {
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).without_time().with_ansi(false);
    let _ = lines.with_writer(std::io::stderr).try_init();
}

/// Prints `message` as one line after the program's name.
pub fn say(message: &str) {
    print(&format!("localregistry: {}", one_line(message)));
}

/// Prints a warning, and queues it for the launcher.
pub fn warn(events: &Events, code: &str, message: String) {
    say(&format!("warning {code} {message}"));
    events.warn(code, message);
}

/// Prints the line that a launcher looks for after a fatal error.
pub fn fatal(code: &str, message: &str) {
    print(&fatal_line(code, message));
}

/// Prints `line` as it is.
pub fn print(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn fatal_line(code: &str, message: &str) -> String {
    format!("FATAL code={code} {}", one_line(message))
}

/// `text` without control characters, which could break the line or the terminal of whoever reads it.
fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, character| {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use super::fatal_line;

    #[test]
    fn a_fatal_error_is_one_line_whatever_is_in_it() {
        assert_eq!(
            fatal_line("BAD_CONFIG", "key \"a\nb\" has \u{1b}[31m in it"),
            "FATAL code=BAD_CONFIG key \"a\\nb\" has \\u{1b}[31m in it"
        );
    }
}
