//! The table of a prediction: what is expected, and in which interval.

use std::fmt::Write;

use migration::predict::{Estimate, Prediction, Verdict};

use super::number::{bytes, count, millis, rate};
use super::style::{Colour, Style};
use super::text::{plain, wrap};

/// What a move would cost, in at most 80 columns.
pub fn prediction_table(prediction: &Prediction, style: Style) -> String {
    let mut table = Table {
        text: String::from("\n"),
        style,
    };
    table.headline(prediction);
    table.times(prediction);
    table.bytes(prediction);
    table.text
}

struct Table {
    text: String,
    style: Style,
}

impl Table {
    fn headline(&mut self, prediction: &Prediction) {
        let (colour, verdict) = match (prediction.verdict, prediction.completes) {
            (Verdict::Converges, _) => (
                Colour::Good,
                "It converges: the guest is never slowed down.",
            ),
            (Verdict::ConvergesThrottled, _) => (
                Colour::Warning,
                "It converges, but only with the guest slowed down.",
            ),
            (Verdict::DoesNotConverge, true) => (
                Colour::Bad,
                "It does not converge: the guest moves with a longer downtime.",
            ),
            (Verdict::DoesNotConverge, false) => {
                (Colour::Bad, "It does not converge: the move is given up.")
            }
        };
        let _ = writeln!(self.text, "{}", self.style.paint(colour, verdict));
        let mut reason = plain(&prediction.reason);
        if prediction.certainty < 0.999 {
            let percent = prediction.certainty * 100.0;
            let _ = write!(reason, " (so {percent:.0} % of the simulated moves end)");
        }
        for line in wrap(&reason, 78) {
            let line = self.style.paint(Colour::Faint, &line);
            let _ = writeln!(self.text, "  {line}");
        }
        self.text.push('\n');
        let head = format!("  {:<22}{:>11}   {}", "", "expected", "at least, at most");
        let _ = writeln!(self.text, "{}", self.style.paint(Colour::Faint, &head));
    }

    fn row(&mut self, name: &str, value: &str, note: &str) {
        let row = format!("  {name:<22}{value:>11}   {note}");
        let _ = writeln!(self.text, "{}", row.trim_end());
    }

    /// A figure with its interval.
    fn figure<T: Copy>(&mut self, name: &str, of: Estimate<T>, shown: impl Fn(T) -> String) {
        let note = format!("{} to {}", shown(of.low), shown(of.high));
        self.row(name, &shown(of.expected), &note);
    }

    fn times(&mut self, prediction: &Prediction) {
        self.figure("total", prediction.total_ms, millis);
        self.figure("  brown-out", prediction.brownout_ms, millis);
        let Estimate {
            expected,
            low,
            high,
        } = prediction.blackout_ms;
        let note = format!(
            "{} to {}, limit {}",
            millis(low),
            millis(high),
            millis(prediction.downtime_limit_ms)
        );
        self.row("  downtime (blackout)", &millis(expected), &note);
        self.figure("rounds", prediction.rounds, count);
        if prediction.throttle_percent.high > 0 {
            let percent = |value: u64| format!("{value} %");
            self.figure("strongest throttle", prediction.throttle_percent, percent);
            self.figure("  asleep for it", prediction.throttled_ms, millis);
        }
        let crowded = prediction.crowded_out_percent;
        if prediction.throttle_percent.high > 0 || crowded > 0.0 {
            let percent = |value: f64| format!("{value:.1} %");
            let lost = prediction.guest_work_lost_percent;
            self.figure("guest work lost", lost, percent);
        }
        if crowded > 0.0 {
            let note = "less processor time for it while the move sends";
            self.row("  crowded out", &format!("{crowded:.0} %"), note);
        }
    }

    fn bytes(&mut self, prediction: &Prediction) {
        self.figure("on the wire", prediction.wire_bytes, bytes);
        self.figure("link carries", prediction.bandwidth_bytes_per_s, rate);
        self.row("round trip", &millis(prediction.round_trip_ms), "");
        let mut pages = Vec::new();
        if prediction.zero_pages > 0 {
            pages.push(format!("{} zeros", count(prediction.zero_pages)));
        }
        if prediction.untouched_pages > 0 {
            pages.push(format!("{} untouched", count(prediction.untouched_pages)));
        }
        let pages = pages.join(", ");
        self.row("memory", &bytes(prediction.memory_bytes), &pages);
        if let Some(rhythm) = prediction.bursts {
            let every = format!("one every {}", millis(rhythm.every_ms));
            self.row("writes in bursts of", &millis(rhythm.burst_ms), &every);
        }
        if prediction.curve_error_percent >= 5.0 {
            let percent = format!("{:.0} %", prediction.curve_error_percent);
            self.row(
                "curve off by",
                &percent,
                "the guest's writing is hard to describe",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migration::options::{Options, ThrottlePolicy};
    use migration::predict::{LinkModel, Memory, Part, Question, Writes, predict};

    use super::*;

    fn shown(throttle: ThrottlePolicy, writes: Vec<Part>, style: Style) -> String {
        let options = Options {
            throttle,
            downtime_limit: Duration::from_millis(50),
            ..Options::default()
        };
        let memory = Memory {
            touched: 250_000,
            zero: 0.1,
            ..Memory::full(1 << 30)
        };
        let link = LinkModel::of(118_000_000, Duration::from_millis(1));
        let question = Question::new(memory, Writes::known(writes), link, options);
        prediction_table(&predict(&question), style)
    }

    #[test]
    fn every_verdict_has_its_words_and_fits_a_terminal() {
        let heavy = || vec![Part::random(131_072, 100_000.0)];
        let table = [
            (
                ThrottlePolicy::Auto,
                vec![],
                "It converges: the guest is never",
            ),
            (
                ThrottlePolicy::Auto,
                heavy(),
                "only with the guest slowed down",
            ),
            (
                ThrottlePolicy::Off,
                heavy(),
                "It does not converge: the move is given up",
            ),
        ];
        for (throttle, writes, words) in table {
            let text = shown(throttle, writes.clone(), Style::PLAIN);
            assert!(text.contains(words), "{text}");
            assert!(
                text.contains("downtime (blackout)") && text.contains("limit 50.0 ms"),
                "{text}"
            );
            assert!(text.contains("25,000 zeros, 12,144 untouched"), "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            assert_ne!(shown(throttle, writes, Style::COLOURED), text);
        }
        let text = shown(ThrottlePolicy::Auto, heavy(), Style::PLAIN);
        assert!(
            text.contains("strongest throttle") && text.contains("guest work lost"),
            "{text}"
        );
    }
}
