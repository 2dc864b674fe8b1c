//! docs/figures.md: the tables, and the plots beside them.

use std::fmt::Write;

use vmm::page::chart::{Axis, Chart, Mark, Point, Series};

use super::crowd::{self, Crowd};
use super::fold::{self, Folds};
use super::gigabits::{Gigabits, Row};

const HEAD: &str = "\
# Published figures, and Ferry's

Made by `make figures` (about 15 minutes on an idle machine; it writes this page and its plots). **Published** is what others printed of their machines;
**measured** is Ferry on this one, real moves of the bare guest `pulse` over links shaped by htb, every page verified; **predicted** is `ferry predict`'s model of Ferry,
for guests and links larger than this machine. What was *fitted*, because nothing is published of it, is said with each. Different machines, guests and decades: what can be compared
is what depends on what, not who is faster.
";

/// The page.
pub fn page(machine: &str, gigabits: &Gigabits, folds: &Folds, crowd: &Crowd) -> String {
    let mut page = format!("{HEAD}\n{machine}\n");
    of_gigabits(&mut page, gigabits);
    of_fold(&mut page, folds);
    of_crowd(&mut page, crowd);
    page
}

fn s(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}"),
        s => format!("{s:.0}"),
    }
}

fn of_gigabits(page: &mut String, gigabits: &Gigabits) {
    let _ = write!(
        page,
        "
## Hyper-V over 1 and 10 Gbit/s (2011)

Seconds in all, of guests with all memory in use. *Fitted:* the load writes {:.0} MB/s anywhere in 512 MiB, so that the predicted move of 4 GiB over 1 Gbit/s takes as much longer
than an idle one as the published one did.

| GB | | idle, 1 Gbit/s | loaded, 1 Gbit/s | idle, 10 Gbit/s | loaded, 10 Gbit/s | of the link, idle |
|---|---|---|---|---|---|---|
",
        gigabits.bytes_per_s / 1e6
    );
    for row in &gigabits.rows {
        let Row {
            gib,
            published,
            measured,
            predicted,
            used,
        } = row;
        let mut line = |name: &str, [a, b, c, d]: [f64; 4], used: String| {
            let _ = writeln!(
                page,
                "| {gib} | {name} | {} | {} | {} | {} | {used} |",
                s(a),
                s(b),
                s(c),
                s(d)
            );
        };
        line(
            "published, Hyper-V",
            *published,
            "45-55 % at 10 Gbit/s".to_owned(),
        );
        if let Some(measured) = measured {
            let used = used.map(|[one, ten]| {
                format!(
                    "{:.0} % at 1, {:.0} % at 10 Gbit/s",
                    100.0 * one,
                    100.0 * ten
                )
            });
            line("measured, Ferry", *measured, used.unwrap_or_default());
        }
        line("predicted, Ferry", *predicted, String::new());
    }
    page.push_str("\n\"Of the link\" is the bytes on the wire over what TCP can carry of a link that htb shapes: 1448 of 1514 bytes, since\nit counts Ethernet's header and nothing around that. `make bench` measures plain TCP beside its moves. Predicted is a\ncable, 1448 of 1538 bytes.\n\n![Time against memory](figures/gigabits.svg)\n");
}

fn of_fold(page: &mut String, folds: &Folds) {
    let published = fold::PUBLISHED;
    let _ = write!(
        page,
        "
## A dirty rate between two links: {published}-fold for four times the link (vSphere 6.0)

vMotion of a guest of 128 or 256 GB that goes on writing was {published} times faster over 40 Gbit/s than over 10 Gbit/s. The effect is not the links' ratio but the dirty rate's place between
them. Here 1 GiB writes 2 Gbit/s anywhere in half of it, over 1 and 4 Gbit/s; predicted beside it, 256 GiB that write 20 Gbit/s, over 10 and 40 Gbit/s. *Chosen, not published:* dirty
rates and working sets. `sdps` is after vMotion's stun during page send.

| policy | measured, 1 Gbit/s | measured, 4 Gbit/s | times | predicted of these | predicted, 256 GiB, 10 Gbit/s | 40 Gbit/s | times |
|---|---|---|---|---|---|---|---|
"
    );
    for (row, there) in folds.rows.iter().zip(&folds.there) {
        let _ = writeln!(
            page,
            "{} {} s | {} s | {} |",
            fold_row(row),
            s(there[0]),
            s(there[1]),
            times(*there)
        );
    }
    let [slow, fast] = fold::SMALL_LINKS;
    let _ = write!(
        page,
        "
Below 4 a policy gains less than the link; above it, the slower link is too slow for the guest.

The {published}-fold itself, in small: 128 MiB that write {:.2} Gbit/s anywhere in 96 MiB, over {slow} and {fast} Mbit/s. *Fitted:* that rate, so that `auto-converge`, which of the three makes most of the effect,
is predicted to take {published} times as long over the slower link.

| policy | measured, {slow} Mbit/s | measured, {fast} Mbit/s | times | predicted of these | times |
|---|---|---|---|---|---|
",
        folds.small_gbits
    );
    for row in &folds.small {
        let _ = writeln!(page, "{} {} |", fold_row(row), times(row.predicted));
    }
    page.push_str(FOLD_TAIL);
}

/// The first cells of a row.
fn fold_row(row: &fold::Row) -> String {
    let measured = match row.measured {
        Some([slow, fast]) => format!("{} s | {} s | {}", s(slow), s(fast), times([slow, fast])),
        None => "– | – | –".to_owned(),
    };
    let [slow, fast] = row.predicted;
    format!(
        "| {} | {measured} | {} s and {} s |",
        row.policy,
        s(slow),
        s(fast)
    )
}

fn times([slow, fast]: [f64; 2]) -> String {
    format!("{:.1}", slow / fast)
}

/// With `sdps` at a share `q` of the link, what is left shrinks to `q` in each round: all rounds over a working set of
/// a share `w` of the memory, and the first, take `1 + w/(1-q)` times as long as the memory alone.
const FOLD_TAIL: &str = "
What a policy that holds a guest just below the link can make of it is arithmetic: held to a share `q` of the link, a working set of a share `w` of the memory takes `w/(1-q)` times as long as the memory alone, so
the faster of two links, which needs no holding, is at most `4 (1 + w/(1-q))` times as fast. `sdps` here holds at 0.8: 24 at most, with all memory written. 38 is what 0.88 would make; how close below the link vMotion holds is not published.
`auto` does better over the slow link, so it has less to show.

![Time by policy and link](figures/fold.svg)
";

fn of_crowd(page: &mut String, crowd: &Crowd) {
    let Crowd {
        one_by_one_s,
        at_once_s,
        longest_ms,
        fitted_gib,
        predicted,
    } = crowd;
    let _ = write!(
        page,
        "
## A host emptied: 150 guests over 10 Gbit/s (ESXi 5.5)

| | guests | seconds | a guest |
|---|---|---|---|
| published, faster adapter | {there} | {} | {:.2} s |
| published, slower adapter | {there} | {} | {:.2} s |
| predicted, Ferry, faster adapter | {there} | {} | {:.2} s |
| predicted, Ferry, slower adapter | {there} | {} | {:.2} s |
| measured, Ferry, one after another | {here} | {:.1} | {:.2} s |
| measured, Ferry, all at once | {here} | {:.1} | {:.2} s |

Measured: guests of {} MiB, all content, 10 Gbit/s (htb) on two processors; the longest blackout was {:.1} ms one after another and {:.1} ms all at once. *Fitted:* {:.2} GiB of content a guest, to the
faster adapter's time; the slower one carries 1/1.39 of it, with 1.7 times its round trip and 2.2 times its connection set-up, as published. Predicted of the slower adapter:
{:.2} times the time; published: {:.2} times. At this size the throughput decides nearly alone.
",
        s(crowd::PUBLISHED[0]),
        crowd::PUBLISHED[0] / f64::from(crowd::GUESTS_THERE),
        s(crowd::PUBLISHED[1]),
        crowd::PUBLISHED[1] / f64::from(crowd::GUESTS_THERE),
        s(predicted[0]),
        predicted[0] / f64::from(crowd::GUESTS_THERE),
        s(predicted[1]),
        predicted[1] / f64::from(crowd::GUESTS_THERE),
        one_by_one_s,
        one_by_one_s / f64::from(crowd::GUESTS),
        at_once_s,
        at_once_s / f64::from(crowd::GUESTS),
        crowd::MIB,
        longest_ms[0],
        longest_ms[1],
        fitted_gib,
        predicted[1] / predicted[0],
        crowd::PUBLISHED[1] / crowd::PUBLISHED[0],
        there = crowd::GUESTS_THERE,
        here = crowd::GUESTS,
    );
}

/// Time against memory, published and Ferry's.
pub fn gigabits_chart(gigabits: &Gigabits) -> Chart {
    let names = [
        "idle, 1 Gbit/s",
        "loaded, 1 Gbit/s",
        "idle, 10 Gbit/s",
        "loaded, 10 Gbit/s",
    ];
    let mut series = Vec::new();
    for (colour, name) in names.into_iter().enumerate() {
        let of = |what: &str, mark, figure: &dyn Fn(&Row) -> Option<f64>| Series {
            name: format!("{name}, {what}"),
            colour,
            mark,
            points: (gigabits.rows.iter())
                .filter_map(|row| {
                    Some(Point {
                        x: row.gib as f64,
                        y: figure(row)?,
                        says: format!("{} GiB, {name}, {what}: {:.1} s", row.gib, figure(row)?),
                    })
                })
                .collect(),
        };
        series.push(of("Hyper-V", Mark::Guide, &|row| {
            Some(row.published[colour])
        }));
        series.push(of("Ferry", Mark::Line, &|row| {
            Some(
                row.measured
                    .map_or(row.predicted[colour], |all| all[colour]),
            )
        }));
    }
    Chart {
        title: "Seconds in all, by memory".to_owned(),
        note: "Dashed: published. Ferry: measured at 4 and 8 GiB, predicted above.".to_owned(),
        x: Axis::log("GiB of guest memory"),
        y: Axis::log("s"),
        series,
    }
}

/// Time by policy, over both links.
pub fn fold_chart(rows: &[fold::Row]) -> Chart {
    let bars = |name: &str, colour, which: usize| Series {
        name: name.to_owned(),
        colour,
        mark: Mark::Bars,
        points: (rows.iter().enumerate())
            .map(|(at, row)| {
                let seconds = row.measured.unwrap_or(row.predicted)[which];
                Point {
                    x: at as f64,
                    y: seconds,
                    says: format!("{}, {name}: {seconds:.1} s", row.policy),
                }
            })
            .collect(),
    };
    Chart {
        title: "1 GiB that writes 2 Gbit/s".to_owned(),
        note: "Four times the link is worth more than four times the time.".to_owned(),
        x: Axis::places(
            "policy",
            rows.iter().map(|row| row.policy.to_owned()).collect(),
        ),
        y: Axis::log("s"),
        series: vec![bars("1 Gbit/s", 1, 0), bars("4 Gbit/s", 0, 1)],
    }
}
