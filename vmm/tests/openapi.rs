//! Keeps `vmm/openapi.json` true: every route is described and nothing else is, every example fits its schema, and so
//! does what the server and the client really exchange.

use std::collections::BTreeSet;

use migration::dirty::Tracking;
use migration::dirty_rate::{Bursts, Rhythm, Window};
use migration::options::Options;
use migration::predict::{
    Estimate, LinkModel, Memory, Part, Prediction, Question, Writes, predict,
};
use migration::report::{Blackout, BlackoutClock, Outcome, Report, Round};
use serde::Serialize;
use serde_json::{Value, json};
use vmm::config::Target;
use vmm::control::{
    BalloonRequest, BalloonStatus, Compress, DeviceStatus, DirtyLogStatus, DirtyRateRequest,
    Happening, HeartbeatStatus, LastMove, MemoryRegion, MigrateRequest, MoveEvent, MoveProgress,
    OPENAPI, OnTimeout, PredictEvent, PredictRequest, RateEvent, SnapshotRequest, State, Status,
    Throttle, routes,
};
use vmm::sandbox::{InForce, Mode};

fn document() -> Value {
    serde_json::from_str(OPENAPI).expect("openapi.json is JSON")
}

/// A validator for any schema of the document.
fn validator(schema: &Value) -> jsonschema::Validator {
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "allOf": [schema],
        "components": document()["components"],
    });
    jsonschema::validator_for(&whole).expect("a valid schema")
}

fn named(name: &str) -> jsonschema::Validator {
    validator(&json!({ "$ref": format!("#/components/schemas/{name}") }))
}

fn check(name: &str, value: &impl Serialize) {
    let value = serde_json::to_value(value).expect("serializes");
    if let Err(error) = named(name).validate(&value) {
        panic!("{name}: {error} at {}\n{value:#}", error.instance_path());
    }
}

/// Every operation: method, path and description.
fn operations() -> Vec<(String, String, Value)> {
    let document = document();
    let paths = document["paths"].as_object().expect("paths").clone();
    let methods = |(path, item): (String, Value)| {
        let item = item.as_object().expect("a path item").clone();
        item.into_iter()
            .map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
    };
    paths.into_iter().flat_map(methods).collect()
}

#[test]
fn every_route_is_described_and_nothing_else() {
    let described: BTreeSet<_> = operations()
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let served: BTreeSet<_> = routes()
        .map(|(method, path)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(described, served);
    assert_eq!(document()["openapi"], "3.1.0");
}

#[test]
fn every_example_fits_its_schema() {
    let mut examples = 0;
    for (method, path, operation) in operations() {
        let mut bodies = vec![operation["requestBody"].clone()];
        bodies.extend(
            operation["responses"]
                .as_object()
                .expect("responses")
                .values()
                .cloned(),
        );
        for body in bodies {
            for content in body["content"]
                .as_object()
                .into_iter()
                .flat_map(|all| all.values())
            {
                let Some(example) = content.get("example") else {
                    continue;
                };
                if let Err(error) = validator(&content["schema"]).validate(example) {
                    panic!("{method} {path}: {error}\n{example:#}");
                }
                examples += 1;
            }
        }
    }
    assert!(examples > 20, "only {examples} examples were found");
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value.as_str() {
                        Some(target) if name == "$ref" => drop(found.insert(target.to_owned())),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for target in &found {
        let pointer = target
            .strip_prefix('#')
            .expect("a reference into the document");
        assert!(document.pointer(pointer).is_some(), "{target}");
    }
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    for name in schemas.keys() {
        let target = format!("#/components/schemas/{name}");
        assert!(found.contains(&target), "{target} is not used");
    }
}

fn round() -> Round {
    Round {
        index: 1,
        throttle_percent: vec![0, 99],
        throttled_ms: vec![0.0, 12.5],
        predicted_blackout_ms: 12.5,
        ..Round::default()
    }
}

fn report() -> Report {
    Report {
        outcome: Outcome::Completed,
        reason: "within the limit".to_owned(),
        total_ms: 100.0,
        setup_ms: 1.0,
        brownout_ms: Some(50.0),
        blackout_ms: Some(20.0),
        blackout: Some(Blackout::default()),
        predicted_blackout_ms: Some(19.0),
        downtime_limit_ms: 50.0,
        blackout_clock: Some(BlackoutClock::Shared),
        guest_gap_ms: Some(20.5),
        largest_gap_ms: Some(20.5),
        throttled_ms: vec![0.0, 12.5],
        guest_work_lost_percent: Some(1.0),
        vcpu_work_lost_percent: vec![Some(1.0), None],
        vcpu_work_per_cpu_s_lost_percent: vec![Some(0.0), None],
        verify_ms: Some(3.0),
        rounds: vec![round()],
        memory_bytes: 1 << 30,
        wire_bytes: 1 << 30,
        compressed_bytes: 0,
        delta_bytes: 0,
        zero_pages: 5,
        untouched_pages: 6,
        dirty_tracking: Some(Tracking::Ring),
        streams: 1,
        tls: true,
        tls_peer: Some("beta.example.org".into()),
        mean_bandwidth_bytes_per_s: 1 << 27,
    }
}

/// A report in which everything that may be unknown is.
fn bare_report() -> Report {
    Report {
        outcome: Outcome::Unknown,
        brownout_ms: None,
        blackout_ms: None,
        blackout: None,
        predicted_blackout_ms: None,
        blackout_clock: None,
        dirty_tracking: None,
        guest_gap_ms: None,
        largest_gap_ms: None,
        guest_work_lost_percent: None,
        vcpu_work_lost_percent: Vec::new(),
        vcpu_work_per_cpu_s_lost_percent: Vec::new(),
        verify_ms: None,
        rounds: Vec::new(),
        ..report()
    }
}

#[test]
fn every_status_fits() {
    let full = Status {
        state: State::Migrating,
        pid: 1,
        vcpus: 8,
        memory_bytes: 6 << 30,
        memory_regions: vec![MemoryRegion {
            gpa: 4 << 30,
            bytes: 6 << 30,
            host_address: u64::MAX,
        }],
        memory_to_come_bytes: 3,
        uptime_ms: 5,
        devices: vec![
            DeviceStatus {
                kind: "virtio-net".to_owned(),
                slot: Some(3),
                tap: Some("tap0".to_owned()),
                mac: Some("52:54:00:12:34:56".to_owned()),
                disk: None,
                queues: Some(4),
            },
            DeviceStatus {
                kind: "virtio-blk".to_owned(),
                slot: Some(4),
                tap: None,
                mac: None,
                disk: Some("/srv/guest.img".to_owned()),
                queues: Some(1),
            },
            DeviceStatus {
                kind: "serial".to_owned(),
                slot: None,
                tap: None,
                mac: None,
                disk: None,
                queues: None,
            },
        ],
        dirty_log: Some(DirtyLogStatus {
            kind: "manual_protect".to_owned(),
            on: true,
        }),
        sandbox: Some(InForce {
            system_calls: Mode::Kill,
            landlock_abi: 7,
        }),
        migration: Some(MoveProgress {
            peer: Some("10.0.0.2:7000".to_owned()),
            bandwidth_bytes_per_s: 125_000_000,
            throttle_percent: vec![20, 0],
            ..MoveProgress::default()
        }),
        last_move: Some(LastMove {
            target: "unix:/x".to_owned(),
            outcome: Outcome::Cancelled,
            reason: "asked for".to_owned(),
        }),
        balloon: Some(BalloonStatus {
            driven: true,
            target_bytes: 1 << 30,
            actual_bytes: 1 << 20,
            inflated_bytes: 2,
            reported_bytes: 3,
        }),
        heartbeat: Some(HeartbeatStatus {
            count: 1,
            first_ns: 2,
            last_ns: 3,
            largest_gap_ns: 4,
        }),
    };
    check("Status", &full);
    check("Status", &Status::default());
    for state in [
        State::Waiting,
        State::Receiving,
        State::Running,
        State::Paused,
        State::Migrating,
        State::Saving,
        State::Unknown,
    ] {
        check("State", &state);
        assert_eq!(json!(state), state.word());
    }
}

#[test]
fn the_bounds_of_a_balloon_are_those_of_the_server() {
    for (value, good) in [
        (json!({ "target_bytes": 0 }), true),
        (json!({ "target_bytes": 1_u64 << 40 }), true),
        (json!({ "target_bytes": -1 }), false),
        (json!({ "target_bytes": 0.5 }), false),
        (json!({ "target_bytes": "1G" }), false),
        (json!({}), false),
        (json!({ "target_bytes": 0, "bytes": 0 }), false),
    ] {
        let server = serde_json::from_value::<BalloonRequest>(value.clone()).is_ok();
        assert_eq!(server, good, "server: {value}");
        let schema = named("BalloonRequest").is_valid(&value);
        assert_eq!(schema, good, "schema: {value}");
    }
}

#[test]
fn every_line_of_a_move_fits_and_is_read_back() {
    let reason = || "why".to_owned();
    let happenings = [
        Happening::Connected {
            peer: "10.0.0.2:7000".to_owned(),
            memory_bytes: 1 << 30,
        },
        Happening::RoundStarted {
            index: 0,
            pages: 262_144,
        },
        Happening::Progress {
            index: 0,
            pages_done: 1,
            pages: 2,
            wire_bytes: 3,
        },
        Happening::RoundFinished { round: round() },
        Happening::ThrottleChanged {
            percent: vec![20],
            reason: reason(),
        },
        Happening::SwitchingOver {
            reason: reason(),
            predicted_blackout_ms: 1.5,
        },
        Happening::Go,
        Happening::Live { blackout_ms: 20.0 },
        Happening::Failed { reason: reason() },
    ];
    let lines = happenings
        .into_iter()
        .map(MoveEvent::Happened)
        .chain([MoveEvent::from(report()), MoveEvent::from(bare_report())]);
    for line in lines {
        check("MoveEvent", &line);
        let text = serde_json::to_string(&line).expect("serializes");
        let back: MoveEvent = serde_json::from_str(&text).expect(&text);
        assert_eq!(back, line, "{text}");
    }
    let newer: MoveEvent =
        serde_json::from_str(r#"{"event":"compressed","ratio":2}"#).expect("known form");
    assert_eq!(newer, MoveEvent::Happened(Happening::Other));
}

#[test]
fn every_line_of_a_measurement_fits_and_is_read_back() {
    let window = Window {
        window_ms: 125.25,
        pages: 16,
        bytes_per_s: 523_241,
        pages_by_vcpu: None,
    };
    let by_vcpu = Window {
        pages_by_vcpu: Some(vec![9, 0, 7]),
        ..window.clone()
    };
    let rhythm = Rhythm {
        burst_ms: 1000.0,
        every_ms: 2937.5,
    };
    for line in [
        RateEvent::Window {
            window: window.clone(),
        },
        RateEvent::Window { window: by_vcpu },
        RateEvent::Done {
            memory_bytes: 1 << 30,
            bursts: None,
        },
        RateEvent::Done {
            memory_bytes: 1 << 30,
            bursts: Some(Bursts {
                rhythm,
                windows: vec![window.clone()],
            }),
        },
        RateEvent::Failed {
            reason: "why".to_owned(),
        },
    ] {
        check("RateEvent", &line);
        let text = serde_json::to_string(&line).expect("serializes");
        let back: RateEvent = serde_json::from_str(&text).expect(&text);
        assert_eq!(back, line, "{text}");
    }
    for (value, good) in [
        (json!({}), true),
        (json!({ "longest_ms": 0 }), false),
        (json!({ "longest_ms": 1 }), true),
        (json!({ "longest_ms": 64_000 }), true),
        (json!({ "longest_ms": 64_001 }), false),
        (json!({ "longest_ms": 0.5 }), false),
        (json!({ "shortest_ms": 1 }), false),
        (json!({ "sample": 0 }), false),
        (json!({ "sample": 1 }), true),
        (json!({ "sample": 1024 }), true),
        (json!({ "sample": 1025 }), false),
        (json!({ "contents": true }), true),
        (json!({ "contents": 1 }), false),
        (json!({ "contents": true, "sample": 2 }), true),
        (json!({ "contents": true, "sample": 1 }), false),
        (json!({ "contents": false, "sample": 1 }), true),
    ] {
        let server = serde_json::from_value::<DirtyRateRequest>(value.clone())
            .is_ok_and(|request| request.checked().is_ok());
        assert_eq!(server, good, "server: {value}");
        let schema = named("DirtyRateRequest").is_valid(&value);
        assert_eq!(schema, good, "schema: {value}");
    }
}

fn prediction() -> Prediction {
    let link = LinkModel::of(1 << 30, std::time::Duration::from_millis(1));
    let writes = Writes::known(vec![Part::random(10_000, 1_000_000.0)]);
    let memory = Memory::full(256 << 20);
    predict(&Question::new(memory, writes, link, Options::default()))
}

#[test]
fn every_line_of_a_prediction_fits_and_is_read_back() {
    let window = Window {
        window_ms: 125.25,
        pages: 16,
        bytes_per_s: 523_241,
        pages_by_vcpu: Some(vec![16]),
    };
    for line in [
        PredictEvent::Window { window },
        PredictEvent::Memory {
            memory_bytes: 1 << 30,
            touched_pages: 7,
            zero_percent: 12.5,
            busy_percent: 100.0,
        },
        PredictEvent::Link {
            bandwidth_bytes_per_s: Estimate {
                expected: 2,
                low: 1,
                high: 3,
            },
            round_trip_ms: 0.25,
            connect_ms: 0.5,
            streams: 2,
            probe_bytes: 1 << 30,
            left_percent: 62.5,
        },
        PredictEvent::Failed {
            reason: "why".to_owned(),
        },
    ] {
        check("PredictEvent", &line);
        let text = serde_json::to_string(&line).expect("serializes");
        let back: PredictEvent = serde_json::from_str(&text).expect(&text);
        assert_eq!(back, line, "{text}");
    }
    check("Prediction", &prediction());
    let line = PredictEvent::Prediction {
        prediction: Box::new(prediction()),
    };
    check("PredictEvent", &line);
    let text = serde_json::to_string(&line).expect("serializes");
    let back: PredictEvent = serde_json::from_str(&text).expect(&text);
    assert!(matches!(back, PredictEvent::Prediction { .. }), "{text}");
    let target = json!({ "target": "unix:/x" });
    for (value, good) in [
        (json!({}), false),
        (json!({ "move": {} }), false),
        (json!({ "move": target }), true),
        (json!({ "move": target, "watch_ms": 64_000 }), true),
        (json!({ "move": target, "watch_ms": 0 }), false),
        (json!({ "move": target, "watch_ms": 64_001 }), false),
        (
            json!({ "move": { "target": "unix:/x", "downtime_ms": 0 } }),
            false,
        ),
        (json!({ "move": target, "wings": 4 }), false),
    ] {
        let server = serde_json::from_value::<PredictRequest>(value.clone())
            .is_ok_and(|request| request.checked().is_ok());
        assert_eq!(server, good, "server: {value}");
        let schema = named("PredictRequest").is_valid(&value);
        assert_eq!(schema, good, "schema: {value}");
    }
}

#[test]
fn the_bounds_of_a_snapshot_are_those_of_the_server() {
    let name = "0123456789abcdef0123456789abcdef";
    for (value, good) in [
        (json!({}), true),
        (
            json!({ "name": "a", "base": name, "track": true, "pause": true }),
            true,
        ),
        (json!({ "base": "0123" }), false),
        (json!({ "downtime_ms": 0 }), false),
        (
            json!({ "downtime_ms": 50, "compress": "zstd", "throttle": "off" }),
            true,
        ),
        (json!({ "bandwidth_bytes_per_s": 65_535 }), false),
        (json!({ "path": "/etc/passwd" }), false),
    ] {
        let server = serde_json::from_value::<SnapshotRequest>(value.clone())
            .is_ok_and(|request| request.checked().is_ok());
        assert_eq!(server, good, "server: {value}");
        let schema = named("SnapshotRequest").is_valid(&value);
        assert_eq!(schema, good, "schema: {value}");
    }
}

#[test]
fn every_request_fits_and_the_bounds_are_those_of_the_server() {
    let least = MigrateRequest::to(Target::Tcp("::1".to_owned(), 7000));
    let most = MigrateRequest {
        downtime_ms: Some(50),
        bandwidth_bytes_per_s: Some(125_000_000),
        streams: Some(4),
        max_rounds: Some(3),
        timeout_ms: Some(1000),
        on_timeout: OnTimeout::Switch,
        throttle: Throttle::AutoConverge,
        compress: Compress::Zstd,
        delta_cache_bytes: Some(64 << 20),
        verify: true,
        peer_timeout_ms: Some(700),
        insecure_plaintext: true,
        ..least.clone()
    };
    for request in [&least, &most] {
        check("MigrateRequest", request);
        let text = serde_json::to_string(request).expect("serializes");
        assert_eq!(
            &serde_json::from_str::<MigrateRequest>(&text).expect(&text),
            request
        );
    }
    // What the schema refuses the server refuses, and the other way round.
    let table = [
        (json!({}), false),
        (json!({ "downtime_ms": 0 }), false),
        (json!({ "downtime_ms": 1 }), true),
        (json!({ "downtime_ms": 3_600_000 }), true),
        (json!({ "downtime_ms": 3_600_001 }), false),
        (json!({ "downtime_ms": 1.5 }), false),
        (json!({ "downtime_ms": -1 }), false),
        (json!({ "bandwidth_bytes_per_s": 65_535 }), false),
        (json!({ "bandwidth_bytes_per_s": 65_536 }), true),
        (json!({ "max_rounds": 0 }), false),
        (json!({ "max_rounds": 4_294_967_296u64 }), false),
        (json!({ "timeout_ms": 2_592_000_000u64 }), true),
        (json!({ "timeout_ms": 2_592_000_001u64 }), false),
        (json!({ "verify": true }), true),
        (json!({ "verify": 1 }), false),
        (json!({ "peer_timeout_ms": 499 }), false),
        (json!({ "peer_timeout_ms": 500 }), true),
        (json!({ "peer_timeout_ms": 3_600_000 }), true),
        (json!({ "peer_timeout_ms": 3_600_001 }), false),
        (json!({ "on_timeout": "wait" }), false),
        (json!({ "throttle": "on" }), false),
        (json!({ "throttle": true }), false),
        (json!({ "throttle": "off" }), true),
        (json!({ "throttle": "auto" }), true),
        (json!({ "throttle": "auto_converge" }), true),
        (json!({ "throttle": "sdps" }), true),
        (json!({ "throttle": "dirty_limit" }), true),
        (json!({ "throttle": "dirty-limit" }), false),
        (json!({ "compress": "auto" }), true),
        (json!({ "compress": "none" }), true),
        (json!({ "compress": "lz4" }), true),
        (json!({ "compress": "gzip" }), false),
        (json!({ "delta_cache_bytes": 1_048_575 }), false),
        (json!({ "delta_cache_bytes": 1_048_576 }), true),
        (json!({ "delta_cache_bytes": true }), false),
        (json!({ "streams": 0 }), false),
        (json!({ "streams": 1 }), true),
        (json!({ "streams": 16 }), true),
        (json!({ "streams": 17 }), false),
        (json!({ "wings": 4 }), false),
    ];
    for (index, (mut value, good)) in table.into_iter().enumerate() {
        if index > 0 {
            value["target"] = json!("tcp:127.0.0.1:1");
        }
        let server = serde_json::from_value::<MigrateRequest>(value.clone())
            .is_ok_and(|request| request.checked().is_ok());
        assert_eq!(server, good, "server: {value}");
        assert_eq!(
            named("MigrateRequest").is_valid(&value),
            good,
            "schema: {value}"
        );
    }
}
