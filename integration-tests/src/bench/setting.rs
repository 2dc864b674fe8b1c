//! How a program is asked to move a guest. All of it is data: a new option of Ferry is a new line here, and
//! a setting that needs an option which this `ferry` does not know is left out.

use std::process::Command;

use super::scenario::Scenario;
use crate::{Error, programs};

/// A program with its setting.
#[derive(Debug, Clone)]
pub enum Setting {
    /// Ferry.
    Ferry(FerrySetting),
    /// QEMU.
    Qemu(QemuSetting),
}

/// What Ferry is asked beside where to.
#[derive(Debug, Clone)]
pub struct FerrySetting {
    /// As rows name it.
    pub name: String,
    /// More words for `ferry migrate`.
    pub migrate: Vec<String>,
    /// What follows the size in `--memory`.
    pub memory: &'static str,
    /// Whether the destination has touched as much memory as the guest has before it comes.
    pub prefault: bool,
    /// Whether the two processes meet at a Unix socket.
    pub unix: bool,
    /// Whether they encrypt.
    pub tls: bool,
    /// The subcommand and a word of its help without which the setting cannot be had.
    needs: Option<(&'static str, &'static str)>,
}

impl FerrySetting {
    fn new(name: &str, migrate: &str) -> Self {
        Self {
            name: name.to_owned(),
            migrate: migrate.split_whitespace().map(str::to_owned).collect(),
            memory: "",
            prefault: false,
            unix: false,
            tls: false,
            needs: None,
        }
    }

    /// A setting given as `NAME=WORDS` on the command line.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, words)) if !name.is_empty() => Ok(Self::new(name, words)),
            _ => Err("expected NAME=WORDS, for example one-stream='--streams 1'".to_owned()),
        }
    }

    fn needing(self, command: &'static str, word: &'static str) -> Self {
        Self {
            needs: Some((command, word)),
            ..self
        }
    }

    /// All settings that the scenarios name.
    fn all() -> Vec<Self> {
        vec![
            Self::new("default", ""),
            Self::new("compress-none", "--compress none").needing("migrate", "--compress"),
            Self::new("compress-auto", "--compress auto").needing("migrate", "--compress"),
            Self::new("throttle-auto", "--throttle auto").needing("migrate", "--throttle"),
            Self::new("throttle-auto-converge", "--throttle auto-converge")
                .needing("migrate", "auto-converge"),
            Self {
                tls: true,
                ..Self::new("tls", "")
            }
            .needing("migrate", "--tls"),
            Self {
                prefault: true,
                ..Self::new("prefault", "")
            }
            .needing("receive", "--prefault"),
            Self {
                memory: ",backing=memfd",
                unix: true,
                ..Self::new("local", "")
            }
            .needing("run", "backing="),
        ]
    }

    /// Whether this `ferry` knows what the setting needs.
    fn can_be_had(&self) -> Result<bool, Error> {
        let Some((command, word)) = self.needs else {
            return Ok(true);
        };
        let ferry = programs::ferry()?;
        let help = Command::new(&ferry)
            .args([command, "--help"])
            .output()
            .map_err(|e| Error::file("run", &ferry, e))?;
        Ok(String::from_utf8_lossy(&help.stdout).contains(word))
    }
}

/// What QEMU is asked beside where to, by QMP's `migrate-set-parameters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QemuSetting {
    /// As rows name it.
    pub name: &'static str,
    /// `multifd` with so many channels; one plain stream without.
    pub channels: Option<u8>,
    /// `downtime-limit` in milliseconds; 300 without.
    pub downtime_ms: Option<u64>,
    /// Whether `max-bandwidth` is lifted from its default of 128 MiB/s.
    pub unlimited: bool,
    /// Whether `auto-converge` slows the guest down where it writes faster than the link carries.
    pub auto_converge: bool,
    /// Whether the destination has touched as much memory as the guest has before it comes (`-mem-prealloc`).
    pub prealloc: bool,
    /// The most runs of a scenario.
    pub most_runs: u32,
}

/// As few channels as this machine has processors, and a downtime that its user does not notice.
pub const MULTIFD_2: QemuSetting = QemuSetting {
    name: "multifd 2, 10 ms",
    channels: Some(2),
    downtime_ms: Some(10),
    unlimited: true,
    auto_converge: false,
    prealloc: false,
    most_runs: u32::MAX,
};
/// The most bytes a second; uses its downtime limit of 300 ms up.
pub const MULTIFD_4: QemuSetting = QemuSetting {
    name: "multifd 4",
    channels: Some(4),
    downtime_ms: None,
    ..MULTIFD_2
};
/// The same two into memory that has been touched.
pub const MULTIFD_2_TOUCHED: QemuSetting = QemuSetting {
    name: "multifd 2 prealloc",
    prealloc: true,
    ..MULTIFD_2
};
/// See above.
pub const MULTIFD_4_TOUCHED: QemuSetting = QemuSetting {
    name: "multifd 4 prealloc",
    prealloc: true,
    ..MULTIFD_4
};
/// The classic way.
pub const ONE_STREAM: QemuSetting = QemuSetting {
    name: "1 stream, 10 ms",
    channels: None,
    ..MULTIFD_2
};
/// For a guest that writes faster than the link carries.
pub const AUTO_CONVERGE: QemuSetting = QemuSetting {
    name: "auto-converge",
    downtime_ms: Some(50),
    auto_converge: true,
    ..ONE_STREAM
};
/// What one gets without asking: at most 128 MiB/s, 8 s a GiB.
pub const DEFAULTS: QemuSetting = QemuSetting {
    name: "defaults",
    channels: None,
    downtime_ms: None,
    unlimited: false,
    auto_converge: false,
    prealloc: false,
    most_runs: 2,
};

impl Setting {
    /// The settings that take part in a scenario, by program: `more` are settings of Ferry's for all
    /// scenarios. The second list says which were left out, and why.
    pub fn of(
        scenario: &Scenario,
        more: &[FerrySetting],
    ) -> Result<(Vec<Self>, Vec<String>), Error> {
        let (mut taking, mut left_out) = (Vec::new(), Vec::new());
        for setting in FerrySetting::all() {
            if !scenario.ferry.contains(&setting.name.as_str()) {
                continue;
            }
            if setting.can_be_had()? {
                taking.push(Self::Ferry(setting));
            } else {
                let (command, word) = setting.needs.unwrap_or_default();
                left_out.push(format!(
                    "{} with setting {}: this ferry has no {word} in `ferry {command}`",
                    scenario.name, setting.name
                ));
            }
        }
        taking.extend(more.iter().cloned().map(Self::Ferry));
        taking.extend(scenario.qemu.iter().copied().map(Self::Qemu));
        Ok((taking, left_out))
    }

    /// `ferry` or `qemu`.
    pub fn program(&self) -> &'static str {
        match self {
            Self::Ferry(_) => "ferry",
            Self::Qemu(_) => "qemu",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Ferry(setting) => &setting.name,
            Self::Qemu(setting) => setting.name,
        }
    }

    /// Whether the destination has touched the guest's memory beforehand.
    pub fn touched(&self) -> bool {
        match self {
            Self::Ferry(setting) => setting.prefault,
            Self::Qemu(setting) => setting.prealloc,
        }
    }

    /// The most runs of a scenario.
    pub fn most_runs(&self) -> u32 {
        match self {
            Self::Ferry(_) => u32::MAX,
            Self::Qemu(setting) => setting.most_runs,
        }
    }
}
