//! The command line of `pulse`, typed.
//!
//! Words are separated by blanks. Of the whole guest: `beat=MS`, `cpus=N`, `tsc_khz=K`, `wait=hlt|spin`. Of one vCPU,
//! with the prefix `cpuN.` (without it: of vCPU 0): `ws=BASE:SIZE` in MiB, `rate=PAGES_PER_S|max`,
//! `pattern=uniform|sweep|zipf`, `phases=ON:OFF` in ms (bursts at the rate, and calm), `role=write|compute`. The last
//! of two equal words counts.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::pulse::{MAX_PHASE_MS, MAX_VCPUS, Pattern, Phases, WS_END_MIB, WS_MIN_MIB};

/// The highest rate that can be asked for by number, in pages a second.
pub const MAX_RATE: u32 = 10_000_000;

/// How many pages a vCPU writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// So many a second; 0 is none.
    PerSecond(u32),
    /// As many as it can.
    Max,
}

/// A vCPU's working set, in MiB of guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkingSet {
    /// Where it begins, at least [`WS_MIN_MIB`].
    pub base_mib: u32,
    /// Its size, at least 1.
    pub mib: u32,
}

/// What a vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Writes pages at its rate and sleeps in between.
    #[default]
    Write,
    /// Counts loops without a pause, and writes nothing but the count.
    Compute,
}

/// What one vCPU is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuConfig {
    /// What it does.
    pub role: Role,
    /// The pages that it writes.
    pub ws: Option<WorkingSet>,
    /// How many of them a second.
    pub rate: Rate,
    /// Which of them.
    pub pattern: Pattern,
    /// When; None is all the time.
    pub phases: Option<Phases>,
}

impl Default for VcpuConfig {
    fn default() -> Self {
        Self {
            role: Role::Write,
            ws: None,
            rate: Rate::PerSecond(0),
            pattern: Pattern::Uniform,
            phases: None,
        }
    }
}

/// How a vCPU waits for its next task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// It sleeps by HLT until the local APIC's timer wakes it.
    #[default]
    Hlt,
    /// It asks the TSC again and again; needs no interrupts, takes a whole core.
    Spin,
}

/// All that `pulse` can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Milliseconds between two heartbeats, 1 to 10,000.
    pub beat_ms: u32,
    /// TSC frequency; measured by pulse where it is not given.
    pub tsc_khz: Option<u32>,
    /// How vCPUs wait.
    pub wait: Wait,
    /// One entry a vCPU, 1 to [`MAX_VCPUS`].
    pub vcpus: Vec<VcpuConfig>,
}

impl Default for Config {
    /// One vCPU that beats every millisecond and does nothing else.
    fn default() -> Self {
        Self {
            beat_ms: 1,
            tsc_khz: None,
            wait: Wait::Hlt,
            vcpus: vec![VcpuConfig::default()],
        }
    }
}

/// Why a command line is not one of pulse.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A word that is unknown, or whose value is out of range.
    #[error("pulse parameter \"{word}\": {expected}")]
    Word {
        /// The word.
        word: String,
        /// What would be right.
        expected: String,
    },
    /// The words make no sense together.
    #[error("pulse parameters of vCPU {vcpu}: {reason}")]
    Vcpu {
        /// The vCPU.
        vcpu: usize,
        /// What is wrong, with the values and the remedy.
        reason: String,
    },
}

fn in_range(text: &str, least: u32, most: u32) -> Result<u32, String> {
    // Pulse itself reads at most nine digits and no sign.
    let value = Some(text)
        .filter(|t| t.len() <= 9 && t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok());
    match value {
        Some(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("expected a number from {least} to {most}")),
    }
}

fn working_set(text: &str) -> Result<WorkingSet, String> {
    let expected = || {
        format!(
            "expected BASE:SIZE in MiB within {WS_MIN_MIB} to {WS_END_MIB}, for example ws=16:256"
        )
    };
    let (base, size) = text.split_once(':').ok_or_else(expected)?;
    let base_mib = in_range(base, WS_MIN_MIB, WS_END_MIB - 1).map_err(|_| expected())?;
    let mib = in_range(size, 1, WS_END_MIB - base_mib).map_err(|_| expected())?;
    Ok(WorkingSet { base_mib, mib })
}

fn phases(text: &str) -> Result<Phases, String> {
    let expected = || {
        format!(
            "expected ON:OFF in milliseconds, each from 1 to {MAX_PHASE_MS}, for example phases=200:800"
        )
    };
    let (on, off) = text.split_once(':').ok_or_else(expected)?;
    Ok(Phases {
        on_ms: in_range(on, 1, MAX_PHASE_MS).map_err(|_| expected())?,
        off_ms: in_range(off, 1, MAX_PHASE_MS).map_err(|_| expected())?,
    })
}

impl VcpuConfig {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("ws", _) => self.ws = Some(working_set(value)?),
            ("rate", "max") => self.rate = Rate::Max,
            ("rate", _) => self.rate = Rate::PerSecond(in_range(value, 0, MAX_RATE)?),
            ("pattern", "uniform") => self.pattern = Pattern::Uniform,
            ("pattern", "sweep") => self.pattern = Pattern::Sweep,
            ("pattern", "zipf") => self.pattern = Pattern::Zipf,
            ("pattern", _) => return Err("expected uniform, sweep or zipf".to_owned()),
            ("phases", _) => self.phases = Some(phases(value)?),
            ("role", "write") => self.role = Role::Write,
            ("role", "compute") => self.role = Role::Compute,
            ("role", _) => return Err("expected write or compute".to_owned()),
            _ => {
                return Err(
                    "unknown; there are beat, cpus, tsc_khz, wait, and ws, rate, pattern, phases, role (of vCPU N: cpuN.ws …)"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}

impl Config {
    /// Takes one word; `vcpus` has [`MAX_VCPUS`] entries here, `cpus` says how many of them count.
    fn set(&mut self, cpus: &mut u32, key: &str, value: &str) -> Result<(), String> {
        match key {
            "beat" => self.beat_ms = in_range(value, 1, 10_000)?,
            "cpus" => *cpus = in_range(value, 1, MAX_VCPUS)?,
            "tsc_khz" => self.tsc_khz = Some(in_range(value, 10_000, 10_000_000)?),
            "wait" => {
                self.wait = match value {
                    "hlt" => Wait::Hlt,
                    "spin" => Wait::Spin,
                    _ => return Err("expected hlt or spin".to_owned()),
                }
            }
            _ => {
                let (vcpu, key) = match key.strip_prefix("cpu").and_then(|k| k.split_once('.')) {
                    Some((number, key)) => (in_range(number, 0, MAX_VCPUS - 1)?, key),
                    None => (0, key),
                };
                self.vcpus[vcpu as usize].set(key, value)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (vcpu, a) in self.vcpus.iter().enumerate() {
            let wrong = |reason: String| Err(ConfigError::Vcpu { vcpu, reason });
            if a.rate != Rate::PerSecond(0) && (a.ws.is_none() || a.role == Role::Compute) {
                return wrong(
                    "a rate needs a working set (ws=BASE:SIZE) and role=write".to_owned(),
                );
            }
            if a.phases.is_some() && a.rate == Rate::PerSecond(0) {
                return wrong("phases need a rate: bursts of it, and calm".to_owned());
            }
            for (other, b) in self.vcpus[..vcpu].iter().enumerate() {
                if let (Some(x), Some(y)) = (a.ws, b.ws)
                    && x.base_mib < y.base_mib + y.mib
                    && y.base_mib < x.base_mib + x.mib
                {
                    return wrong(format!(
                        "its working set {}:{} overlaps {}:{} of vCPU {other}",
                        x.base_mib, x.mib, y.base_mib, y.mib
                    ));
                }
            }
        }
        Ok(())
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    /// Refuses what pulse itself would refuse, all but working sets that reach beyond the guest's memory.
    fn from_str(line: &str) -> Result<Self, ConfigError> {
        let mut cpus = 1;
        let mut config = Self {
            vcpus: vec![VcpuConfig::default(); MAX_VCPUS as usize],
            ..Self::default()
        };
        for word in line.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            config
                .set(&mut cpus, key, value)
                .map_err(|expected| ConfigError::Word {
                    word: word.to_owned(),
                    expected,
                })?;
        }
        let beyond = config.vcpus.split_off(cpus as usize);
        if let Some(index) = beyond.iter().position(|v| *v != VcpuConfig::default()) {
            return Err(ConfigError::Vcpu {
                vcpu: cpus as usize + index,
                reason: format!(
                    "the guest has {cpus} vCPU(s): give it more with --cpus, or with cpus=N"
                ),
            });
        }
        config.check()?;
        Ok(config)
    }
}

/// How many vCPUs the words ask for by `cpus=`; None where they leave it open.
///
/// # Errors
/// Its value is no number, or not one that pulse takes.
pub fn cpus_asked_for(line: &str) -> Result<Option<u32>, ConfigError> {
    let mut asked = None;
    for word in line.split_ascii_whitespace() {
        if let Some(value) = word.strip_prefix("cpus=") {
            asked = Some(
                in_range(value, 1, MAX_VCPUS).map_err(|expected| ConfigError::Word {
                    word: word.to_owned(),
                    expected,
                })?,
            );
        }
    }
    Ok(asked)
}

impl fmt::Display for Config {
    /// The command line that gives this configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "beat={} cpus={}", self.beat_ms, self.vcpus.len())?;
        if let Some(khz) = self.tsc_khz {
            write!(f, " tsc_khz={khz}")?;
        }
        if self.wait == Wait::Spin {
            f.write_str(" wait=spin")?;
        }
        for (vcpu, config) in self.vcpus.iter().enumerate() {
            let VcpuConfig {
                role,
                ws,
                rate,
                pattern,
                phases,
            } = config;
            if *role == Role::Compute {
                write!(f, " cpu{vcpu}.role=compute")?;
            }
            if let Some(WorkingSet { base_mib, mib }) = ws {
                write!(f, " cpu{vcpu}.ws={base_mib}:{mib}")?;
            }
            match rate {
                Rate::PerSecond(0) => (),
                Rate::PerSecond(pages) => write!(f, " cpu{vcpu}.rate={pages}")?,
                Rate::Max => write!(f, " cpu{vcpu}.rate=max")?,
            }
            match pattern {
                Pattern::Uniform => (),
                Pattern::Sweep => write!(f, " cpu{vcpu}.pattern=sweep")?,
                Pattern::Zipf => write!(f, " cpu{vcpu}.pattern=zipf")?,
            }
            if let Some(Phases { on_ms, off_ms }) = phases {
                write!(f, " cpu{vcpu}.phases={on_ms}:{off_ms}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_says_what_it_was_made_from() {
        let line = "beat=5 cpus=4 tsc_khz=2600000 wait=spin cpu0.ws=16:256 cpu0.rate=100000 \
                    cpu1.role=compute cpu2.ws=272:64 cpu2.rate=max cpu2.pattern=sweep \
                    cpu3.ws=336:64 cpu3.rate=1000 cpu3.pattern=zipf cpu3.phases=200:800";
        let config: Config = line.parse().unwrap();
        assert_eq!(config.to_string(), line);
        assert_eq!(config.vcpus[2].rate, Rate::Max);
        assert_eq!(Config::default().to_string().parse(), Ok(Config::default()));
    }

    #[test]
    fn the_number_of_vcpus_is_asked_for_by_the_last_word_that_does() {
        assert_eq!(cpus_asked_for("cpus=2 rate=1 cpus=4"), Ok(Some(4)));
        assert_eq!(cpus_asked_for("cpu1.rate=1"), Ok(None));
        let error = cpus_asked_for("cpus=many").unwrap_err().to_string();
        assert!(
            error.contains("\"cpus=many\"") && error.contains("1 to 16"),
            "{error}"
        );
    }

    #[test]
    fn words_without_a_prefix_are_those_of_vcpu_0() {
        let short: Config = "ws=16:8 rate=10".parse().unwrap();
        assert_eq!(short, "cpu0.ws=16:8 cpu0.rate=10".parse().unwrap());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (line, part) in [
            ("beat=0", "1 to 10000"),
            ("beat=+1", "1 to 10000"),
            ("beat", "1 to 10000"),
            ("cpus=17", "1 to 16"),
            ("tempo=3", "unknown"),
            ("ws=7:1", "BASE:SIZE"),
            ("ws=16:3569", "BASE:SIZE"),
            ("ws=16", "BASE:SIZE"),
            ("rate=10", "working set"),
            ("rate=-1", "0 to 10000000"),
            ("cpu1.role=compute", "has 1 vCPU(s)"),
            ("cpu16.role=compute", "0 to 15"),
            ("ws=16:8 role=compute rate=1", "role=write"),
            ("cpus=2 ws=16:16 cpu1.ws=31:8", "overlaps 16:16 of vCPU 0"),
            ("pattern=zigzag", "uniform, sweep or zipf"),
            ("ws=16:8 rate=1 phases=5", "ON:OFF"),
            ("ws=16:8 rate=1 phases=0:5", "1 to 60000"),
            ("ws=16:8 phases=5:5", "need a rate"),
        ] {
            let error = line.parse::<Config>().unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
