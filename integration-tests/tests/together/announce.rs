//! What the network hears of a guest that has come to another host, or out of a file: the frames that Ferry sends for
//! it, seen by a third party behind the hosts' bridges.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::ferry::{Ferry, Netns, World};
use nix::errno::Errno;
use nix::libc::PACKET_OUTGOING;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket,
};
use tempfile::TempDir;

use super::lab::STEP;
use super::speaker;

/// The guest's card.
const NET: &str = "tap=tap0,mac=02:00:00:0a:0b:0c";
const MAC: [u8; 6] = [2, 0, 0, 0x0a, 0x0b, 0x0c];
/// EtherType of reverse ARP (RFC 903).
const RARP: [u8; 2] = [0x80, 0x35];
/// So often a guest is announced.
const ROUNDS: usize = 5;
/// Twice as long as the rounds take: one too many would have come by then.
const QUIET: Duration = Duration::from_millis(1600);

/// How often the guest was announced on each host: `[a, b]`.
type Heard = [usize; 2];

/// Two hosts, and an ear on the ports of the bridge that joins them.
struct Stage {
    world: World,
    folder: TempDir,
    ear: OwnedFd,
    /// The interfaces by which frames of the hosts come in.
    ports: [usize; 2],
    heard: Heard,
}

impl Stage {
    fn new() -> Self {
        let world = World::new(1).unwrap();
        let listen = || {
            let ports = ["to-a0", "to-b0"];
            let ports = ports.map(|port| if_nametoindex(port).unwrap().try_into().unwrap());
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            // All frames: those of one type are handed out only behind the bridge, where the port is no longer known.
            let all = SockProtocol::EthAll;
            let ear = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
            (ear, ports)
        };
        let (ear, ports) = world.world.within(listen).unwrap();
        Self {
            world,
            folder: tempfile::tempdir().unwrap(),
            ear,
            ports,
            heard: [0; 2],
        }
    }

    /// How often it was announced until now.
    fn heard(&mut self) -> Heard {
        let mut frame = [0; 2048];
        loop {
            let (bytes, from) = match recvfrom::<LinkAddr>(self.ear.as_raw_fd(), &mut frame) {
                Ok((bytes, from)) => (bytes, from.unwrap()),
                Err(Errno::EAGAIN) => return self.heard,
                Err(error) => panic!("{error}"),
            };
            let frame = &frame[..bytes];
            let port = self.ports.iter().position(|port| *port == from.ifindex());
            let (Some(port), Some(head)) = (port, frame.get(..14)) else {
                continue;
            };
            // What the bridge sends on to the other host is the same frame once more.
            let incoming = from.pkttype() != PACKET_OUTGOING;
            if incoming && head[6..12] == MAC && head[12..] == RARP {
                assert_eq!(head[..6], [0xff; 6], "{frame:x?}");
                self.heard[port] += 1;
            }
        }
    }

    /// It is announced so often in all, and not once more.
    fn comes_to(&mut self, wanted: Heard) {
        let began = Instant::now();
        while self.heard() != wanted {
            let late = began.elapsed() > STEP;
            assert!(!late, "{:?} announcements, not {wanted:?}", self.heard);
            thread::sleep(Duration::from_millis(10));
        }
        self.stays_at(wanted);
    }

    /// Nothing more is heard.
    fn stays_at(&mut self, wanted: Heard) {
        thread::sleep(QUIET);
        assert_eq!(self.heard(), wanted, "announcements on hosts a and b");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The guest on host A, its card in use.
    fn boot(&self) -> Ferry {
        let said = self.path("said");
        let serial = format!("file={}", text(&said));
        let args = ["--net", NET, "--serial", &serial];
        let mut guest = speaker::start(&self.world.a, self.folder.path(), &args);
        guest.wait_control(STEP).unwrap();
        let began = Instant::now();
        // It drives the card first, and speaks then.
        while fs::metadata(&said).unwrap().len() == 0 {
            let late = began.elapsed() > STEP;
            assert!(!late, "it says nothing: {}", guest.messages().tail());
            thread::sleep(Duration::from_millis(10));
        }
        guest
    }

    /// The guest out of a snapshot.
    fn restore(&self, host: &Netns, more: &[&str]) -> Ferry {
        let path = self.path("snapshot");
        let net = ["--net", "0=tap=tap0", "--serial", "none"];
        let args = [&["restore", text(&path)], &net[..], more].concat();
        let mut guest = Ferry::start(Some(host), &args).unwrap();
        guest.wait_control(STEP).unwrap();
        guest
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_moved_guest_is_announced_by_its_new_host_and_by_no_other() {
    let mut stage = Stage::new();
    let mut source = stage.boot();
    let target = format!("tcp:{}:4700", World::B);
    let plain = "--insecure-plaintext";
    let waiting = ["--net", "0=tap=tap0", "--serial", "none", plain];
    let destination = Ferry::receive(Some(&stage.world.b), &target, &waiting).unwrap();
    // A guest that goes on where it was is where everybody takes it to be.
    source.act("pause").unwrap();
    source.act("resume").unwrap();
    stage.stays_at([0, 0]);
    let moved = source.migrate(&target, &[plain]).unwrap();
    moved.completed().unwrap();
    stage.comes_to([0, ROUNDS]);
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
    assert_eq!(destination.state().unwrap(), "running");
}

#[test]
fn a_restored_guest_is_announced_when_it_runs() {
    let mut stage = Stage::new();
    let mut guest = stage.boot();
    let path = stage.path("snapshot");
    let saved = guest.command("snapshot", &[text(&path), "--stop"]).unwrap();
    assert!(saved.status.success(), "{saved:?}");
    assert_eq!(guest.wait_end(STEP).unwrap().code(), Some(0));

    let guest = stage.restore(&stage.world.b, &["--paused"]);
    guest.wait_state("paused", STEP).unwrap();
    stage.stays_at([0, 0]);
    guest.act("resume").unwrap();
    stage.comes_to([0, ROUNDS]);
    // Once is enough.
    guest.act("pause").unwrap();
    guest.act("resume").unwrap();
    stage.stays_at([0, ROUNDS]);
    drop(guest);

    let guest = stage.restore(&stage.world.a, &[]);
    guest.wait_state("running", STEP).unwrap();
    stage.comes_to([ROUNDS, ROUNDS]);
}
