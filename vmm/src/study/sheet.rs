//! The moves of a study as a table for other programs: `moves.csv`, one line a move, empty where nothing is known.

use serde::Serialize;

use super::case::word;
use super::store::Record;

/// One line. Columns are added at the end, never renamed.
#[derive(Debug, Serialize)]
struct Line {
    sweep: String,
    policy: String,
    link: String,
    memory_bytes: u64,
    working_set_bytes: u64,
    pattern: String,
    dirty_rate: String,
    dirty_link_ratio: Option<f64>,
    writers: u8,
    computing: u8,
    streams: u16,
    tracking: String,
    downtime_limit_ms: u64,
    repeat: u32,
    outcome: String,
    reason: String,
    total_ms: Option<f64>,
    brownout_ms: Option<f64>,
    blackout_ms: Option<f64>,
    guest_gap_ms: Option<f64>,
    rounds: Option<usize>,
    wire_bytes: Option<u64>,
    mean_bandwidth_bytes_per_s: Option<u64>,
    throttled_ms: Option<f64>,
    guest_work_lost_percent: Option<f64>,
    predicted_converges: Option<bool>,
    predicted_total_ms: Option<f64>,
    predicted_total_low_ms: Option<f64>,
    predicted_total_high_ms: Option<f64>,
    predicted_blackout_ms: Option<f64>,
    verified_pages: u64,
    computing_lost_percent: Option<f64>,
    computing_per_cpu_s_lost_percent: Option<f64>,
}

impl From<&Record> for Line {
    fn from(record: &Record) -> Self {
        let (case, report) = (&record.case, record.report.as_ref());
        let predicted = record.predicted.as_ref();
        let total = predicted.map(|predicted| predicted.total_ms);
        Self {
            sweep: case.sweep.clone(),
            policy: case.policy(),
            link: case.link.to_string(),
            memory_bytes: case.memory_bytes,
            working_set_bytes: case.working_set_bytes,
            pattern: match case.phases {
                None => word(&case.pattern),
                Some(phases) => format!(
                    "{} {}:{} ms",
                    word(&case.pattern),
                    phases.on_ms,
                    phases.off_ms
                ),
            },
            dirty_rate: case.dirty_rate.to_string(),
            dirty_link_ratio: case.ratio(),
            writers: case.writers,
            computing: case.computing,
            streams: case.streams,
            tracking: word(&case.tracking),
            downtime_limit_ms: case.downtime_ms,
            repeat: case.repeat,
            outcome: match (report, &record.error) {
                (Some(report), None) => word(&report.outcome),
                _ if record.lost => "lost".to_owned(),
                _ => "error".to_owned(),
            },
            reason: (record.failure())
                .or_else(|| Some(report?.reason.clone()))
                .unwrap_or_default(),
            total_ms: report.map(|report| report.total_ms),
            brownout_ms: report.and_then(|report| report.brownout_ms),
            blackout_ms: report.and_then(|report| report.blackout_ms),
            guest_gap_ms: report.and_then(|report| report.guest_gap_ms),
            rounds: report.map(|report| report.rounds.len()),
            wire_bytes: report.map(|report| report.wire_bytes),
            mean_bandwidth_bytes_per_s: report.map(|report| report.mean_bandwidth_bytes_per_s),
            throttled_ms: report.map(|report| report.throttled_ms.iter().sum()),
            guest_work_lost_percent: report.and_then(|report| report.guest_work_lost_percent),
            predicted_converges: predicted.map(|predicted| predicted.converges),
            predicted_total_ms: total.map(|total| total.expected),
            predicted_total_low_ms: total.map(|total| total.low),
            predicted_total_high_ms: total.map(|total| total.high),
            predicted_blackout_ms: predicted.map(|predicted| predicted.blackout_ms.expected),
            verified_pages: record.verified_pages,
            computing_lost_percent: record.computing_lost().map(|lost| lost.0),
            computing_per_cpu_s_lost_percent: record.computing_lost().map(|lost| lost.1),
        }
    }
}

/// The table, with a line of names.
///
/// # Errors
/// None that a table in memory can have.
pub fn csv(records: &[Record]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for record in records {
        writer.serialize(Line::from(record))?;
    }
    writer
        .into_inner()
        .map_err(|error| error.into_error().into())
}
