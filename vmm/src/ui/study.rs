//! A study in a terminal: a line a move, and a table at the end.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::number::{count, millis};
use super::style::{Colour, Style};
use super::text::plain;
use crate::study::store::Record;
use crate::study::summary::{Medians, Summary};

/// How one move went.
pub fn study_line(number: usize, of: usize, record: &Record, style: Style) -> String {
    let case = &record.case;
    let name = format!("{:>4}/{of} {:<13} {}", number, case.policy(), case.title());
    let name = style.paint(Colour::Faint, &name);
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), millis);
    match (record.completed(), record.failure()) {
        (Some(report), None) => {
            let colour = match record.over_limit() {
                true => Colour::Bad,
                false => Colour::Good,
            };
            let blackout = format!(
                "downtime {} of {} ms",
                ms(report.blackout_ms),
                case.downtime_ms
            );
            let lost = match report.guest_work_lost_percent {
                Some(lost) => format!(", lost {lost:.1} %"),
                None => String::new(),
            };
            let predicted = match &record.predicted {
                Some(predicted) => format!(", predicted {}", millis(predicted.total_ms.expected)),
                None => String::new(),
            };
            format!(
                "{name}: {} in {}{predicted}, {}{lost}",
                style.paint(colour, "moved"),
                millis(report.total_ms),
                style.paint(colour, &blackout)
            )
        }
        (_, failure) => format!(
            "{name}: {}: {}",
            style.paint(Colour::Warning, "not moved"),
            plain(&failure.unwrap_or_default())
        ),
    }
}

/// What all of them come to.
pub fn study_table(summary: &Summary, style: Style) -> String {
    let mut text = String::from("\n");
    let headline = format!(
        "{} moves, {} completed, {} over the limit, {} pages unverified",
        summary.runs,
        summary.completed,
        summary.over_limit,
        count(summary.unverified_pages)
    );
    let good = summary.over_limit == 0 && summary.unverified_pages == 0;
    let colour = if good { Colour::Good } else { Colour::Bad };
    let _ = writeln!(text, "{}\n", style.paint(colour, &headline));
    let head = format!(
        "  {:<14}{:>10}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "policy", "load", "completed", "in all", "downtime", "longest", "lost"
    );
    let _ = writeln!(text, "{}", style.paint(Colour::Faint, &head));
    rows(&mut text, &summary.policies, |load| {
        format!("{}x", load.trim_end_matches('0').trim_end_matches('.'))
    });
    rows(&mut text, &summary.loopback, str::to_owned);
    if let Some(quality) = &summary.prediction {
        let percent = |share: Option<f64>| match share {
            Some(share) => format!("{:.0} %", 100.0 * share),
            None => "–".to_owned(),
        };
        let points = |points: Option<f64>| points.map_or("–".to_owned(), |p| format!("{p:.1}"));
        let _ = writeln!(
            text,
            "\n{} predictions: time off by {} in the median, by less than {} in nine of ten; downtime within 5 ms or a quarter in {}; work lost off by {} points in the median, by less than {} in nine of ten; verdict right in {}",
            quality.moves,
            percent(quality.total_median_error),
            percent(quality.total_p90_error),
            percent(quality.blackout_within),
            points(quality.work_lost_median_points),
            points(quality.work_lost_p90_points),
            percent(Some(quality.verdict_right))
        );
    }
    text
}

fn rows(
    text: &mut String,
    groups: &BTreeMap<String, BTreeMap<String, Medians>>,
    name: impl Fn(&str) -> String,
) {
    let ms = |value: Option<f64>| value.map_or("–".to_owned(), millis);
    for (policy, loads) in groups {
        for (load, medians) in loads {
            let lost = match medians.guest_work_lost_percent {
                Some(lost) => format!("{lost:.1} %"),
                None => "–".to_owned(),
            };
            let done = format!("{}/{}", medians.completed, medians.runs);
            let _ = writeln!(
                text,
                "  {policy:<14}{:>10}{done:>11}{:>11}{:>11}{:>11}{lost:>11}",
                name(load),
                ms(medians.total_ms),
                ms(medians.blackout_ms),
                ms(medians.blackout_max_ms)
            );
        }
    }
}
