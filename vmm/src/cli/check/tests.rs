//! What `ferry check` says of hosts with this and without that.

use serde_json::json;

use super::facts::{Device, Execution, Kind, KvmFacts, Sandbox, gather, meminfo};
use super::*;
use crate::kvm::probe::GuestExecution;

fn host(kind: Kind) -> Facts {
    Facts {
        kvm: KvmFacts {
            present: true,
            allowed: true,
            api_version: Some(12),
            ..KvmFacts::default()
        },
        guest_execution: Execution {
            kind,
            instructions_per_s: Some(2_400_000),
            error: None,
        },
        dirty_log: true,
        manual_protect: true,
        dirty_ring_entries: 65_536,
        irqchip: true,
        tsc_deadline: true,
        tap: Device {
            usable: true,
            error: None,
        },
        userfaultfd: Device {
            usable: true,
            error: None,
        },
        sandbox: Sandbox {
            system_calls: true,
            landlock_abi: 7,
        },
        memory_total_bytes: 24 << 30,
        memory_available_bytes: 20 << 30,
        cpus: 2,
    }
}

fn works(facts: &Facts) -> Vec<&'static str> {
    let verdicts = verdicts(facts);
    verdicts
        .iter()
        .filter(|verdict| verdict.works)
        .map(|verdict| verdict.what)
        .collect()
}

#[test]
fn a_whole_host_does_everything() {
    let facts = host(Kind::Native);
    assert_eq!(works(&facts).len(), 5);
    assert_eq!(status(&verdicts(&facts)), exit::OK);
}

#[test]
fn an_emulating_host_runs_and_moves_bare_guests_alone() {
    let facts = host(Kind::Emulated);
    assert_eq!(
        works(&facts),
        [
            "run bare guests",
            "guest networks",
            "migrate",
            "receive moves"
        ]
    );
    assert_eq!(status(&verdicts(&facts)), exit::ERROR);
    let table = table(&facts, &verdicts(&facts), Style::PLAIN);
    assert!(
        table.contains("hang")
            && table.lines().all(|line| line.len() <= 80)
            && table.contains("2,400,000 instructions/s")
            && table.contains("65,536 entries"),
        "{table}"
    );
}

#[test]
fn without_kvm_nothing_runs_and_the_reason_is_told() {
    let mut facts = host(Kind::Unknown);
    facts.kvm.error = Some("open /dev/kvm: no permission".to_owned());
    assert_eq!(works(&facts), ["guest networks"]);
    assert_eq!(status(&verdicts(&facts)), exit::NO_GUESTS);
    let table = table(&facts, &verdicts(&facts), Style::PLAIN);
    assert!(table.contains("no permission"), "{table}");
}

#[test]
fn a_guest_that_does_not_even_count_down_is_no_guest() {
    let facts = host(Kind::Unknown);
    assert_eq!(works(&facts), ["guest networks"]);
    assert_eq!(status(&verdicts(&facts)), exit::NO_GUESTS);
}

#[test]
fn without_tap_only_the_network_is_missing() {
    let mut facts = host(Kind::Native);
    facts.tap.usable = false;
    assert_eq!(works(&facts).len(), 4);
    assert_eq!(status(&verdicts(&facts)), exit::ERROR);
}

#[test]
fn this_host_is_looked_at_without_a_panic() {
    let facts = gather(|| {
        Ok(GuestExecution {
            native: true,
            instructions_per_s: 1_000_000_000,
        })
    });
    assert!(facts.memory_total_bytes > 0 && facts.cpus > 0);
    // Every Linux with one capability of the ring says so by its size, a power of two.
    assert!(facts.dirty_ring_entries == 0 || facts.dirty_ring_entries.is_power_of_two());
    // Measured exactly where there is a KVM to measure.
    let kind = if facts.kvm.error.is_none() {
        "native"
    } else {
        "unknown"
    };
    assert_eq!(json!(facts)["guest_execution"]["kind"], kind);
}

#[test]
fn meminfo_is_read_in_kib() {
    let text = "MemTotal:       24689284 kB\nMemFree: 1 kB\nMemAvailable: x kB\n";
    assert_eq!(meminfo(text, "MemTotal:"), 24_689_284 * 1024);
    assert_eq!(meminfo(text, "MemAvailable:"), 0);
    assert_eq!(meminfo(text, "HugePages:"), 0);
}
