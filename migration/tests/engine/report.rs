//! Reports as JSON: the names are a contract, and the schema in the tree says what they are.

use crate::support;

use migration::cancel::CancelToken;
use migration::report::Report;
use serde_json::{Value, json};
use support::run::{options, tcp_pair, travel};
use support::{Faults, World, Writer, boot};

fn schema() -> Value {
    serde_json::from_str(include_str!("../../report.schema.json")).unwrap()
}

fn validate(report: &Value) -> Result<(), String> {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    validator
        .validate(report)
        .map_err(|error| error.to_string())
}

fn as_json(report: &Report) -> Value {
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(
        serde_json::from_value::<Report>(json.clone()).unwrap(),
        *report
    );
    json
}

/// A completed move, a failed one, a cancelled one, and one that did not even connect.
fn reports() -> Vec<Value> {
    let writer = Writer {
        pages: 0..500,
        per_ms: 10,
    };
    let world = World::new(&[4], writer, Faults::default());
    let (completed, _arrived) = travel(&world, boot(&world), &options());
    let faults = Faults {
        load: true,
        ..Faults::default()
    };
    let world = World::new(&[4], Writer::default(), faults);
    let (failed, _) = travel(&world, boot(&world), &options());
    let world = World::idle(&[2]);
    let cancel = CancelToken::new().unwrap();
    cancel.cancel().unwrap();
    let (a, _b) = tcp_pair();
    let cancelled = support::run::send(boot(&world), a, &options(), &cancel, &mut |_| {});
    [completed.report, failed.report, cancelled.report]
        .iter()
        .map(as_json)
        .collect()
}

#[test]
fn reports_keep_to_the_schema() {
    for report in reports() {
        validate(&report).unwrap_or_else(|error| panic!("{error}: {report:#}"));
        let mut with_demo = report.clone();
        with_demo["demo"] = json!({
            "echoes_sent": 100, "echoes_lost": 0, "connection_survived": true,
            "checksum_ok": true, "network_gap_ms": 12.5
        });
        validate(&with_demo).unwrap();
    }
}

#[test]
fn the_schema_knows_every_field_and_no_other() {
    let report = reports().remove(0);
    let fields = |value: &Value| {
        let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let schema = schema();
    let mut known = fields(&schema["properties"]);
    known.retain(|name| name != "demo");
    assert_eq!(fields(&report), known);
    assert_eq!(
        fields(&report["blackout"]),
        fields(&schema["$defs"]["blackout"]["properties"])
    );
    assert_eq!(
        fields(&report["rounds"][0]),
        fields(&schema["$defs"]["round"]["properties"])
    );
    for name in known {
        let mut less = report.clone();
        less.as_object_mut().unwrap().remove(&name);
        assert!(validate(&less).is_err(), "a report without {name}");
    }
}

#[test]
fn the_schema_refuses_what_is_not_a_report() {
    let report = reports().remove(0);
    for (name, value) in [
        ("outcome", json!("fine")),
        ("blackout_clock", json!("sundial")),
        ("total_ms", json!(-1)),
        ("rounds", json!([{}])),
        ("streams", json!(0)),
        ("dirty_tracking", json!("by ear")),
        ("surprise", json!(1)),
    ] {
        let mut wrong = report.clone();
        wrong[name] = value;
        assert!(validate(&wrong).is_err(), "{name}");
    }
}
