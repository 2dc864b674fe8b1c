//! What came of the databases: target/databases/summary.json, and the table.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{pgbench, redis};

/// How `redis-check-aof` ends where all is well.
const AOF_IS_WELL: &str = "All AOF files and manifest are valid";

/// Names are a contract.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Whether all is as it must be; then the exit status is 0.
    pub clean: bool,
    /// Writes and transactions of which a database has said that they are on the disk.
    pub acknowledged: u64,
    /// Those of them that were not there after the moves and the power cut.
    pub lost: u64,
    /// Moves, all of which completed.
    pub moves: u32,
    /// Connections that broke before the power was cut.
    pub connections_lost: u64,
    /// Redis' part.
    pub redis: redis::Outcome,
    /// PostgreSQL's part.
    pub postgresql: pgbench::Outcome,
    /// Each move.
    pub moved: Vec<Move>,
    /// What the guest's kernel complained of.
    pub troubles: Vec<String>,
    /// Whether nobody held the disk's lock after the last guest.
    pub disk_is_free: bool,
    /// How long it all took.
    pub seconds: f64,
    /// What Redis is to be asked for, until it was.
    #[serde(skip)]
    pub(super) writes: Option<redis::Acknowledged>,
}

/// One move.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    /// Where it went: host A or B.
    pub to: char,
    /// From the call until the guest lived there, in milliseconds.
    pub total_ms: Option<f64>,
    /// How long the guest stood still, in milliseconds.
    pub blackout_ms: Option<f64>,
    /// Rounds of copying before that.
    pub rounds: usize,
    /// Writes that Redis had acknowledged when it was over.
    pub redis_acknowledged: u64,
    /// All that it said of itself, each round.
    pub report: Value,
}

impl Move {
    pub(super) fn new(number: u32, report: &Value, redis_acknowledged: u64) -> Self {
        Self {
            to: if number.is_multiple_of(2) { 'B' } else { 'A' },
            total_ms: report["total_ms"].as_f64(),
            blackout_ms: report["blackout_ms"].as_f64(),
            rounds: report["rounds"].as_array().map_or(0, Vec::len),
            redis_acknowledged,
            report: report.clone(),
        }
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |value: Option<f64>| value.map_or("?".into(), |ms| format!("{ms:.0}"));
        write!(
            f,
            "to host {}: {} ms in {} rounds, blackout {} ms; Redis has acknowledged {} writes so far",
            self.to,
            ms(self.total_ms),
            self.rounds,
            ms(self.blackout_ms),
            self.redis_acknowledged
        )
    }
}

impl Summary {
    /// Adds up.
    pub(super) fn settle(&mut self) {
        let (redis, postgresql) = (&self.redis, &self.postgresql);
        self.acknowledged = redis.acknowledged + postgresql.acknowledged;
        self.lost = redis.lost + postgresql.lost;
        self.connections_lost = redis.connections_lost + postgresql.connections_lost;
        self.moves = u32::try_from(self.moved.len()).unwrap_or(u32::MAX);
    }

    /// Judges, for good.
    pub fn judged(mut self) -> Self {
        self.clean = self.points().iter().all(|(holds, _)| *holds);
        self
    }

    /// What has to hold, and whether it does.
    pub fn points(&self) -> Vec<(bool, String)> {
        let (redis, postgresql) = (&self.redis, &self.postgresql);
        let amcheck = match postgresql.amcheck.as_str() {
            "" => "nothing",
            found => found,
        };
        vec![
            (
                redis.lost == 0 && redis.acknowledged > 0,
                format!(
                    "Redis: {} writes acknowledged, {} lost",
                    redis.acknowledged, redis.lost
                ),
            ),
            (
                redis.connections_lost == 0,
                format!(
                    "Redis: {} connections, {} lost; the longest wait for an answer {} ms",
                    redis.connections, redis.connections_lost, redis.largest_stall_ms
                ),
            ),
            (
                redis.check.contains(AOF_IS_WELL),
                format!("redis-check-aof: {}", redis.check),
            ),
            (
                postgresql.lost == 0 && postgresql.acknowledged > 0,
                format!(
                    "PostgreSQL: {} transactions acknowledged, {} lost, {} there that nobody was told of",
                    postgresql.acknowledged, postgresql.lost, postgresql.unacknowledged
                ),
            ),
            (
                postgresql.connections_lost == 0,
                format!(
                    "PostgreSQL: {} connections, {} lost; {:.1} transactions a second",
                    postgresql.connections, postgresql.connections_lost, postgresql.tps
                ),
            ),
            (
                postgresql.balances_agree,
                "PostgreSQL: the sums of accounts, tellers, branches and history agree".to_owned(),
            ),
            (
                postgresql.amcheck.is_empty(),
                format!("pg_amcheck finds {amcheck}"),
            ),
            (
                postgresql.bad_checksums == 0,
                format!("pg_checksums: {} bad blocks", postgresql.bad_checksums),
            ),
            (
                self.troubles.is_empty(),
                format!(
                    "the guest's kernel complains of {} things: {:?}",
                    self.troubles.len(),
                    self.troubles
                ),
            ),
            (
                self.disk_is_free,
                "nobody holds the disk's lock after the guest".to_owned(),
            ),
        ]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} moves, {} writes and transactions acknowledged, {} lost, {} connections lost, {:.0} s",
            self.moves, self.acknowledged, self.lost, self.connections_lost, self.seconds
        )?;
        for (holds, text) in self.points() {
            writeln!(f, "{}  {text}", if holds { "ok  " } else { "FAIL" })?;
        }
        Ok(())
    }
}
