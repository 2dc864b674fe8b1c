//! A move while it goes on: on a terminal a bar and a line a round, elsewhere lines alone.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use migration::report::Round;

use super::number::{bytes, count, millis, rate};
use super::style::{Colour, Style};
use super::text::plain;
use crate::control::Happening;

/// Rates are taken over at least this long, or they flicker.
const RATE_WINDOW: Duration = Duration::from_millis(400);

const CONNECTING: &str = "{prefix:10} {wide_msg}";
const ROUND: &str = "{prefix:10} [{bar:26.cyan}] {percent:>3} %  {wide_msg}";

/// The view of one move, on standard error: standard output is for the table at the end.
pub struct MoveView {
    notes: Notes,
    bar: Option<ProgressBar>,
    speed: Speed,
}

/// Says something beside the bar without breaking it; from any thread.
#[derive(Clone)]
pub struct Notes {
    bar: Option<ProgressBar>,
    style: Style,
}

/// Bytes a second, over the last moments.
#[derive(Debug, Default)]
struct Speed {
    since: Option<(Instant, u64)>,
    bytes_per_s: Option<u64>,
}

impl fmt::Debug for MoveView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoveView").finish_non_exhaustive()
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}

impl MoveView {
    /// A view that begins with a bar that waits for the destination, if there is a terminal.
    pub fn new(target: &str) -> Self {
        let style = Style::of_stderr();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        if bar.is_hidden() {
            let notes = Notes { bar: None, style };
            return Self {
                notes,
                bar: None,
                speed: Speed::default(),
            };
        }
        bar.set_style(template(CONNECTING));
        bar.set_prefix("connecting");
        bar.set_message(target.to_owned());
        Self {
            notes: Notes {
                bar: Some(bar.clone()),
                style,
            },
            bar: Some(bar),
            speed: Speed::default(),
        }
    }

    /// For other threads to say something.
    pub fn notes(&self) -> Notes {
        self.notes.clone()
    }

    /// Shows a step of the move.
    pub fn show(&mut self, happening: &Happening) {
        match happening {
            Happening::Progress {
                pages_done,
                pages,
                wire_bytes,
                ..
            } => self.advance(*pages_done, *pages, *wire_bytes),
            Happening::RoundStarted { index, pages } => self.begin_round(*index, *pages),
            _ => {}
        }
        if let Some(line) = line(happening, self.notes.style) {
            self.notes.line(&line);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn begin_round(&mut self, index: u32, pages: u64) {
        if let Some(bar) = &self.bar {
            bar.set_style(template(ROUND).progress_chars("=> "));
            bar.set_prefix(format!("round {index}"));
            bar.set_length(pages);
            bar.set_position(0);
        }
    }

    fn advance(&mut self, pages_done: u64, pages: u64, wire_bytes: u64) {
        if let Some(bar) = &self.bar {
            let speed = self.speed.after(Instant::now(), wire_bytes);
            bar.set_length(pages);
            bar.set_position(pages_done);
            let left = count(pages.saturating_sub(pages_done));
            let speed = speed.map_or(String::new(), |speed| format!(", {}", rate(speed)));
            bar.set_message(format!("{left} pages left{speed}"));
        }
    }
}

impl Notes {
    /// A line of our own.
    pub fn show(&self, text: &str) {
        self.line(&format!("ferry: {text}"));
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.println(text),
            // A standard error that is gone is no reason to stop watching.
            _ => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

impl Speed {
    fn after(&mut self, now: Instant, wire_bytes: u64) -> Option<u64> {
        let Some((then, before)) = self.since else {
            self.since = Some((now, wire_bytes));
            return None;
        };
        let time = now.saturating_duration_since(then);
        if time >= RATE_WINDOW {
            let bytes = u128::from(wire_bytes.saturating_sub(before));
            let per_s = bytes * 1_000_000 / time.as_micros().max(1);
            self.bytes_per_s = u64::try_from(per_s).ok();
            self.since = Some((now, wire_bytes));
        }
        self.bytes_per_s
    }
}

fn template(text: &str) -> ProgressStyle {
    // The templates are constants, and a test makes them all; a plain bar is no worse than none.
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The line that a step leaves behind, if it does.
fn line(happening: &Happening, style: Style) -> Option<String> {
    Some(match happening {
        Happening::Connected { peer, memory_bytes } => {
            format!(
                "connected to {}, moving {} of memory",
                plain(peer),
                bytes(*memory_bytes)
            )
        }
        Happening::RoundFinished { round } => round_line(round),
        Happening::ThrottleChanged { percent, reason } => {
            let most = percent.iter().max().copied().unwrap_or(0);
            let text = format!("throttle at {most} %: {}", plain(reason));
            style.paint(Colour::Warning, &text)
        }
        Happening::SwitchingOver {
            reason,
            predicted_blackout_ms,
        } => format!(
            "switching over: {}; downtime expected {}",
            plain(reason),
            millis(*predicted_blackout_ms)
        ),
        Happening::Go => "handed over: from here the destination decides".to_owned(),
        Happening::Live { blackout_ms } => {
            let text = format!(
                "live on the destination after {} of downtime",
                millis(*blackout_ms)
            );
            style.paint(Colour::Good, &text)
        }
        // Why it failed is said once, with what became of the guest, when that is known: by the report.
        Happening::Failed { .. }
        | Happening::RoundStarted { .. }
        | Happening::Progress { .. }
        | Happening::Other => {
            return None;
        }
    })
}

/// A round in one line of 80 columns at most; the downtime is what it would be, were the guest stopped now.
pub fn round_line(round: &Round) -> String {
    let throttle = match round.throttle_percent.iter().max() {
        Some(percent) if *percent > 0 => format!(", throttle {percent} %"),
        _ => String::new(),
    };
    format!(
        "round {:>2}: {:>9} pages, {:>7}, {:>11}; downtime {:>7}{throttle}",
        round.index,
        count(round.dirty_pages),
        millis(round.duration_ms),
        rate(round.bandwidth_bytes_per_s),
        millis(round.predicted_blackout_ms),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_one_line_of_a_terminal() {
        let round = Round {
            index: 12,
            duration_ms: 9_120.0,
            dirty_pages: 9_999_999,
            sent_pages: 9_999_999,
            zero_pages: 0,
            rewritten_pages: 0,
            wire_bytes: 1 << 35,
            bandwidth_bytes_per_s: 117_500_000,
            dirty_bytes_per_s: 0,
            throttle_percent: vec![0, 20],
            throttled_ms: vec![0.0, 1_824.0],
            predicted_blackout_ms: 46.9,
        };
        let line = round_line(&round);
        assert_eq!(
            line,
            "round 12: 9,999,999 pages,  9.12 s,  940 Mbit/s; downtime 46.9 ms, throttle 20 %"
        );
        assert!(line.len() <= 80);
    }

    #[test]
    fn the_templates_are_templates() {
        for text in [CONNECTING, ROUND] {
            assert!(ProgressStyle::with_template(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn speed_is_taken_over_a_window() {
        let mut speed = Speed::default();
        let start = Instant::now();
        assert_eq!(speed.after(start, 0), None);
        assert_eq!(speed.after(start + Duration::from_millis(100), 999), None);
        assert_eq!(
            speed.after(start + Duration::from_millis(500), 50_000_000),
            Some(100_000_000)
        );
        assert_eq!(
            speed.after(start + Duration::from_millis(600), 99_000_000),
            Some(100_000_000)
        );
        assert_eq!(speed.after(start + Duration::from_millis(1500), 0), Some(0));
    }

    #[test]
    fn the_peers_words_move_no_cursor() {
        let reason = "no\x1b[2J\r\nroom".to_owned();
        let percent = vec![40];
        let line = line(
            &Happening::ThrottleChanged { percent, reason },
            Style::PLAIN,
        )
        .unwrap();
        assert_eq!(line, "throttle at 40 %: no [2J  room");
    }
}
