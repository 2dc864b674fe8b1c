//! Guests that are moved by KVM's dirty ring.

use std::time::{Duration, Instant};

use guest_images::verify::Summary;
use integration_tests::ferry::{Ferry, Netns, PulseGuest};

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 9;

/// Moves a guest on `ports` in turn, between Ferrys with `ring`, and checks it after each move.
fn moves(guest: &PulseGuest<'_>, ring: &str, ports: &[u16]) {
    let host = Netns::new("ring").unwrap();
    let ring = ["--dirty-tracking", ring];
    let ferry = guest.boot_with(Some(&host), &ring).unwrap();
    ferry.fill(SEED, &[guest.fillable()]).unwrap();
    let last = ferry.check_pulse().unwrap();
    let mut moved = Moved { ferry, last };
    for &port in ports {
        let target = format!("tcp:127.0.0.1:{port}");
        let next = Ferry::receive(Some(&host), &target, &ring).unwrap();
        moved.goes_to(next, &target);
        moved.ferry.check_fill(SEED, &[guest.fillable()]).unwrap();
    }
}

struct Moved {
    ferry: Ferry,
    last: Summary,
}

impl Moved {
    fn goes_to(&mut self, next: Ferry, target: &str) {
        let moved = self.ferry.migrate(target, &[]).unwrap();
        let moved = moved.completed().unwrap();
        println!("{}", moved.stdout);
        assert_eq!(moved.report["dirty_tracking"], "ring");
        let mut source = std::mem::replace(&mut self.ferry, next);
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        println!("{}", source.messages().text());
        self.ferry.wait_beats(50).unwrap();
        let now = self.ferry.check_pulse().unwrap();
        now.follows(&self.last).unwrap();
        assert!(now.beat() > self.last.beat());
        for (now, last) in now.vcpus.iter().zip(&self.last.vcpus) {
            assert!(
                now.pages_written > last.pages_written,
                "{now:?} after {last:?}"
            );
        }
        self.last = now;
    }
}

#[test]
fn there_and_back_while_two_vcpus_write() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:64 rate=20000 cpu1.ws=96:64 cpu1.rate=5000 cpu1.pattern=sweep",
        cpus: 2,
        mib: 256,
    };
    moves(&guest, "ring", &[4701, 4702]);
}

/// Rings that are full every few milliseconds, on a KVM that emulates guest code to their last entry and beyond.
#[test]
fn there_and_back_with_rings_that_fill_between_two_looks() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:24 rate=max cpu1.ws=40:20 cpu1.rate=max cpu1.pattern=sweep",
        cpus: 2,
        mib: 64,
    };
    moves(&guest, "ring,entries=1024", &[4701, 4702]);
}

#[test]
fn a_second_attempt_after_a_cancelled_move() {
    let guest = PulseGuest {
        words: "beat=1 ws=16:64 rate=20000",
        cpus: 1,
        mib: 128,
    };
    let host = Netns::new("ring").unwrap();
    let ring = ["--dirty-tracking", "ring"];
    let ferry = guest.boot_with(Some(&host), &ring).unwrap();
    ferry.fill(SEED, &[guest.fillable()]).unwrap();
    let last = ferry.check_pulse().unwrap();
    let status = ferry.status().unwrap();
    assert_eq!(status["dirty_log"]["kind"], "ring", "{status}");
    let receiver = Ferry::receive(Some(&host), "tcp:127.0.0.1:4701", &[]).unwrap();
    let slow = ["--bandwidth", "20MB"];
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| ferry.migrate("tcp:127.0.0.1:4701", &slow).unwrap());
        let deadline = Instant::now() + STEP;
        while ferry.status().unwrap()["migration"]["pages_done"]
            .as_u64()
            .is_none_or(|pages| pages < 500)
        {
            assert!(Instant::now() < deadline, "the move does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        ferry.act("cancel").unwrap();
        assert_eq!(moving.join().unwrap().status, 3);
    });
    drop(receiver);
    let status = ferry.status().unwrap();
    assert_eq!(status["dirty_log"]["on"], false, "{status}");
    let next = Ferry::receive(Some(&host), "tcp:127.0.0.1:4702", &[]).unwrap();
    let mut guest = Moved { ferry, last };
    guest.goes_to(next, "tcp:127.0.0.1:4702");
}
