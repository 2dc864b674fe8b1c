//! The table at the end of a move.
//!
//! The words are the field's: the downtime is the blackout, the time before it in which the guest runs more slowly is
//! the brown-out.

use std::fmt::Write;

use migration::report::{Blackout, BlackoutClock, Outcome, Report};

use super::number::{bytes, count, millis, rate};
use super::rounds::rounds_table;
use super::style::{Colour, Style};
use super::text::{plain, wrap};
use crate::control::{IF_PAUSED, IF_UNKNOWN};

/// The width of the longest bar.
const BAR: usize = 30;

/// How a move to `target` went, in at most 80 columns.
pub fn report_table(report: &Report, target: &str, style: Style) -> String {
    let mut table = Table {
        text: String::from("\n"),
        style,
    };
    table.headline(report, target);
    table.downtime(report);
    table.times(report);
    table.bytes(report);
    if !report.rounds.is_empty() {
        table.text.push('\n');
        table.text.push_str(&rounds_table(&report.rounds, style));
    }
    table.text
}

struct Table {
    text: String,
    style: Style,
}

impl Table {
    fn headline(&mut self, report: &Report, target: &str) {
        let (colour, text) = match report.outcome {
            Outcome::Completed => (Colour::Good, format!("Moved: the guest runs on {target}.")),
            Outcome::Cancelled => (
                Colour::Warning,
                "Cancelled: the guest runs here.".to_owned(),
            ),
            Outcome::Failed => (Colour::Bad, "Failed: the guest runs here.".to_owned()),
            Outcome::Paused => (
                Colour::Bad,
                "Failed, and the guest is paused here: it runs nowhere.".to_owned(),
            ),
            Outcome::Unknown => (
                Colour::Bad,
                format!("Unknown: the guest may run on {target}; it is paused here."),
            ),
        };
        let _ = writeln!(self.text, "{}", self.style.paint(colour, &text));
        for line in wrap(&plain(&report.reason), 78) {
            let line = self.style.paint(Colour::Faint, &line);
            let _ = writeln!(self.text, "  {line}");
        }
        let hint = match report.outcome {
            Outcome::Unknown => Some(IF_UNKNOWN),
            Outcome::Paused => Some(IF_PAUSED),
            Outcome::Completed | Outcome::Cancelled | Outcome::Failed => None,
        };
        if let Some(hint) = hint {
            for line in wrap(&format!("What to do: {hint}."), 78) {
                let _ = writeln!(self.text, "  {line}");
            }
        }
        self.text.push('\n');
    }

    /// A name, a number, and what there is to say of it.
    fn row(&mut self, name: &str, value: &str, note: &str) {
        let line = format!("  {name:<22}{value:>11}   {note}");
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    fn downtime(&mut self, report: &Report) {
        let Some(blackout_ms) = report.blackout_ms else {
            return;
        };
        let mut note = format!("limit {}", millis(report.downtime_limit_ms));
        if let Some(predicted) = report.predicted_blackout_ms {
            let _ = write!(note, ", predicted {}", millis(predicted));
        }
        // The limit is for what moving costs; comparing was asked for on top of it.
        let verifying = report.verify_ms.unwrap_or(0.0);
        let met = blackout_ms - verifying <= report.downtime_limit_ms;
        let colour = if met { Colour::Bold } else { Colour::Warning };
        let name = self
            .style
            .paint(Colour::Bold, &format!("{:<22}", "downtime (blackout)"));
        let value = self
            .style
            .paint(colour, &format!("{:>11}", millis(blackout_ms)));
        let _ = writeln!(self.text, "  {name}{value}   {note}");
        if let Some(parts) = &report.blackout {
            self.breakdown(parts, blackout_ms);
        }
        if report.blackout_clock == Some(BlackoutClock::Bounded) {
            let note = "at most that, by the source's clock alone";
            self.row("  measured", "bounded", note);
        }
    }

    fn breakdown(&mut self, parts: &Blackout, whole: f64) {
        for (name, part) in parts.parts() {
            let bar = self.style.paint(Colour::Bar, &bar(part, whole));
            self.row(&format!("  {name}"), &millis(part), &bar);
        }
    }

    fn times(&mut self, report: &Report) {
        if let Some(brownout) = report.brownout_ms {
            let most = report
                .rounds
                .iter()
                .flat_map(|round| &round.throttle_percent)
                .max();
            let note = match most {
                Some(most) if *most > 0 => format!("guest slowed down, by {most} % at most"),
                _ => "guest ran, never throttled".to_owned(),
            };
            self.row("brown-out", &millis(brownout), &note);
            let asleep = report.throttled_ms.iter().copied().fold(0.0, f64::max);
            if asleep > 0.0 {
                self.row(
                    "  throttled",
                    &millis(asleep),
                    "asleep, the vCPU that was most",
                );
            }
        }
        self.row("set-up", &millis(report.setup_ms), "");
        let rounds = report.rounds.len();
        let plural = if rounds == 1 { "" } else { "s" };
        self.row(
            "total",
            &millis(report.total_ms),
            &format!("{rounds} round{plural}"),
        );
        if let Some(gap) = report.guest_gap_ms {
            let largest = report.largest_gap_ms.map_or(String::new(), |largest| {
                format!("; largest {}", millis(largest))
            });
            self.row(
                "guest gap",
                &millis(gap),
                &format!("between heartbeats{largest}"),
            );
        }
        if let Some(lost) = report.guest_work_lost_percent {
            let vcpus = (0u32..).zip(&report.vcpu_work_lost_percent);
            let known = vcpus.filter_map(|(vcpu, lost)| lost.map(|lost| (vcpu, lost)));
            let note = match known.max_by(|a, b| a.1.total_cmp(&b.1)) {
                Some((vcpu, most)) if report.vcpu_work_lost_percent.len() > 1 => {
                    format!("during the move; vCPU {vcpu} most, {most:.1} %")
                }
                _ => "during the move".to_owned(),
            };
            self.row("guest work lost", &format!("{lost:.1} %"), &note);
        }
        if let Some(verify) = report.verify_ms {
            let note = match report.outcome {
                Outcome::Failed => "compared; not in the limit, nor predicted",
                _ => "equal; not in the limit, nor predicted",
            };
            self.row("verified", &millis(verify), note);
        }
    }

    fn bytes(&mut self, report: &Report) {
        let mut pages = Vec::new();
        if report.zero_pages > 0 {
            pages.push(format!("{} pages of zeros", count(report.zero_pages)));
        }
        if report.untouched_pages > 0 {
            pages.push(format!("{} never touched", count(report.untouched_pages)));
        }
        self.row("memory", &bytes(report.memory_bytes), &pages.join(", "));
        let streams = if report.streams > 1 {
            format!(" over {} streams", report.streams)
        } else {
            String::new()
        };
        let note = format!("mean {}{streams}", rate(report.mean_bandwidth_bytes_per_s));
        self.row("on the wire", &bytes(report.wire_bytes), &note);
        if report.tls {
            let peer = report.tls_peer.as_deref().unwrap_or("an unnamed host");
            let note = format!("to {}, by its certificate", plain(peer));
            self.row("  encrypted", "TLS 1.3", &note);
        }
        if report.compressed_bytes > 0 {
            self.row("  compressed", &bytes(report.compressed_bytes), "of these");
        }
        if report.delta_bytes > 0 {
            self.row("  differences", &bytes(report.delta_bytes), "of these");
        }
    }
}

/// A bar as long as the part of the whole, in eighths of a column.
fn bar(part: f64, whole: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = (part / whole).clamp(0.0, 1.0);
    let eighths = (0..=BAR * 8)
        .rev()
        .find(|eighths| as_f64(*eighths) <= share * as_f64(BAR * 8))
        .unwrap_or(0);
    let end = EIGHTHS.get(eighths % 8).copied().unwrap_or_default();
    format!("{}{end}", "█".repeat(eighths / 8))
}

fn as_f64(value: usize) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
