//! What the process says on standard error: lines for people, or lines of JSON for whoever collects logs.
//!
//! There are two kinds of news. What a person is told of a guest ([`say`], `ferry: …`) is always told. What happens
//! inside is traced (`tracing`), from a level on. As text they look as different as they are; as JSON both are objects
//! with `timestamp`, `level`, `target` and `message` in one stream.

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that asks for a level where no flag does.
pub const VARIABLE: &str = "FERRY_LOG";
/// Whose news they are that are told as JSON: its level does not silence them.
const TARGET: &str = "ferry";

/// How news are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("take text or json"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// From which level on what happens inside is told: `debug`, or by part of the program, `info,migration=trace`.
#[derive(Debug, Clone, PartialEq)]
pub struct Level(Targets);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim);
        // An empty one would stand for errors alone.
        let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
        // Anything else would be taken for the name of a part that there is not.
        let known = |c: char| c.is_alphanumeric() || "_:-=".contains(c);
        let all_known = parts.iter().all(|part| part.chars().all(known));
        match parts.join(",").parse() {
            Ok(targets) if all_known && !parts.is_empty() => Ok(Self(targets)),
            _ => Err(
                "take error, warn, info, debug, trace or off, or PART=LEVEL, several with commas: info,migration=debug"
                    .to_owned(),
            ),
        }
    }
}

/// Whether news are told as JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Starts the log: from the level on, or what FERRY_LOG asks for, or warnings. A second call (a program that embeds
/// this one) keeps the first log.
pub fn start(format: Format, level: Option<&Level>) {
    let asked = || std::env::var(VARIABLE).ok()?.parse().ok();
    let filter = match level.cloned().or_else(asked) {
        Some(Level(targets)) => targets,
        None => Targets::new().with_default(LevelFilter::WARN),
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // Which would be said on standard error, by a macro that panics if that fails.
        .log_internal_errors(false);
    match format {
        Format::Text => {
            let log = log
                .with_ansi(crate::ui::Style::of_stderr().is_coloured())
                .with_target(false)
                .without_time();
            let _ = tracing_subscriber::registry()
                .with(filter)
                .with(log)
                .try_init();
        }
        Format::Json => {
            // Said anyway, whatever is traced.
            let filter = filter.with_target(TARGET, LevelFilter::INFO);
            let log = log.json().flatten_event(true);
            let started = tracing_subscriber::registry()
                .with(filter)
                .with(log)
                .try_init()
                .is_ok();
            JSON.store(started, Ordering::Relaxed);
        }
    }
}

/// Tells a person, or as JSON whoever collects, how a guest or its move is doing.
pub fn say(text: &str) {
    match JSON.load(Ordering::Relaxed) {
        true => tracing::info!(target: TARGET, "{text}"),
        false => write(text),
    }
}

/// The same of something that went wrong.
pub fn complain(text: &str) {
    match JSON.load(Ordering::Relaxed) {
        true => tracing::error!(target: TARGET, "{text}"),
        false => write(text),
    }
}

/// A disk that is full, a terminal or a reader that is gone: a guest goes on without being told of.
fn write(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "ferry: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_formats_are_words_that_mean_something() {
        for level in [
            "warn",
            "debug",
            "off",
            "info,migration=debug",
            "vmm::machine=trace",
        ] {
            assert!(level.parse::<Level>().is_ok(), "{level}");
        }
        for level in [
            "",
            ",",
            "lots=of",
            "info,,x=1.5=",
            "a=b=c",
            "warn debug",
            "[span]=debug",
        ] {
            assert!(level.parse::<Level>().is_err(), "{level}");
        }
        for level in ["info,", ",info", " info "] {
            assert_eq!(level.parse::<Level>(), "info".parse(), "{level}");
        }
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("JSON".parse::<Format>().is_err());
        assert_eq!(Format::default().to_string(), "text");
    }
}
