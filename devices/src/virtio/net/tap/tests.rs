//! Real taps, in a network namespace of the test's own. Needs root (or CAP_SYS_ADMIN), and says so.

use std::fs::File;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::virtio::net::announce::rarp;
use crate::virtio::net::backend::write_frame;

/// Runs `test` in a thread with an empty network of its own, which is gone afterwards.
fn in_private_network(test: impl FnOnce() + Send + 'static) {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("this test makes a network namespace: run it as root");
        test();
    })
    .join()
    .unwrap();
}

#[test]
fn a_tap_of_our_own_carries_frames_and_vanishes() {
    in_private_network(|| {
        let mut tap = Tap::create("ferry%d").unwrap();
        assert_eq!(tap.name(), "ferry0");
        assert!(exists("ferry0"));
        for offloads in [Offloads::ALL, Offloads::CHECKSUM, Offloads::NONE] {
            tap.set_offloads(offloads).unwrap();
        }
        // The interface is up, and takes a frame with a 12-byte header.
        let frame = rarp([2, 0, 0, 0, 0, 1]);
        assert_eq!(write_frame(tap.fd(), &frame).unwrap(), frame.len());
        drop(tap);
        assert!(!exists("ferry0"));
    });
}

#[test]
fn taps_that_cannot_be_had_say_why() {
    in_private_network(|| {
        assert!(matches!(Tap::open("ferry7"), Err(TapError::Missing(name)) if name == "ferry7"));
        let _held = Tap::create("ferry7").unwrap();
        let in_use = Tap::open("ferry7").unwrap_err();
        assert!(matches!(in_use, TapError::InUse(_)), "{in_use:?}");
        assert!(
            in_use
                .to_string()
                .contains("ferry7 is in use by another process")
        );
        assert!(matches!(Tap::create("ferry7"), Err(TapError::Exists(_))));
        assert!(matches!(Tap::open("lo"), Err(TapError::NotATap(_))));
        for name in ["", "a-name-too-long-", "a/b", "a b", "naïve"] {
            assert!(
                matches!(Tap::create(name), Err(TapError::Name(_))),
                "{name:?}"
            );
        }
    });
}

#[test]
fn a_passed_descriptor_must_be_a_tap_with_header() {
    in_private_network(|| {
        let tap = Tap::create("ferry%d").unwrap();
        let passed = Tap::from_fd(tap.fd.try_clone().unwrap()).unwrap();
        assert_eq!(passed.name(), "ferry0");
        let file = File::open("/dev/null").unwrap().into();
        assert!(matches!(
            Tap::from_fd(file),
            Err(TapError::Descriptor { .. })
        ));
        let unattached = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap()
            .into();
        assert!(matches!(
            Tap::from_fd(unattached),
            Err(TapError::Descriptor { .. })
        ));
    });
}
