//! Commands, one word a line, each answered by one line of JSON.

use std::fs;
use std::process::Command;
use std::time::Duration;

use guest_images::traffic;
use serde_json::{Value, json};

use crate::cache;
use crate::clock;
use crate::disk::Journal;
use crate::witness::Witness;

/// Does what the line asks for.
pub fn answer(line: &str, witness: &Witness) -> Value {
    match line.trim() {
        "status" => json!({
            "ok": true,
            "kernel": kernel(),
            "cpus": cpus(),
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
        "cache free" => done(cache::free()),
        "cache check" => match cache::check() {
            Ok(mib) => json!({ "ok": true, "mib": mib }),
            Err(error) => failure(&error.to_string()),
        },
        "balloon" => done(cache::run(&["insmod", "/modules/virtio_balloon.ko"])),
        // Without -f, busybox would ask an init that is not there.
        "poweroff" => done(Command::new("poweroff").arg("-f").spawn().map(drop)),
        "reboot" => done(Command::new("reboot").arg("-f").spawn().map(drop)),
        "panic" => done(fs::write("/proc/sysrq-trigger", "c")),
        other => {
            if let Some(words) = other.strip_prefix("traffic ") {
                return make_traffic(words);
            }
            match other.strip_prefix("cache fill ").map(str::parse) {
                Some(Ok(mib)) => done(cache::fill(mib)),
                _ => unknown(other),
            }
        }
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

fn unknown(word: &str) -> Value {
    failure(&format!(
        "unknown command {:?}; there are status, check, uptime, disk write, disk status, disk verify, cache fill MIB, cache check, cache free, balloon, traffic KIND ADDRESS MS, poweroff, reboot, panic",
        word.chars().take(40).collect::<String>()
    ))
}

/// Asks the journal, where there is one.
fn journal(witness: &Witness, ask: impl Fn(&Journal) -> Value) -> Value {
    match witness.journal() {
        Some(journal) => ask(journal),
        None => failure("nothing is written to a disk: say \"disk write\" first"),
    }
}

/// The release of the kernel; empty if it does not say.
fn kernel() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// How many processors the kernel runs on; 0 if it does not say.
fn cpus() -> usize {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let begins = |line: &&str| line.starts_with("processor");
    text.lines().filter(begins).count()
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
