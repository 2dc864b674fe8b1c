//! A stock Linux guest whose page cache fills and empties: with a balloon the memory goes back to the host, and is not
//! sent when the guest is moved.

use std::time::{Duration, Instant};

use integration_tests::ferry::{Agent, Ferry, Image, LinuxGuest, World};
use integration_tests::linux_test;
use serde_json::Value;

const STEP: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;
/// What the guest fills and frees, in MiB; another figure by this variable of the environment, for measurements.
const FILLED: u64 = 96;
const FILLED_BY: &str = "FERRY_BALLOON_MIB";

fn balloon(ferry: &Ferry, what: &str) -> u64 {
    let status = ferry.status().unwrap();
    status["balloon"][what]
        .as_u64()
        .unwrap_or_else(|| panic!("{status:#}"))
}

/// Waits until a figure is right.
fn until(what: &str, figure: impl Fn() -> u64, right: impl Fn(u64) -> bool) {
    let began = Instant::now();
    loop {
        let bytes = figure();
        if right(bytes) {
            println!("{what}: {} MiB after {:.1?}", bytes / MIB, began.elapsed());
            return;
        }
        assert!(began.elapsed() < 2 * STEP, "{what}: {bytes}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until so much is in the balloon.
fn until_actual(ferry: &Ferry, right: impl Fn(u64) -> bool) {
    until("in the balloon", || balloon(ferry, "actual_bytes"), right);
}

fn resize(ferry: &Ferry, size: &str) {
    let told = ferry.command("balloon", &[size]).unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{said}");
}

fn tell(agent: &Agent<'_>, words: &str) -> Value {
    let said = agent.ask(words, STEP).unwrap();
    assert_eq!(said["ok"], true, "{words}: {said}");
    said
}

/// Moves the guest, and gives the bytes on the wire.
fn move_on(source: &mut Ferry, destination: Ferry, address: &str, how: &[&str]) -> (Ferry, u64) {
    let how = [&["--insecure-plaintext"], how].concat();
    let moved = source.migrate(&format!("tcp:{address}"), &how).unwrap();
    let moved = moved.completed().unwrap();
    println!("{}", moved.stdout);
    let status = source.wait_end(STEP).unwrap();
    assert_eq!(status.code(), Some(0), "{}", source.messages().tail());
    (destination, moved.report["wire_bytes"].as_u64().unwrap())
}

linux_test! {
    fn what_the_guest_has_freed_is_not_sent() {
        let filled = std::env::var(FILLED_BY).map_or(FILLED, |mib| mib.parse().unwrap());
        let fill = format!("cache fill {filled}");
        let world = World::new(1).unwrap();
        let guest = LinuxGuest {
            memory: format!("{}M", 2 * filled.div_ceil(2) + 256),
            balloon: Some("on"),
            // Until it is told it is a guest without a driver.
            append: "agent.ws=16 agent.rate=1000 agent.balloon=later".into(),
            ..LinuxGuest::new(Image::built("cloud").unwrap())
        };
        let [to_b, to_a] = [World::B, World::A].map(|host| format!("{host}:4700"));
        let mut here = guest.boot(Some(&world.a)).unwrap();
        let agent = Agent::new(&world.world, 0);
        tell(&agent, &fill);
        tell(&agent, "cache free");
        assert_eq!(balloon(&here, "reported_bytes"), 0);
        let there = guest.receive(&world.b, &to_b).unwrap();
        let (mut here, without) = move_on(&mut here, there, &to_b, &[]);
        assert!(without > filled * MIB, "{without}");

        // What is free is reported by and by, a part of it every two seconds, and gone from the host's memory then.
        let before = here.resident().unwrap();
        assert!(before > filled * MIB, "{before}");
        tell(&agent, "balloon");
        until("in memory", || here.resident().unwrap(), |bytes| bytes + filled * MIB / 2 < before);
        assert!(balloon(&here, "reported_bytes") > filled * MIB / 2);
        // Inflated in part while it is moved: what was sent and is given away then is zeros there as well.
        resize(&here, &format!("{}M", filled / 2));
        until_actual(&here, |bytes| bytes >= filled * MIB / 8);
        let there = guest.receive(&world.a, &to_a).unwrap();
        let (here, with) = move_on(&mut here, there, &to_a, &["--verify"]);
        println!("{filled} MiB filled and freed: {} MiB on the wire without a balloon, {} MiB with", without / MIB, with / MIB);
        assert!(with + filled * MIB / 4 < without, "{with} with a balloon, {without} without");

        // The target went along; what was given away is the guest's again once it wants it.
        until_actual(&here, |bytes| bytes == filled / 2 * MIB);
        resize(&here, "0");
        until_actual(&here, |bytes| bytes == 0);
        tell(&agent, &fill);
        assert_eq!(tell(&agent, "cache check")["mib"], filled);
        let check = tell(&agent, "check");
        assert_eq!(check["mismatches"], 0, "{check}");
        let text = here.console().text();
        for trouble in ["MISMATCH", "lockup", "Call Trace", "Out of memory"] {
            assert!(!text.contains(trouble), "{text}");
        }
    }
}
