//! Prints to the console, the only output before anything else works. Each message is one line in one write. Errors are ignored:
//! there is no other place to report them.

use std::fs::OpenOptions;
use std::io::Write;
use std::panic;
use std::thread;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::registry::telemetry::events::Events;
use crate::text::escaped;

/// Makes `/dev/console` standard input, output and error. If it cannot be opened, they stay as the kernel set them.
pub fn open() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
}

/// Prints every panic as one line with its location and thread. The code that catches the panic decides what it ends: a panic in a
/// request ends only that request.
pub fn hook_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let location = info.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
        log(&format!("panic in thread {name} at {location}: {}", info.payload_as_str().unwrap_or("no message")));
    }));
}

/// Prints the server's warnings and errors.
pub fn log_warnings() {
    let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).without_time().with_ansi(false);
    let _ = lines.with_writer(std::io::stderr).try_init();
}

/// Prints `message` as one line with the program's name in front.
pub fn log(message: &str) {
    print(&format!("localregistry: {}", escaped(message)));
}

/// Prints a warning and sends it to the launcher as an event.
pub fn warn(events: &Events, code: &str, message: String) {
    log(&format!("warning {code} {message}"));
    events.warn(code, message);
}

/// Prints the line that a launcher looks for after a fatal error.
pub fn fatal(code: &str, message: &str) {
    print(&fatal_line(code, message));
}

/// Prints `line` unchanged.
pub fn print(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn fatal_line(code: &str, message: &str) -> String {
    format!("FATAL code={code} {}", escaped(message))
}

#[cfg(test)]
mod tests {
    use super::fatal_line;

    #[test]
    fn fatal_error_is_one_line_without_control_characters() {
        assert_eq!(
            fatal_line("BAD_CONFIG", "key \"a\nb\" has \u{1b}[31m in it"),
            "FATAL code=BAD_CONFIG key \"a\\nb\" has \\u{1b}[31m in it"
        );
    }
}
