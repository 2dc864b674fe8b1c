//! A guest and a link that are described by flags, for a prediction without either.

use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use migration::dirty_rate::{Bursts, Rhythm, Window};
use migration::options::Options;
use migration::pages::{MAX_MEMORY, PAGE_SIZE};
use migration::predict::{Curve, CurveError, LinkModel, Memory, Part, Question, Writes};
use serde::Deserialize;
use thiserror::Error;

use crate::units::{Rate, Size, Span, UnitError};

/// The longest file with a curve.
const MAX_FILE: u64 = 1 << 20;
/// The most from one burst to the next: hardly any watch sees more.
const MOST_BETWEEN_BURSTS_MS: f64 = 60_000.0;
/// The flags that belong to a running guest.
const RUNNING: [&str; 2] = ["control", "target"];

/// A guest that is only described
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Without a running guest")]
pub(super) struct Described {
    /// The guest's memory: 256G
    #[arg(long, value_name = "SIZE", required_unless_present = "control", conflicts_with_all = RUNNING)]
    memory: Option<Size>,

    /// So much of it was ever touched [default: all]
    #[arg(long, value_name = "SIZE", conflicts_with_all = RUNNING)]
    touched: Option<Size>,

    /// So many percent of that are pages of zeros [default: 0]
    #[arg(long, value_name = "PERCENT", conflicts_with_all = RUNNING, value_parser = clap::value_parser!(u8).range(0..=100))]
    zero: Option<u8>,

    /// What the link carries: 40Gbit (bits a second), 1GB (bytes a second)
    #[arg(long, value_name = "RATE", required_unless_present = "control", conflicts_with_all = RUNNING)]
    link: Option<Rate>,

    /// How long a message there and its answer back take [default: 0.1ms]
    #[arg(long, value_name = "TIME", conflicts_with_all = RUNNING)]
    rtt: Option<Span>,

    /// Pages written at least once against time, as TIME:PAGES,…, or a file with that or with the JSON of `ferry
    /// dirty-rate`
    #[arg(long, value_name = "CURVE", conflicts_with_all = RUNNING, conflicts_with = "dirty_rate")]
    dirty_curve: Option<CurveFlag>,

    /// How fast the guest writes, each write to a page: 400MB/s [default: not at all]
    #[arg(long, value_name = "RATE", conflicts_with_all = RUNNING)]
    dirty_rate: Option<Rate>,

    /// To how much of its memory it writes [default: all that was touched]
    #[arg(long, value_name = "SIZE", requires = "dirty_rate", conflicts_with_all = RUNNING)]
    working_set: Option<Size>,

    /// Where it writes in that
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Pattern::Uniform)]
    pattern: Pattern,

    /// So many percent of its time the busiest vCPU runs: throttling takes from the rest first [default: 100]
    #[arg(long, value_name = "PERCENT", conflicts_with_all = RUNNING, value_parser = clap::value_parser!(u8).range(1..=100))]
    busy: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// Anywhere
    Uniform,
    /// Page after page, round and round
    Sweep,
    /// Nine of ten writes to a tenth of it
    Hot,
}

/// A curve, or where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CurveFlag {
    Given(Curve),
    File(PathBuf),
}

/// What cannot be predicted about.
#[derive(Debug, Error)]
pub(super) enum DescribedError {
    #[error("--memory {}: take {} to {}", Size(*.0), Size(PAGE_SIZE), Size(MAX_MEMORY))]
    Memory(u64),
    #[error("--{flag} {}: that is more than the {} of --memory", Size(*.size), Size(*.memory))]
    TooMuch {
        flag: &'static str,
        size: u64,
        memory: u64,
    },
    #[error("--link {}: take at least 1KB/s", Rate(*.0))]
    Link(u64),
    #[error("cannot read the curve in {}; take a file, or write TIME:PAGES,TIME:PAGES", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} has no curve", .path.display())]
    File { path: PathBuf, source: CurveText },
}

/// Text that is no curve.
#[derive(Debug, Error, PartialEq)]
pub(super) enum CurveText {
    #[error("{0:?} is not TIME:PAGES: write 125ms:2507,250ms:5030")]
    Point(String),
    #[error(transparent)]
    Time(#[from] UnitError),
    #[error("not the JSON of `ferry dirty-rate --json`: {0}")]
    Json(String),
    #[error(
        "bursts of {0} ms, one every {1} ms: they are above 0, and every one is over before the next begins, within a minute"
    )]
    Bursts(f64, f64),
    #[error(transparent)]
    Curve(#[from] CurveError),
}

impl FromStr for CurveFlag {
    type Err = CurveText;

    fn from_str(text: &str) -> Result<Self, CurveText> {
        match looks_like_points(text) {
            true => points(text).map(Self::Given),
            false => Ok(Self::File(text.into())),
        }
    }
}

/// `125ms:2507,…` begins with a figure and has a colon; a file may be called so with `./` in front.
fn looks_like_points(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit()) && text.contains(':')
}

/// Points in one or several lines.
fn points(text: &str) -> Result<Curve, CurveText> {
    let words = text.split([',', '\n']).map(str::trim);
    let points = words.filter(|word| !word.is_empty()).map(|word| {
        let (time, pages) = (word.split_once(':')).ok_or_else(|| CurveText::Point(word.into()))?;
        let Span(time) = time.trim().parse()?;
        let pages = pages.trim().parse();
        Ok((time, pages.map_err(|_| CurveText::Point(word.into()))?))
    });
    Ok(Curve::new(points.collect::<Result<_, CurveText>>()?)?)
}

/// What `ferry dirty-rate --json` prints.
#[derive(Deserialize)]
struct Printed {
    windows: Vec<Window>,
    bursts: Option<Bursts>,
}

/// A curve, and when the guest writes so, if not all the time.
type CurveAndRhythm = (Curve, Option<Rhythm>);

impl Printed {
    fn curve(self) -> Result<CurveAndRhythm, CurveText> {
        let Some(Bursts { rhythm, windows }) = self.bursts else {
            return Ok((Curve::measured(&self.windows)?, None));
        };
        let Rhythm { burst_ms, every_ms } = rhythm;
        if !(0.0 < burst_ms && burst_ms < every_ms && every_ms <= MOST_BETWEEN_BURSTS_MS) {
            return Err(CurveText::Bursts(burst_ms, every_ms));
        }
        Ok((Curve::measured(&windows)?, Some(rhythm)))
    }
}

impl CurveFlag {
    fn curve(&self) -> Result<CurveAndRhythm, DescribedError> {
        let path = match self {
            Self::Given(curve) => return Ok((curve.clone(), None)),
            Self::File(path) => path.clone(),
        };
        let mut text = String::new();
        let read = std::fs::File::open(&path);
        let read = read.and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        if let Err(source) = read {
            return Err(DescribedError::Read { path, source });
        }
        let curve = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(&text)
                .map_err(|error| CurveText::Json(error.to_string()))
                .and_then(Printed::curve),
            false => points(&text).map(|curve| (curve, None)),
        };
        curve.map_err(|source| DescribedError::File { path, source })
    }
}

impl Described {
    /// The question that these flags ask.
    ///
    /// # Errors
    /// What does not fit together, or cannot be read.
    pub fn question(&self, options: Options) -> Result<Question, DescribedError> {
        // clap has seen to both being there.
        let (Size(bytes), Rate(rate)) =
            (self.memory.unwrap_or(Size(0)), self.link.unwrap_or(Rate(0)));
        if !(PAGE_SIZE..=MAX_MEMORY).contains(&bytes) {
            return Err(DescribedError::Memory(bytes));
        }
        if rate < 1000 {
            return Err(DescribedError::Link(rate));
        }
        let within = |flag, size: Option<Size>| match size {
            Some(Size(size)) if size > bytes => Err(DescribedError::TooMuch {
                flag,
                size,
                memory: bytes,
            }),
            size => Ok(size.map(|Size(size)| size / PAGE_SIZE)),
        };
        let set = within("working-set", self.working_set)?;
        let touched = within("touched", self.touched)?.unwrap_or(bytes / PAGE_SIZE);
        let memory = Memory {
            bytes,
            touched: touched.max(set.unwrap_or(0)),
            zero: f64::from(self.zero.unwrap_or(0)) / 100.0,
        };
        let (writes, bursts) = match (&self.dirty_curve, self.dirty_rate) {
            (Some(curve), _) => {
                let (curve, bursts) = curve.curve()?;
                (curve.fit(memory.touched), bursts)
            }
            (None, Some(Rate(rate))) => {
                let per_s = rate as f64 / PAGE_SIZE as f64;
                let parts = self.pattern.parts(set.unwrap_or(memory.touched), per_s);
                (Writes::known(parts), None)
            }
            (None, None) => (Writes::known(Vec::new()), None),
        };
        let rtt = self
            .rtt
            .map_or(Duration::from_micros(100), |Span(time)| time);
        Ok(Question {
            bursts,
            busy: f64::from(self.busy.unwrap_or(100)) / 100.0,
            ..Question::new(memory, writes, LinkModel::of(rate, rtt), options)
        })
    }
}

impl Pattern {
    /// So many pages, with so many writes a second.
    fn parts(self, pages: u64, per_s: f64) -> Vec<Part> {
        match self {
            Self::Uniform => vec![Part::random(pages, per_s)],
            Self::Sweep => vec![Part::sweep(pages, per_s)],
            Self::Hot => {
                let hot = (pages / 10).max(1).min(pages);
                vec![
                    Part::random(hot, per_s * 0.9),
                    Part::random(pages - hot, per_s * 0.1),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_written_in_a_line_or_a_file() {
        let ms = Duration::from_millis;
        let expected = Curve::new(vec![(ms(125), 2507), (ms(250), 5030)]).unwrap();
        let given: CurveFlag = "125ms:2507, 0.25s:5030".parse().unwrap();
        assert_eq!(given, CurveFlag::Given(expected.clone()));
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let flag: CurveFlag = path.to_str().unwrap().parse().unwrap();
            flag.curve()
        };
        assert_eq!(
            file("a", "125ms:2507\n250ms:5030\n").unwrap(),
            (expected.clone(), None)
        );
        let json = r#"{"memory_bytes": 1, "windows": [
            {"window_ms": 125.0, "pages": 2507, "bytes_per_s": 1},
            {"window_ms": 250.0, "pages": 5030, "bytes_per_s": 1}]}"#;
        assert_eq!(file("b", json).unwrap(), (expected.clone(), None));
        let with_bursts = |burst_ms: f64, every_ms: f64| {
            let bursts =
                format!(r#", "bursts": {{"burst_ms": {burst_ms}, "every_ms": {every_ms},"#);
            let other = json.replacen("2507", "1", 1);
            let windows = json.split_once("\"windows\"").unwrap().1;
            let (own, _) = other.rsplit_once('}').unwrap();
            file("d", &format!("{own}{bursts} \"windows\"{windows}}}"))
        };
        // The curve of the bursts counts then.
        let rhythm = Rhythm {
            burst_ms: 1000.0,
            every_ms: 3000.0,
        };
        assert_eq!(
            with_bursts(1000.0, 3000.0).unwrap(),
            (expected, Some(rhythm))
        );
        for (burst_ms, every_ms) in [(0.0, 5.0), (5.0, 5.0), (-1.0, 5.0), (1.0, 1e9)] {
            let error = with_bursts(burst_ms, every_ms).unwrap_err();
            assert!(
                crate::cli::error::chain(&error).contains("bursts of"),
                "{error:?}"
            );
        }
        for text in [
            "",
            "{}",
            "125ms",
            "125:7",
            "1s:5,2s:4",
            "1s:-1",
            "{\"windows\": []}",
        ] {
            let error = file("c", text).unwrap_err();
            assert!(
                matches!(error, DescribedError::File { .. }),
                "{text}: {error}"
            );
        }
        let missing: CurveFlag = "/nonexistent".parse().unwrap();
        assert!(
            missing
                .curve()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
        for text in ["125ms:x", "1x:5", "1s:5,1s:6"] {
            assert!(text.parse::<CurveFlag>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_hot_tenth_gets_nine_tenths() {
        let parts = Pattern::Hot.parts(1000, 100.0);
        let pages: Vec<_> = parts.iter().map(|part| part.pages).collect();
        assert_eq!(pages, [100, 900]);
        let rates: Vec<_> = parts
            .iter()
            .map(|part| part.writes_per_s().round())
            .collect();
        assert_eq!(rates, [90.0, 10.0]);
        assert_eq!(Pattern::Hot.parts(0, 1.0)[0].pages, 0);
    }
}
