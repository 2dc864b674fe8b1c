//! Moves of a guest with a disk: its lock goes with the right to run the guest, seen from outside at each stage.
//! Whoever does not hold it is refused by it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use integration_tests::ferry::{
    DiskImage, Fault, Ferry, Migration, Netns, PulseGuest, Relay, Spot,
};

use super::lab::goes_through;

const STEP: Duration = Duration::from_secs(60);
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:16 rate=5000",
    cpus: 1,
    mib: 64,
};

/// A guest with a disk, and the host that it is moved about on.
struct Lab {
    host: Netns,
    disk: DiskImage,
    guest: Ferry,
    port: u16,
}

impl Lab {
    fn new() -> Self {
        let host = Netns::new("disk").unwrap();
        let disk = DiskImage::new(8 << 20).unwrap();
        let guest = GUEST
            .boot_with(Some(&host), &["--disk", disk.path()])
            .unwrap();
        let lab = Self {
            host,
            disk,
            guest,
            port: 4700,
        };
        assert!(!lab.disk.is_free());
        lab
    }

    /// A receiver that gives up when the first attempt fails. It does not hold the lock.
    fn receiver(&mut self) -> (Ferry, SocketAddr) {
        self.port += 1;
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let disk = format!("0={}", self.disk.path());
        let target = format!("tcp:{address}");
        let ferry = Ferry::receive(Some(&self.host), &target, &["--disk", &disk]).unwrap();
        (ferry, address)
    }

    /// Moves the guest with a fault on the way, and does `meanwhile` when it has come there.
    fn disturbed<T: Send>(
        &self,
        address: SocketAddr,
        (spot, fault): (Spot, Fault),
        meanwhile: impl FnOnce(&Relay) -> T,
    ) -> (Migration, T) {
        let relay = Relay::start(&self.host, address, spot, fault).unwrap();
        goes_through(&self.guest, &relay, &[], || meanwhile(&relay))
    }

    /// The guest runs where it is, and has its lock.
    fn runs_with_its_lock(&self) {
        assert_eq!(self.guest.state().unwrap(), "running");
        self.guest.wait_beats(50).unwrap();
        assert!(!self.disk.is_free());
    }

    fn moves_on(&mut self) {
        let (receiver, address) = self.receiver();
        let moved = self.guest.migrate(&format!("tcp:{address}"), &[]).unwrap();
        moved.completed().unwrap();
        let mut source = std::mem::replace(&mut self.guest, receiver);
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        self.runs_with_its_lock();
    }
}

fn outcome(moved: &Migration, status: i32, outcome: &str) {
    assert_eq!(moved.status, status, "{moved:?}");
    assert_eq!(moved.report["outcome"], outcome, "{moved:?}");
}

#[test]
fn the_lock_is_the_owners_at_every_stage() {
    let mut lab = Lab::new();
    for (spot, free) in [
        (Spot::ACCEPT, false),
        (Spot::STATE, false),
        (Spot::READY, false),
        (Spot::GO, true),
        (Spot::LIVE, false),
    ] {
        let (receiver, address) = lab.receiver();
        // Between GO and its arrival nobody has it, and nobody runs the guest.
        let (moved, seen) = lab.disturbed(address, (spot, Fault::Hold), |relay| {
            let seen = lab.disk.is_free();
            relay.release();
            seen
        });
        assert_eq!(seen, free, "{spot:?}");
        moved.completed().unwrap();
        let mut source = std::mem::replace(&mut lab.guest, receiver);
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        lab.runs_with_its_lock();
    }
    lab.guest.act("stop").unwrap();
    lab.guest.wait_end(STEP).unwrap();
    assert!(lab.disk.is_free());
}

#[test]
fn a_guest_that_the_destination_has_is_not_resumed_here_even_by_force() {
    for cut in [(Spot::GO, Fault::CutBehind), (Spot::LIVE, Fault::CutBefore)] {
        let mut lab = Lab::new();
        let (receiver, address) = lab.receiver();
        let (moved, ()) = lab.disturbed(address, cut, |_| {});
        outcome(&moved, 4, "unknown");
        receiver.wait_beats(50).unwrap();
        assert!(!lab.disk.is_free());
        for _ in 0..2 {
            let said = lab.guest.refused("resume", &["--force"]).unwrap();
            println!("{said}");
            assert!(
                said.contains("is in use") && said.contains(lab.disk.path()),
                "{said}"
            );
            assert_eq!(lab.guest.state().unwrap(), "unknown");
            assert!(lab.guest.stands_still().unwrap());
        }
        let mut source = std::mem::replace(&mut lab.guest, receiver);
        source.act("stop").unwrap();
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        lab.runs_with_its_lock();
        lab.moves_on();
    }
}

#[test]
fn a_guest_that_the_destination_has_not_is_resumed_with_its_lock() {
    let mut lab = Lab::new();
    let (mut receiver, address) = lab.receiver();
    let (moved, ()) = lab.disturbed(address, (Spot::GO, Fault::CutBefore), |_| {});
    outcome(&moved, 4, "unknown");
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
    assert!(
        lab.disk.is_free(),
        "it stands still here, and the lock is for whoever runs it"
    );

    // As long as somebody else has the lock, nobody can.
    let held = lab.disk.hold().unwrap();
    let said = lab.guest.refused("resume", &["--force"]).unwrap();
    assert!(said.contains("is in use"), "{said}");
    drop(held);
    let output = lab.guest.command("resume", &["--force"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    lab.runs_with_its_lock();
    lab.moves_on();
}

#[test]
fn a_destination_that_cannot_have_the_lock_gives_the_guest_back() {
    let mut lab = Lab::new();
    let (mut receiver, address) = lab.receiver();
    // Somebody takes the lock in the moment when nobody has it.
    let (moved, thief) = lab.disturbed(address, (Spot::GO, Fault::Hold), |relay| {
        let thief: File = lab.disk.hold().unwrap();
        relay.release();
        thief
    });
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
    // So the source has not got it back either: it keeps the guest, paused, and says so.
    outcome(&moved, 5, "paused");
    let reason = moved.report["reason"].as_str().unwrap();
    assert!(
        reason.contains("the guest may not run here") && reason.matches("is in use").count() == 2,
        "{reason}"
    );
    assert_eq!(lab.guest.state().unwrap(), "paused");
    assert!(lab.guest.stands_still().unwrap());
    drop(thief);
    lab.guest.act("resume").unwrap();
    lab.runs_with_its_lock();
    lab.moves_on();
}

#[test]
fn a_move_that_fails_before_go_leaves_the_lock_where_it_is() {
    let mut lab = Lab::new();
    for spot in [Spot::ACCEPT, Spot::STATE, Spot::READY] {
        let (mut receiver, address) = lab.receiver();
        let (moved, ()) = lab.disturbed(address, (spot, Fault::CutBefore), |_| {});
        outcome(&moved, 1, "failed");
        receiver.wait_end(STEP).unwrap();
        lab.runs_with_its_lock();
    }
    lab.moves_on();
}

#[test]
fn a_move_within_the_host_passes_the_lock_on() {
    let disk = DiskImage::new(4 << 20).unwrap();
    let second = DiskImage::new(2 << 20).unwrap();
    let one = format!("{},queues=4,direct=on", disk.path());
    let other = format!("{},ro", second.path());
    let mut guest = GUEST
        .boot_in_memfd(&["--disk", &one, "--disk", &other])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = format!("unix:{}", folder.path().join("b.sock").display());
    let (one, other) = (
        format!("0={},direct=on", disk.path()),
        format!("1={},ro", second.path()),
    );
    let receiver = Ferry::receive(None, &target, &["--disk", &one, "--disk", &other]).unwrap();
    guest.migrate(&target, &[]).unwrap().completed().unwrap();
    assert_eq!(guest.wait_end(STEP).unwrap().code(), Some(0));
    receiver.wait_beats(50).unwrap();
    // What is only read is kept from writers alone.
    assert!(!disk.is_free() && !second.is_free());
    assert!(second.can_be_read_locked() && !disk.can_be_read_locked());
    let status = receiver.status().unwrap();
    let listed: Vec<_> = status["devices"].as_array().unwrap().iter().collect();
    let paths: Vec<_> = listed
        .iter()
        .filter_map(|device| device["disk"].as_str())
        .collect();
    assert_eq!(paths, [disk.path(), second.path()]);
    assert!(Path::new(paths[0]).exists());
}
