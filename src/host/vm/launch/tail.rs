//! Keeps the last lines of a text stream (the guest's console, QEMU's standard error) for error messages, and finds the kernel's panic
//! line. Memory is bounded.

use std::collections::VecDeque;

use crate::text::{Line, Lines, printable};

const MAX_LINES: usize = 40;
/// Longest line that is not truncated, in bytes.
const MAX_LINE: usize = 1024;
/// How the kernel's panic line starts, after its timestamp.
const PANIC: &str = "Kernel panic - not syncing";

/// The last lines of a stream, and its first panic line.
#[derive(Debug)]
pub(crate) struct Tail {
    lines: Lines,
    last: VecDeque<String>,
    panic: Option<String>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { lines: Lines::new(MAX_LINE), last: VecDeque::with_capacity(MAX_LINES), panic: None }
    }
}

impl Tail {
    /// Appends bytes of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let Self { lines, last, panic } = self;
        lines.feed(bytes, |line| {
            let text = to_text(line);
            if panic.is_none() {
                *panic = panic_in(&text);
            }
            if last.len() == MAX_LINES {
                last.pop_front();
            }
            last.push_back(text);
        });
    }

    /// The last `count` lines, including an unfinished one.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        let unfinished = self.lines.unfinished();
        let unfinished = (!unfinished.bytes.is_empty()).then(|| to_text(unfinished));
        let all: Vec<String> = self.last.iter().cloned().chain(unfinished).collect();
        let skipped = all.len().saturating_sub(count);
        all.into_iter().skip(skipped).collect()
    }

    /// The kernel's first panic line, without its timestamp.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }
}

fn to_text(line: Line<'_>) -> String {
    let mut text = printable(line.bytes);
    if line.truncated {
        text.push_str(" …");
    }
    text
}

/// The panic message in a console line such as "[    1.983051] Kernel panic - not syncing: …". The timestamp is optional.
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

    fn fed(text: &str) -> Tail {
        let mut tail = Tail::default();
        tail.feed(text.as_bytes());
        tail
    }

    #[test]
    fn last_lines_include_the_unfinished_one() {
        let mut tail = Tail::default();
        for number in 0..1000 {
            tail.feed(format!("line {number}\r\n").as_bytes());
        }
        tail.feed(b"login: ");
        assert_eq!(tail.last(3), ["line 998", "line 999", "login: "]);
        let all = tail.last(usize::MAX);
        assert_eq!((all.len(), all.first().unwrap().as_str()), (MAX_LINES + 1, "line 960"));
    }

    #[test]
    fn long_line_is_marked_as_truncated() {
        let tail = fed(&("x".repeat(5000) + "\nnext\n"));
        assert_eq!(tail.last(9), ["x".repeat(MAX_LINE) + " …", "next".to_owned()]);
    }

    #[test]
    fn panic_is_remembered_after_its_line_is_dropped() {
        let mut tail = fed("[    1.983051] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n");
        for _ in 0..MAX_LINES + 1 {
            tail.feed(b"[    2.000000]  <TASK>\r\nKernel panic - not syncing: another\n");
        }
        assert_eq!(tail.panic(), Some("Kernel panic - not syncing: VFS: Unable to mount root fs"));
        assert!(!tail.last(usize::MAX).join("\n").contains("VFS"));
    }

    #[test]
    fn only_the_kernels_own_line_is_a_panic() {
        assert!(fed("Kernel panic - not syncing: no time stamp\n").panic().is_some());
        assert!(fed("[    1.2][    T1] Kernel panic - not syncing: x\n").panic().is_none());
        assert!(fed("init: reading about 'Kernel panic - not syncing'\n").panic().is_none());
        assert!(fed("[init] Kernel panic - not syncing: pretended\n").panic().is_none());
        assert!(fed("Kernel panic - not syncing: unfinished").panic().is_none());
    }
}
