//! What the agent is to do, from the kernel's command line: `agent.KEY=VALUE`.
//!
//! `agent.ipK`, `agent.gwK` and `agent.balloon` are for the initramfs's init, which has set up network and drivers
//! before.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// Page writes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// So many, over all workers.
    PerSecond(u32),
    /// As many as possible.
    Max,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::PerSecond(pages) => pages.fmt(f),
            Rate::Max => f.write_str("max"),
        }
    }
}

/// Which pages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Any, with the same probability.
    Uniform,
    /// One after the other.
    Sweep,
}

/// All that the agent can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Size of the working set in MiB, over all workers.
    pub ws_mib: u32,
    /// Page writes a second.
    pub rate: Rate,
    /// Which pages.
    pub pattern: Pattern,
    /// Threads that write, each its part of the working set.
    pub workers: u32,
    /// Time between two ticks.
    pub tick: Duration,
    /// Time in which the whole working set is checked once.
    pub checks: Duration,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            ws_mib: 16,
            rate: Rate::PerSecond(1000),
            pattern: Pattern::Uniform,
            workers: 1,
            tick: Duration::from_millis(100),
            checks: Duration::from_secs(2),
        }
    }
}

/// A word of the command line that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("parameter {word}: expected {expected}")]
pub struct BadParameter {
    word: String,
    expected: &'static str,
}

fn number(text: &str, least: u32, most: u32) -> Option<u32> {
    text.parse().ok().filter(|n| (least..=most).contains(n))
}

impl Parameters {
    /// Takes one value; on failure says what would be right.
    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match (key, value) {
            ("ws", _) => {
                self.ws_mib = number(value, 1, 1 << 20).ok_or("MiB from 1 to 1048576")?;
            }
            ("rate", "max") => self.rate = Rate::Max,
            ("rate", _) => {
                self.rate =
                    Rate::PerSecond(number(value, 0, 100_000_000).ok_or("pages a second, or max")?);
            }
            ("pattern", "uniform") => self.pattern = Pattern::Uniform,
            ("pattern", "sweep") => self.pattern = Pattern::Sweep,
            ("pattern", _) => return Err("uniform or sweep"),
            ("workers", _) => {
                self.workers = number(value, 1, 256).ok_or("threads from 1 to 256")?
            }
            ("tick", _) => {
                let ms = number(value, 1, 60_000).ok_or("milliseconds from 1 to 60000")?;
                self.tick = Duration::from_millis(ms.into());
            }
            ("checks", _) => {
                let seconds = number(value, 1, 3600).ok_or("seconds from 1 to 3600")?;
                self.checks = Duration::from_secs(seconds.into());
            }
            ("balloon", "later") => (),
            ("balloon", _) => return Err("later"),
            _ if key.starts_with("ip") || key.starts_with("gw") => (),
            _ => return Err("agent.ws, rate, pattern, workers, tick, checks, balloon, ipK or gwK"),
        }
        Ok(())
    }
}

impl FromStr for Parameters {
    type Err = BadParameter;

    /// Reads the kernel's command line; words that do not begin with `agent.` are the kernel's.
    fn from_str(line: &str) -> Result<Self, BadParameter> {
        let mut parameters = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some(setting) = word.strip_prefix("agent.") else {
                continue;
            };
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            parameters
                .set(key, value)
                .map_err(|expected| BadParameter {
                    word: word.to_owned(),
                    expected,
                })?;
        }
        Ok(parameters)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_left_alone() {
        let line =
            "console=ttyS0 quiet agent.ws=64 agent.rate=max agent.tick=10 agent.ip0=10.0.0.2/24\n";
        let parameters: Parameters = line.parse().unwrap();
        assert_eq!(parameters.ws_mib, 64);
        assert_eq!(parameters.rate, Rate::Max);
        assert_eq!(parameters.tick, Duration::from_millis(10));
        assert_eq!("quiet".parse(), Ok(Parameters::default()));
    }

    #[test]
    fn a_bad_word_is_named() {
        for word in [
            "agent.ws=0",
            "agent.rate=fast",
            "agent.tick=",
            "agent.tock=1",
            "agent.workers=257",
            "agent.pattern=zigzag",
        ] {
            let error = word.parse::<Parameters>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
