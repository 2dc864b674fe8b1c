//! The size of a balloon: told by the control socket, and with the guest wherever it goes. The bare guest has no driver
//! for it, so nothing is in it.

use std::net::SocketAddr;
use std::time::Duration;

use integration_tests::ferry::{Ferry, Netns, PulseGuest};
use serde_json::{Value, json};

const STEP: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:16 rate=5000",
    cpus: 1,
    mib: 64,
};

fn balloon(ferry: &Ferry) -> Value {
    ferry.status().unwrap()["balloon"].clone()
}

/// Whether `ferry balloon` did it, and what it said if not.
fn resize(ferry: &Ferry, size: &str) -> Result<(), String> {
    let told = ferry.command("balloon", &[size]).unwrap();
    match told.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&told.stderr).into_owned()),
    }
}

fn of(target: u64) -> Value {
    json!({ "driven": false, "target_bytes": target, "actual_bytes": 0, "inflated_bytes": 0, "reported_bytes": 0 })
}

#[test]
fn a_size_is_set_and_goes_along() {
    let host = Netns::new("balloon").unwrap();
    let source = GUEST.boot_with(Some(&host), &["--balloon", "8M"]).unwrap();
    assert_eq!(balloon(&source), of(8 * MIB));
    resize(&source, "16M").unwrap();
    assert_eq!(balloon(&source), of(16 * MIB));
    let refused = resize(&source, "66M").unwrap_err();
    assert!(
        refused.contains("a balloon of 66M is larger than the guest's memory of 64M"),
        "{refused}"
    );
    source.act("pause").unwrap();
    let refused = resize(&source, "1M").unwrap_err();
    assert!(refused.contains("`ferry resume` first"), "{refused}");
    source.act("resume").unwrap();

    let snapshot = tempfile::tempdir().unwrap();
    let file = snapshot.path().join("balloon.snap");
    let file = file.to_str().unwrap();
    let saved = source.command("snapshot", &[file]).unwrap();
    assert!(saved.status.success(), "{saved:?}");
    resize(&source, "24M").unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 4700));
    let target = format!("tcp:{address}");
    let destination = Ferry::receive(Some(&host), &target, &[]).unwrap();
    let moved = source.migrate(&target, &["--verify"]).unwrap();
    moved.completed().unwrap();
    assert_eq!(balloon(&destination), of(24 * MIB));
    resize(&destination, "0").unwrap();
    assert_eq!(balloon(&destination), of(0));
    drop(destination);

    let mut restored = Ferry::start(Some(&host), &["restore", file]).unwrap();
    restored.wait_control(STEP).unwrap();
    restored.wait_state("running", STEP).unwrap();
    assert_eq!(balloon(&restored), of(16 * MIB));
}

#[test]
fn a_guest_without_one_cannot_get_one() {
    let ferry = GUEST.boot(None).unwrap();
    assert_eq!(balloon(&ferry), Value::Null);
    let refused = resize(&ferry, "1M").unwrap_err();
    assert!(refused.contains("ferry run --balloon on"), "{refused}");
}
