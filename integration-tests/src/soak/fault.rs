//! A fault as a plain value: drawn from a seed and a number, told in one line, and the same each time.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ferry::End;
use crate::ferry::frames::Kind;

/// One fault on one move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The seed of the whole soak.
    pub seed: u64,
    /// Its number in it.
    pub index: u32,
    /// Where in the move.
    pub place: Place,
    /// What happens there.
    pub act: Act,
    /// How the guest is moved.
    pub setting: Setting,
}

/// A moment of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The source's first connection was made, and nothing was said.
    Connecting,
    /// The `nth` frame of a kind on a stream, of one round where that is given. All count from 1 but streams and
    /// rounds.
    Frame {
        /// Which kind.
        kind: Kind,
        /// Which round.
        round: Option<u32>,
        /// Which of them.
        nth: u32,
        /// The stream: the `stream`th further connection, or the first (0); any of them if none is given.
        stream: Option<usize>,
    },
    /// The `nth` frame, of whatever kind.
    Nth {
        /// Who says it.
        from: End,
        /// Which of them.
        nth: u32,
        /// The stream.
        stream: usize,
    },
    /// In the middle of a frame, most likely.
    Byte {
        /// Who sends it.
        from: End,
        /// Bytes sent before.
        offset: u64,
        /// The stream.
        stream: usize,
    },
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// The connection ends.
    Cut {
        /// How.
        how: Cut,
        /// All streams of the move, not only this one.
        whole: bool,
        /// The frame arrives before.
        behind: bool,
    },
    /// So many thousandths of the frame arrive, and the connection ends.
    Truncate {
        /// Thousandths.
        keep: u16,
    },
    /// Nothing goes on in this direction for a while.
    Stall(Span),
    /// Bytes come slowly for a while.
    Slow {
        /// The most bytes in a millisecond.
        bytes: u16,
        /// For so long.
        ms: u16,
    },
    /// One bit is another.
    Garble {
        /// Where in the frame; over TLS it is the byte of the place.
        part: Part,
        /// Which bit, modulo the size of that part.
        bit: u32,
    },
    /// The frame comes twice.
    Duplicate,
    /// The frame comes after the next one, or a fifth of a second late if there is none.
    Reorder,
    /// The frame never comes.
    Drop,
    /// A process gets a signal.
    Signal {
        /// Which process.
        to: Whom,
        /// What it gets.
        signal: Signal,
        /// The frame arrives before, and so many microseconds go by; else it arrives after.
        behind: Option<u16>,
    },
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// By RST, at both ends.
    Reset,
    /// By FIN, at both ends.
    Close,
    /// By FIN in the direction of the frame; the other one goes on.
    OneWay,
}

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Less than either end waits.
    Ms(u16),
    /// Longer than either end waits.
    BeyondTimeout,
}

/// A part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Kind, reserved, length; of a preamble, what is looked at.
    Header,
    /// These bytes of the body.
    Body {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
    },
    /// All of the body, and what follows it.
    Rest,
}

/// A process of the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    /// The guest's VMM.
    Source,
    /// The receiver.
    Destination,
    /// `ferry migrate`.
    Client,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after that.
    Stop(Span),
    /// SIGSTOP, and SIGKILL once the others have come to rest.
    Freeze,
}

/// How the guest is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Connections.
    pub streams: u16,
    /// So slowly, and with so short a downtime, that there are several rounds.
    pub rounds: bool,
    /// How pages are compressed.
    pub compress: Compress,
    /// Whether differences are sent.
    pub delta: bool,
    /// Whether memory is compared before the handover.
    pub verify: bool,
    /// Over TLS: nobody between the ends sees a frame, and no bit can go unnoticed.
    pub tls: bool,
}

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compress {
    /// Not at all.
    None,
    /// By LZ4.
    Lz4,
    /// By Zstandard.
    Zstd,
}

/// What the ferry under test can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Able {
    /// Compare memory before the handover (`migrate --verify`).
    pub verify: bool,
}

impl Setting {
    /// Words for `ferry migrate`, but those for TLS.
    pub fn words(self) -> Vec<String> {
        let mut words = vec![format!("--streams={}", self.streams)];
        if self.rounds {
            words.extend(["--bandwidth=100MB", "--downtime=20ms"].map(str::to_owned));
        }
        match self.compress {
            Compress::None => {}
            Compress::Lz4 => words.push("--compress=lz4".into()),
            Compress::Zstd => words.push("--compress=zstd".into()),
        }
        if self.delta {
            words.push("--delta=16M".into());
        }
        if self.verify {
            words.push("--verify".into());
        }
        words
    }
}

impl Act {
    /// Whether a move survives this wherever it happens.
    pub fn is_harmless(self) -> bool {
        match self {
            Self::Stall(Span::Ms(_)) | Self::Slow { .. } => true,
            Self::Signal { to, signal, .. } => {
                to == Whom::Client || matches!(signal, Signal::Stop(Span::Ms(_)))
            }
            _ => false,
        }
    }

    /// Which process gets a signal.
    pub fn target(self) -> Option<Whom> {
        match self {
            Self::Signal { to, .. } => Some(to),
            _ => None,
        }
    }

    /// Which process it freezes.
    pub fn freezes(self) -> Option<Whom> {
        match self {
            Self::Signal {
                to,
                signal: Signal::Freeze,
                ..
            } => Some(to),
            _ => None,
        }
    }

    /// Which process is dead in the end.
    pub fn kills(self) -> Option<Whom> {
        match self {
            Self::Signal {
                to,
                signal: Signal::Kill | Signal::Freeze,
                ..
            } => Some(to),
            _ => None,
        }
    }

    /// What it is counted as.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cut { how, .. } => match how {
                Cut::Reset => "reset",
                Cut::Close => "close",
                Cut::OneWay => "close_one_way",
            },
            Self::Truncate { .. } => "truncate",
            Self::Stall(Span::Ms(_)) => "stall_short",
            Self::Stall(Span::BeyondTimeout) => "stall_long",
            Self::Slow { .. } => "slow",
            Self::Garble { .. } => "garble",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Drop => "drop",
            Self::Signal { to, signal, .. } => match (to, signal) {
                (Whom::Source, Signal::Kill) => "kill_source",
                (Whom::Source, Signal::Stop(_)) => "stop_source",
                (Whom::Source, Signal::Freeze) => "freeze_source",
                (Whom::Destination, Signal::Kill) => "kill_destination",
                (Whom::Destination, Signal::Stop(_)) => "stop_destination",
                (Whom::Destination, Signal::Freeze) => "freeze_destination",
                (Whom::Client, _) => "signal_client",
            },
        }
    }
}

impl Fault {
    /// What its place is counted as.
    pub fn place_word(&self) -> &'static str {
        match self.place {
            Place::Byte { .. } if self.setting.tls => "any byte over TLS",
            Place::Connecting => "connecting",
            Place::Frame { kind, .. } => kind.name().unwrap_or("unnamed"),
            Place::Nth { .. } => "any frame",
            Place::Byte { .. } => "any byte",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => write!(f, "at the first connection"),
            Self::Frame {
                kind,
                round,
                nth,
                stream,
            } => {
                write!(f, "at {} {nth}", kind.name().unwrap_or("frame"))?;
                if let Some(round) = round {
                    write!(f, " of round {round}")?;
                }
                match stream {
                    Some(stream) => write!(f, " on stream {stream}"),
                    None => Ok(()),
                }
            }
            Self::Nth { from, nth, stream } => {
                write!(f, "at frame {nth} of the {from:?} on stream {stream}")
            }
            Self::Byte {
                from,
                offset,
                stream,
            } => write!(f, "at byte {offset} of the {from:?} on stream {stream}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} index {}: {:?} {}; {}{}",
            self.seed,
            self.index,
            self.act,
            self.place,
            self.setting.words().join(" "),
            if self.setting.tls { " --tls" } else { "" }
        )
    }
}
