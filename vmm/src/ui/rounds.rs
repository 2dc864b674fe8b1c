//! The rounds of a move, a line each; of many, the first and the last.

use std::fmt::Write;

use migration::report::Round;

use super::number::{bytes, count, millis, rate};
use super::style::{Colour, Style};

/// Rounds shown before the gap.
const FIRST: usize = 4;
/// Rounds shown after it.
const LAST: usize = 7;

/// The table, in at most 80 columns.
pub(super) fn rounds_table(rounds: &[Round], style: Style) -> String {
    let head = format!(
        "  {:>5} {:>9} {:>11} {:>9} {:>10} {:>11} {:>11} {:>4}",
        "round", "time", "pages", "zero", "wire", "link", "dirtied", "thr."
    );
    let mut text = style.paint(Colour::Faint, &head) + "\n";
    let hidden = rounds.len().saturating_sub(FIRST + LAST);
    for (place, round) in rounds.iter().enumerate() {
        // A gap of one line saves nothing.
        if hidden > 1 && place == FIRST {
            let gap = format!(
                "  {:>5} {hidden} rounds not shown; --report has them all",
                "…"
            );
            let _ = writeln!(text, "{}", style.paint(Colour::Faint, &gap));
        }
        if hidden > 1 && (FIRST..FIRST + hidden).contains(&place) {
            continue;
        }
        let throttle = round.throttle_percent.iter().max().copied().unwrap_or(0);
        let throttle = if throttle > 0 {
            format!("{throttle} %")
        } else {
            "-".to_owned()
        };
        let _ = writeln!(
            text,
            "  {:>5} {:>9} {:>11} {:>9} {:>10} {:>11} {:>11} {:>4}",
            round.index,
            millis(round.duration_ms),
            count(round.dirty_pages),
            count(round.zero_pages),
            bytes(round.wire_bytes),
            rate(round.bandwidth_bytes_per_s),
            rate(round.dirty_bytes_per_s),
            throttle,
        );
    }
    text
}
