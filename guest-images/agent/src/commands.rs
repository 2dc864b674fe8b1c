//! Commands, one word a line, each answered by one line of JSON.

use std::fs;
use std::process::Command;
use std::time::Duration;

use guest_images::traffic;
use serde_json::{Value, json};

use crate::clock;
use crate::disk::Journal;
use crate::witness::Witness;

/// Does what the line asks for.
pub fn answer(line: &str, witness: &Witness) -> Value {
    match line.trim() {
        "status" => json!({
            "ok": true,
            "ticks": witness.ticks(),
            "mono_ns": nanos(),
            "uptime_s": clock::uptime().as_secs_f64(),
            "ws_pages": witness.ws_pages(),
            "writes": witness.writes(),
            "passes": witness.passes(),
            "mismatches": witness.mismatches(),
            "echo_bytes": witness.echoed(),
        }),
        "uptime" => json!({
            "ok": true,
            "mono_ns": nanos(),
            "uptime_s": clock::uptime().as_secs_f64(),
        }),
        "check" => match witness.check_all() {
            Some(checked) => json!({
                "ok": witness.mismatches() == 0,
                "pages": checked.pages,
                "mismatches": witness.mismatches(),
                "checksum": format!("{:016x}", checked.checksum),
            }),
            None => failure("a worker is gone, so its pages cannot be checked"),
        },
        "disk write" => done(witness.begin_journal()),
        "disk status" => journal(witness, |journal| match journal.failure() {
            None => json!({ "ok": true, "acknowledged": journal.acknowledged() }),
            Some(why) => failure(&why),
        }),
        "disk verify" => journal(witness, |journal| match journal.verify() {
            Ok(blocks) => json!({
                "ok": true,
                "blocks": blocks,
                "acknowledged": journal.acknowledged(),
            }),
            Err(why) => failure(&why),
        }),
        // Without -f, busybox would ask an init that is not there.
        "poweroff" => done(Command::new("poweroff").arg("-f").spawn().map(drop)),
        "reboot" => done(Command::new("reboot").arg("-f").spawn().map(drop)),
        "panic" => done(fs::write("/proc/sysrq-trigger", "c")),
        other => match other.strip_prefix("traffic ") {
            Some(words) => make_traffic(words),
            None => failure(&format!(
                "unknown command {:?}; there are status, check, uptime, disk write, disk status, disk verify, traffic KIND ADDRESS MS, poweroff, reboot, panic",
                other.chars().take(40).collect::<String>()
            )),
        },
    }
}

/// `KIND ADDRESS MS`: makes a flow to the service there for so long.
fn make_traffic(words: &str) -> Value {
    let mut words = words.split_whitespace();
    let mut next = || words.next().unwrap_or_default();
    let (kind, to, ms) = (next(), next(), next());
    let (Ok(kind), Ok(to), Ok(ms)) = (kind.parse(), to.parse(), ms.parse()) else {
        return failure("write traffic TCP_STREAM|UDP_STREAM|TCP_RR ADDRESS MS");
    };
    match traffic::run(kind, to, Duration::from_millis(ms)) {
        Ok(carried) => json!({ "ok": true, "bytes": carried.bytes, "micros": carried.micros }),
        Err(error) => failure(&error.to_string()),
    }
}

/// Asks the journal, where there is one.
fn journal(witness: &Witness, ask: impl Fn(&Journal) -> Value) -> Value {
    match witness.journal() {
        Some(journal) => ask(journal),
        None => failure("nothing is written to a disk: say \"disk write\" first"),
    }
}

fn nanos() -> u64 {
    u64::try_from(clock::monotonic().as_nanos()).unwrap_or(u64::MAX)
}

fn failure(why: &str) -> Value {
    json!({ "ok": false, "error": why })
}

fn done(result: std::io::Result<()>) -> Value {
    match result {
        Ok(()) => json!({ "ok": true }),
        Err(error) => failure(&error.to_string()),
    }
}
