//! Colour, where somebody sees it.

use std::io::IsTerminal;

/// Whether text gets colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

/// What a piece of text is to stand out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// The number that people look for.
    Bold,
    /// It went well.
    Good,
    /// Look here.
    Warning,
    /// It went wrong.
    Bad,
    /// Bars.
    Bar,
    /// Beside the point.
    Faint,
}

impl Style {
    /// No colours.
    pub const PLAIN: Style = Style { coloured: false };
    /// Colours.
    pub const COLOURED: Style = Style { coloured: true };

    /// What standard output takes.
    pub fn of_stdout() -> Self {
        Self::of(std::io::stdout().is_terminal())
    }

    /// What standard error takes.
    pub fn of_stderr() -> Self {
        Self::of(std::io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let coloured = wants_colour(
            terminal,
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()),
            std::env::var_os("TERM").is_some_and(|value| value == "dumb"),
        );
        Self { coloured }
    }

    /// Whether there are colours.
    pub fn is_coloured(self) -> bool {
        self.coloured
    }

    /// The text in a colour. Pad it before, not after: the codes have no width.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if !self.coloured || text.is_empty() {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Bold => "1",
            Colour::Good => "1;32",
            Colour::Warning => "1;33",
            Colour::Bad => "1;31",
            Colour::Bar => "36",
            Colour::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// <https://no-color.org>: a variable NO_COLOR that is not empty means none.
fn wants_colour(terminal: bool, no_color: bool, dumb: bool) -> bool {
    terminal && !no_color && !dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_that_wants_colour_gets_it() {
        assert!(wants_colour(true, false, false));
        assert!(!wants_colour(false, false, false));
        assert!(!wants_colour(true, true, false));
        assert!(!wants_colour(true, false, true));
        assert_eq!(Style::PLAIN.paint(Colour::Bad, "no"), "no");
        assert_eq!(
            Style::COLOURED.paint(Colour::Bad, "no"),
            "\x1b[1;31mno\x1b[0m"
        );
    }
}
