//! The page as a scraper reads it: every line parses, and every name follows Prometheus' rules.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::control::{BalloonStatus, DeviceStatus, DirtyLogStatus, HeartbeatStatus, MoveProgress};

/// A VM that has everything to tell, some of it with odd names.
fn whole() -> Metrics {
    let card = |slot, tap: &str| DeviceStatus {
        kind: "virtio-net".into(),
        slot: Some(slot),
        tap: Some(tap.into()),
        mac: None,
        disk: None,
        queues: Some(1),
    };
    let counters = vec![
        ("rx_bytes", 10),
        ("rx_frames", 1),
        ("rx_dropped", 0),
        ("tx_bytes", 20),
        ("tx_frames", 2),
        ("tx_dropped", 3),
    ];
    Metrics {
        status: Status {
            state: State::Migrating,
            vcpus: 2,
            memory_bytes: 1 << 30,
            memory_to_come_bytes: 0,
            uptime_ms: 60_250,
            devices: vec![card(0, "tap0"), card(1, "a\"b\\c\nd{}")],
            dirty_log: Some(DirtyLogStatus {
                kind: "ring".into(),
                on: true,
            }),
            balloon: Some(BalloonStatus {
                driven: true,
                target_bytes: 8192,
                actual_bytes: 4096,
                inflated_bytes: 12_288,
                reported_bytes: 99,
            }),
            heartbeat: Some(HeartbeatStatus {
                count: 7,
                first_ns: 1,
                last_ns: 2,
                largest_gap_ns: 3,
            }),
            migration: Some(MoveProgress {
                round: 3,
                remaining_pages: 10,
                wire_bytes: 1000,
                bandwidth_bytes_per_s: 500,
                throttle_percent: vec![0, 99],
                ..MoveProgress::default()
            }),
            ..Status::default()
        },
        cards: vec![counters.clone(), counters],
        moves: MoveCounts {
            out: [0, 2, 1, 0, 3],
            arrived: 1,
            not_arrived: 4,
            last_out: Some(LastFigures {
                seconds: 1.5,
                blackout_seconds: Some(0.0021),
                wire_bytes: 99,
            }),
            in_seconds: Some(0.25),
        },
        footprint: Footprint::open().ok().map(Arc::new),
    }
}

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads a page as the format's description has it; anything else panics.
fn parse(page: &str) -> (BTreeMap<String, String>, Vec<Sample>) {
    assert!(page.ends_with('\n'));
    let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect(line);
            assert!(!text.is_empty() && helps.insert(name.to_owned()), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert!(helps.contains(name), "{line}");
            let before = types.insert(name.to_owned(), kind.to_owned());
            assert!(before.is_none(), "{line}");
        } else {
            samples.push(sample(line));
            let (name, _, _) = samples.last().expect("one");
            assert!(types.contains_key(name), "{line}");
        }
    }
    (types, samples)
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, behind) = rest.split_once("=\"").expect(line);
            let (value, behind) = quoted(behind);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            match behind.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = behind.strip_prefix('}').expect(line);
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect(line).parse().expect(line);
    (name.to_owned(), labels, value)
}

/// A label's value, without its escapes, and what is behind its closing quote.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().expect("an escape").1 {
                'n' => value.push('\n'),
                c @ ('"' | '\\') => value.push(c),
                c => panic!("\\{c}"),
            },
            c => value.push(c),
        }
    }
    panic!("{text:?} does not end");
}

#[test]
fn every_line_parses_and_every_name_follows_the_rules() {
    for metrics in [whole(), Metrics::default()] {
        let (types, samples) = parse(&metrics.render());
        let mut seen = BTreeSet::new();
        for (name, labels, value) in &samples {
            let word = |text: &str| {
                text.starts_with(|c: char| c.is_ascii_lowercase())
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                    && !text.contains("__")
            };
            assert!(name.starts_with("ferry_") && word(name), "{name}");
            assert!(labels.keys().all(|label| word(label)), "{labels:?}");
            assert!(value.is_finite() && *value >= 0.0, "{name} {value}");
            assert!(seen.insert((name.clone(), labels.clone())), "{name} twice");
            let kind = types[name].as_str();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
            // Base units only.
            for unit in [
                "_ms", "_us", "_ns", "_kib", "_mib", "_percent", "_pages", "_minutes",
            ] {
                assert!(!name.contains(unit), "{name}");
            }
        }
        // No head without numbers.
        assert!(
            types
                .keys()
                .all(|name| samples.iter().any(|(of, ..)| of == name))
        );
    }
}

#[test]
fn the_numbers_are_those_of_the_vm() {
    let (_, samples) = parse(&whole().render());
    let value = |name: &str, label: &[(&str, &str)]| {
        let found = samples.iter().find(|(of, labels, _)| {
            let has = |(key, value): &(&str, &str)| labels.get(*key).is_some_and(|v| v == value);
            of == name && label.iter().all(has)
        });
        found.unwrap_or_else(|| panic!("{name} {label:?}")).2
    };
    for (name, label, expected) in [
        ("ferry_guest_state", ("state", "migrating"), 1.0),
        ("ferry_guest_state", ("state", "running"), 0.0),
        ("ferry_network_transmit_bytes_total", ("tap", "tap0"), 20.0),
        (
            "ferry_network_receive_frames_total",
            ("tap", "a\"b\\c\nd{}"),
            1.0,
        ),
        ("ferry_guest_state", ("state", "saving"), 0.0),
        ("ferry_moves_total", ("outcome", "cancelled"), 1.0),
        ("ferry_moves_total", ("outcome", "paused"), 3.0),
        ("ferry_move_throttle_ratio", ("vcpu", "1"), 0.99),
        (
            "ferry_last_move_duration_seconds",
            ("direction", "in"),
            0.25,
        ),
    ] {
        assert_eq!(value(name, &[label]), expected, "{name}");
    }
    let failed_in = [("direction", "in"), ("outcome", "failed")];
    assert_eq!(value("ferry_moves_total", &failed_in), 4.0);
    for (name, expected) in [
        ("ferry_guest_vcpus", 2.0),
        ("ferry_guest_memory_bytes", 1_073_741_824.0),
        ("ferry_guest_uptime_seconds", 60.25),
        ("ferry_guest_heartbeats_total", 7.0),
        ("ferry_balloon_target_bytes", 8192.0),
        ("ferry_balloon_actual_bytes", 4096.0),
        ("ferry_balloon_inflated_bytes_total", 12_288.0),
        ("ferry_balloon_reported_bytes_total", 99.0),
        ("ferry_last_move_blackout_seconds", 0.0021),
        ("ferry_last_move_wire_bytes", 99.0),
        ("ferry_move_round", 3.0),
        ("ferry_move_remaining_bytes", 40_960.0),
        ("ferry_move_bandwidth_bytes_per_second", 500.0),
    ] {
        assert_eq!(value(name, &[]), expected, "{name}");
    }
    assert!(value("ferry_vmm_resident_memory_bytes", &[]) > 1e5);
}
