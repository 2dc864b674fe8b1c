//! Real taps, in a network namespace of the test's own. Needs root (or CAP_SYS_ADMIN), and says so.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::net::announce::rarp;
use crate::virtio::net::backend::write_frame;
use crate::virtio::net::{NetParts, VirtioNet};
use crate::virtio::testing::{Driver, Machine};

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
        let mut tap = Tap::create("ferry%d", 1).unwrap();
        assert_eq!(tap.name(), "ferry0");
        assert!(interface::exists("ferry0"));
        for offloads in [Offloads::ALL, Offloads::CHECKSUM, Offloads::NONE] {
            tap.set_offloads(offloads).unwrap();
        }
        // The interface is up, and takes a frame with a 12-byte header.
        let frame = rarp([2, 0, 0, 0, 0, 1]);
        assert_eq!(write_frame(tap.fds()[0], &frame).unwrap(), frame.len());
        drop(tap);
        assert!(!interface::exists("ferry0"));
    });
}

#[test]
fn taps_that_cannot_be_had_say_why() {
    in_private_network(|| {
        assert!(matches!(Tap::open("ferry7", 1), Err(TapError::Missing(name)) if name == "ferry7"));
        let _held = Tap::create("ferry7", 1).unwrap();
        let in_use = Tap::open("ferry7", 1).unwrap_err();
        assert!(matches!(in_use, TapError::InUse(_)), "{in_use:?}");
        assert!(
            in_use
                .to_string()
                .contains("ferry7 is in use by another process")
        );
        assert!(matches!(Tap::create("ferry7", 1), Err(TapError::Exists(_))));
        assert!(matches!(Tap::open("lo", 1), Err(TapError::NotATap(_))));
        for name in ["", "a-name-too-long-", "a/b", "a b", "naïve"] {
            assert!(
                matches!(Tap::create(name, 1), Err(TapError::Name(_))),
                "{name:?}"
            );
        }
    });
}

/// Makes a tap that stays, as `ip tuntap add` does.
fn persistent(name: &str, queues: u16) {
    let tap = Tap::create(name, queues).unwrap();
    // SAFETY: TUNSETPERSIST takes a number, no pointer.
    let done = unsafe { libc::ioctl(tap.first().as_raw_fd(), libc::TUNSETPERSIST, 1) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_tap_of_several_queues_has_one_in_use_until_more_are_wanted() {
    in_private_network(|| {
        persistent("many", 2);
        let attached = |tap: &Tap| {
            let detached = |queue: &&OwnedFd| {
                // SAFETY: TUNGETIFF filled in the flags.
                let flags = unsafe { flags_of(queue).unwrap().ifr_ifru.ifru_flags };
                libc::c_int::from(flags) & libc::IFF_DETACH_QUEUE != 0
            };
            tap.queues.len() - tap.queues.iter().filter(detached).count()
        };
        let mut tap = Tap::open("many", 4).unwrap();
        assert_eq!(
            (tap.fds().len(), attached(&tap), census::queues("many")),
            (4, 1, Some(4))
        );
        for count in [3, 3, 1, 4, 2] {
            tap.use_queues(count).unwrap();
            assert_eq!(attached(&tap), count);
            tap.set_offloads(Offloads::CHECKSUM).unwrap();
        }
        // Another attempt begins with one again.
        let fresh = tap.fresh(2).unwrap();
        assert_eq!((fresh.fds().len(), attached(&fresh)), (2, 1));
        drop((tap, fresh));

        let all = Tap::open_all("many").unwrap();
        assert_eq!(all.fds().len(), usize::from(MAX_PAIRS));
        drop(all);
        // A card of one pair can use it, too.
        assert_eq!(Tap::open("many", 1).unwrap().fds().len(), 1);
    });
}

#[test]
fn a_tap_of_several_queues_is_one_guests_and_another_has_not_so_many() {
    in_private_network(|| {
        persistent("many", 2);
        persistent("single", 1);
        let held = Tap::open("many", 1).unwrap();
        for queues in [1, 2] {
            let in_use = Tap::open("many", queues).unwrap_err();
            assert!(matches!(in_use, TapError::InUse(_)), "{in_use:?}");
        }
        drop(held);
        let few = Tap::open("single", 2).unwrap_err().to_string();
        assert!(
            few.contains("tap single has 1 of the 2 queues") && few.contains("multi_queue"),
            "{few}"
        );
        let single = Tap::open_all("single").unwrap();
        assert_eq!(single.fds().len(), 1);
        assert!(matches!(
            single.fresh(2),
            Err(TapError::Queues {
                have: 1,
                wanted: 2,
                ..
            })
        ));
    });
}

#[test]
fn a_tap_with_shorter_frames_than_the_card_is_noticed() {
    in_private_network(|| {
        let mut tap = Tap::create("mtu", 1).unwrap();
        tap.carries(None).unwrap();
        tap.carries(Some(1500)).unwrap();
        let short = tap.carries(Some(9000)).unwrap_err().to_string();
        assert!(short.contains("MTU of 1500, the card of 9000"), "{short}");
        tap.set_mtu(9000).unwrap();
        tap.carries(Some(9000)).unwrap();
        assert_eq!(interface::mtu("mtu"), Some(9000));
        // The most that may be asked for is the most that there is.
        tap.set_mtu(65_521).unwrap();
        assert!(tap.set_mtu(65_522).is_err());
    });
}

#[test]
fn descriptors_that_are_passed_are_of_one_tap_and_all_of_its_kind() {
    in_private_network(|| {
        let many = Tap::create("many", 3).unwrap();
        let mut passed = Vec::new();
        for queue in &many.queues {
            passed.push(queue.try_clone().unwrap());
        }
        let other = Tap::create("other", 2).unwrap();
        let single = Tap::create("single", 1).unwrap();
        let pairs = [
            (&many.queues[0], &other.queues[0]),
            (&single.queues[0], &single.queues[0]),
        ];
        for (one, two) in pairs {
            let fds = vec![one.try_clone().unwrap(), two.try_clone().unwrap()];
            assert!(matches!(
                Tap::from_fds(fds),
                Err(TapError::Descriptor { .. })
            ));
        }
        assert!(Tap::from_fds(Vec::new()).is_err());
        let mut tap = Tap::from_fds(passed).unwrap();
        assert_eq!((tap.name(), tap.fds().len()), ("many", 3));
        tap.use_queues(3).unwrap();
    });
}

#[test]
fn a_passed_descriptor_must_be_a_tap_with_header() {
    in_private_network(|| {
        let tap = Tap::create("ferry%d", 1).unwrap();
        let passed = Tap::from_fds(vec![tap.queues[0].try_clone().unwrap()]).unwrap();
        assert_eq!(passed.name(), "ferry0");
        let file = File::open("/dev/null").unwrap().into();
        assert!(matches!(
            Tap::from_fds(vec![file]),
            Err(TapError::Descriptor { .. })
        ));
        let unattached = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap()
            .into();
        assert!(matches!(
            Tap::from_fds(vec![unattached]),
            Err(TapError::Descriptor { .. })
        ));
    });
}

/// EtherType for local experiments (IEEE 802), so that the kernel's own chatter is told apart.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// A packet socket on an interface: what the host's bridge would see of a guest.
struct Sniffer(OwnedFd);

impl Sniffer {
    fn on(interface: &str) -> Self {
        let protocol = u16::from_le_bytes(ETHERTYPE);
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK;
        // SAFETY: creates a descriptor and takes no pointer.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a sockaddr_ll is plain numbers, for all of which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol;
        let index = nix::net::if_::if_nametoindex(interface).unwrap();
        address.sll_ifindex = i32::try_from(index).unwrap();
        let len = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: pointer and length are those of `address`, which lives through the call.
        let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        Self(fd)
    }

    /// The next frame that came out of the interface or went into it.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 17];
        let flags = nix::sys::socket::MsgFlags::empty();
        let len = nix::sys::socket::recv(self.0.as_raw_fd(), &mut frame, flags).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(write_frame(self.0.as_raw_fd(), frame).unwrap(), frame.len());
    }
}

/// An Ethernet frame to everybody of that many bytes.
fn ethernet(fill: u8, len: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, fill], &ETHERTYPE].concat();
    frame.resize(len, fill);
    frame
}

/// Sends a frame out of the guest and one into it, both through the host's interface.
fn exchange(machine: &mut Machine, queues: &mut [Driver], sniffer: &Sniffer, fill: u8) {
    let (out, into) = (ethernet(fill, 1514), ethernet(fill + 1, 1000));
    let buffer = GuestAddress(0x20_0000);
    machine
        .ram
        .write_slice(&[&[0; 12], &out[..]].concat(), buffer)
        .unwrap();
    queues[1].add(&[(buffer.0, 12, false), (buffer.0 + 12, 1514, false)]);
    machine.notify(1);
    assert_eq!(queues[1].used().len(), 1);
    assert!(sniffer.receive() == Some(out));

    // Two buffers of 600 bytes: the frame and its header fill one and a part of the other.
    queues[0].add(&[(0x10_0000, 600, true)]);
    queues[0].add(&[(0x11_0000, 600, true)]);
    sniffer.send(&into);
    machine.mmio.backend_event();
    let lens: Vec<_> = queues[0].used().iter().map(|used| used.1).collect();
    assert_eq!(lens, [600, 412]);
    let mut got = vec![0; 1012];
    machine
        .ram
        .read_slice(&mut got[..600], GuestAddress(0x10_0000))
        .unwrap();
    machine
        .ram
        .read_slice(&mut got[600..], GuestAddress(0x11_0000))
        .unwrap();
    assert_eq!(got[10..12], [2, 0], "num_buffers");
    assert!(got[12..] == into);
    while sniffer.receive().is_some() {}
}

#[test]
fn a_guest_talks_through_its_tap_and_through_another_after_a_move() {
    in_private_network(|| {
        let no_ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        // The kernel's own announcements would be frames to the guest. Without IPv6 there is nothing to switch off.
        let _ = std::fs::write(no_ipv6, "1");
        let tap = Tap::create("before", 1).unwrap();
        let sniffer = Sniffer::on("before");
        let card = VirtioNet::new([2, 0, 0, 0, 0, 9], None, Box::new(tap)).unwrap();
        let mut machine = Machine::new(Box::new(card));
        let features = machine.offered();
        let mut queues = machine.set_up(features, 64);
        exchange(&mut machine, &mut queues, &sniffer, 1);

        let state = machine.save();
        let tap = Tap::create("after", 1).unwrap();
        let sniffer = Sniffer::on("after");
        let card: VirtioNet = state
            .restore(
                0,
                NetParts {
                    backend: Box::new(tap),
                },
            )
            .unwrap();
        let mut machine = machine.moved(&state, Box::new(card));
        queues
            .iter_mut()
            .for_each(|queue| queue.follow(&machine.ram));
        machine.mmio.resume();
        machine.service();
        exchange(&mut machine, &mut queues, &sniffer, 3);
        assert!(
            !machine
                .mmio
                .counters()
                .iter()
                .any(|(name, count)| name.ends_with("dropped") && *count > 0)
        );
    });
}
