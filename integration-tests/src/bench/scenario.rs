//! What is moved: guests, what they do meanwhile, and over which link. The names are a contract.

use std::time::Duration;

use super::setting::{
    AUTO_CONVERGE, DEFAULTS, MULTIFD_2, MULTIFD_2_TOUCHED, MULTIFD_4, MULTIFD_4_TOUCHED,
    ONE_STREAM, QemuSetting,
};

/// What the guest's memory holds from 8 MiB up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: the guest has never touched it.
    Untouched,
    /// Incompressible pages, no two alike.
    Noise,
    /// Words, as logs and source code have them: compresses to about a third.
    Text,
}

/// What lies between the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The loopback interface.
    Loopback,
    /// Two network namespaces joined by a veth pair that htb limits to so much (`tc`'s words).
    Shaped(&'static str),
}

impl Link {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Shaped(rate) => rate,
        }
    }

    /// How long a move over it may take before it counts as one that does not end: over loopback the slowest that does
    /// takes 8 s (QEMU's defaults, 128 MiB/s), at 1 Gbit/s 75 s.
    pub fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Loopback => 60,
            Self::Shaped(_) => 300,
        })
    }
}

/// Whether the host's free memory was in use a moment ago. Where the host is a guest itself that gives free memory
/// back, the first touch of memory that has rested is many times slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temperature {
    /// Touched and freed right before the move.
    Warm,
    /// Free for some seconds.
    Cold,
}

impl Temperature {
    /// As rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// A guest, what it does, and how it is moved.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Pulse's command line.
    pub words: &'static str,
    /// The guest's memory in MiB.
    pub mib: u64,
    /// What that holds.
    pub fill: Fill,
    /// What lies between the programs.
    pub link: Link,
    /// Of the destination's memory.
    pub temperature: Temperature,
    /// The most runs of one setting, however many are asked for.
    pub most_runs: u32,
    /// The downtime limit given to Ferry in milliseconds; its own default without.
    pub downtime_ms: Option<u64>,
    /// The Ferry settings that take part, by name.
    pub ferry: &'static [&'static str],
    /// The QEMU settings that take part.
    pub qemu: &'static [QemuSetting],
}

/// An idle guest, its memory full of noise, over loopback into warm memory: what the others differ from.
const IDLE: Scenario = Scenario {
    name: "1G-idle",
    words: "beat=1",
    mib: 1024,
    fill: Fill::Noise,
    link: Link::Loopback,
    temperature: Temperature::Warm,
    most_runs: u32::MAX,
    downtime_ms: None,
    ferry: &["default"],
    qemu: &[MULTIFD_4, MULTIFD_2, ONE_STREAM, DEFAULTS],
};

/// A guest that writes anywhere in half of its memory, over 1 Gbit/s, by each program's policy for that.
const LOAD: Scenario = Scenario {
    name: "256M-load-1x-1gbit",
    words: "beat=1 ws=16:128 rate=30518 pattern=uniform",
    mib: 256,
    link: Link::Shaped("1gbit"),
    most_runs: 1,
    downtime_ms: Some(50),
    ferry: &["throttle-auto"],
    qemu: &[AUTO_CONVERGE],
    ..IDLE
};

const UNTOUCHED: Scenario = Scenario {
    name: "1G-untouched",
    fill: Fill::Untouched,
    ..IDLE
};

/// All scenarios, in the order of the table.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        ferry: &["default", "prefault", "tls"],
        qemu: &[
            MULTIFD_4,
            MULTIFD_4_TOUCHED,
            MULTIFD_2,
            ONE_STREAM,
            DEFAULTS,
        ],
        ..IDLE
    },
    Scenario {
        name: "4G-idle",
        mib: 4096,
        most_runs: 3,
        ferry: &["default", "prefault"],
        qemu: &[MULTIFD_4, MULTIFD_4_TOUCHED, MULTIFD_2],
        ..IDLE
    },
    Scenario {
        name: "1G-hot64",
        words: "beat=1 ws=16:64 rate=max pattern=sweep",
        downtime_ms: Some(10),
        qemu: &[MULTIFD_2, ONE_STREAM],
        ..IDLE
    },
    UNTOUCHED,
    Scenario {
        name: "4G-untouched",
        mib: 4096,
        most_runs: 3,
        qemu: &[MULTIFD_4, ONE_STREAM],
        ..UNTOUCHED
    },
    Scenario {
        name: "8G-untouched",
        mib: 8192,
        most_runs: 3,
        qemu: &[MULTIFD_4, ONE_STREAM],
        ..UNTOUCHED
    },
    Scenario {
        name: "8G-idle",
        mib: 8192,
        most_runs: 1,
        qemu: &[],
        ..IDLE
    },
    Scenario {
        name: "1G-idle-cold",
        temperature: Temperature::Cold,
        most_runs: 3,
        ferry: &["default", "prefault"],
        qemu: &[MULTIFD_4, MULTIFD_4_TOUCHED, MULTIFD_2],
        ..IDLE
    },
    Scenario {
        name: "4G-idle-10gbit",
        mib: 4096,
        link: Link::Shaped("10gbit"),
        most_runs: 2,
        ferry: &["default", "prefault"],
        qemu: &[MULTIFD_2, MULTIFD_2_TOUCHED],
        ..IDLE
    },
    Scenario {
        name: "4G-idle-1gbit",
        mib: 4096,
        link: Link::Shaped("1gbit"),
        most_runs: 1,
        qemu: &[MULTIFD_2],
        ..IDLE
    },
    Scenario {
        name: "1G-idle-1gbit",
        link: Link::Shaped("1gbit"),
        most_runs: 2,
        ferry: &["default", "compress-auto"],
        qemu: &[MULTIFD_2],
        ..IDLE
    },
    // Half of what the link carries by its name, once, twice, four times that.
    Scenario {
        name: "256M-load-0.5x-1gbit",
        words: "beat=1 ws=16:128 rate=15259 pattern=uniform",
        ..LOAD
    },
    LOAD,
    Scenario {
        name: "256M-load-2x-1gbit",
        words: "beat=1 ws=16:128 rate=61035 pattern=uniform",
        ..LOAD
    },
    Scenario {
        name: "256M-load-4x-1gbit",
        words: "beat=1 ws=16:128 rate=122070 pattern=uniform",
        ..LOAD
    },
    Scenario {
        name: "1G-load-1gbit",
        words: "beat=1 ws=16:512 rate=100000 pattern=uniform",
        mib: 1024,
        ferry: &["throttle-auto", "throttle-auto-converge"],
        ..LOAD
    },
    Scenario {
        name: "1G-text-1gbit",
        fill: Fill::Text,
        link: Link::Shaped("1gbit"),
        most_runs: 2,
        ferry: &["compress-none", "compress-auto"],
        qemu: &[],
        ..IDLE
    },
    Scenario {
        name: "4G-local",
        mib: 4096,
        most_runs: 3,
        ferry: &["local"],
        qemu: &[],
        ..IDLE
    },
];
