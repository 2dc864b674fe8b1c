//! The command line: flags in, exit status out.
//!
//! Every command is a file with two halves: the flags as clap reads them, dumb, and one conversion into the checked
//! values of [`config`](crate::config) or [`control`](crate::control). What is done with those is another room's.

mod certs;
mod check;
mod dirty_rate;
mod disk;
pub mod error;
pub mod exit;
mod migrate;
mod net;
mod orders;
mod predict;
mod receive;
mod run;
mod sandbox;
mod serial;
mod status;
mod study;
mod usage;
mod wanted;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    Status(status::Args),
    DirtyRate(dirty_rate::Args),
    Predict(Box<predict::Args>),
    Study(study::Args),
    Certs(certs::Args),
    Pause(orders::PauseArgs),
    Resume(orders::ResumeArgs),
    Cancel(orders::CancelArgs),
    Stop(orders::StopArgs),
}

/// The program: reads the command line, does what it says, prints at most one line of error, and gives the exit status
/// (see [`exit`]).
pub fn main() -> ExitCode {
    start_log();
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

fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args = match parse(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version come this way as well; so does the help for no command at all.
            if error.use_stderr()
                && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            {
                eprintln!("{}", usage::line(&error));
            } else {
                let _ = error.print();
            }
            return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    let done = match args.command {
        Command::Check(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Receive(args) => args.run(),
        Command::Migrate(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::DirtyRate(args) => args.run(),
        Command::Predict(args) => args.run(),
        Command::Study(args) => args.run(),
        Command::Certs(args) => args.run(),
        Command::Pause(args) => args.run(),
        Command::Resume(args) => args.run(),
        Command::Cancel(args) => args.run(),
        Command::Stop(args) => args.run(),
    };
    done.unwrap_or_else(|failure: Failure| {
        eprintln!("{failure}");
        failure.status()
    })
}

fn command() -> clap::Command {
    Args::command()
}

/// Warnings to standard error, or what FERRY_LOG asks for.
fn start_log() {
    let filter = EnvFilter::try_from_env("FERRY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // A second call (a program that embeds this one) keeps the first log.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(crate::ui::Style::of_stderr().is_coloured())
        .with_target(false)
        .without_time()
        .try_init();
}

#[cfg(test)]
mod tests;
