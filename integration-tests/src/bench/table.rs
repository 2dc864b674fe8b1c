//! The table: medians and ranges, ratios and shares.

use super::limits::Limits;
use super::plan::{Endless, Figures};
use super::{Link, Row, Scenario, Temperature};

/// A figure that is shown with its range over the runs.
type Figure = (&'static str, fn(&Row) -> f64);

const FIGURES: [Figure; 3] = [
    ("total ms", |row| row.wall_ms),
    ("downtime ms", |row| row.blackout_ms),
    ("guest gap ms", |row| row.guest_gap_ms),
];

/// All figures as text for a terminal.
pub fn table(figures: &Figures, scenarios: &[&Scenario]) -> String {
    let mut text = String::new();
    for scenario in scenarios {
        let rows: Vec<&Row> = (figures.rows.iter())
            .filter(|row| row.scenario == scenario.name)
            .collect();
        if !rows.is_empty() {
            text += &block(scenario, &rows, &figures.limits);
        }
        let endless = figures.endless.iter();
        let of_this = endless.filter(|endless| endless.scenario == scenario.name);
        text.extend(of_this.map(endless_line));
    }
    text += &limits(&figures.limits);
    for left_out in &figures.left_out {
        text += &format!("left out: {left_out}\n");
    }
    text
}

fn block(scenario: &Scenario, rows: &[&Row], limits: &Limits) -> String {
    let temperature = match scenario.temperature {
        Temperature::Warm => "",
        Temperature::Cold => ", cold memory",
    };
    let (link, fill) = (
        scenario.link.name(),
        format!("{:?}", scenario.fill).to_lowercase(),
    );
    let head = format!(
        "{} ({fill}, {link}{temperature}; {})",
        scenario.name, scenario.words
    );
    let mut text = format!("\n{head}\n  {:<34}", "median (least-most)");
    for (title, _) in FIGURES {
        text += &format!("{title:>19}");
    }
    text += &format!(
        "{:>11}{:>10}{:>13}{:>9}{:>9}{:>5}\n",
        "work lost", "wire MiB", "CPU s, both", "of QEMU", "of limit", "runs"
    );

    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let kind = (row.program, row.setting.as_str());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let of_kind = |(program, setting): (&str, &str)| -> Vec<&Row> {
        let same = |row: &&&Row| row.program == program && row.setting == setting;
        rows.iter().filter(same).copied().collect()
    };
    let wall = |rows: &[&Row]| median(rows, |row| row.wall_ms);
    // Like is compared with like: memory that had been touched beforehand with such memory.
    let best_qemu = |temperature: &str| {
        let qemu = kinds.iter().filter(|(program, _)| *program == "qemu");
        qemu.map(|kind| of_kind(*kind))
            .filter(|rows| rows[0].temperature == temperature)
            .map(|rows| wall(&rows))
            .min_by(f64::total_cmp)
    };
    for &kind in &kinds {
        let mine = of_kind(kind);
        let name = match kind.0 {
            "ferry" => format!("Ferry, {}", kind.1),
            _ => format!("QEMU {}, {}", mine[0].version, kind.1),
        };
        text += &format!("  {name:<34}");
        for (_, of) in FIGURES {
            text += &format!("{:>19}", spread(&mine, of));
        }
        let cpu = |of: fn(&Row) -> f64| median(&mine, of);
        let (source, destination) = (
            cpu(|row| row.cpu_s_source),
            cpu(|row| row.cpu_s_destination),
        );
        let best = best_qemu(mine[0].temperature);
        let ratio = best.map(|best| format!("{:.2}", wall(&mine) / best));
        let share = share_of_limit(scenario, &mine, limits).map(|s| format!("{:.0} %", s * 100.0));
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        text += &format!(
            "{:>11}{:>10}{:>13}{:>9}{:>9}{:>5}\n",
            or_nothing(work_lost(&mine)),
            number(median(&mine, |row| row.wire_bytes as f64 / f64::from(1 << 20))),
            format!("{source:.2} + {destination:.2}"),
            or_nothing(ratio),
            or_nothing(share),
            mine.len()
        );
    }
    text + &resident(rows)
}

/// A setting that no row came of.
fn endless_line(endless: &Endless) -> String {
    let program = match endless.program {
        "ferry" => "Ferry",
        _ => "QEMU",
    };
    format!(
        "  {program}, {}: did not end within {:.0} s, {} rounds and {} MiB\n",
        endless.setting,
        endless.after_s,
        endless.rounds,
        endless.wire_bytes >> 20
    )
}

/// How much less the guest did, where it does anything.
fn work_lost(rows: &[&Row]) -> Option<String> {
    let known: Option<Vec<f64>> = rows.iter().map(|row| row.guest_work_lost_percent).collect();
    let mut known = known?;
    known.sort_by(f64::total_cmp);
    known
        .get(known.len() / 2)
        .map(|lost| format!("{lost:.1} %"))
}

/// How much memory was resident, where that is what the scenario is about.
fn resident(rows: &[&Row]) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let of = |program: &str| {
        let rows = rows.iter().filter(|row| row.program == program);
        let most = rows.map(|row| (row.source_rss_bytes, row.destination_rss_bytes));
        let (source, destination) = most.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))?;
        Some(format!(
            "{program} {:.0} and {:.0} MiB",
            mib(source),
            mib(destination)
        ))
    };
    let both: Vec<String> = ["ferry", "qemu"].into_iter().filter_map(of).collect();
    format!(
        "  resident at most, source and destination: {}\n",
        both.join(", ")
    )
}

/// The time that the bytes on the wire would have taken at the limit, of the time that the move took.
fn share_of_limit(scenario: &Scenario, rows: &[&Row], limits: &Limits) -> Option<f64> {
    let streams = rows.first()?.streams;
    let rate = match scenario.link {
        Link::Shaped(rate) => limits.get(&format!("link_{rate}"))?.median,
        Link::Loopback => limits.best_fresh_tcp(streams)?,
    };
    let wire = median(rows, |row| row.wire_bytes as f64);
    // Where next to nothing is sent the link is no limit.
    let worth = wire > f64::from(64 << 20);
    worth.then(|| wire / rate * 1e3 / median(rows, |row| row.wall_ms))
}

fn limits(limits: &Limits) -> String {
    let mut text = String::from("\nlimits of this machine, GB/s (median, least and most)\n");
    for (name, limit) in limits.iter() {
        let gb = |bytes: f64| bytes / 1e9;
        text += &format!(
            "  {name:<32}{:>8.2}{:>10.2} to {:.2}\n",
            gb(limit.median),
            gb(limit.min),
            gb(limit.max)
        );
    }
    text
}

fn median(rows: &[&Row], of: impl Fn(&Row) -> f64) -> f64 {
    let mut values: Vec<f64> = rows.iter().map(|row| of(row)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three digits, or all before the point.
fn number(value: f64) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

fn spread(rows: &[&Row], of: fn(&Row) -> f64) -> String {
    let values = || rows.iter().map(|row| of(row));
    let least = values().fold(f64::INFINITY, f64::min);
    let most = values().fold(f64::NEG_INFINITY, f64::max);
    let median = number(median(rows, of));
    match rows.len() {
        1 => median,
        _ => format!("{median} ({}-{})", number(least), number(most)),
    }
}
