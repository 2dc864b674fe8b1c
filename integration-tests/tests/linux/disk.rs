//! A stock Linux guest that writes to its disk while it is moved: what its kernel was told is on the disk, is.

use std::time::Duration;

use integration_tests::ferry::{Agent, DiskImage, Image, LinuxGuest, World};
use integration_tests::linux_test;
use serde_json::Value;

const STEP: Duration = Duration::from_secs(90);
/// The journal of the agent: blocks, and bytes of each.
const BLOCKS: u64 = 512;
const BLOCK: usize = 4096;

/// Waits until the guest was told of so many more blocks that they are on the disk.
fn acknowledged(agent: &Agent<'_>, more: u64) -> u64 {
    let ask = || {
        let said = agent.ask("disk status", STEP).unwrap();
        assert_eq!(said["ok"], true, "{said}");
        said["acknowledged"].as_u64().unwrap()
    };
    let (first, began) = (ask(), std::time::Instant::now());
    loop {
        let now = ask();
        if now >= first + more {
            return now;
        }
        assert!(began.elapsed() < STEP, "{now} blocks after {first}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every block that was acknowledged up to `last` lies in the file, or a later one in its place, whole.
fn check(disk: &DiskImage, last: u64) {
    let bytes = std::fs::read(disk.path()).unwrap();
    for number in last.saturating_sub(BLOCKS - 1).max(1)..=last {
        let at = usize::try_from(number % BLOCKS).unwrap() * BLOCK;
        let words = bytes[at..at + BLOCK].chunks_exact(8);
        let words = words.map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let (mut there, mut index) = (0, 0u64);
        for word in words {
            let said = word ^ index << 48;
            there = if index == 0 { said } else { there };
            assert_eq!(said, there, "block {number}, word {index}");
            index += 1;
        }
        assert!(
            there >= number && there % BLOCKS == number % BLOCKS,
            "block {number}: {there}"
        );
    }
}

linux_test! {
    fn what_was_flushed_is_on_the_disk_after_moves_there_and_back() {
        let world = World::new(1).unwrap();
        let disk = DiskImage::new(8 << 20).unwrap();
        let guest = LinuxGuest {
            append: "agent.ws=32 agent.rate=1000".into(),
            disks: vec![format!("{},queues=2", disk.path())],
            ..LinuxGuest::new(Image::built("cloud").unwrap())
        };
        let mut here = guest.boot(Some(&world.a)).unwrap();
        let agent = Agent::new(&world.world, 0);
        let begun = agent.ask("disk write", STEP).unwrap();
        assert_eq!(begun["ok"], true, "{begun}");
        for (host, address) in [
            (&world.b, format!("{}:4700", World::B)),
            (&world.a, format!("{}:4701", World::A)),
        ] {
            let before = acknowledged(&agent, 20);
            assert!(!disk.is_free());
            let named = format!("0={}", disk.path());
            let there = guest.receive_with(host, &address, &["--disk", &named]).unwrap();
            let moved = here.migrate(&format!("tcp:{address}"), &["--insecure-plaintext"]).unwrap();
            println!("{}", moved.completed().unwrap().stdout);
            assert_eq!(here.wait_end(STEP).unwrap().code(), Some(0), "{}", here.messages().tail());
            check(&disk, before);
            assert!(acknowledged(&agent, 20) > before);
            here = there;
        }
        let found = agent.ask("disk verify", STEP).unwrap();
        assert_eq!(found["ok"], Value::Bool(true), "{found}");
        println!("{found}");
        let memory = agent.ask("check", STEP).unwrap();
        assert_eq!(memory["mismatches"], 0, "{memory}");
        let last = acknowledged(&agent, 0);
        here.kill();
        // The process is gone in the middle of a write, perhaps; what was acknowledged is there.
        check(&disk, last);
        assert!(disk.is_free());
    }
}
