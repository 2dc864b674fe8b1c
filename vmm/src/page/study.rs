//! A study as a page.

use std::collections::BTreeMap;

use maud::{Markup, html};
use migration::report::Report;

use super::chart::{Axis, Chart, Mark, Point, Series};
use super::{document, moves, ms, percent, tile};
use crate::study::store::Record;
use crate::study::summary::{Medians, Quality, Summary};
use crate::ui::{bytes, count, millis};

/// Policies in the order of their colours.
const POLICIES: [&str; 5] = ["auto", "auto-converge", "sdps", "dirty-limit", "off"];

fn colour(policy: &str) -> usize {
    let known = POLICIES.iter().position(|name| *name == policy);
    known.unwrap_or(POLICIES.len())
}

/// The whole page.
pub fn page(summary: &Summary, records: &[Record], machine: &str) -> String {
    let body = html! {
        h1 { (summary.title) }
        p.lead { (machine) }
        (tiles(summary))
        (policies(summary, records))
        (one_load(records))
        (predictions(summary, records))
        (scaling(summary, records))
        (failures(summary))
        (all(records))
        footer {
            "Ferry " (env!("CARGO_PKG_VERSION")) ". Every move is a real one, of the bare guest pulse, between two processes; every stamped page and "
            "all filled memory were compared after it. moves.csv, summary.json and moves/ beside this page have all figures. "
            "Work lost: what the guest got done less during the move than in the same time before it."
        }
    };
    document(&summary.title, &body)
}

fn tiles(summary: &Summary) -> Markup {
    let whole = |good: bool, text: &str| {
        if good {
            text.to_owned()
        } else {
            "LOOK HERE".to_owned()
        }
    };
    html! {
        div.tiles {
            (tile("moves", &count(summary.runs as u64), &format!("{} completed", summary.completed)))
            (tile("over the limit", &count(summary.over_limit as u64), "blackouts beyond what was asked for by more than a tenth"))
            (tile("unverified pages", &count(summary.unverified_pages), &whole(summary.unverified_pages == 0, &format!("{} stamps verified", count(summary.verified_pages)))))
            @if let Some(quality) = &summary.prediction {
                (tile("total time predicted", &percent(quality.total_median_error.map(|e| 100.0 * e)), &format!("median error; nine of ten below {}", percent(quality.total_p90_error.map(|e| 100.0 * e)))))
                (tile("verdicts right", &percent(Some(100.0 * quality.verdict_right)), &format!("converges or not, of {} moves", quality.moves)))
            }
        }
    }
}

/// Total time, downtime and lost work of each policy against the load.
fn policies(summary: &Summary, records: &[Record]) -> Markup {
    if summary.policies.is_empty() {
        return html! {};
    }
    // A larger guest takes longer at any rate: only guests of one size are drawn beside each other.
    let size = commonest(records);
    let alike = records
        .iter()
        .filter(|record| record.case.memory_bytes == size);
    let drawn = Summary::of("", &alike.cloned().collect::<Vec<_>>()).policies;
    type Figure = fn(&Medians) -> Option<f64>;
    let figures: [(&str, &str, Axis, Figure); 3] = [
        (
            "Time in all",
            "Until the guest lives on the other side.",
            Axis::linear("s"),
            |m| m.total_ms.map(|ms| ms / 1000.0),
        ),
        (
            "Work that the guest lost",
            "In seconds of its work at full speed.",
            Axis::linear("s of work"),
            |m| m.guest_work_lost_s,
        ),
        (
            "Downtime",
            "Medians; the limits asked for are in the table below.",
            Axis::log("ms"),
            |m| m.blackout_ms,
        ),
    ];
    let mut ratios: Vec<&String> = drawn.values().flat_map(BTreeMap::keys).collect();
    ratios.sort_by(|a, b| parsed(a).total_cmp(&parsed(b)));
    ratios.dedup();
    let names: Vec<String> = ratios
        .iter()
        .map(|ratio| format!("{}x", parsed(ratio)))
        .collect();
    let charts = figures.into_iter().map(|(title, note, y, figure)| {
        let series = drawn.iter().map(|(policy, loads)| Series {
            name: policy.clone(),
            colour: colour(policy),
            mark: Mark::Line,
            points: (ratios.iter().enumerate())
                .filter_map(|(at, ratio)| {
                    let y = figure(loads.get(*ratio)?)?;
                    Some(Point {
                        x: at as f64,
                        y,
                        says: format!("{policy} at {}x: {y:.2}", parsed(ratio)),
                    })
                })
                .collect(),
        });
        Chart {
            title: title.to_owned(),
            note: note.to_owned(),
            x: Axis::places(
                "dirty rate, in times of what the link carries",
                names.clone(),
            ),
            y,
            series: series.collect(),
        }
    });
    // What nothing is known of is not drawn.
    let charts = charts.filter(|chart| chart.series.iter().any(|series| !series.points.is_empty()));
    html! {
        h2 { "Policy against policy" }
        p.lead { "Medians over all patterns and limits of this study, by how fast the guest was to write. The charts are of guests of " (bytes(size)) ", the table is of all." }
        div.charts { @for chart in charts { (chart.figure()) } }
        (policy_table(summary))
    }
}

/// The size of guest that most moves were of.
fn commonest(records: &[Record]) -> u64 {
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for record in records
        .iter()
        .filter(|record| record.case.ratio().is_some())
    {
        *sizes.entry(record.case.memory_bytes).or_default() += 1;
    }
    let most = sizes.into_iter().max_by_key(|(_, moves)| *moves);
    most.map_or(0, |(size, _)| size)
}

fn parsed(number: &str) -> f64 {
    number.parse().unwrap_or(f64::MAX)
}

fn policy_table(summary: &Summary) -> Markup {
    let row = |policy: &str, load: &str, medians: &Medians| {
        html! {
            tr {
                td.text { (policy) } td.text { (load) }
                td { (medians.completed) " of " (medians.runs) }
                td { (ms(medians.total_ms)) } td { (ms(medians.blackout_ms)) } td { (ms(medians.blackout_max_ms)) }
                td { (percent(medians.guest_work_lost_percent)) }
                td { (ms(medians.guest_work_lost_s.map(|s| s * 1000.0))) }
            }
        }
    };
    html! {
        div.scroll {
            table {
                tr {
                    th.text { "policy" } th.text { "load" } th { "completed" } th { "in all" } th { "downtime" } th { "longest" }
                    th { "work lost" } th { "of work" }
                }
                @for (policy, loads) in &summary.policies {
                    @for (load, medians) in loads { (row(policy, &format!("{}x link", parsed(load)), medians)) }
                }
                @for (policy, loads) in &summary.loopback {
                    @for (load, medians) in loads { (row(policy, &format!("{load}, loopback"), medians)) }
                }
            }
        }
    }
}

/// The same load moved under each policy: the one that most policies have a completed move of.
fn one_load(records: &[Record]) -> Markup {
    let mut loads: BTreeMap<(String, u64), BTreeMap<String, &Report>> = BTreeMap::new();
    for record in records {
        // Given up or not: how it went is told either way.
        let Some(report) = record
            .report
            .as_ref()
            .filter(|report| report.rounds.len() > 2)
        else {
            continue;
        };
        let key = (record.case.title(), record.case.downtime_ms);
        loads
            .entry(key)
            .or_default()
            .insert(record.case.policy(), report);
    }
    let busiest = loads.into_iter().max_by(|a, b| {
        let longest = |moves: &BTreeMap<String, &Report>| {
            moves
                .values()
                .map(|report| report.total_ms)
                .fold(0.0, f64::max)
        };
        a.1.len()
            .cmp(&b.1.len())
            .then(longest(&a.1).total_cmp(&longest(&b.1)))
    });
    let Some(((load, limit), moves)) = busiest.filter(|(_, moves)| moves.len() > 1) else {
        return html! {};
    };
    let charts = [
        Chart {
            title: "What was left to send when each round began".to_owned(),
            note: String::new(),
            x: Axis::linear("s"),
            y: Axis::log("MiB"),
            series: (moves.iter())
                .map(|(policy, report)| moves::remainder_line(policy, colour(policy), report))
                .collect(),
        },
        Chart {
            title: "Throttle".to_owned(),
            note: String::new(),
            x: Axis::linear("s"),
            y: Axis::linear("% of a vCPU's time").reaching(100.0),
            series: (moves.iter())
                .map(|(policy, report)| moves::throttle_line(policy, colour(policy), report))
                .collect(),
        },
    ];
    html! {
        h2 { "One load, each policy" }
        p.lead { (load) ", at most " (limit) " ms of downtime." }
        div.charts { @for chart in charts { (chart.figure()) } }
    }
}

/// Predicted against measured.
fn predictions(summary: &Summary, records: &[Record]) -> Markup {
    let Some(quality) = &summary.prediction else {
        return html! {};
    };
    type Figure = fn(&Record, &Report) -> Option<(f64, f64)>;
    let total: Figure = |record, report| {
        let predicted = record.predicted.as_ref()?;
        Some((
            report.total_ms / 1000.0,
            predicted.total_ms.expected / 1000.0,
        ))
    };
    let blackout: Figure = |record, report| {
        let predicted = record.predicted.as_ref()?;
        Some((report.blackout_ms?, predicted.blackout_ms.expected))
    };
    let charts = [("Time in all", "s", total), ("Downtime", "ms", blackout)];
    let charts = charts.map(|(title, unit, figure)| scatter(records, title, unit, figure));
    html! {
        h2 { "Predicted against measured" }
        p.lead { (told(quality)) }
        div.charts { @for chart in charts { (chart.figure()) } }
    }
}

fn told(quality: &Quality) -> String {
    let hundred = |share: Option<f64>| percent(share.map(|share| 100.0 * share));
    let points = |points: Option<f64>| points.map_or("–".to_owned(), |p| format!("{p:.1}"));
    format!(
        "{} moves were predicted right before they were made. Of the {} that completed: median error of the time {}, nine of ten below {}; downtime within 5 ms or a quarter in {}; work lost off by {} points in the median, nine of ten by less than {}. Verdict right in {}.",
        quality.moves,
        quality.completed,
        hundred(quality.total_median_error),
        hundred(quality.total_p90_error),
        hundred(quality.blackout_within),
        points(quality.work_lost_median_points),
        points(quality.work_lost_p90_points),
        hundred(Some(quality.verdict_right))
    )
}

fn scatter(
    records: &[Record],
    title: &str,
    unit: &str,
    figure: fn(&Record, &Report) -> Option<(f64, f64)>,
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    let (mut least, mut most) = (f64::INFINITY, 0.0f64);
    for policy in POLICIES {
        let points = records
            .iter()
            .filter(|record| record.case.policy() == policy);
        let points: Vec<Point> = points
            .filter_map(|record| {
                let (x, y) = figure(record, record.completed()?)?;
                least = least.min(x).min(y);
                most = most.max(x).max(y);
                Some(Point {
                    x,
                    y,
                    says: format!(
                        "{policy}, {}: measured {x:.3} {unit}, predicted {y:.3} {unit}",
                        record.case.title()
                    ),
                })
            })
            .collect();
        if !points.is_empty() {
            series.push(Series {
                name: policy.to_owned(),
                colour: colour(policy),
                mark: Mark::Dots,
                points,
            });
        }
    }
    let end = |at: f64| Point {
        x: at,
        y: at,
        says: String::new(),
    };
    if least.is_finite() {
        series.push(Series {
            name: "as measured".to_owned(),
            colour: 4,
            mark: Mark::Guide,
            points: vec![end(least), end(most)],
        });
    }
    Chart {
        title: title.to_owned(),
        note: String::new(),
        x: Axis::log(&format!("measured, {unit}")),
        y: Axis::log(&format!("predicted, {unit}")),
        series,
    }
}

/// Work lost, move by move, against the load.
fn scaling(summary: &Summary, records: &[Record]) -> Markup {
    let mut series: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for record in records {
        let (Some(ratio), Some(report)) = (record.case.ratio(), record.completed()) else {
            continue;
        };
        if let Some(lost) = report.guest_work_lost_percent {
            series.entry(record.case.policy()).or_default().push(Point {
                x: ratio,
                y: lost,
                says: format!(
                    "{}, {}: {lost:.1} % of its work in {}",
                    record.case.policy(),
                    record.case.title(),
                    millis(report.total_ms)
                ),
            });
        }
    }
    if series.is_empty() {
        return html! {};
    }
    let series = series.into_iter().map(|(policy, points)| Series {
        colour: colour(&policy),
        name: policy,
        mark: Mark::Dots,
        points,
    });
    let chart = Chart {
        title: "Work lost during the move".to_owned(),
        note: "Each dot is a move. A percentage of a short move is less work than the same of a long one.".to_owned(),
        x: Axis::linear("dirty rate, in times of what the link carries"),
        y: Axis::linear("% of the guest's work"),
        series: series.collect(),
    };
    html! {
        h2 { "What the guest paid" }
        div.charts { (chart.figure()) }
        (computing(summary))
    }
}

/// What vCPUs paid that write nothing.
fn computing(summary: &Summary) -> Markup {
    if summary.computing.is_empty() {
        return html! {};
    }
    html! {
        h3 { "vCPUs that only compute, beside others that write" }
        div.scroll {
            table {
                tr { th.text { "policy" } th { "moves" } th { "work lost" } th { "work lost per second of processor time" } th { "in one move, at most" } }
                @for (policy, lost) in &summary.computing {
                    tr {
                        td.text { (policy) } td { (lost.moves) } td { (percent(lost.work_lost_percent)) }
                        td { (percent(lost.work_per_cpu_s_lost_percent)) }
                        td { (percent(lost.work_per_cpu_s_lost_percent_max)) }
                    }
                }
            }
        }
    }
}

fn failures(summary: &Summary) -> Markup {
    if summary.failures.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Moves that did not complete" }
        p.lead { "A move that is given up leaves the guest where it was." }
        div.scroll {
            table {
                tr { th.text { "move" } th.text { "reason" } }
                @for failed in &summary.failures {
                    tr { td.text { (failed.case) } td class="text why" { (failed.reason) } }
                }
            }
        }
    }
}

/// Every move, each with its charts behind a fold.
fn all(records: &[Record]) -> Markup {
    let mut sweep = None;
    html! {
        h2 { "Every move" }
        @for record in records {
            @if sweep.replace(&record.case.sweep) != Some(&record.case.sweep) { h3 { (record.case.sweep) } }
            (one(record))
        }
    }
}

fn one(record: &Record) -> Markup {
    let case = &record.case;
    let Some(report) = &record.report else {
        return html! {
            details {
                summary { b { (case.policy()) } " · " (case.title()) " · " span.bad { "no move" } }
                p { (record.failure().unwrap_or_default()) }
            }
        };
    };
    let verdict = match record.completed() {
        Some(_) if record.over_limit() => html! { span.bad { "over the limit" } },
        Some(_) => html! { span.good { "moved" } },
        None => html! { span.bad { "not moved" } },
    };
    html! {
        details {
            summary {
                b { (case.policy()) } " · " (case.title()) " · " (verdict) " in " (millis(report.total_ms))
                " · downtime " (ms(report.blackout_ms)) span.soft { " of " (case.downtime_ms) " ms" }
                " · lost " (percent(report.guest_work_lost_percent))
                span.soft { " · " (report.rounds.len()) " rounds, " (bytes(report.wire_bytes)) " of " (bytes(report.memory_bytes)) }
                @if let Some(predicted) = &record.predicted {
                    span.soft { " · predicted " (millis(predicted.total_ms.expected)) ", " (millis(predicted.blackout_ms.expected)) }
                }
            }
            p.soft { (report.reason) }
            div.charts { @for chart in moves::charts(report) { (chart.figure()) } }
        }
    }
}
