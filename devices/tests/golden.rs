//! The bytes of every section that a device writes, version by version: each is restored, and saved as the newest. That
//! no kind is without its bytes is tested where all kinds are known, in `vmm/src/vm/golden.rs`.
#![allow(clippy::unwrap_used)]

#[path = "support/golden.rs"]
mod golden_file;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devices::GuestRam;
use devices::bus::BusDevice;
use devices::heartbeat::{HeartbeatPort, HeartbeatState};
use devices::pci::msix::MessageSink;
use devices::pci::{Function, PciBus, PciBusState};
use devices::serial::{Serial, SerialParts, SerialState};
use devices::virtio::balloon::{BalloonParts, BalloonState, GiveBack, Pages, VirtioBalloon};
use devices::virtio::block::disk::Disk;
use devices::virtio::block::{BlockParts, BlockState, DiskOptions, VirtioBlock};
use devices::virtio::net::{NetBackend, NetParts, NetState, Offloads, VirtioNet};
use devices::virtio::pci::Vectors;
use devices::virtio::queue::RingState;
use devices::virtio::rng::{RngState, VirtioRng};
use devices::virtio::{MmioParts, MmioState, PciParts, PciState, VirtioMmio, VirtioPci};
use golden_file::{arrived, check, kept, write_missing};
use migration::state::{Snapshot, VmState};
use serde::Serialize;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// `state` is written as the bytes of this version, and every version is restored to what is saved so.
fn golden<S: Snapshot>(name: &str, state: &S::State, parts: impl Fn() -> S::Parts) {
    write_missing(&folder(), S::VERSION, name, state).unwrap();
    check(&folder(), S::VERSION, name, state).unwrap_or_else(|why| panic!("{why}"));
    let newest = kept(&folder(), S::VERSION, name).unwrap();
    for version in 1..=S::VERSION {
        let bytes = kept(&folder(), version, name).unwrap();
        let restored: S = (arrived(S::KIND, version, bytes).restore(0, parts()))
            .unwrap_or_else(|error| panic!("version {version} of {name}: {error}"));
        let mut saved = VmState::default();
        saved.save(0, &restored).unwrap();
        assert_eq!(
            saved,
            arrived(S::KIND, S::VERSION, newest.clone()),
            "{name}"
        );
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// A backend that has every offload; nobody uses it.
struct Wire(UnixStream);

impl NetBackend for Wire {
    fn fds(&self) -> Vec<i32> {
        vec![std::os::fd::AsRawFd::as_raw_fd(&self.0)]
    }
    fn use_queues(&mut self, _: usize) -> std::io::Result<()> {
        Ok(())
    }
    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
    fn set_offloads(&mut self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }
}

fn net_parts() -> NetParts {
    NetParts {
        backend: Box::new(Wire(UnixStream::pair().unwrap().0)),
    }
}

fn serial() -> SerialState {
    SerialState {
        baud_divisor_low: 12,
        baud_divisor_high: 1,
        interrupt_enable: 5,
        interrupt_identification: 4,
        line_control: 3,
        line_status: 0x61,
        modem_control: 8,
        modem_status: 0xb0,
        scratch: 0x5a,
        input: b"ab".to_vec(),
    }
}

fn net() -> NetState {
    NetState {
        default_mac: [2, 0, 0, 0, 0, 1],
        mac: [2, 0, 0, 0, 0, 2],
        mtu: Some(1500),
        // CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC, MRG_RXBUF, STATUS, CTRL_VQ (virtio 1.2, 5.1.3).
        features: 0x2_802f,
        announcing: true,
        guest_offloads: Some(2),
        held: vec![vec![9; 60]],
    }
}

fn block() -> BlockState {
    BlockState {
        // SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, MQ, DISCARD, WRITE_ZEROES (virtio 1.2, 5.2.3).
        features: 0x7646,
        bytes: 3 << 20,
        block_size: 4096,
        queues: 4,
        id: *b"ferry-disk-3\0\0\0\0\0\0\0\0",
    }
}

fn block_parts() -> BlockParts {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(3 << 20).unwrap();
    BlockParts {
        disk: Disk::open(file.path(), DiskOptions::default())
            .unwrap()
            .into(),
    }
}

fn balloon() -> BalloonState {
    BalloonState {
        // DEFLATE_ON_OOM, PAGE_REPORTING (virtio 1.2, 5.5.3).
        features: 0x24,
        target: 300_000,
        actual: 300,
    }
}

/// A host to which nobody gives anything.
struct Nobody;

impl GiveBack for Nobody {
    fn give_back(&mut self, _: &GuestRam, _: &Pages) -> std::io::Result<()> {
        Ok(())
    }
}

fn balloon_parts() -> BalloonParts {
    BalloonParts {
        host: Box::new(Nobody),
        levels: Default::default(),
    }
}

fn queue(size: u16, at: u64) -> RingState {
    RingState {
        max_size: 256,
        size,
        ready: true,
        desc_table: at,
        avail_ring: at + 0x1000,
        used_ring: at + 0x1_0000_0000,
        next_avail: 5,
        next_used: 4,
        signalled_used: 3,
    }
}

fn mmio() -> MmioState {
    let idle = RingState {
        ready: false,
        max_size: 64,
        ..queue(64, 0)
    };
    MmioState {
        device_type: 1,
        status: 0xf,
        device_features_sel: 1,
        driver_features_sel: 0,
        driver_features: 1 << 32 | 1 << 29 | 1 << 17 | 1 << 15 | 1 << 5 | 3,
        queue_sel: 2,
        interrupt_status: 1,
        config_generation: 7,
        queues: vec![queue(128, 0x1000), queue(256, 0x4000), idle],
    }
}

fn mmio_parts() -> MmioParts {
    let regions = [(0, 4 << 20), (1 << 32, 2 << 20)];
    let regions = regions.map(|(start, len)| (GuestAddress(start), len));
    MmioParts {
        ram: GuestRam::from_ranges(&regions).unwrap(),
        interrupts: Box::new(eventfd()),
        queue_events: (0..3).map(|_| eventfd()).collect(),
        page: Arc::default(),
        device: Box::new(VirtioNet::restore(net(), net_parts()).unwrap()),
    }
}

/// Messages go nowhere.
struct Silence;

impl MessageSink for Silence {
    fn send(&self, _: u64, _: u32) {}
}

fn pci_parts() -> PciParts {
    PciParts {
        core: Arc::new(Mutex::new(
            VirtioMmio::restore(mmio(), mmio_parts()).unwrap(),
        )),
        vectors: Arc::new(Vectors::new(3, Box::new(Silence)).unwrap()),
        base: 0xd001_2000,
    }
}

/// A function of which a driver has written everything that can be written.
fn pci() -> PciState {
    let mut function = VirtioPci::new(pci_parts()).unwrap();
    function.write_config(0x04, &[6, 4]);
    function.write_config(0x10, &[0, 0x20, 1, 0xd0]);
    function.write_config(0x3c, &[11]);
    function.write_config(0x98, &[0]);
    function.write_config(0x9c, &[0x14, 0, 0, 0]);
    function.write_config(0xa0, &[1, 0, 0, 0]);
    for vector in 0..4u8 {
        let entry = 0x1000 + 16 * u64::from(vector);
        let _ = function.write(entry, &[0, 0x10 * vector, 0xe0, 0xfe]);
        let _ = function.write(entry + 4, &[vector, 0, 0, 0]);
        let _ = function.write(entry + 8, &[0x30 + vector, 0x40, 0, 0]);
        let _ = function.write(entry + 12, &[vector % 2, 0, 0, 0]);
    }
    function.write_config(0x42, &[0, 0xc0]);
    let _ = function.write(0x10, &[0, 0]);
    for queue in 0..2u8 {
        let _ = function.write(0x16, &[queue, 0]);
        let _ = function.write(0x1a, &[queue + 1, 0]);
    }
    function.save()
}

#[test]
fn sections_are_their_golden_bytes() {
    golden::<HeartbeatPort>("heartbeat", &HeartbeatState { counter: 300 }, || ());
    golden::<VirtioRng>("virtio_rng", &RngState {}, || ());
    golden::<Serial>("serial", &serial(), || SerialParts {
        irq: Box::new(eventfd()),
        out: Box::new(std::io::sink()),
        room: eventfd(),
    });
    golden::<VirtioNet>("virtio_net", &net(), net_parts);
    golden::<VirtioBlock>("virtio_blk", &block(), block_parts);
    golden::<VirtioBalloon>("virtio_balloon", &balloon(), balloon_parts);
    golden::<VirtioMmio>("virtio_mmio", &mmio(), mmio_parts);
    golden::<VirtioPci>("virtio_pci", &pci(), pci_parts);
    let bus = PciBusState {
        address: 0x8000_0810,
    };
    golden::<PciBus>("pci_bus", &bus, Vec::new);
}

/// Another encoding under the same version is noticed: a field more, two fields that have changed places, a number
/// that is written otherwise.
#[test]
fn an_encoding_that_changed_without_a_new_version_is_noticed() {
    #[derive(Serialize)]
    struct More {
        counter: u32,
        beats: u64,
    }
    #[derive(Serialize)]
    struct Otherwise {
        counter: [u8; 4],
    }
    #[derive(Serialize)]
    struct Swapped {
        baud_divisor_high: u8,
        baud_divisor_low: u8,
        rest: [u8; 7],
        input: Vec<u8>,
    }
    let (counter, bytes) = (300u32, 300u32.to_le_bytes());
    let state = serial();
    let rest = [5, 4, 3, 0x61, 8, 0xb0, 0x5a];
    let swap = |baud_divisor_high, baud_divisor_low| Swapped {
        baud_divisor_high,
        baud_divisor_low,
        rest,
        input: state.input.clone(),
    };
    let at = folder();
    let noticed = [
        check(&at, 1, "heartbeat", &More { counter, beats: 0 }),
        check(&at, 1, "heartbeat", &Otherwise { counter: bytes }),
        check(&at, 1, "serial", &swap(1, 12)),
    ];
    for check in noticed {
        assert!(check.unwrap_err().contains("give it a new version"));
    }
    // The same bytes by another name are the same.
    check(&at, 1, "serial", &swap(12, 1)).unwrap();
    assert!(check(&at, 2, "no_such_section", &0u8).is_err());
}
