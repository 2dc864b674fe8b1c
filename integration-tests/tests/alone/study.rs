//! `ferry study`: a sweep is run, summed up and drawn; it can be interrupted, and goes on where it was.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use integration_tests::programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Two moves that complete, and one of a guest that writes faster than the link carries and is not slowed down.
const SWEEP: &str = r#"
title = "A tested study"
[[sweep]]
name = "idle"
memory = "64M"
downtime = ["50ms", "300ms"]

[[sweep]]
name = "too fast"
memory = "96M"
working_set = "64M"
dirty_rate = "4x"
throttle = "off"
downtime = "20ms"
timeout = "60s"
"#;
/// A study of these, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

fn ferry(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(programs::ferry().unwrap());
    command
        .arg("study")
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(folder: &Path) -> Child {
    ferry(&["sweep.toml"], folder).spawn().unwrap()
}

/// The files of moves that are there.
fn moves(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join("sweep/moves")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect()
}

/// What `ferry` left in the process table and the network, of that process.
fn left_behind(pid: u32) -> String {
    let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let ours = format!("ferry-{pid}-");
    list.lines()
        .filter(|line| line.starts_with(&ours))
        .collect()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn an_interrupted_study_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("sweep.toml"), SWEEP).unwrap();

    let study = start(folder);
    let pid = study.id();
    let began = Instant::now();
    while moves(folder).is_empty() {
        assert!(began.elapsed() < LONG, "no move was made");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    let output = study.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(
        text(&output).contains("goes on from there"),
        "{}",
        text(&output)
    );
    assert_eq!(left_behind(pid), "");
    let first = moves(folder);
    assert_eq!(first.len(), 1, "{first:?}");
    let kept = fs::metadata(&first[0]).unwrap().modified().unwrap();

    let study = start(folder);
    let pid = study.id();
    let output = study.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(left_behind(pid), "");
    assert_eq!(moves(folder).len(), 3);
    assert_eq!(fs::metadata(&first[0]).unwrap().modified().unwrap(), kept);

    let read = |name: &str| fs::read_to_string(folder.join("sweep").join(name)).unwrap();
    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["runs"], 3, "{summary}");
    assert_eq!(summary["completed"], 2, "{summary}");
    assert_eq!(summary["unverified_pages"], 0, "{summary}");
    let idle = &summary["policies"]["auto"]["0.00"];
    assert!(idle["total_ms"].as_f64().unwrap() > 400.0, "{summary}");
    assert!(idle["blackout_ms"].as_f64().unwrap() > 0.0, "{summary}");
    // The move that failed is a row with its reason.
    let failures = summary["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 1, "{summary}");
    let reason = failures[0]["reason"].as_str().unwrap();
    assert!(reason.contains("the limit of 20.0 ms"), "{reason}");

    let table = read("moves.csv");
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.lines().nth(3).unwrap().contains(",failed,"),
        "{table}"
    );

    // One file that needs nothing else.
    let page = read("index.html");
    assert!(page.contains("<h1>A tested study</h1>"), "{page}");
    assert!(page.contains("too fast") && page.contains("not moved"));
    for outside in [
        "http:", "https:", "src=", "<link", "<script", "@import", "url(",
    ] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
}

#[test]
fn a_sweep_that_makes_no_sense_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let table = [
        (
            "[[sweep]]\nname = \"a\"\nspeed = 1\n",
            "sweep.toml:3: unknown field `speed`",
        ),
        (
            "[[sweep]]\nname = \"a\"\n\n[[sweep]]\nname = \"b\"\nmemory = \"128M\"\nworking_set = \"1G\"\ndirty_rate = \"2x\"\n",
            "sweep.toml:4: sweep \"b\": a working set of 1G in a guest of 128M",
        ),
        (
            "[[sweep]]\nname = \"a\"\ndowntime = \"soon\"\n",
            "sweep.toml:3: \"soon\" is not a duration",
        ),
    ];
    for (sweep, expected) in table {
        fs::write(folder.join("sweep.toml"), sweep).unwrap();
        let output = start(folder).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(expected), "{}", text(&output));
        assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
        assert!(!folder.join("sweep").exists(), "something was made");
    }
    let output = ferry(&["nowhere.toml"], folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("cannot read nowhere.toml"),
        "{}",
        text(&output)
    );
}
