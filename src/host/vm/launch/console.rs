//! The last lines of a text stream, for the day that something goes wrong: the guest's console, QEMU's standard error. Bytes enter,
//! printable lines and the kernel's panic leave. It keeps a fixed amount, whatever comes.

use std::collections::VecDeque;

use super::printable::printable;
use crate::text::{Line, Lines};

/// Lines that are kept.
const KEPT: usize = 40;
/// Longest line that is kept whole, in bytes.
const LONGEST: usize = 1024;
/// How the kernel's panic line starts, after its time.
const PANIC: &str = "Kernel panic - not syncing";

/// The last lines of a stream.
#[derive(Debug)]
pub(crate) struct Console {
    lines: Lines,
    last: VecDeque<String>,
    panic: Option<String>,
}

impl Console {
    pub(crate) fn new() -> Self {
        Self { lines: Lines::new(LONGEST), last: VecDeque::with_capacity(KEPT), panic: None }
    }

    /// Takes what the stream gave.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Self { lines, last, panic } = self;
        lines.feed(bytes, |line| {
            let text = shown(line);
            if panic.is_none() {
                *panic = panic_in(&text);
            }
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(text);
        });
    }

    /// The last `count` lines, the unfinished one included.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let rest = self.lines.unfinished();
        let rest = (!rest.bytes.is_empty()).then(|| shown(rest));
        let all: Vec<String> = self.last.iter().cloned().chain(rest).collect();
        let skipped = all.len().saturating_sub(count);
        all.into_iter().skip(skipped).collect()
    }

    /// The first panic line of the kernel, without its time. It is kept when the lines after it push it out.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }
}

/// A line as it is kept.
fn shown(line: Line<'_>) -> String {
    let mut text = printable(line.bytes);
    if line.truncated {
        text.push_str(" …");
    }
    text
}

/// The panic in `line` of the console: "[    1.983051] Kernel panic - not syncing: …", with or without the time.
fn panic_in(line: &str) -> Option<String> {
    let message = match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((time, message)) if time.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b' ' | b'T' | b'C')) => message,
        _ => line,
    };
    let message = message.trim_start();
    message.starts_with(PANIC).then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(text: &str) -> Console {
        let mut console = Console::new();
        console.feed(text.as_bytes());
        console
    }

    #[test]
    fn the_last_lines_are_kept_and_the_unfinished_one_with_them() {
        let mut console = Console::new();
        for number in 0..1000 {
            console.feed(format!("line {number}\r\n").as_bytes());
        }
        console.feed(b"login: ");
        assert_eq!(console.tail(3), ["line 998", "line 999", "login: "]);
        let all = console.tail(usize::MAX);
        assert_eq!((all.len(), all.first().unwrap().as_str()), (KEPT + 1, "line 960"));
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let console = fed(&("x".repeat(5000) + "\nnext\n"));
        assert_eq!(console.tail(9), ["x".repeat(LONGEST) + " …", "next".to_owned()]);
    }

    #[test]
    fn a_panic_is_found_and_outlives_its_lines() {
        let mut console = fed("[    1.983051] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n");
        for _ in 0..KEPT + 1 {
            console.feed(b"[    2.000000]  <TASK>\r\nKernel panic - not syncing: another\n");
        }
        assert_eq!(console.panic(), Some("Kernel panic - not syncing: VFS: Unable to mount root fs"));
        assert!(!console.tail(usize::MAX).join("\n").contains("VFS"));
    }

    #[test]
    fn a_panic_is_the_kernel_s_own_line() {
        assert!(fed("Kernel panic - not syncing: no time stamp\n").panic().is_some());
        assert!(fed("[    1.2][    T1] Kernel panic - not syncing: x\n").panic().is_none());
        assert!(fed("init: reading about 'Kernel panic - not syncing'\n").panic().is_none());
        assert!(fed("[init] Kernel panic - not syncing: pretended\n").panic().is_none());
        assert!(fed("Kernel panic - not syncing: unfinished").panic().is_none());
    }
}
