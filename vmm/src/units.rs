//! Sizes, rates and durations as people write them: `512M`, `1Gbit`, `50ms`.
//!
//! Exact: integers and decimal fractions, never floating point; what does not fit or is not whole is refused.
//!
//! | kind | suffix | meaning |
//! |---|---|---|
//! | size | none, `B` | bytes |
//! | size | `K` `M` `G` `T`, also `Ki` `KiB` and so on | powers of 1024, as memory is counted |
//! | size | `KB` `MB` `GB` `TB` | powers of 1000 |
//! | rate | `bit` `Kbit` `Mbit` `Gbit` `Tbit`, also with `/s` | bits a second, powers of 1000, as links are sold |
//! | rate | `B` `KB` `MB` `GB` `TB`, also with `/s` | bytes a second, powers of 1000 |
//! | rate | `KiB` `MiB` `GiB` `TiB`, also with `/s` | bytes a second, powers of 1024 |
//! | duration | `us` `ms` `s` `m` `h` | |
//!
//! Bits and bytes differ by eight and are easily mixed up, so a rate has to say which; letters may be of
//! either case, but `b` alone, which people use for both, is refused in rates.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// Text that is not a size, rate or duration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a decimal number with a unit.
    #[error("{text:?} is not a {kind}: write {example}")]
    Syntax {
        /// What was given.
        text: String,
        /// What was wanted: size, rate or duration.
        kind: &'static str,
        /// Some that are right.
        example: &'static str,
    },
    /// A number that 64 bits do not hold.
    #[error("{kind} {text:?} is too large")]
    Overflow {
        /// What was given.
        text: String,
        /// What was wanted.
        kind: &'static str,
    },
    /// A fraction finer than what is counted.
    #[error("{kind} {text:?} is not a whole number of {atom}")]
    Fraction {
        /// What was given.
        text: String,
        /// What was wanted.
        kind: &'static str,
        /// What it is counted in.
        atom: &'static str,
    },
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number of bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

/// A length of time, in microseconds exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// One of the three kinds, for the messages.
struct Kind {
    name: &'static str,
    example: &'static str,
    atom: &'static str,
}

const SIZE: Kind = Kind {
    name: "size",
    example: "512M, 4G or 1GiB (powers of 1024), 500MB (powers of 1000) or a number of bytes",
    atom: "bytes",
};
const RATE: Kind = Kind {
    name: "rate",
    example: "1Gbit or 800Mbit (bits a second), 100MB or 100MiB (bytes a second)",
    atom: "bytes a second",
};
const SPAN: Kind = Kind {
    name: "duration",
    example: "50ms, 2s, 1.5s, 10m or 1h",
    atom: "microseconds",
};

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let scale = |unit: &str| match unit {
            "" | "b" => Some((1, 1)),
            _ => prefixed(unit, &["", "i", "ib"], 1024)
                .or_else(|| prefixed(unit, &["b"], 1000))
                .map(|scale| (scale, 1)),
        };
        parse(text, &SIZE, scale).map(Size)
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // A lone `b` is what people write for bits and for bytes; a capital one has always been the byte.
        let ambiguous = |unit: &str| {
            let unit = unit.strip_suffix("/s").unwrap_or(unit);
            unit.ends_with('b')
        };
        if ambiguous(split(text).1) {
            return Err(syntax(text, &RATE));
        }
        let scale = |unit: &str| {
            let unit = unit.strip_suffix("/s").unwrap_or(unit);
            match unit {
                "bit" => Some((1, 8)),
                "b" => Some((1, 1)),
                _ => prefixed(unit, &["bit"], 1000)
                    .map(|scale| (scale, 8))
                    .or_else(|| prefixed(unit, &["b"], 1000).map(|scale| (scale, 1)))
                    .or_else(|| prefixed(unit, &["ib"], 1024).map(|scale| (scale, 1))),
            }
        };
        parse(text, &RATE, scale).map(Rate)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let scale = |unit: &str| {
            let micros = match unit {
                "us" | "µs" => 1,
                "ms" => 1_000,
                "s" => 1_000_000,
                "m" | "min" => 60_000_000,
                "h" => 3_600_000_000,
                _ => return None,
            };
            Some((micros, 1))
        };
        parse(text, &SPAN, scale).map(|micros| Span(Duration::from_micros(micros)))
    }
}

/// `k` to `t` before one of `rests`, as a power of `base`.
fn prefixed(unit: &str, rests: &[&str], base: u128) -> Option<u128> {
    let mut letters = unit.chars();
    let power = match letters.next()? {
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        _ => return None,
    };
    rests.contains(&letters.as_str()).then(|| base.pow(power))
}

/// The number and the unit.
fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start_matches(' '))
}

fn syntax(text: &str, kind: &Kind) -> UnitError {
    UnitError::Syntax {
        text: text.to_owned(),
        kind: kind.name,
        example: kind.example,
    }
}

/// `number * scale.0 / scale.1`, which must be whole and fit 64 bits.
fn parse(
    text: &str,
    kind: &Kind,
    scale: impl Fn(&str) -> Option<(u128, u128)>,
) -> Result<u64, UnitError> {
    let (number, unit) = split(text);
    let (factor, divisor) = scale(&unit.to_ascii_lowercase()).ok_or_else(|| syntax(text, kind))?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(syntax(text, kind)),
        None => (number, ""),
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(syntax(text, kind));
    }
    let overflow = || UnitError::Overflow {
        text: text.to_owned(),
        kind: kind.name,
    };
    // More than 20 digits before the point never fit 64 bits; 12 after it are finer than any unit needs.
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    if whole.len() > 20 {
        return Err(overflow());
    }
    let finer = || UnitError::Fraction {
        text: text.to_owned(),
        kind: kind.name,
        atom: kind.atom,
    };
    if fraction.len() > 12 {
        return Err(finer());
    }
    let digits = |text: &str| -> Result<u128, UnitError> {
        if text.is_empty() {
            return Ok(0);
        }
        text.parse().map_err(|_| syntax(text, kind))
    };
    let point = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| overflow())?);
    let number = digits(whole)?
        .checked_mul(point)
        .and_then(|whole| whole.checked_add(digits(fraction).ok()?))
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(overflow)?;
    let divisor = divisor * point;
    if !number.is_multiple_of(divisor) {
        return Err(finer());
    }
    u64::try_from(number / divisor).map_err(|_| overflow())
}

/// The largest unit that leaves a whole number.
fn exact(f: &mut fmt::Formatter<'_>, value: u64, units: &[(u64, &str)]) -> fmt::Result {
    for (scale, unit) in units {
        if value >= *scale && value.is_multiple_of(*scale) {
            return f.pad(&format!("{}{unit}", value / scale));
        }
    }
    f.pad(&format!(
        "{value}{}",
        units.last().map_or("", |(_, unit)| unit)
    ))
}

/// Exact, and what [`Size::from_str`] reads back: `512M`, `4G`, `1000` (bytes).
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        exact(
            f,
            self.0,
            &[
                (1 << 40, "T"),
                (1 << 30, "G"),
                (1 << 20, "M"),
                (1 << 10, "K"),
                (1, ""),
            ],
        )
    }
}

/// Exact, and what [`Rate::from_str`] reads back: `1Gbit`, `100Mbit`, `7B`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        exact(
            f,
            self.0,
            &[
                (125_000_000, "Gbit"),
                (125_000, "Mbit"),
                (125, "Kbit"),
                (1, "B"),
            ],
        )
    }
}

/// Exact, and what [`Span::from_str`] reads back: `50ms`, `2s`, `10m`. Below a microsecond it is cut off.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX);
        exact(
            f,
            micros,
            &[
                (3_600_000_000, "h"),
                (60_000_000, "m"),
                (1_000_000, "s"),
                (1_000, "ms"),
                (1, "us"),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("512 MiB", 512 << 20),
            ("1Gi", 1 << 30),
            ("1GiB", 1 << 30),
            ("1GB", 1_000_000_000),
            ("4G", 4 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("1.000G", 1 << 30),
            ("007K", 7 << 10),
            ("16T", 16 << 40),
            ("18446744073709551615", u64::MAX),
            ("16777215T", 16_777_215 << 40),
        ];
        for (text, bytes) in table {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn rates_know_bits_from_bytes() {
        let table = [
            ("1Gbit", 125_000_000),
            ("1gbit", 125_000_000),
            ("1Gbit/s", 125_000_000),
            ("800Mbit", 100_000_000),
            ("100MB", 100_000_000),
            ("100MB/s", 100_000_000),
            ("100MiB", 100 << 20),
            ("8bit", 1),
            ("7B", 7),
            ("2.5Gbit", 312_500_000),
        ];
        for (text, rate) in table {
            assert_eq!(text.parse(), Ok(Rate(rate)), "{text}");
        }
        for text in [
            "1G", "100", "1Gb", "1gb", "1b", "1Gbps", "1Gibit", "1 G bit", "1/s", "",
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(matches!(error, UnitError::Syntax { .. }), "{text}: {error}");
        }
        let error = "1bit".parse::<Rate>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "rate \"1bit\" is not a whole number of bytes a second"
        );
    }

    #[test]
    fn durations_are_exact() {
        let table = [
            ("0s", 0),
            ("50ms", 50_000),
            ("50 ms", 50_000),
            ("1.5s", 1_500_000),
            ("2s", 2_000_000),
            ("300us", 300),
            ("10m", 600_000_000),
            ("1h", 3_600_000_000),
        ];
        for (text, micros) in table {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_micros(micros))),
                "{text}"
            );
        }
        for text in [
            "50", "ms", "-1s", "1e3s", "1s1s", "1d", "", "1..5s", "1.s", ".5s", "+1s",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let overflow = [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999999999999999999999999G",
            "18446744073709551615.5K",
        ];
        for text in overflow {
            let error = text.parse::<Size>().unwrap_err();
            assert!(
                matches!(error, UnitError::Overflow { .. }),
                "{text}: {error}"
            );
        }
        for text in ["0.3", "1.0001K", "0.00000000000000000001T"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(
                matches!(error, UnitError::Fraction { .. }),
                "{text}: {error}"
            );
        }
        for text in [
            "", "M", "-1", "+1", "1e9", "0x10", "1P", "1KiBB", "1 2", "٣", "1iB", "1,5G", "1.5.5",
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(matches!(error, UnitError::Syntax { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        let values = [
            0,
            1,
            7,
            1000,
            1024,
            1536,
            125,
            125_000_000,
            1 << 20,
            (4 << 30) + 1,
            u64::MAX,
        ];
        for value in values {
            assert_eq!(Size(value).to_string().parse(), Ok(Size(value)));
            assert_eq!(Rate(value).to_string().parse(), Ok(Rate(value)));
            let span = Span(Duration::from_micros(value));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        assert_eq!(Size(512 << 20).to_string(), "512M");
        assert_eq!(Rate(125_000_000).to_string(), "1Gbit");
        assert_eq!(Span(Duration::from_millis(50)).to_string(), "50ms");
    }
}
