//! `--config FILE`: flags from a file. A key is a flag's long name without its dashes (or a positional argument's name),
//! a value what would stand behind it:
//!
//! ```toml
//! memory = "2G"
//! cpus = 2
//! net = ["tap=tap0", "create=ferry1"]
//! insecure-plaintext = true
//! ```
//!
//! There is no second list of what exists: keys are looked up in clap's definitions, and the file becomes words of the
//! command line, in front of those that were typed. What was typed wins: a key whose flag is on the command line is left out,
//! all of its values where it may be given several times. A switch can only be switched on, so a file's `once = true` stays.
//! Each value is tried by itself first, and what does not fit together is traced to a key, so that a complaint has a line.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Id};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::usage;

/// The longest file: more than all flags with all their values need.
const LONGEST: u64 = 64 << 10;
/// The flag that names the file; no key of the file.
const FLAG: &str = "config";

/// The flag, for commands whose flags may stand in a file.
#[derive(Debug, clap::Args)]
pub(super) struct Flag {
    /// Take flags from this TOML file, too: keys are their long names (memory = "2G", net = ["tap=tap0"]). The command
    /// line wins over the file; a flag that may be given several times is replaced as a whole
    #[arg(long = FLAG, id = FLAG, value_name = "FILE")]
    _config: Option<PathBuf>,
}

/// Why a file is of no use.
#[derive(Debug, Error)]
pub(super) enum FileError {
    /// It cannot be read.
    #[error("cannot read the configuration {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is none.
    #[error("configuration {}: longer than {LONGEST} bytes, which no configuration is", .0.display())]
    TooLong(PathBuf),
    /// Something in it makes no sense.
    #[error("{}:{line}: {what}", .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong, and what would not be.
        what: String,
    },
}

/// Why words make no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nonsense {
    /// Two flags that exclude each other.
    Conflict(String),
    /// Values that no guest can have, or that do not fit each other.
    Values(String),
    /// Anything else that clap does not take.
    Words(String),
}

impl From<clap::Error> for Nonsense {
    fn from(error: clap::Error) -> Self {
        let text = complaint(&error);
        match error.kind() {
            ErrorKind::ArgumentConflict => Self::Conflict(text),
            _ => Self::Words(text),
        }
    }
}

/// A line of the file: its number, the argument that it sets, and the words that do.
struct Setting {
    line: usize,
    id: Id,
    words: Vec<OsString>,
}

/// The words with those of the file that they name, if they name one. Words that clap does not take come back as they
/// are: whoever parses them will say so.
///
/// # Errors
/// See [`FileError`].
pub(super) fn expand(words: Vec<OsString>) -> Result<Vec<OsString>, FileError> {
    let Ok(matches) = lenient().try_get_matches_from(&words) else {
        return Ok(words);
    };
    let Some((name, typed)) = matches.subcommand() else {
        return Ok(words);
    };
    let Ok(Some(path)) = typed.try_get_one::<PathBuf>(FLAG) else {
        return Ok(words);
    };
    let at = words.iter().position(|word| word == name);
    let at = at.map_or(words.len(), |at| at + 1);
    let mut settings = settings(name, path)?;
    settings.retain(|setting| {
        typed.value_source(setting.id.as_str()) != Some(ValueSource::CommandLine)
    });
    let merged = |settings: &mut dyn Iterator<Item = &Setting>| {
        let (command, rest) = words.split_at(at);
        let from_file = settings.flat_map(|setting| setting.words.iter());
        let all = command.iter().chain(from_file).chain(rest);
        all.cloned().collect::<Vec<_>>()
    };
    trace(path, &settings, &merged)?;
    Ok(merged(&mut settings.iter()))
}

/// Puts the words of some settings where they belong.
type Merge<'a> = dyn Fn(&mut dyn Iterator<Item = &Setting>) -> Vec<OsString> + 'a;

/// Finds the line to be blamed where settings and words do not fit together.
fn trace(path: &Path, settings: &[Setting], merged: &Merge<'_>) -> Result<(), FileError> {
    let blame = |setting: &Setting, what: &str| FileError::Line {
        path: path.to_owned(),
        line: setting.line,
        what: what.to_owned(),
    };
    let whole = super::sense(&merged(&mut settings.iter()));
    match whole {
        Ok(()) | Err(Nonsense::Words(_)) => Ok(()),
        // The first with which there is a conflict.
        Err(Nonsense::Conflict(_)) => {
            for count in 1..=settings.len() {
                let some = merged(&mut settings[..count].iter());
                if let Err(Nonsense::Conflict(what)) = super::sense(&some) {
                    return Err(blame(&settings[count - 1], &what));
                }
            }
            Ok(())
        }
        // The first without which other values, or none, are wrong; or else the first without which something else is,
        // such as that it is missing.
        Err(Nonsense::Values(what)) => {
            let mut suspect = None;
            for (index, setting) in settings.iter().enumerate() {
                let others = settings[..index].iter().chain(&settings[index + 1..]);
                match super::sense(&merged(&mut others.into_iter())) {
                    Err(Nonsense::Values(same)) if same == what => {}
                    Err(Nonsense::Words(_)) => suspect = suspect.or(Some(setting)),
                    _ => return Err(blame(setting, &what)),
                }
            }
            suspect.map_or(Ok(()), |setting| Err(blame(setting, &what)))
        }
    }
}

/// The command line without any rule on which flags there must be, or may be together.
fn lenient() -> clap::Command {
    super::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            arg.required(false)
                .required_unless_present(Resettable::<Id>::Reset)
                .requires(Resettable::<Id>::Reset)
                .conflicts_with(Resettable::<Id>::Reset)
        })
    })
}

/// What the file says, for a command; each value is one that its flag takes.
fn settings(name: &str, path: &Path) -> Result<Vec<Setting>, FileError> {
    let text = read(path)?;
    let line_of = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
    let wrong = |at: usize, what: String| FileError::Line {
        path: path.to_owned(),
        line: line_of(at),
        what,
    };
    let table = DeTable::parse(&text).map_err(|error| {
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        wrong(error.span().map_or(0, |span| span.start), what)
    })?;
    let all = super::command();
    let args: Vec<&Arg> = (all.find_subcommand(name).into_iter())
        .flat_map(clap::Command::get_arguments)
        .filter(|arg| arg.get_id() != FLAG)
        .collect();
    let mut settings = Vec::new();
    for (key, value) in table.get_ref() {
        let at = key.span().start;
        let known = |arg: &&&Arg| key_of(arg) == key.get_ref().as_ref();
        let Some(arg) = args.iter().find(known) else {
            return Err(wrong(at, unknown(name, key.get_ref(), &args)));
        };
        let words = words_of(arg, value.get_ref()).map_err(|what| wrong(at, what))?;
        let alone = [OsString::from("ferry"), OsString::from(name)];
        let alone = alone.iter().chain(&words);
        if let Err(error) = lenient().try_get_matches_from(alone) {
            return Err(wrong(at, complaint(&error)));
        }
        settings.push(Setting {
            line: line_of(at),
            id: arg.get_id().clone(),
            words,
        });
    }
    settings.sort_by_key(|setting| setting.line);
    Ok(settings)
}

/// The text, read once: a pipe will do, too.
fn read(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    match file.take(LONGEST + 1).read_to_string(&mut text) {
        Ok(length) if length as u64 > LONGEST => Err(FileError::TooLong(path.to_owned())),
        Ok(_) => Ok(text),
        Err(error) => Err(failed(error)),
    }
}

/// What an argument is called in a file.
fn key_of(arg: &Arg) -> &str {
    arg.get_long().unwrap_or(arg.get_id().as_str())
}

fn unknown(name: &str, key: &str, args: &[&Arg]) -> String {
    let mut keys: Vec<_> = args.iter().map(|arg| key_of(arg)).collect();
    keys.sort_unstable();
    format!(
        "unknown key {key:?}: `ferry {name}` has {}",
        keys.join(", ")
    )
}

/// clap's complaint without the program's name in front.
fn complaint(error: &clap::Error) -> String {
    let line = usage::line(error);
    line.strip_prefix("ferry: ").unwrap_or(&line).to_owned()
}

/// The words that set an argument to a value.
fn words_of(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, String> {
    let key = key_of(arg);
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let may_be_bare = arg.get_num_args().is_some_and(|n| n.min_values() == 0);
    match value {
        DeValue::Boolean(on) if switch => Ok(match on {
            true => vec![format!("--{key}").into()],
            false => Vec::new(),
        }),
        _ if switch => Err(format!("{key} is true or false, not {}", a(value))),
        DeValue::Boolean(true) if may_be_bare => Ok(vec![format!("--{key}=").into()]),
        DeValue::Array(values) if matches!(arg.get_action(), ArgAction::Append) => values
            .iter()
            .map(|value| word(arg, value.get_ref()))
            .collect(),
        _ => Ok(vec![word(arg, value)?]),
    }
}

/// One value as one word, which nothing in it can make two of.
fn word(arg: &Arg, value: &DeValue<'_>) -> Result<OsString, String> {
    let key = key_of(arg);
    let text = match value {
        DeValue::String(text) => text.as_ref(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        _ => {
            return Err(format!(
                "{key} is {}: take a text in quotes, or a decimal number",
                a(value)
            ));
        }
    };
    match arg.get_long() {
        Some(long) => Ok(format!("--{long}={text}").into()),
        None if text.starts_with('-') => Err(format!(
            "{key} {text:?} looks like a flag: write \"./{text}\" for a file of that name"
        )),
        None => Ok(text.into()),
    }
}

/// The type of a value, for people.
fn a(value: &DeValue<'_>) -> String {
    match value.type_str() {
        word @ ("array" | "integer") => format!("an {word}"),
        word => format!("a {word}"),
    }
}

#[cfg(test)]
mod tests;
