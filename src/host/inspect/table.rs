//! The result of `inspect` as a table that fits the terminal.

use std::io::IsTerminal;

use indicatif::HumanBytes;

use super::contents::NO_PLATFORM;
use super::document::{Document, ImageRow};
use crate::host::support::report::counted;
use crate::text::escaped;

/// Number of spaces between columns.
const GAP: usize = 2;
/// Number of digits of a digest in the table.
const DIGITS: usize = 12;
/// Minimum width of the CONTENT column, in characters. It is shortened before names.
const MIN_CONTENT: usize = 11;
const MIN_NAME: usize = 24;

/// How the table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Characters per line. `None`: unlimited.
    pub width: Option<usize>,
    /// Whether the head is printed bold.
    pub colour: bool,
}

impl Style {
    /// The style for standard output: on a terminal its width, and colour unless `NO_COLOR` is set (no-color.org).
    #[must_use]
    pub fn of_stdout() -> Self {
        let out = std::io::stdout();
        if !out.is_terminal() {
            return Self { width: None, colour: false };
        }
        let width = rustix::termios::tcgetwinsize(&out).map(|size| usize::from(size.ws_col)).ok();
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { width: width.filter(|width| *width > 0), colour }
    }
}

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

const COLUMNS: [(&str, Align); 5] =
    [("NAME", Align::Left), ("CONTENT", Align::Left), ("DIGEST", Align::Left), ("SIZE", Align::Right), ("SHARED", Align::Right)];

/// Formats the result.
#[must_use]
pub fn disk(document: &Document<'_>, style: Style) -> String {
    let mut lines = vec![heading(document)];
    if !document.upstreams.is_empty() {
        lines.push(format!("stands in for {}", document.upstreams.join(", ")));
    }
    let rows: Vec<[String; 5]> = document.images.iter().map(|row| cells(&row)).collect();
    if !rows.is_empty() {
        lines.push(String::new());
        lines.extend(fitted(&rows, style));
        lines.push(String::new());
    }
    lines.extend(sums(document));
    lines.join("\n")
}

fn heading(document: &Document<'_>) -> String {
    let bytes = document.bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
    let digest = document.digest.as_ref().map(|digest| format!(", {digest}")).unwrap_or_default();
    let catalog = if document.catalog.is_some() { "" } else { ", no catalog" };
    format!("{}: {}{bytes}{digest}{catalog}", document.disk, document.form)
}

fn sums(document: &Document<'_>) -> Vec<String> {
    let totals = document.totals;
    let images = counted(totals.images, "image");
    let in_repositories =
        format!("{} {}", totals.repositories, if totals.repositories == 1 { "repository" } else { "repositories" });
    let mut lines =
        vec![format!("{images} in {in_repositories}, {} of {}", counted(totals.blobs, "blob"), HumanBytes(totals.blob_bytes))];
    if totals.shared_blobs > 0 {
        let (bytes, saved) = (HumanBytes(totals.shared_bytes), HumanBytes(totals.saved_bytes));
        lines.push(format!("shared: {} of {bytes}, which saves {saved}", counted(totals.shared_blobs, "blob")));
    }
    if totals.left_out > 0 {
        lines.push(format!("left out on purpose: {}", counted(totals.left_out, "blob")));
    }
    if let Some(verified) = document.verified {
        let result = match document.faults.len() {
            0 => "no faults".to_owned(),
            faults => format!("{} found", counted(faults, "fault")),
        };
        let checked = format!("{}, {} in all", counted(verified.blobs, "blob"), HumanBytes(verified.bytes));
        lines.push(format!("verified: {checked}: {result}"));
    }
    lines.extend(document.exported.iter().map(|folder| format!("exported to {folder}")));
    lines
}

fn cells(row: &ImageRow<'_>) -> [String; 5] {
    let digest = short(&row.digest);
    let content = match (row.artifact_type, &row.subject) {
        (kind, Some(subject)) => format!("{} of {}", kind.unwrap_or("referrer"), short(subject)),
        (Some(kind), None) => kind.to_owned(),
        (None, None) if row.platforms.is_empty() => "-".to_owned(),
        (None, None) => row.platforms.join(","),
    };
    let mut left_out: Vec<&str> =
        row.left_out.iter().filter_map(|blob| blob.platform).filter(|name| *name != NO_PLATFORM).collect();
    left_out.dedup();
    let content = if left_out.is_empty() { content } else { format!("{content}, without {}", left_out.join(",")) };
    let shared = if row.shared_bytes == 0 { "-".to_owned() } else { HumanBytes(row.shared_bytes).to_string() };
    // The digest in a name without a tag is already in the next column.
    let name = match row.label.split_once('@') {
        Some((repository, _)) => repository.to_owned(),
        None => row.label.clone(),
    };
    [name, escaped(&content), digest, HumanBytes(row.bytes).to_string(), shared]
}

/// Abbreviates a digest.
#[must_use]
pub fn short(digest: &str) -> String {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("", digest));
    format!("{algorithm}:{}", hex.get(..DIGITS).unwrap_or(hex))
}

/// Aligns head and rows in columns, within the style's width.
fn fitted(rows: &[[String; 5]], style: Style) -> Vec<String> {
    let mut widths = COLUMNS.map(|(head, _)| head.len());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(limit) = style.width {
        let mut surplus = (widths.iter().sum::<usize>() + GAP * (COLUMNS.len() - 1)).saturating_sub(limit);
        for (column, least) in [(1, MIN_CONTENT), (0, MIN_NAME)] {
            let Some(width) = widths.get_mut(column) else { continue };
            let cut = surplus.min(width.saturating_sub(least));
            *width -= cut;
            surplus -= cut;
        }
    }
    let head = line(&COLUMNS.map(|(head, _)| head.to_owned()), &widths);
    let head = if style.colour { format!("\x1b[1m{head}\x1b[0m") } else { head };
    std::iter::once(head).chain(rows.iter().map(|row| line(row, &widths))).collect()
}

fn line(cells: &[String; 5], widths: &[usize; 5]) -> String {
    let padded = cells.iter().zip(widths).zip(COLUMNS).map(|((cell, width), (_, align))| {
        let cell = shortened(cell, *width);
        match align {
            Align::Left => format!("{cell:width$}"),
            Align::Right => format!("{cell:>width$}"),
        }
    });
    padded.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
}

/// Shortens `text` to `width` characters. It omits the middle, because names differ at their ends.
fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let rest = width.saturating_sub(1);
    let front = rest / 2;
    let start: String = text.chars().take(front).collect();
    let end: String = text.chars().skip(count - (rest - front)).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, content: &str) -> [String; 5] {
        [name, content, "sha256:0123456789ab", "1.00 KiB", "-"].map(str::to_owned)
    }

    #[test]
    fn columns_are_as_wide_as_their_content() {
        let rows = [row("a", "linux/amd64"), row("test/longer:1", "linux/arm64,linux/amd64")];
        let lines = fitted(&rows, Style { width: None, colour: false });
        assert_eq!(
            lines,
            [
                "NAME           CONTENT                  DIGEST                   SIZE  SHARED",
                "a              linux/amd64              sha256:0123456789ab  1.00 KiB       -",
                "test/longer:1  linux/arm64,linux/amd64  sha256:0123456789ab  1.00 KiB       -",
            ]
        );
    }

    #[test]
    fn narrow_terminal_shortens_content_and_then_names() {
        let rows = [row("registry.k8s.io/a/very/long/name/of/an/image:v1.2.3", "linux/arm64,linux/amd64")];
        for (width, expected) in [
            (
                110,
                "registry.k8s.io/a/very/long/name/of/an/image:v1.2.3  linux/ar…nux/amd64  sha256:0123456789ab  1.00 KiB       -",
            ),
            (80, "registry.k8s.…n/image:v1.2.3  linux…amd64  sha256:0123456789ab  1.00 KiB       -"),
            (20, "registry.k8…image:v1.2.3  linux…amd64  sha256:0123456789ab  1.00 KiB       -"),
        ] {
            let lines = fitted(&rows, Style { width: Some(width), colour: false });
            assert_eq!(lines[1], expected, "{width}");
            assert!(width < 79 || lines.iter().all(|line| line.chars().count() <= width));
        }
    }

    #[test]
    fn only_the_head_is_coloured() {
        let lines = fitted(&[row("a", "b")], Style { width: None, colour: true });
        assert!(lines[0].starts_with("\x1b[1mNAME") && lines[0].ends_with("SHARED\x1b[0m") && !lines[1].contains('\x1b'));
    }
}
