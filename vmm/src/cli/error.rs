//! How an error reaches the person: one line, the acts from the outermost to the cause, and an exit status.

use std::error::Error;
use std::fmt;

use super::exit;

/// A command that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// Tried, and it went wrong.
    pub fn error(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with_status(exit::ERROR, error)
    }

    /// Asked for something that makes no sense.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with_status(exit::USAGE, error)
    }

    /// With another exit status.
    pub fn with_status(status: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            status,
            error: error.into(),
        }
    }

    /// What went wrong, on one line.
    pub fn text(&self) -> String {
        chain(self.error.as_ref())
    }

    /// The process's exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ferry: {}", self.text())
    }
}

/// `act: cause: cause`, on one line and without control characters, whatever the texts have in them (a peer's words,
/// for example).
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent layers say what their cause says: once is enough.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, rest) = texts.split_first().map_or(("", texts), |(t, r)| (*t, r));
        let source = (!rest.is_empty()).then(|| Box::new(layers(rest)));
        Layer { text, source }
    }

    #[test]
    fn causes_follow_their_acts_once_and_on_one_line() {
        let table: &[(&[&str], &str)] = &[
            (&["cannot boot"], "ferry: cannot boot"),
            (
                &["cannot boot", "cannot read vmlinuz", "no such file"],
                "ferry: cannot boot: cannot read vmlinuz: no such file",
            ),
            (&["refused", "refused"], "ferry: refused"),
            (
                &["the peer says:\n\x1b[31mno\t room"],
                "ferry: the peer says: [31mno room",
            ),
        ];
        for (texts, line) in table {
            assert_eq!(Failure::error(layers(texts)).to_string(), *line);
        }
        assert_eq!(Failure::error("x").status(), exit::ERROR);
        assert_eq!(Failure::usage("x").status(), exit::USAGE);
    }
}
