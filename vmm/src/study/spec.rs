//! The file of a study: TOML or JSON, checked, with the line of whatever is wrong.
//!
//! Every key of a sweep takes one value or a list; the sweep is the product of its lists.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;
use toml::Spanned;

use super::case::{self, Case, DirtyRate, FIRST_MIB, Link, Pattern, Phases, Tracking};
use crate::control::{OnTimeout, Throttle};
use crate::units::{Size, Span};

/// The longest file.
const MAX_FILE: u64 = 1 << 20;
/// The most moves of a study: a week of ten seconds each, and more.
pub const MAX_CASES: usize = 100_000;
/// The most values of one key.
const MAX_VALUES: usize = 1000;
/// The most vCPUs of a guest.
const MAX_VCPUS: u8 = 8;

/// Why there is no study.
#[derive(Debug, Error)]
pub enum SpecError {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not say what it should.
    #[error("{}:{line}: {what}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and what would be right.
        what: String,
    },
    /// It asks for too much, or for nothing.
    #[error("{}: {what}", .path.display())]
    Whole {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// A study, as declared.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What the page is called.
    pub title: String,
    /// Its sweeps, in the order in which they are run.
    pub sweeps: Vec<Sweep>,
}

/// A file, whose sweeps may know their place in it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<S> {
    #[serde(default = "untitled")]
    title: String,
    sweep: Vec<S>,
}

fn untitled() -> String {
    "A study of moves".to_owned()
}

/// One sweep.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Sweep {
    cases: Vec<Case>,
    name: String,
}

/// A sweep as it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default = "memory")]
    memory: Many<Size>,
    #[serde(default = "working_set")]
    working_set: Many<Size>,
    #[serde(default = "pattern")]
    pattern: Many<Pattern>,
    phases: Option<Many<Phases>>,
    #[serde(default = "dirty_rate")]
    dirty_rate: Many<DirtyRate>,
    #[serde(default = "writers")]
    writers: Many<u8>,
    #[serde(default = "computing")]
    computing: Many<u8>,
    #[serde(default = "link")]
    link: Many<Link>,
    #[serde(default = "streams")]
    streams: Many<u16>,
    #[serde(default = "throttle")]
    throttle: Many<Policy>,
    #[serde(default = "downtime")]
    downtime: Many<Span>,
    #[serde(default = "dirty_tracking")]
    dirty_tracking: Many<Tracking>,
    #[serde(default = "timeout")]
    timeout: Many<Span>,
    #[serde(default = "on_timeout")]
    on_timeout: Many<AtTimeout>,
    #[serde(default)]
    predict: bool,
    #[serde(default = "once")]
    repeats: u32,
}

/// What a key is without being named: one value.
macro_rules! defaults {
    ($($name:ident: $type:ty = $value:expr;)*) => {
        $(fn $name() -> Many<$type> { Many(vec![$value]) })*
    };
}

defaults! {
    memory: Size = Size(512 << 20);
    working_set: Size = Size(256 << 20);
    pattern: Pattern = Pattern::Uniform;
    dirty_rate: DirtyRate = DirtyRate::Times(0.0);
    writers: u8 = 1;
    computing: u8 = 0;
    link: Link = Link::Shaped(125_000_000);
    streams: u16 = 2;
    throttle: Policy = Policy(Throttle::Auto);
    downtime: Span = Span(std::time::Duration::from_millis(300));
    dirty_tracking: Tracking = Tracking::Bitmap;
    timeout: Span = Span(std::time::Duration::from_secs(120));
    on_timeout: AtTimeout = AtTimeout(OnTimeout::Cancel);
}

fn once() -> u32 {
    1
}

/// A policy by its name on the command line.
#[derive(Debug, Clone, Copy)]
struct Policy(Throttle);

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        case::policy(text).map(Self)
    }
}

#[derive(Debug, Clone, Copy)]
struct AtTimeout(OnTimeout);

impl FromStr for AtTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        case::on_timeout(text).map(Self)
    }
}

/// One value or a list of values, each a text or a number that reads as one.
#[derive(Debug, Clone, PartialEq)]
struct Many<T>(Vec<T>);

/// One of them.
struct One<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for One<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Many(mut values) = deserializer.deserialize_any(OneOrMany::<T> {
            list: false,
            value: PhantomData,
        })?;
        let value = values.pop();
        value.map(Self).ok_or_else(|| de::Error::custom("a value"))
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany::<T> {
            list: true,
            value: PhantomData,
        })
    }
}

struct OneOrMany<T> {
    list: bool,
    value: PhantomData<T>,
}

impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for OneOrMany<T> {
    type Value = Many<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.list {
            true => "a text, a number, or a list of them",
            false => "a text or a number",
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let value = text.parse().map_err(|error| E::custom(error))?;
        Ok(Many(vec![value]))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        if !self.list {
            return Err(de::Error::custom("a list within a list"));
        }
        let mut values = Vec::new();
        while let Some(One(value)) = list.next_element()? {
            values.push(value);
            if values.len() > MAX_VALUES {
                return Err(de::Error::custom(format!("more than {MAX_VALUES} values")));
            }
        }
        if values.is_empty() {
            return Err(de::Error::custom("an empty list: name at least one value"));
        }
        Ok(Many(values))
    }
}

impl TryFrom<Raw> for Sweep {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let name = raw.name.clone();
        let good = |c: char| c.is_ascii_alphanumeric() || " -.,".contains(c);
        if name.is_empty() || name.len() > 60 || !name.chars().all(good) {
            return Err(format!(
                "a sweep called \"{}\": take 1 to 60 letters, digits, blanks, hyphens, commas and dots",
                name.escape_debug()
            ));
        }
        if !(1..=1000).contains(&raw.repeats) {
            return Err(format!("{} repeats: take 1 to 1000", raw.repeats));
        }
        let cases = product(&raw)?;
        for case in &cases {
            check(case).map_err(|what| format!("sweep \"{name}\": {what}"))?;
        }
        Ok(Self { cases, name })
    }
}

/// Each combination of the values, the last key turning fastest.
fn product(raw: &Raw) -> Result<Vec<Case>, String> {
    let none = [None];
    let phases: Vec<_> = raw
        .phases
        .iter()
        .flat_map(|Many(all)| all)
        .map(|&p| Some(p))
        .collect();
    let phases = if phases.is_empty() {
        &none[..]
    } else {
        &phases
    };
    let Many(policies) = &raw.throttle;
    let first = Case {
        sweep: raw.name.clone(),
        memory_bytes: 0,
        working_set_bytes: 0,
        pattern: Pattern::Uniform,
        phases: None,
        dirty_rate: DirtyRate::Max,
        writers: 0,
        computing: 0,
        link: Link::Loopback,
        streams: 0,
        throttle: Throttle::Auto,
        downtime_ms: 0,
        tracking: Tracking::Bitmap,
        timeout_ms: 0,
        on_timeout: OnTimeout::Cancel,
        predict: raw.predict,
        repeat: 0,
    };
    let mut cases = vec![first];
    by(&mut cases, &raw.memory.0, |case, value| {
        case.memory_bytes = value.0
    })?;
    by(&mut cases, &raw.working_set.0, |case, value| {
        case.working_set_bytes = value.0
    })?;
    by(&mut cases, &raw.writers.0, |case, value| {
        case.writers = *value
    })?;
    by(&mut cases, &raw.computing.0, |case, value| {
        case.computing = *value
    })?;
    by(&mut cases, &raw.link.0, |case, value| case.link = *value)?;
    by(&mut cases, &raw.streams.0, |case, value| {
        case.streams = *value
    })?;
    by(&mut cases, &raw.dirty_tracking.0, |case, value| {
        case.tracking = *value
    })?;
    by(&mut cases, &raw.pattern.0, |case, value| {
        case.pattern = *value
    })?;
    by(&mut cases, phases, |case, value| case.phases = *value)?;
    by(&mut cases, &raw.dirty_rate.0, |case, value| {
        case.dirty_rate = *value
    })?;
    by(&mut cases, &raw.timeout.0, |case, value| {
        case.timeout_ms = millis(*value)
    })?;
    by(&mut cases, &raw.on_timeout.0, |case, value| {
        case.on_timeout = value.0
    })?;
    by(&mut cases, &raw.downtime.0, |case, value| {
        case.downtime_ms = millis(*value)
    })?;
    by(&mut cases, policies, |case, value| case.throttle = value.0)?;
    let repeats: Vec<u32> = (0..raw.repeats).collect();
    by(&mut cases, &repeats, |case, value| case.repeat = *value)?;
    Ok(cases)
}

fn by<T>(cases: &mut Vec<Case>, values: &[T], set: impl Fn(&mut Case, &T)) -> Result<(), String> {
    if cases.len().saturating_mul(values.len()) > MAX_CASES {
        return Err(format!("more than {MAX_CASES} moves: shorten the lists"));
    }
    let each = |case: &Case| {
        let with = |value| {
            let mut case = case.clone();
            set(&mut case, value);
            case
        };
        values.iter().map(with).collect::<Vec<_>>()
    };
    *cases = cases.iter().flat_map(each).collect();
    Ok(())
}

fn millis(Span(time): Span) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What cannot be.
fn check(case: &Case) -> Result<(), String> {
    let (memory, set) = (Size(case.memory_bytes), Size(case.working_set_bytes));
    if !(32 << 20..=64 << 30).contains(&memory.0) || memory.0 % (2 << 20) != 0 {
        return Err(format!("memory {memory}: take 32M to 64G, in steps of 2M"));
    }
    let vcpus = u32::from(case.writers) + u32::from(case.computing);
    if !(1..=u32::from(MAX_VCPUS)).contains(&vcpus) {
        return Err(format!(
            "{} writers and {} computing vCPUs: take 1 to {MAX_VCPUS} together",
            case.writers, case.computing
        ));
    }
    if !case.dirty_rate.is_zero() {
        let low = memory.0.min(3 << 30);
        if set.0 + (FIRST_MIB << 20) > low {
            return Err(format!(
                "a working set of {set} in a guest of {memory}: take at most {}",
                Size(low.saturating_sub(FIRST_MIB << 20))
            ));
        }
        if case.writers == 0 || (set.0 >> 20) < u64::from(case.writers) {
            return Err(format!(
                "a dirty rate with {} writers and a working set of {set}: take at least one writer, and 1M for each",
                case.writers
            ));
        }
        if case.dirty_bytes_per_s().is_none()
            && case.link == Link::Loopback
            && case.dirty_rate != DirtyRate::Max
        {
            return Err(format!(
                "a dirty rate of {} over loopback, whose speed has no name: take a rate (400MB/s) or max",
                case.dirty_rate
            ));
        }
    }
    if !(1..=16).contains(&case.streams) {
        return Err(format!("{} streams: take 1 to 16", case.streams));
    }
    if !(1..=3_600_000).contains(&case.downtime_ms) {
        return Err(format!(
            "a downtime of {} ms: take 1ms to 1h",
            case.downtime_ms
        ));
    }
    if !(1000..=86_400_000).contains(&case.timeout_ms) {
        return Err(format!(
            "a timeout of {} ms: take 1s to 24h",
            case.timeout_ms
        ));
    }
    Ok(())
}

impl Spec {
    /// Reads a file: JSON if it is called `*.json`, else TOML.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn read(path: &Path) -> Result<Self, SpecError> {
        let unread = |source| SpecError::Read {
            path: path.to_owned(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(unread)?.len();
        if bytes > MAX_FILE {
            let what = format!("{}, a study has at most {}", Size(bytes), Size(MAX_FILE));
            return Err(SpecError::Whole {
                path: path.to_owned(),
                what,
            });
        }
        let text = std::fs::read_to_string(path).map_err(unread)?;
        let json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        Self::parse(&text, json, path)
    }

    /// Reads a text; `path` is for the errors.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse(text: &str, json: bool, path: &Path) -> Result<Self, SpecError> {
        let wrong = |line, what: String| SpecError::Line {
            path: path.to_owned(),
            line,
            what,
        };
        let line_of = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        let spec = if json {
            let document: Document<Sweep> = serde_json::from_str(text).map_err(|error| {
                // It adds " at line N column M" itself.
                let what = error.to_string();
                let what = what
                    .split(" at line ")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                wrong(error.line(), what)
            })?;
            Self {
                title: document.title,
                sweeps: document.sweep,
            }
        } else {
            let document: Document<Spanned<Raw>> = toml::from_str(text).map_err(|error| {
                let what = error.message().lines().collect::<Vec<_>>().join(", ");
                wrong(line_of(error.span().map_or(0, |span| span.start)), what)
            })?;
            let sweep = |raw: Spanned<Raw>| {
                let line = line_of(raw.span().start);
                Sweep::try_from(raw.into_inner()).map_err(|what| wrong(line, what))
            };
            Self {
                title: document.title,
                sweeps: document
                    .sweep
                    .into_iter()
                    .map(sweep)
                    .collect::<Result<_, _>>()?,
            }
        };
        let whole = |what: String| SpecError::Whole {
            path: path.to_owned(),
            what,
        };
        for (index, sweep) in spec.sweeps.iter().enumerate() {
            let before = &spec.sweeps[..index];
            if before.iter().any(|other| other.name == sweep.name) {
                return Err(whole(format!("two sweeps are called \"{}\"", sweep.name)));
            }
        }
        match spec.cases().count() {
            0 => return Err(whole("there is no [[sweep]] in it".to_owned())),
            many if many > MAX_CASES => {
                return Err(whole(format!(
                    "{many} moves: at most {MAX_CASES} go in one study"
                )));
            }
            _ => {}
        }
        // Each has a record of its own.
        let mut slugs = HashMap::new();
        for case in spec.cases() {
            if let Some(other) = slugs.insert(case.slug(), &case.sweep) {
                return Err(whole(format!(
                    "two moves would have the same record, of sweeps \"{other}\" and \"{}\": name no value twice, and give sweeps names that differ in more than blanks and commas",
                    case.sweep
                )));
            }
        }
        Ok(spec)
    }

    /// All moves, in the order in which they are made.
    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        self.sweeps.iter().flat_map(|sweep| &sweep.cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Spec, String> {
        Spec::parse(text, false, Path::new("s.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_sweep_is_the_product_of_its_lists() {
        let spec = parse(
            "[[sweep]]\nname = \"a\"\ndirty_rate = [\"0.5x\", \"2x\", 0]\nthrottle = [\"auto\", \"auto-converge\"]\nrepeats = 2\n",
        );
        let spec = spec.unwrap();
        let slugs: Vec<_> = spec.cases().map(Case::slug).collect();
        assert_eq!(slugs.len(), 12);
        let mut once = slugs.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), 12, "{slugs:?}");
        assert!(
            slugs.iter().all(|slug| !slug.contains(['/', ' '])),
            "{slugs:?}"
        );
        let first = spec.cases().next().unwrap();
        assert_eq!(first.memory_bytes, 512 << 20);
        assert_eq!(first.ratio(), Some(0.5));
        assert_eq!(
            first.words(),
            "beat=1 cpu0.ws=16:256 cpu0.rate=15259 cpu0.pattern=uniform"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        let table = [
            ("", "s.toml:1: missing field `sweep`"),
            ("sweep = []", "no [[sweep]]"),
            (
                "[[sweep]]\nname = \"a\"\nspeed = 3\n",
                "s.toml:3: unknown field `speed`",
            ),
            (
                "[[sweep]]\nname = \"a\"\n\nmemory = \"lots\"\n",
                "s.toml:4: \"lots\" is not a size",
            ),
            (
                "[[sweep]]\nname = \"a\"\nmemory = [\"512M\", \"1\"]\n",
                "memory 1",
            ),
            (
                "[[sweep]]\nname = \"a\"\ndirty_rate = \"2x\"\nworking_set = \"1G\"\n",
                "s.toml:1: sweep \"a\": a working set of 1G in a guest of 512M: take at most 496M",
            ),
            (
                "[[sweep]]\nname = \"a\"\n[[sweep]]\nname = \"b\"\nstreams = 17\n",
                "s.toml:3: sweep \"b\": 17 streams",
            ),
            (
                "[[sweep]]\nname = \"a\"\nthrottle = \"hard\"\n",
                "s.toml:3: unknown variant `hard`",
            ),
            (
                "[[sweep]]\nname = \"a\"\nlink = \"loopback\"\ndirty_rate = \"2x\"\n",
                "over loopback",
            ),
            ("[[sweep]]\nname = \"a\"\nwriters = -1\n", "s.toml:3: "),
            (
                "[[sweep]]\nname = \"a\"\nwriters = []\n",
                "s.toml:3: an empty list",
            ),
            (
                "[[sweep]]\nname = \"a\"\n[[sweep]]\nname = \"a\"\n",
                "two sweeps",
            ),
            (
                "[[sweep]]\nname = \"a b\"\n[[sweep]]\nname = \"a-b\"\n",
                "the same record, of sweeps \"a b\" and \"a-b\"",
            ),
            (
                "[[sweep]]\nname = \"a\"\nstreams = [1, 2, 1]\n",
                "name no value twice",
            ),
            ("[[sweep]]\nname = \"../a\"\n", "a sweep called"),
            ("[[sweep]]\nname = \"a\"\nrepeats = 0\n", "0 repeats"),
            ("[[sweep]\n", "s.toml:1: "),
        ];
        for (text, expected) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let json = "{\n \"sweep\": [\n  {\"name\": \"a\",\n   \"speed\": 3}\n ]\n}";
        let error = Spec::parse(json, true, Path::new("s.json")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("s.json:4: unknown field `speed`"),
            "{error}"
        );
        let json =
            "{\"sweep\": [{\"name\": \"a\",\n\"dirty_rate\": \"max\", \"memory\": \"64M\"}]}";
        let error = Spec::parse(json, true, Path::new("s.json")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("s.json:2: sweep \"a\": a working set"),
            "{error}"
        );
    }

    #[test]
    fn too_many_moves_are_refused_before_they_are_listed() {
        let list = |unit: &str| {
            let all: Vec<_> = (1..=400).map(|n| format!("\"{n}{unit}\"")).collect();
            all.join(", ")
        };
        let text = format!(
            "[[sweep]]\nname = \"a\"\ndirty_rate = [{}]\ndowntime = [{}]\n",
            list("MB/s"),
            list("ms")
        );
        assert!(parse(&text).unwrap_err().contains("more than 100000 moves"));
    }
}
