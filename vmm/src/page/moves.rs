//! One move as a page: `ferry migrate --html FILE`.

use maud::{Markup, html};
use migration::report::{Outcome, Report, Round};

use super::chart::{Axis, Chart, Mark, Point, Series, short};
use super::{document, float, ms, percent, tile};
use crate::ui::{bytes, count, millis, rate};

/// The whole page of a move to `target`.
pub fn page(report: &Report, target: &str) -> String {
    let title = format!("A move to {target}");
    let body = html! {
        h1 { (title) }
        p.lead { (outcome(report)) " Why then: " (report.reason) "." }
        (tiles(report))
        (blackout(report))
        div.charts { @for chart in charts(report) { (chart.figure()) } }
        h2 { "Round by round" }
        (rounds(&report.rounds))
        footer {
            "Ferry " (env!("CARGO_PKG_VERSION")) ". Brown-out: the guest runs while its memory is copied. Downtime or blackout: it stands still. "
            "Every figure is the report's; docs/design.md says what each means."
        }
    };
    document(&title, &body)
}

fn outcome(report: &Report) -> &'static str {
    match report.outcome {
        Outcome::Completed => "Moved.",
        Outcome::Cancelled => "Cancelled: the guest runs on the source.",
        Outcome::Failed => "Failed: the guest runs on the source.",
        Outcome::Paused => "Failed, and the guest is paused on the source: it runs nowhere.",
        Outcome::Unknown => {
            "Unknown: the guest may run on the destination; it is paused on the source."
        }
    }
}

fn tiles(report: &Report) -> Markup {
    let limit = format!("limit {}", millis(report.downtime_limit_ms));
    let predicted = match report.predicted_blackout_ms {
        Some(predicted) => format!("{limit}, predicted {}", millis(predicted)),
        None => limit,
    };
    let slept: f64 = report.throttled_ms.iter().sum();
    html! {
        div.tiles {
            (tile("downtime (blackout)", &ms(report.blackout_ms), &predicted))
            (tile("in all", &millis(report.total_ms), &format!("brown-out {}", ms(report.brownout_ms))))
            (tile("on the wire", &bytes(report.wire_bytes), &format!("of {} of memory, {}", bytes(report.memory_bytes), rate(report.mean_bandwidth_bytes_per_s))))
            (tile("guest work lost", &percent(report.guest_work_lost_percent), &format!("vCPUs kept asleep for {}", millis(slept))))
            (tile("guest gap", &ms(report.guest_gap_ms), "between the last heartbeat there and the first here"))
        }
    }
}

/// Where the blackout went, as one bar.
fn blackout(report: &Report) -> Markup {
    let (Some(parts), Some(whole)) = (&report.blackout, report.blackout_ms) else {
        return html! {};
    };
    let parts = parts.parts();
    html! {
        h2 { "Where the downtime went" }
        div.bar {
            @for (colour, (name, part)) in parts.iter().enumerate() {
                span class={ "c" (colour) } style={ "width:" (format!("{:.2}", 100.0 * part / whole.max(1e-6))) "%" } title={ (name) ": " (millis(*part)) } {}
            }
        }
        div.legend {
            @for (colour, (name, part)) in parts.iter().enumerate() {
                span class={ "key c" (colour) } { (name) " " (millis(*part)) }
            }
        }
        br;
    }
}

/// When each round began, in seconds from the first.
fn starts(rounds: &[Round]) -> Vec<f64> {
    let mut now = 0.0;
    let each = rounds.iter().map(|round| {
        let start = now;
        now += round.duration_ms / 1000.0;
        start
    });
    each.collect()
}

/// What a throttle was in the mean over all vCPUs.
fn throttle(round: &Round) -> f64 {
    let sum: f64 = round.throttle_percent.iter().map(|p| f64::from(*p)).sum();
    sum / round.throttle_percent.len().max(1) as f64
}

/// Something of each round, as steps over time.
fn over_time(
    rounds: &[Round],
    shown: impl Fn(&Round) -> bool,
    what: impl Fn(&Round) -> f64,
    says: impl Fn(f64) -> String,
) -> Vec<Point> {
    let timed = rounds.iter().zip(starts(rounds));
    let timed: Vec<_> = timed.filter(|(round, _)| shown(round)).collect();
    let mut points: Vec<Point> = timed
        .iter()
        .map(|&(round, x)| Point {
            x,
            y: what(round),
            says: format!("round {}: {}", round.index, says(what(round))),
        })
        .collect();
    if let (Some((last, start)), Some(point)) = (timed.last(), points.last()) {
        let end = Point {
            x: start + last.duration_ms / 1000.0,
            ..point.clone()
        };
        points.push(end);
    }
    points
}

/// The charts of a move.
pub fn charts(report: &Report) -> Vec<Chart> {
    let rounds = &report.rounds;
    if rounds.is_empty() {
        return Vec::new();
    }
    let bars = |name: &str, colour, what: fn(&Round) -> u64| Series {
        name: name.to_owned(),
        colour,
        mark: Mark::Bars,
        points: (rounds.iter().enumerate())
            .map(|(at, round)| Point {
                x: float(at as u64),
                y: float(what(round) * 4096) / f64::from(1 << 20),
                says: format!(
                    "round {}: {} of {name}",
                    round.index,
                    bytes(what(round) * 4096)
                ),
            })
            .collect(),
    };
    // Every round has its bar, not each its number.
    let every = rounds.len().div_ceil(16);
    let number = |round: &Round| match usize::try_from(round.index) {
        Ok(index) if index % every == 0 => index.to_string(),
        _ => String::new(),
    };
    let remainder = Chart {
        title: "What each round had to send".to_owned(),
        note: "A move converges while these shrink. The last round is sent with the guest stopped."
            .to_owned(),
        x: Axis::places("round", rounds.iter().map(number).collect()),
        y: Axis::log("MiB"),
        series: vec![
            bars("pages with content", 0, |round| round.sent_pages),
            bars("pages of zeros", 4, |round| round.zero_pages),
        ],
    };
    // A round of a few pages says nothing of a rate.
    let whole: f64 = rounds.iter().map(|round| round.duration_ms).sum();
    let longest = rounds.iter().map(|round| round.duration_ms);
    let telling = (whole / 100.0).min(longest.fold(0.0, f64::max) / 2.0);
    let mbytes = |what: fn(&Round) -> u64| {
        over_time(
            rounds,
            |round| round.duration_ms >= telling,
            move |round| float(what(round)) / 1e6,
            |v| format!("{} MB/s", short(v)),
        )
    };
    let rates = Chart {
        title: "Bandwidth and dirty rate".to_owned(),
        note:
            "Where the guest writes new pages faster than the link carries them, nothing is gained."
                .to_owned(),
        x: Axis::linear("s since the first round began"),
        y: Axis::linear("MB/s"),
        series: vec![
            Series {
                name: "bandwidth".to_owned(),
                colour: 0,
                mark: Mark::Steps,
                points: mbytes(|round| round.bandwidth_bytes_per_s),
            },
            Series {
                name: "dirty rate".to_owned(),
                colour: 1,
                mark: Mark::Steps,
                points: mbytes(|round| round.dirty_bytes_per_s),
            },
        ],
    };
    let mut charts = vec![remainder, rates];
    if rounds.iter().any(|round| throttle(round) > 0.0) {
        charts.push(Chart {
            title: "Throttle".to_owned(),
            note: "The share of its time that a busy vCPU was kept asleep, in the mean over all."
                .to_owned(),
            x: Axis::linear("s since the first round began"),
            y: Axis::linear("%").reaching(100.0),
            series: vec![Series {
                name: "throttle".to_owned(),
                colour: 5,
                mark: Mark::Steps,
                points: over_time(rounds, |_| true, throttle, |v| format!("{v:.0} %")),
            }],
        });
    }
    charts
}

/// What was left after each round against time, for several moves beside each other.
pub fn remainder_line(name: &str, colour: usize, report: &Report) -> Series {
    let starts = starts(&report.rounds);
    let each = report.rounds.iter().zip(starts);
    Series {
        name: name.to_owned(),
        colour,
        mark: Mark::Line,
        points: each
            .map(|(round, x)| Point {
                x,
                y: float(round.dirty_pages * 4096) / f64::from(1 << 20),
                says: format!(
                    "{name}, round {}: {}",
                    round.index,
                    bytes(round.dirty_pages * 4096)
                ),
            })
            .collect(),
    }
}

/// The throttle against time, likewise.
pub fn throttle_line(name: &str, colour: usize, report: &Report) -> Series {
    Series {
        name: name.to_owned(),
        colour,
        mark: Mark::Steps,
        points: over_time(
            &report.rounds,
            |_| true,
            throttle,
            |v| format!("{name} {v:.0} %"),
        ),
    }
}

fn rounds(rounds: &[Round]) -> Markup {
    html! {
        div.scroll {
            table {
                tr {
                    th { "round" } th { "time" } th { "pages" } th { "of zeros" } th { "on the wire" }
                    th { "bandwidth" } th { "dirty rate" } th { "throttle" } th { "asleep" } th { "downtime predicted" }
                }
                @for round in rounds {
                    tr {
                        td { (round.index) }
                        td { (millis(round.duration_ms)) }
                        td { (count(round.sent_pages)) }
                        td { (count(round.zero_pages)) }
                        td { (bytes(round.wire_bytes)) }
                        td { (rate(round.bandwidth_bytes_per_s)) }
                        td { (rate(round.dirty_bytes_per_s)) }
                        td { (format!("{:.0} %", throttle(round))) }
                        td { (millis(round.throttled_ms.iter().sum())) }
                        td { (millis(round.predicted_blackout_ms)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_where_they_were_also_where_short_ones_are_left_out() {
        let round = |index, duration_ms| Round {
            index,
            duration_ms,
            ..Round::default()
        };
        let rounds = [round(0, 2000.0), round(1, 500.0), round(2, 1000.0)];
        let long = |round: &Round| round.duration_ms >= 1000.0;
        let points = over_time(&rounds, long, |_| 1.0, |_| String::new());
        let at: Vec<f64> = points.iter().map(|point| point.x).collect();
        assert_eq!(at, [0.0, 2.5, 3.5]);
    }
}
