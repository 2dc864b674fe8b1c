//! What the moves of a study come to: counts, medians by policy and load, and how good the predictions were.

use std::collections::BTreeMap;

use serde::Serialize;

use super::case::Link;
use super::store::Record;

/// All of it; `summary.json`. The names are a contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The study's title.
    pub title: String,
    /// Moves that were made.
    pub runs: usize,
    /// Those that completed with the guest whole.
    pub completed: usize,
    /// Those whose blackout was longer than asked for by more than a tenth, though they were to be given up rather
    /// than that.
    pub over_limit: usize,
    /// Pages of guests that did not arrive as they left.
    pub unverified_pages: u64,
    /// Stamped pages that did.
    pub verified_pages: u64,
    /// By policy, and by how many times what the link carries the guest was to write.
    pub policies: BTreeMap<String, BTreeMap<String, Medians>>,
    /// By policy, and by how fast the guest was to write, over loopback.
    pub loopback: BTreeMap<String, BTreeMap<String, Medians>>,
    /// By policy: what vCPUs that only compute lost beside others that write.
    pub computing: BTreeMap<String, Computing>,
    /// How good predictions were; nothing without any.
    pub prediction: Option<Quality>,
    /// Moves that did not complete, with the reason.
    pub failures: Vec<Failed>,
}

/// Of the moves that completed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Medians {
    /// Moves made.
    pub runs: usize,
    /// Moves that completed.
    pub completed: usize,
    /// Median of the time in all.
    pub total_ms: Option<f64>,
    /// Median of the guest's standstill.
    pub blackout_ms: Option<f64>,
    /// The longest.
    pub blackout_max_ms: Option<f64>,
    /// Median of the work that the guest lost.
    pub guest_work_lost_percent: Option<f64>,
    /// Median of the seconds of its work that the guest lost: the percentage of the move's time.
    pub guest_work_lost_s: Option<f64>,
}

/// Of vCPUs that only compute; the worst of a guest counts, medians over moves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Computing {
    /// Moves of guests that have such.
    pub moves: usize,
    /// How much less they did than in the same time before the move.
    pub work_lost_percent: Option<f64>,
    /// How much less in a second of their threads' processor time: what the policy took from them, and not the
    /// processors that they share with the move.
    pub work_per_cpu_s_lost_percent: Option<f64>,
    /// The most of that in one move. Where processors are shared with other machines, their own pace goes up and down,
    /// and that shows here.
    pub work_per_cpu_s_lost_percent_max: Option<f64>,
}

/// How good predictions were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Moves that were predicted and made.
    pub moves: usize,
    /// Those of them that completed: the errors are of these.
    pub completed: usize,
    /// Median of the error of the total time, as a share of what it was.
    pub total_median_error: Option<f64>,
    /// Nine of ten errors are below.
    pub total_p90_error: Option<f64>,
    /// Share of the blackouts predicted within 5 ms or a quarter.
    pub blackout_within: Option<f64>,
    /// Median of the error of the guest's work lost, in percentage points, where the guest counts its work.
    pub work_lost_median_points: Option<f64>,
    /// Nine of ten of these errors are below.
    pub work_lost_p90_points: Option<f64>,
    /// Share of the moves whose verdict, converges or does not, was right.
    pub verdict_right: f64,
}

/// A move that did not complete.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failed {
    /// Which.
    pub case: String,
    /// Why not.
    pub reason: String,
}

impl Summary {
    /// Sums up.
    pub fn of(title: &str, records: &[Record]) -> Self {
        let mut policies: BTreeMap<String, BTreeMap<String, Vec<&Record>>> = BTreeMap::new();
        let mut loopback = policies.clone();
        for record in records {
            let case = &record.case;
            let (groups, key) = match (case.link, case.ratio()) {
                (Link::Loopback, _) => (&mut loopback, case.dirty_rate.to_string()),
                (Link::Shaped(_), Some(ratio)) => (&mut policies, format!("{ratio:.2}")),
                // As fast as it can, whatever the link.
                (Link::Shaped(_), None) => (&mut policies, case.dirty_rate.to_string()),
            };
            let group = groups.entry(case.policy()).or_default();
            group.entry(key).or_default().push(record);
        }
        let failed = |record: &Record| {
            Some(Failed {
                case: record.case.slug(),
                reason: record.failure()?,
            })
        };
        Self {
            title: title.to_owned(),
            runs: records.len(),
            completed: completed(records).count(),
            over_limit: records.iter().filter(|record| record.over_limit()).count(),
            unverified_pages: records.iter().map(unverified).sum(),
            verified_pages: records.iter().map(|record| record.verified_pages).sum(),
            computing: computing(records),
            policies: medians(policies),
            loopback: medians(loopback),
            prediction: Quality::of(records),
            failures: records.iter().filter_map(failed).collect(),
        }
    }
}

fn completed(records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().filter(|record| record.completed().is_some())
}

/// Of a guest that did not arrive whole it is not known how much is lost: none of it counts.
fn unverified(record: &Record) -> u64 {
    match record.lost {
        true => (record.case.memory_bytes / 4096).max(1),
        false => 0,
    }
}

fn medians(
    groups: BTreeMap<String, BTreeMap<String, Vec<&Record>>>,
) -> BTreeMap<String, BTreeMap<String, Medians>> {
    let of_policy = |loads: BTreeMap<String, Vec<&Record>>| {
        let each = loads.into_iter();
        each.map(|(load, records)| (load, Medians::of(&records)))
            .collect()
    };
    let each = groups.into_iter();
    each.map(|(policy, loads)| (policy, of_policy(loads)))
        .collect()
}

fn computing(records: &[Record]) -> BTreeMap<String, Computing> {
    let mut policies: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for record in records {
        if let Some(lost) = record.computing_lost() {
            policies.entry(record.case.policy()).or_default().push(lost);
        }
    }
    let sum_up = |lost: Vec<(f64, f64)>| Computing {
        moves: lost.len(),
        work_lost_percent: median(lost.iter().map(|lost| lost.0).collect()),
        work_per_cpu_s_lost_percent: median(lost.iter().map(|lost| lost.1).collect()),
        work_per_cpu_s_lost_percent_max: lost.iter().map(|lost| lost.1).reduce(f64::max),
    };
    let each = policies.into_iter();
    each.map(|(policy, lost)| (policy, sum_up(lost))).collect()
}

impl Medians {
    /// Of some moves.
    pub fn of(records: &[&Record]) -> Self {
        let reports: Vec<_> = records
            .iter()
            .filter_map(|record| record.completed())
            .collect();
        let blackouts: Vec<f64> = reports.iter().filter_map(|r| r.blackout_ms).collect();
        let lost = |report: &&&migration::report::Report| {
            report
                .guest_work_lost_percent
                .map(|percent| percent / 100.0 * report.total_ms / 1000.0)
        };
        Self {
            runs: records.len(),
            completed: reports.len(),
            total_ms: median(reports.iter().map(|r| r.total_ms).collect()),
            blackout_max_ms: blackouts.iter().copied().reduce(f64::max),
            blackout_ms: median(blackouts),
            guest_work_lost_percent: median(
                reports
                    .iter()
                    .filter_map(|r| r.guest_work_lost_percent)
                    .collect(),
            ),
            guest_work_lost_s: median(reports.iter().filter_map(|r| lost(&r)).collect()),
        }
    }
}

impl Quality {
    fn of(records: &[Record]) -> Option<Self> {
        let predicted: Vec<_> = records
            .iter()
            .filter_map(|record| {
                Some((record, record.predicted.as_ref()?, record.report.as_ref()?))
            })
            .collect();
        if predicted.is_empty() {
            return None;
        }
        let right = predicted.iter().filter(|(record, predicted, _)| {
            let limit = record.case.downtime_ms as f64;
            let blackout = record.completed().and_then(|report| report.blackout_ms);
            predicted.converges == blackout.is_some_and(|ms| ms <= 1.1 * limit)
        });
        let right = right.count();
        let done: Vec<_> = predicted
            .iter()
            .filter_map(|(record, predicted, _)| Some((predicted, record.completed()?)))
            .collect();
        let errors: Vec<f64> = done
            .iter()
            .map(|(predicted, report)| {
                (predicted.total_ms.expected - report.total_ms).abs() / report.total_ms.max(1.0)
            })
            .collect();
        let within = done.iter().filter(|(predicted, report)| {
            let blackout = report.blackout_ms.unwrap_or(0.0);
            (predicted.blackout_ms.expected - blackout).abs() <= (blackout / 4.0).max(5.0)
        });
        let within = within.count();
        let points = done.iter().filter_map(|(predicted, report)| {
            let lost = report.guest_work_lost_percent?;
            Some((predicted.guest_work_lost_percent.expected - lost).abs())
        });
        let points: Vec<f64> = points.collect();
        Some(Self {
            moves: predicted.len(),
            completed: done.len(),
            total_p90_error: quantile(errors.clone(), 0.9),
            total_median_error: median(errors),
            blackout_within: share(within, done.len()),
            work_lost_p90_points: quantile(points.clone(), 0.9),
            work_lost_median_points: median(points),
            verdict_right: share(right, predicted.len()).unwrap_or(0.0),
        })
    }
}

fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The value in the middle; of an even number the mean of the two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => values.get(middle).copied(),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The least value that is not below so great a share of all of them.
fn quantile(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil();
    // At most the number of values.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = rank as usize;
    values.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(quantile(ten, 0.9), Some(9.0));
        assert_eq!(quantile(vec![7.0], 0.9), Some(7.0));
        assert_eq!(quantile(vec![], 0.9), None);
    }
}
