//! A guest that writes faster than the move may send, at the bound on the rounds: given up, or moved all the same.

use integration_tests::ferry::Migration;

use super::lab::{Lab, STEP};

/// The guest of the lab writes its 64 MiB anew in the first round, and these take 1.7 s at that speed.
const LIMIT_MS: f64 = 50.0;
const TOO_LITTLE: [&str; 8] = [
    "--bandwidth",
    "40MB",
    "--downtime",
    "50ms",
    "--throttle",
    "off",
    "--max-rounds",
    "1",
];

/// Why it ended: after one round, with too much left.
fn reason(moved: &Migration) -> &str {
    let reason = moved.report["reason"].as_str().unwrap();
    assert!(reason.contains("1 rounds are over"), "{reason}");
    assert!(reason.contains("beyond the limit of 50.0 ms"), "{reason}");
    reason
}

#[test]
fn at_the_bound_a_move_is_given_up_or_goes_on_with_a_longer_downtime() {
    let mut lab = Lab::new();
    for cancel in [&[][..], &["--on-timeout", "cancel"]] {
        let (mut receiver, address) = lab.receiver();
        let args = [&TOO_LITTLE, cancel].concat();
        let moved = lab.guest.migrate(&format!("tcp:{address}"), &args).unwrap();
        assert_eq!(moved.status, 1, "{moved:?}");
        assert_eq!(moved.report["outcome"], "failed", "{moved:?}");
        assert!(reason(&moved).contains("allow a longer downtime"));
        assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
        lab.unharmed();
        let status = lab.guest.status().unwrap();
        assert_eq!(status["last_move"]["outcome"], "failed", "{status}");
        assert_eq!(status["dirty_log"]["on"], false, "{status}");
    }

    let (receiver, address) = lab.receiver();
    let args = [&TOO_LITTLE[..], &["--on-timeout", "switch"]].concat();
    let moved = lab.guest.migrate(&format!("tcp:{address}"), &args).unwrap();
    let moved = moved.completed().unwrap();
    assert!(reason(&moved).ends_with("switched over as asked"));
    let report = &moved.report;
    // The one round, and the rest with the guest stopped.
    assert_eq!(report["rounds"].as_array().unwrap().len(), 2, "{report:#}");
    for blackout in ["predicted_blackout_ms", "blackout_ms"] {
        let ms = report[blackout].as_f64().unwrap();
        println!("{blackout}: {ms}");
        assert!(ms > LIMIT_MS, "{report:#}");
    }
    lab.arrived(receiver, moved);
}
