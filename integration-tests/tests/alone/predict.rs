//! `ferry predict` and then the move itself, over a link of 1 Gbit/s: the verdict is right, and the total is near.

use std::process::Output;
use std::time::Duration;

use integration_tests::ferry::{Ferry, PulseGuest, World};
use serde_json::Value;
use vmm::units::Rate;

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 5;
const MIB: u64 = 512;
/// A generous bound: the machine may have other work, and other work in the move than in the prediction.
const OFF: f64 = 0.25;

/// Two hosts with a shaped link, a guest on the one, and a receiver for one guest on the other.
struct Stage {
    source: Ferry,
    destination: Ferry,
    target: String,
    _world: World,
}

impl Stage {
    fn set(words: &str, cpus: u8) -> Self {
        let world = World::new(0).unwrap();
        world.a.shape(World::LINK, Rate(125_000_000)).unwrap();
        let guest = PulseGuest {
            words,
            cpus,
            mib: MIB,
        };
        let source = guest.boot(Some(&world.a)).unwrap();
        source.fill(SEED, &[guest.fillable()]).unwrap();
        source.wait_beats(20).unwrap();
        let target = format!("tcp:{}:4700", World::B);
        let plain = ["--insecure-plaintext"];
        let destination = Ferry::receive(Some(&world.b), &target, &plain).unwrap();
        Self {
            source,
            destination,
            target,
            _world: world,
        }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&[&*self.target, "--insecure-plaintext"], more].concat()
    }

    /// The exit status, and the prediction.
    fn predict(&self, more: &[&str]) -> (i32, Value) {
        let args = self.args(&[more, &["--watch", "4s", "--json"]].concat());
        let output = self.source.command("predict", &args).unwrap();
        let Output {
            status,
            stdout,
            stderr,
        } = &output;
        let said = String::from_utf8_lossy(stderr);
        let prediction = serde_json::from_slice(stdout).unwrap_or_else(|_| panic!("{said}"));
        (status.code().unwrap(), prediction)
    }

    /// The report of the move.
    fn migrate(&self, more: &[&str]) -> Value {
        let args = self.args(more);
        self.source.migrate(args[0], &args[1..]).unwrap().report
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

fn near(prediction: &Value, report: &Value, name: &str) {
    let (expected, real) = (number(&prediction[name]["expected"]), number(&report[name]));
    println!("{name}: predicted {}, real {real}", prediction[name]);
    assert!(
        (expected / real - 1.0).abs() < OFF,
        "{name}: {expected} was expected, {real} it was\n{prediction:#}\n{report:#}"
    );
}

/// Predicts and moves a guest that arrives whole, and compares.
fn comes_true(words: &str, cpus: u8, more: &[&str], verdict: &str) {
    let stage = Stage::set(words, cpus);
    let before = stage.source.check_pulse().unwrap();
    let (status, prediction) = stage.predict(more);
    assert_eq!(prediction["verdict"], verdict, "{prediction:#}");
    assert_eq!((status, &prediction["converges"]), (0, &true.into()));
    // Nothing has moved; the receiver, which is for one guest alone, waits on.
    assert_eq!(stage.source.state().unwrap(), "running");
    assert_eq!(stage.destination.state().unwrap(), "waiting");

    let report = stage.migrate(more);
    assert_eq!(report["outcome"], "completed", "{report:#}");
    near(&prediction, &report, "total_ms");
    near(&prediction, &report, "wire_bytes");
    let throttled = report["rounds"].as_array().unwrap().iter().any(|round| {
        let percents = round["throttle_percent"].as_array().unwrap();
        percents.iter().any(|percent| number(percent) > 0.0)
    });
    assert_eq!(throttled, verdict == "converges_throttled", "{report:#}");
    stage.destination.wait_beats(50).unwrap();
    stage
        .destination
        .check_pulse()
        .unwrap()
        .follows(&before)
        .unwrap();
}

#[test]
fn a_guest_that_writes_less_than_the_link_carries() {
    comes_true("beat=1 ws=16:64 rate=8000", 1, &[], "converges");
}

#[test]
fn a_guest_that_has_to_be_slowed_down() {
    let words = "beat=1 cpu1.rate=90000 cpu1.ws=16:256 cpu1.pattern=uniform";
    comes_true(words, 2, &["--downtime", "50ms"], "converges_throttled");
}

#[test]
fn a_guest_that_out_writes_the_link_and_is_left_alone() {
    let words = "beat=1 cpu1.rate=90000 cpu1.ws=16:256 cpu1.pattern=uniform";
    let mut stage = Stage::set(words, 2);
    let more = [
        "--downtime",
        "50ms",
        "--throttle",
        "off",
        "--timeout",
        "30s",
    ];
    let (status, prediction) = stage.predict(&more);
    assert_eq!(prediction["verdict"], "does_not_converge", "{prediction:#}");
    assert_eq!((status, &prediction["completes"]), (5, &false.into()));
    let reason = prediction["reason"].as_str().unwrap();
    assert!(
        reason.contains("will not converge without throttling"),
        "{reason}"
    );
    let report = stage.migrate(&more);
    assert_eq!(report["outcome"], "failed", "{report:#}");
    assert_eq!(stage.source.state().unwrap(), "running");
    // A receiver for one guest has had its attempt now: predicting was none, this was.
    assert_eq!(stage.destination.wait_end(STEP).unwrap().code(), Some(1));
}

/// A prediction is refused or ended like any measurement, and leaves the guest as it was.
#[test]
fn a_prediction_ends_when_nobody_wants_it() {
    let stage = Stage::set("beat=1", 1);
    let args = stage.args(&["--watch", "60s"]);
    let mut asking = stage.source.prepare("predict", &args).unwrap();
    asking.stdout(std::process::Stdio::null());
    let mut asking = asking.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let begun = (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        stage.source.status().unwrap()["dirty_log"]["on"] == true
    });
    assert!(begun);
    let complaint = stage.source.refused("predict", &args[..2]).unwrap();
    assert!(complaint.contains("being measured"), "{complaint}");
    let complaint = stage.source.refused("migrate", &args[..2]).unwrap();
    assert!(complaint.contains("being measured"), "{complaint}");
    stage.source.act("cancel").unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(asking.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(asking.wait().unwrap().code(), Some(1));
    assert!(
        said.contains("cancelled") && said.contains("runs on"),
        "{said}"
    );
    assert_eq!(stage.source.status().unwrap()["dirty_log"]["on"], false);
    stage.source.wait_beats(20).unwrap();
}

/// What a real guest writes is seen as what it is, by a watch that begins anywhere.
#[test]
fn bursts_of_writing_are_told_from_writing_all_the_time() {
    let bursts = |words| {
        let guest = PulseGuest {
            words,
            cpus: 1,
            mib: 128,
        };
        let guest = guest.boot(None).unwrap();
        guest.wait_beats(20).unwrap();
        let watch = || {
            let args = ["--longest", "4s", "--json"];
            let output = guest.command("dirty-rate", &args).unwrap();
            let curve: Value = serde_json::from_slice(&output.stdout).unwrap();
            println!("{words}: {}", curve["bursts"]);
            curve["bursts"].clone()
        };
        // Other work on the machine may keep the guest from what it wants: three tries.
        [watch(), watch(), watch()]
    };
    let steady = bursts("beat=1 ws=16:64 rate=20000");
    assert!(steady.contains(&Value::Null), "{steady:?}");
    let seen = bursts("beat=1 ws=16:64 rate=20000 phases=400:800");
    let right = |bursts: &&Value| {
        let within = |name: &str, wanted: f64| {
            let is = bursts[name].as_f64();
            is.is_some_and(|ms| (ms / wanted - 1.0).abs() < 0.3)
        };
        within("burst_ms", 400.0) && within("every_ms", 1200.0)
    };
    let right = seen
        .iter()
        .find(right)
        .unwrap_or_else(|| panic!("{seen:?}"));
    // 8,000 writes in a burst, anywhere in 16,384 pages; the rests are left out of the times.
    let windows = right["windows"].as_array().unwrap();
    let last = windows.last().unwrap();
    assert!(number(&last["window_ms"]) < 2200.0, "{last}");
    assert!(number(&last["pages"]) > 8000.0, "{last}");
}
