//! `localregistry manual`: man pages and shell completions, from the definitions of the command line. Nothing else enters; a folder of
//! files leaves, the same each time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use schemars::JsonSchema;
use serde::Serialize;

use crate::host::cli::Cli;
use crate::host::support::files;
use crate::host::support::report::{Report, counted};

/// The shells that completions are written for, with the file that each looks for.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "completions/bash/localregistry"),
    (Shell::Zsh, "completions/zsh/_localregistry"),
    (Shell::Fish, "completions/fish/localregistry.fish"),
];

/// Write man pages and shell completions
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The folder gets man/man1/ (MANPATH, /usr/share/man) and completions/{bash,zsh,fish}/: bash-completion reads
/usr/share/bash-completion/completions, zsh its fpath, fish ~/.config/fish/completions.

Example:
  localregistry manual -o share && man -l share/man/man1/localregistry-run.1"
)]
pub struct Args {
    /// The folder; files of these names there are replaced
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// Why they are not written.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// A page.
    #[error("cannot make the page of {0}")]
    Page(String, #[source] io::Error),
    /// A file.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The result cannot be printed.
    #[error("cannot print what was written")]
    Print(#[source] io::Error),
}

/// What was written.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ManualResult")]
pub(crate) struct Written<'a> {
    /// The folder, as it was given.
    dir: &'a Path,
    /// The files' paths below it.
    files: Vec<String>,
}

/// Writes them.
///
/// # Errors
/// [`ManualError`].
pub fn run(args: &Args, report: &Report) -> Result<(), ManualError> {
    let mut files = pages()?;
    files.extend(SHELLS.map(|(shell, path)| (path.to_owned(), completion(shell))));
    for (name, content) in &files {
        let path = args.output.join(name);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| files::write_atomically(&path, content));
        written.map_err(|source| ManualError::Write { path, source })?;
    }
    let written = Written { dir: &args.output, files: files.into_iter().map(|(name, _)| name).collect() };
    let text = format!("{}: {}", args.output.display(), counted(written.files.len(), "file"));
    report.result(&written, &text).map_err(ManualError::Print)
}

/// The page of the program, and one of each subcommand.
fn pages() -> Result<Vec<(String, Vec<u8>)>, ManualError> {
    let mut program = Cli::command();
    // Flags of every subcommand get there by this.
    program.build();
    let subcommands: Vec<Command> =
        program.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help").cloned().collect();
    let name = program.get_name().to_owned();
    let mut pages = vec![page(program, name.clone())?];
    for one in subcommands {
        let full = format!("{name}-{}", one.get_name());
        pages.push(page(one, full)?);
    }
    Ok(pages)
}

fn page(command: Command, name: String) -> Result<(String, Vec<u8>), ManualError> {
    let mut content = Vec::new();
    let command = command.display_name(&name);
    Man::new(command).render(&mut content).map_err(|error| ManualError::Page(name.clone(), error))?;
    // The examples, exit codes and the like that follow the options in `--help` are no extra.
    let content = String::from_utf8_lossy(&content).replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    Ok((format!("man/man1/{name}.1"), content.into_bytes()))
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut content = Vec::new();
    let mut program = Cli::command();
    let name = program.get_name().to_owned();
    clap_complete::generate(shell, &mut program, name, &mut content);
    without_hidden(&program, &String::from_utf8_lossy(&content)).into_bytes()
}

/// The completions without the flags that no help shows: each is a word of bash's lists, and a line of its own for the others.
fn without_hidden(program: &Command, completions: &str) -> String {
    let arguments = program.get_subcommands().flat_map(Command::get_arguments);
    let hidden: Vec<&str> = arguments.filter(|one| one.is_hide_set()).filter_map(clap::Arg::get_long).collect();
    let is_hidden =
        |line: &str| hidden.iter().any(|flag| line.contains(&format!("--{flag}[")) || line.contains(&format!(" -l {flag} ")));
    let shown = completions.split_inclusive('\n').filter(|line| !is_hidden(line)).collect::<String>();
    hidden.iter().fold(shown, |text, flag| text.replace(&format!(" --{flag} "), " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page_and_every_shell_knows_it() {
        let pages = pages().unwrap();
        let completions = SHELLS.map(|(shell, _)| String::from_utf8(completion(shell)).unwrap());
        let mut program = Cli::command();
        program.build();
        for one in program.get_subcommands().filter(|one| one.get_name() != "help") {
            let path = format!("man/man1/localregistry-{}.1", one.get_name());
            let (_, page) = pages.iter().find(|(name, _)| *name == path).unwrap();
            let page = String::from_utf8(page.clone()).unwrap();
            for argument in one.get_arguments().filter_map(|one| one.get_long().map(|long| (long, one.is_hide_set()))) {
                let (long, hidden) = argument;
                assert_eq!(page.contains(&long.replace('-', "\\-")), !hidden, "{path}: {long}");
                // bash, zsh without and with a value, fish.
                let forms = [format!(" --{long} "), format!("--{long}["), format!("--{long}=["), format!("-l {long} ")];
                for completion in &completions {
                    assert_eq!(forms.iter().any(|form| completion.contains(form)), !hidden, "{path}: {long}");
                }
            }
        }
        assert_eq!(pages.len(), 1 + program.get_subcommands().filter(|one| one.get_name() != "help").count());
        assert!(pages.iter().all(|(_, page)| !String::from_utf8_lossy(page).contains(".SH EXTRA")));
    }
}
