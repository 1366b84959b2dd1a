//! `localregistry manual`: man pages and shell completions, from the definitions of the command line. Nothing else enters; a folder of
//! files leaves, the same each time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use serde::Serialize;

use super::cli::Cli;
use super::files;
use super::report::{Report, counted};

/// The shells that completions are written for, with the file that each looks for.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "completions/bash/localregistry"),
    (Shell::Zsh, "completions/zsh/_localregistry"),
    (Shell::Fish, "completions/fish/localregistry.fish"),
];

/// Write man pages and shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = "The folder gets man/man1/ (MANPATH, /usr/share/man) and completions/{bash,zsh,fish}/: bash-completion reads
/usr/share/bash-completion/completions, zsh its fpath, fish ~/.config/fish/completions.

Example:
  localregistry manual -o share && man -l share/man/man1/localregistry-run.1")]
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

#[derive(Debug, Serialize)]
struct Written<'a> {
    dir: &'a Path,
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
    let subcommands: Vec<Command> = program.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help").cloned().collect();
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
    Ok((format!("man/man1/{name}.1"), content))
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut content = Vec::new();
    let mut program = Cli::command();
    let name = program.get_name().to_owned();
    clap_complete::generate(shell, &mut program, name, &mut content);
    content
}
