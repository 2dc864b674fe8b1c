//! The command line: flags in, exit status out.
//!
//! Every command is a file with two halves: the flags as clap reads them, dumb, and one conversion into the checked
//! values of [`config`](crate::config) or [`control`](crate::control). What is done with those is another room's.

mod balloon;
mod certs;
mod check;
mod dirty_rate;
mod disk;
pub mod error;
pub mod exit;
mod file;
mod log;
mod manual;
mod migrate;
mod net;
mod orders;
mod predict;
mod receive;
mod restore;
mod run;
mod sandbox;
mod serial;
mod snapshot;
mod status;
mod study;
mod usage;
mod wanted;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use crate::log::Format;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use error::Failure;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "ferry",
    version,
    about = "Boots Linux guests on KVM and moves them between hosts while they run",
    after_help = "\
A guest from one terminal to another:
  ferry check
  ferry run vmlinuz --initramfs initramfs.cpio --control /tmp/a.sock
  ferry receive --listen tcp:127.0.0.1:7000
  ferry migrate --control /tmp/a.sock tcp:127.0.0.1:7000

`ferry COMMAND --help` tells more. FERRY_LOG=debug in the environment shows what happens inside.",
    max_term_width = 100,
    propagate_version = false
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Run(Box<run::Args>),
    Receive(receive::Args),
    Migrate(migrate::Args),
    Snapshot(snapshot::Args),
    Restore(restore::Args),
    Status(status::Args),
    DirtyRate(dirty_rate::Args),
    Predict(Box<predict::Args>),
    Study(study::Args),
    Certs(certs::Args),
    Balloon(balloon::Args),
    Pause(orders::PauseArgs),
    Resume(orders::ResumeArgs),
    Cancel(orders::CancelArgs),
    Stop(orders::StopArgs),
    Man(manual::ManArgs),
    Completions(manual::CompletionsArgs),
}

/// The program: reads the command line, does what it says, prints at most one line of error, and gives the exit status
/// (see [`exit`]).
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

/// Reads a command line, the program's name first, and does nothing.
///
/// # Errors
/// The line that `ferry` would print.
pub fn check_words(words: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    parse(words).map_or_else(|error| Err(usage::line(&error)), |_| Ok(()))
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    command()
        .try_get_matches_from(words)
        .and_then(|matches| Args::from_arg_matches(&matches))
}

/// Reads a command line and makes the checked values of it that start a VMM, and does nothing with them.
fn sense(words: &[OsString]) -> Result<(), file::Nonsense> {
    let checked = match parse(words.iter().cloned())?.command {
        Command::Run(args) => args.config().map(drop),
        Command::Receive(args) => args.config().map(drop),
        _ => Ok(()),
    };
    checked.map_err(|error| file::Nonsense::Values(error.to_string()))
}

fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let words = match file::expand(args.into_iter().collect()) {
        Ok(words) => words,
        Err(error) => {
            let failure = Failure::usage(error);
            crate::log::complain(&failure.text());
            return failure.status();
        }
    };
    let args = match parse(words) {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way as well; so does the help for no command at all.
            if error.use_stderr()
                && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            {
                let _ = writeln!(std::io::stderr(), "{}", usage::line(&error));
            } else {
                let _ = error.print();
            }
            return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    start_log(&args.command);
    let done = match args.command {
        Command::Check(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Receive(args) => args.run(),
        Command::Migrate(args) => args.run(),
        Command::Snapshot(args) => args.run(),
        Command::Restore(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::DirtyRate(args) => args.run(),
        Command::Predict(args) => args.run(),
        Command::Study(args) => args.run(),
        Command::Certs(args) => args.run(),
        Command::Balloon(args) => args.run(),
        Command::Pause(args) => args.run(),
        Command::Resume(args) => args.run(),
        Command::Cancel(args) => args.run(),
        Command::Stop(args) => args.run(),
        Command::Man(args) => args.run(),
        Command::Completions(args) => args.run(),
    };
    done.unwrap_or_else(|failure: Failure| {
        crate::log::complain(&failure.text());
        failure.status()
    })
}

fn command() -> clap::Command {
    Args::command()
}

/// Those that stay say how they want to be logged.
fn start_log(command: &Command) {
    match command {
        Command::Run(args) => args.log.start(),
        Command::Receive(args) => args.log.start(),
        _ => crate::log::start(Format::default(), None),
    }
}

#[cfg(test)]
mod tests;
