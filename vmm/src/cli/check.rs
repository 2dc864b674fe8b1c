//! `ferry check`: what of Ferry works on this host.

mod facts;
mod verdict;

use std::io::Write;

use super::error::Failure;
use super::exit;
use crate::ui::{Colour, Style, hang};
use facts::Facts;
use verdict::{Verdict, verdicts};

/// Show what this host can do: run guests, move and receive them, and how fast guests are executed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 everything works here, 1 something does not (the table says what and why), 2 usage,
3 no guest at all can run here.")]
pub struct Args {
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let facts = facts::gather(|| crate::kvm::probe::measure().map_err(Into::into));
        let verdicts = verdicts(&facts);
        let text = if self.json {
            let value = serde_json::json!({ "facts": facts, "verdicts": verdicts });
            format!("{value:#}\n")
        } else {
            table(&facts, &verdicts, Style::of_stdout())
        };
        // A reader that has gone away has seen what it wanted.
        let _ = std::io::stdout().write_all(text.as_bytes());
        Ok(status(&verdicts))
    }
}

fn status(verdicts: &[Verdict]) -> u8 {
    if verdicts.iter().all(|verdict| verdict.works) {
        exit::OK
    } else if verdicts
        .iter()
        .any(|verdict| verdict.what == verdict::BARE && !verdict.works)
    {
        exit::NO_GUESTS
    } else {
        exit::ERROR
    }
}

/// What there is, then what follows from it.
fn table(facts: &Facts, verdicts: &[Verdict], style: Style) -> String {
    let mut text = String::new();
    for (name, value) in facts.rows() {
        text.push_str(&hang(&format!("{name:<18}"), 18, &value));
    }
    text.push('\n');
    for Verdict { what, works, why } in verdicts {
        let mark = match works {
            true => style.paint(Colour::Good, "yes"),
            false => style.paint(Colour::Bad, "no "),
        };
        let head = format!("{what:<18}{mark}  ");
        text.push_str(&hang(&head, 23, why.as_deref().unwrap_or_default()));
    }
    text
}

#[cfg(test)]
mod tests;
