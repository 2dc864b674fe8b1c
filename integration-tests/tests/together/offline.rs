//! What needs no guest: `ferry predict` of one that is only described, and what a study would run.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use integration_tests::programs;
use serde_json::Value;

/// A guest and a link: 4 GiB at 125 MB/s.
const DESCRIBED: [&str; 5] = ["predict", "--memory", "4G", "--link", "1Gbit"];
const MEMORY: f64 = 4.0 * (1u64 << 30) as f64;
const LINK: f64 = 125e6;

fn ferry(args: &[&str]) -> Output {
    let mut command = Command::new(programs::ferry().unwrap());
    command.args(args).output().unwrap()
}

/// The exit status, and the prediction.
fn predict(more: &[&str]) -> (Option<i32>, Value) {
    let output = ferry(&[&DESCRIBED, more, &["--json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let prediction = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        prediction.unwrap_or_else(|error| panic!("{error}: {said}")),
    )
}

/// What is expected of a figure, which lies between the least and the most.
fn expected(prediction: &Value, name: &str) -> f64 {
    let figure = |part: &str| {
        let figure = prediction[name][part].as_f64();
        figure.unwrap_or_else(|| panic!("{name}.{part}: {prediction:#}"))
    };
    let [low, expected, high] = ["low", "expected", "high"].map(figure);
    assert!(low <= expected && expected <= high, "{prediction:#}");
    expected
}

/// All memory has to cross the link at least once.
fn is_plausible(prediction: &Value) {
    let at_least_ms = 1000.0 * MEMORY / LINK;
    let total = expected(prediction, "total_ms");
    assert!(total >= at_least_ms, "{prediction:#}");
    assert!(expected(prediction, "brownout_ms") < total);
    assert!(expected(prediction, "wire_bytes") >= MEMORY);
    assert_eq!(prediction["memory_bytes"], 4u64 << 30);
    let bandwidth = expected(prediction, "bandwidth_bytes_per_s");
    assert!((bandwidth / LINK - 1.0).abs() < 0.1, "{prediction:#}");
}

#[test]
fn a_described_guest_is_predicted() {
    let slow = ["--dirty-rate", "40MB/s", "--working-set", "512M"];
    let (status, prediction) = predict(&slow);
    assert_eq!(prediction["verdict"], "converges", "{prediction:#}");
    assert_eq!((status, &prediction["converges"]), (Some(0), &true.into()));
    is_plausible(&prediction);
    // While the link carries three bytes, it writes one anew: half as much again in the end, at most.
    let total = expected(&prediction, "total_ms");
    assert!(total < 2000.0 * MEMORY / LINK, "{prediction:#}");
    assert!(expected(&prediction, "blackout_ms") <= 300.0);
    assert!(expected(&prediction, "rounds") >= 2.0);
    assert_eq!(expected(&prediction, "throttle_percent"), 0.0);

    let fast = ["--dirty-rate", "400MB/s", "--working-set", "2G"];
    let (status, prediction) = predict(&fast);
    assert_eq!(
        prediction["verdict"], "converges_throttled",
        "{prediction:#}"
    );
    assert_eq!(status, Some(0));
    is_plausible(&prediction);
    assert!(expected(&prediction, "throttle_percent") > 0.0);

    let unthrottled = [&fast[..], &["--throttle", "off"]].concat();
    let (status, prediction) = predict(&unthrottled);
    assert_eq!(prediction["verdict"], "does_not_converge", "{prediction:#}");
    assert_eq!((status, &prediction["converges"]), (Some(5), &false.into()));
    assert_eq!(prediction["completes"], false, "{prediction:#}");
    is_plausible(&prediction);
    assert!(expected(&prediction, "blackout_ms") > 300.0);

    let switched = [&unthrottled[..], &["--on-timeout", "switch"]].concat();
    let (status, prediction) = predict(&switched);
    assert_eq!((status, &prediction["completes"]), (Some(5), &true.into()));
    assert!(expected(&prediction, "blackout_ms") > 300.0);
}

#[test]
fn a_curve_is_read_from_the_command_line_and_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let points = [(125u64, 2507u64), (250, 5030), (500, 9800), (1000, 15000)];
    let written = points.map(|(ms, pages)| format!("{ms}ms:{pages}"));
    let windows = points.map(|(ms, pages)| {
        serde_json::json!({"window_ms": ms, "pages": pages, "bytes_per_s": pages * 4096 * 1000 / ms})
    });
    let printed = serde_json::json!({"memory_bytes": 4u64 << 30, "windows": windows});
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let forms = [
        written.join(","),
        file("points", &written.join("\n")),
        file("curve.json", &printed.to_string()),
    ];
    let predictions = forms.map(|form| {
        let (status, prediction) = predict(&["--dirty-curve", &form]);
        assert_eq!(status, Some(0), "{form}: {prediction:#}");
        is_plausible(&prediction);
        prediction
    });
    let [first, second, third] = &predictions;
    assert_eq!(first, second);
    assert_eq!(first, third);
    // It says something: a guest that does not write costs less.
    let (_, idle) = predict(&[]);
    is_plausible(&idle);
    assert!(expected(&idle, "wire_bytes") < expected(first, "wire_bytes"));

    let nowhere = folder.path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let output = ferry(&[&DESCRIBED[..], &["--dirty-curve", nowhere]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains(nowhere) && said.lines().count() == 1,
        "{said}"
    );
}

const SWEEP: &str = r#"
[[sweep]]
name = "idle"
memory = "64M"
downtime = ["50ms", "300ms"]
repeats = 2

[[sweep]]
name = "too fast"
memory = "96M"
working_set = "64M"
dirty_rate = "4x"
throttle = ["off", "auto"]
"#;

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_study_says_what_it_would_run_and_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sweep.toml");
    fs::write(&file, SWEEP).unwrap();
    let output = ferry(&["study", "--list", file.to_str().unwrap()]);
    let (listed, said) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*said), (Some(0), ""));
    let listed = String::from_utf8(listed.clone()).unwrap();
    let lines: Vec<_> = listed.lines().collect();
    // Each by a name of its own, in the order of the file.
    let wanted = [
        ["idle_64m-", "_50ms_", "_0"],
        ["idle_64m-", "_50ms_", "_1"],
        ["idle_64m-", "_300ms_", "_0"],
        ["idle_64m-", "_300ms_", "_1"],
        ["too-fast_96m-64m_", "_off_", "_0"],
        ["too-fast_96m-64m_", "_auto_", "_0"],
    ];
    assert_eq!(lines.len(), wanted.len(), "{listed}");
    for (line, [first, amid, last]) in lines.iter().zip(wanted) {
        let right = line.starts_with(first) && line.contains(amid) && line.ends_with(last);
        assert!(right, "{line}, not {first}…{amid}…{last}");
    }
    assert_eq!(names(folder.path()), ["sweep.toml"]);
}
