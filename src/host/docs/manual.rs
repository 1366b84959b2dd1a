//! `localregistry manual`: man pages and shell completions, generated from the definition of the command line.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use schemars::JsonSchema;
use serde::Serialize;

use crate::host::support::files;
use crate::host::support::interrupt::Interrupt;
use crate::host::support::report::{Report, counted};

/// The supported shells, with the path of each one's completion file.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "completions/bash/localregistry"),
    (Shell::Zsh, "completions/zsh/_localregistry"),
    (Shell::Fish, "completions/fish/localregistry.fish"),
];

/// Write man pages and shell completions
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Man pages go to man/man1/ (for MANPATH or /usr/share/man), completions to completions/{bash,zsh,fish}/. The shells read
them from /usr/share/bash-completion/completions (bash), a folder of fpath (zsh) and ~/.config/fish/completions (fish).

Example:
  localregistry manual -o share
      Then for example: man -l share/man/man1/localregistry-run.1"
)]
pub struct ManualArgs {
    /// The folder to write to; existing files are replaced
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// Why the manual cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// A man page cannot be rendered.
    #[error("cannot render the man page of {0}")]
    Page(String, #[source] io::Error),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Standard output cannot be written to.
    #[error("cannot print what was written")]
    Print(#[source] io::Error),
}

/// The files that were written.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ManualResult")]
pub(crate) struct ManualResult {
    /// The folder.
    dir: String,
    /// Paths of the files, relative to the folder.
    files: Vec<String>,
}

/// Runs `localregistry manual` for the command line `program`.
///
/// # Errors
/// Fails if a page cannot be rendered or a file cannot be written.
pub fn run(args: &ManualArgs, report: &Report, program: &Command) -> Result<(), ManualError> {
    let interrupt = Interrupt::of_process();
    let _ends = interrupt.end_at_once("");
    let files = files(program)?;
    for (name, content) in &files {
        let path = args.output.join(name);
        let created = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = created.and_then(|()| files::write_atomically(&path, content));
        written.map_err(|source| ManualError::Write { path, source })?;
    }
    let result =
        ManualResult { dir: args.output.display().to_string(), files: files.into_iter().map(|(name, _)| name).collect() };
    let text = format!("{}: {}", args.output.display(), counted(result.files.len(), "file"));
    report.result(&result, &text).map_err(ManualError::Print)
}

/// The paths and contents of all man pages and completions of `program`.
///
/// # Errors
/// Fails if a man page cannot be rendered.
pub(crate) fn files(program: &Command) -> Result<Vec<(String, Vec<u8>)>, ManualError> {
    let mut files = pages(program)?;
    files.extend(SHELLS.map(|(shell, path)| (path.to_owned(), completion(program, shell))));
    Ok(files)
}

/// The man page of the program, and one for each subcommand.
fn pages(program: &Command) -> Result<Vec<(String, Vec<u8>)>, ManualError> {
    let mut program = program.clone();
    // Adds the global flags to the subcommands.
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
    // clap_mangen puts the text after the options (examples, exit codes) under "EXTRA".
    let content = String::from_utf8_lossy(&content).replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    Ok((format!("man/man1/{name}.1"), content.into_bytes()))
}

fn completion(program: &Command, shell: Shell) -> Vec<u8> {
    let mut content = Vec::new();
    let mut program = program.clone();
    let name = program.get_name().to_owned();
    clap_complete::generate(shell, &mut program, name, &mut content);
    without_hidden(&program, &String::from_utf8_lossy(&content)).into_bytes()
}

/// Removes hidden flags from the completions. bash has each flag as a word in a list, zsh and fish as a line of its own.
fn without_hidden(program: &Command, completions: &str) -> String {
    let arguments = program.get_subcommands().flat_map(Command::get_arguments);
    let hidden: Vec<&str> = arguments.filter(|one| one.is_hide_set()).filter_map(clap::Arg::get_long).collect();
    let is_hidden =
        |line: &str| hidden.iter().any(|flag| line.contains(&format!("--{flag}[")) || line.contains(&format!(" -l {flag} ")));
    let shown = completions.split_inclusive('\n').filter(|line| !is_hidden(line)).collect::<String>();
    hidden.iter().fold(shown, |text, flag| text.replace(&format!(" --{flag} "), " "))
}
