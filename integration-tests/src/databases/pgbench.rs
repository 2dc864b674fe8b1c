//! pgbench against the PostgreSQL in the guest, and what PostgreSQL says of its tables afterwards.
//!
//! pgbench's transactions move money: each adds a number to an account, a teller and a branch, and a line to the
//! history. It counts those whose COMMIT was acknowledged. So there are as many lines as that, and all four sums agree.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::Error;
use crate::ferry::{Lines, Netns, Ssh, World};
use vmm::study::child::spawn_bound;

/// Connections that write.
const CONNECTIONS: u64 = 4;
/// Seconds between two lines of progress.
const PROGRESS: &str = "2";
/// Seconds that it would go on for: longer than anybody waits. It is told when to end.
const LONGEST: &str = "86400";
/// How long the last transactions may take.
const GRACE: Duration = Duration::from_secs(120);

/// What came of the transactions.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Transactions whose COMMIT was acknowledged.
    pub acknowledged: u64,
    /// Those of them that were not in the history afterwards.
    pub lost: u64,
    /// Lines of the history that nobody was told of.
    pub unacknowledged: u64,
    /// Connections that wrote.
    pub connections: u64,
    /// Those of them that pgbench gave up.
    pub connections_lost: u64,
    /// Transactions a second.
    pub tps: f64,
    /// Whether the sums of all four tables agree.
    pub balances_agree: bool,
    /// What `pg_amcheck` found; empty if nothing.
    pub amcheck: String,
    /// Blocks whose checksums `pg_checksums` found wrong.
    pub bad_checksums: u64,
}

/// A running pgbench.
#[derive(Debug)]
pub struct Load {
    child: Child,
    result: Lines,
    progress: Lines,
}

impl Load {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(pgbench: &Path, from: &Netns) -> Result<Self, Error> {
        let mut command = from.command(pgbench);
        let clients = CONNECTIONS.to_string();
        command
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable")
            .args(["--host", &World::guest_address(0), "--username", "postgres"])
            .args(["--client", &clients, "--time", LONGEST])
            .args(["--progress", PROGRESS, "--no-vacuum", "bench"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            spawn_bound(command, Vec::new()).map_err(|e| Error::file("start", pgbench, e))?;
        Ok(Self {
            result: child.stdout.take().map(Lines::collect).unwrap_or_default(),
            progress: child.stderr.take().map(Lines::collect).unwrap_or_default(),
            child,
        })
    }

    /// Waits until it has said once more that transactions were done.
    ///
    /// # Errors
    /// It does not in time, or has ended.
    pub fn wait_more(&self, limit: Duration) -> Result<(), Error> {
        let start = self.progress.count();
        match self.progress.wait(start, limit, is_progress) {
            Some(_) => Ok(()),
            None => Err(Error::Unexpected(format!(
                "no transaction, waited for at most {limit:?}; pgbench said\n{}{}",
                self.progress.tail(),
                self.result.tail()
            ))),
        }
    }

    /// Whether it has not ended: what is done now is done under load.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it, and reads what it counted.
    ///
    /// # Errors
    /// It does not end, or says no count.
    pub fn finish(mut self) -> Result<Outcome, Error> {
        let start = Instant::now();
        // By the alarm that it has set itself for the end of its time: it finishes its transactions.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGALRM);
        while self.runs() {
            if start.elapsed() > GRACE {
                return Err(Error::Unexpected(format!(
                    "pgbench does not end; it said\n{}",
                    self.progress.tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.result.wait_closed(GRACE);
        self.progress.wait_closed(GRACE);
        read(&self.result.text(), &self.progress.text()).ok_or_else(|| {
            Error::Unexpected(format!(
                "pgbench does not say what it did:\n{}{}",
                self.progress.tail(),
                self.result.tail()
            ))
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `progress: 4.0 s, 12.5 tps, …`, with transactions in it.
fn is_progress(line: &str) -> bool {
    let tps = line
        .strip_prefix("progress: ")
        .and_then(|rest| number_before(rest, " tps"));
    tps.is_some_and(|tps| tps > 0.0)
}

/// The last word before `mark`, as a number.
fn number_before(text: &str, mark: &str) -> Option<f64> {
    text.split(mark).next()?.rsplit(' ').next()?.parse().ok()
}

/// What pgbench counted, out of its result and its complaints.
fn read(result: &str, complaints: &str) -> Option<Outcome> {
    let after = |mark: &str| {
        let rest = result.lines().find_map(|line| line.strip_prefix(mark))?;
        rest.trim().split(' ').next()
    };
    let aborted =
        |line: &&str| line.contains("pgbench: error: client ") && line.contains(" aborted");
    let lost = complaints.lines().filter(aborted).count();
    Some(Outcome {
        acknowledged: after("number of transactions actually processed:")?
            .parse()
            .ok()?,
        connections: CONNECTIONS,
        connections_lost: lost as u64,
        tps: after("tps =")?.parse().ok()?,
        ..Outcome::default()
    })
}

/// Adds to the outcome what PostgreSQL finds in its own tables. It is stopped for the last check, and stays so.
///
/// # Errors
/// The guest cannot be asked.
pub fn check(ssh: &Ssh<'_>, outcome: &mut Outcome) -> Result<(), Error> {
    let sums = ssh.run(&as_postgres(
        "psql -At -F \" \" bench -c \"SELECT (SELECT count(*) FROM pgbench_history), \
         (SELECT coalesce(sum(delta), 0) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts), \
         (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches)\"",
    ))?;
    let numbers: Vec<i64> = sums.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [lines, delta, accounts, tellers, branches] = numbers[..] else {
        return Err(Error::Unexpected(format!("PostgreSQL says {sums:?}")));
    };
    let lines = u64::try_from(lines).unwrap_or_default();
    outcome.lost = outcome.acknowledged.saturating_sub(lines);
    outcome.unacknowledged = lines.saturating_sub(outcome.acknowledged);
    outcome.balances_agree = [accounts, tellers, branches]
        .iter()
        .all(|sum| *sum == delta);
    // Its status is 2 where something is corrupt; what it found is printed.
    let amcheck = as_postgres("/usr/lib/postgresql/*/bin/pg_amcheck --heapallindexed bench");
    outcome.amcheck = ssh.run(&(amcheck + " 2>&1 || true"))?;
    // The cluster's own unit: that of all clusters has stopped before it has.
    ssh.run("systemctl stop 'postgresql@*' postgresql")?;
    let data = "/var/lib/postgresql/*/main";
    let said = ssh.run(&format!(
        "/usr/lib/postgresql/*/bin/pg_checksums --check -D {data} 2>&1 || true"
    ))?;
    let bad = said
        .lines()
        .find_map(|line| line.strip_prefix("Bad checksums:"));
    let bad = bad.and_then(|count| count.trim().parse().ok());
    outcome.bad_checksums =
        bad.ok_or_else(|| Error::Unexpected(format!("pg_checksums says {said:?}")))?;
    Ok(())
}

/// A line of shell, run by the owner of the cluster.
fn as_postgres(line: &str) -> String {
    format!("cd / && su postgres -s /bin/sh -c '{line}'")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_transactions_in_it() {
        assert!(is_progress(
            "progress: 4.0 s, 12.5 tps, lat 300.1 ms stddev 12.0, 0 failed"
        ));
        assert!(!is_progress(
            "progress: 6.0 s, 0.0 tps, lat 0.000 ms stddev 0.000, 0 failed"
        ));
        assert!(!is_progress("pgbench (15.20)"));
    }

    #[test]
    fn counts_are_read_where_connections_broke_too() {
        let result = "transaction type: <builtin: TPC-B (sort of)>\nnumber of transactions actually processed: 1234\n\
                      number of failed transactions: 0 (0.000%)\ntps = 10.5 (without initial connection time)\n";
        let whole = read(result, "progress: 2.0 s, 1.0 tps\n").unwrap();
        assert_eq!((whole.acknowledged, whole.connections_lost), (1234, 0));
        let broken = "pgbench: error: client 2 aborted in command 5 (SQL) of script 0; perhaps the backend died\n\
                      pgbench: error: Run was aborted; the above results are incomplete.\n";
        assert_eq!(read(result, broken).unwrap().connections_lost, 1);
        assert!(read("", broken).is_none());
    }
}
