//! A driver and its disk: what is asked for is done, what cannot be is refused, and what is no request costs the guest
//! its device alone.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use migration::state::VmState;
use tempfile::NamedTempFile;
use virtio_bindings::{virtio_blk as bit, virtio_mmio as reg};
use vm_memory::{Bytes, GuestAddress};

use super::features::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, WRITE_ZEROES};
use super::*;
use crate::virtio::testing::{Driver, Machine, assert_changes_are_marked, clean, contents};

const VERSION_1: u64 = 1 << 32;
const SIZE: u64 = 1 << 20;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const NEEDS_RESET: u32 = 0x40;
/// Where requests lie: header, status, data.
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x11_0000;

/// A machine with a disk.
struct Bench {
    file: NamedTempFile,
    disk: Arc<Disk>,
    machine: Machine,
    drivers: Vec<Driver>,
}

fn file() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(pattern).collect();
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

fn pattern(at: u64) -> u8 {
    (at / 512 * 7 + at).to_le_bytes()[0]
}

fn open(file: &NamedTempFile, read_only: bool, direct: bool) -> Arc<Disk> {
    let options = DiskOptions { read_only, direct };
    Arc::new(Disk::open(file.path(), options).unwrap())
}

impl Bench {
    fn new(read_only: bool, direct: bool, queues: u16, without: u64) -> Self {
        Self::on(file(), read_only, direct, queues, without)
    }

    fn on(file: NamedTempFile, read_only: bool, direct: bool, queues: u16, without: u64) -> Self {
        let disk = open(&file, read_only, direct);
        let device = VirtioBlock::new(disk.clone(), queues, "ferry-disk-0").unwrap();
        let mut machine = Machine::new(Box::new(device));
        let features = machine.offered() & !without;
        let drivers = machine.set_up(features, 64);
        Self {
            file,
            disk,
            machine,
            drivers,
        }
    }

    fn plain() -> Self {
        Self::new(false, false, 1, 0)
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[0xff]);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let ram = &self.machine.ram;
        ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let ram = &self.machine.ram;
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Makes a request available, without saying so; `data` are `(address, length, device may write)`.
    fn offer(&mut self, queue: usize, data: &[(u64, u32, bool)]) -> u16 {
        let ends = |first, last| [&[first], data, &[last]].concat();
        self.drivers[queue].add(&ends((HEADER, 16, false), (STATUS, 1, true)))
    }

    /// The status and the length of a request, done.
    fn ask(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector);
        clean(&self.machine.ram);
        let before = contents(&self.machine.ram);
        let head = self.offer(0, data);
        self.machine.notify(0);
        assert_changes_are_marked(&self.machine.ram, &before);
        let used = self.drivers[0].used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        (self.get(STATUS, 1)[0], used[0].1)
    }

    fn on_disk(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    fn is_broken(&mut self) -> bool {
        self.machine.get(reg::VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0
    }
}

fn original(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(pattern).collect()
}

#[test]
fn data_comes_and_goes_in_any_pieces() {
    for direct in [false, true] {
        let mut bench = Bench::new(false, direct, 1, 0);
        // Pieces of odd lengths at odd addresses: with direct I/O they go over a buffer of our own.
        let pieces = [
            (DATA + 1, 100, true),
            (DATA + 0x1001, 411, true),
            (DATA + 0x2000, 513, true),
        ];
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_IN, 3, &pieces), (OK, 1025));
        let mut read = bench.get(DATA + 1, 100);
        read.extend(bench.get(DATA + 0x1001, 411));
        read.extend(bench.get(DATA + 0x2000, 513));
        assert!(read == original(3 * 512, 1024));
        // Aligned ones go straight, across pages and up to the last sector.
        let whole = [(DATA, 0x1_0000, true)];
        let last = (SIZE - 0x1_0000) / 512;
        assert_eq!(
            bench.ask(bit::VIRTIO_BLK_T_IN, last, &whole),
            (OK, 0x1_0001)
        );
        assert!(bench.get(DATA, 0x1_0000) == original(SIZE - 0x1_0000, 0x1_0000));

        let mut expected = bench.on_disk();
        bench.put(DATA + 7, &[0xab; 2048]);
        let pieces = [(DATA + 7, 1000, false), (DATA + 1007, 1048, false)];
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_OUT, 8, &pieces), (OK, 1));
        expected[4096..6144].fill(0xab);
        assert_eq!(
            bench.ask(bit::VIRTIO_BLK_T_OUT, 100, &[(DATA, 512, false)]),
            (OK, 1)
        );
        expected[51_200..51_712].copy_from_slice(&bench.get(DATA, 512));
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
        assert!(bench.on_disk() == expected);
    }
}

#[test]
fn the_header_may_lie_in_pieces_and_the_status_behind_data() {
    let mut bench = Bench::plain();
    bench.header(bit::VIRTIO_BLK_T_IN, 0);
    // Two pieces of a header; data and status in one buffer.
    bench.drivers[0].add(&[
        (HEADER, 3, false),
        (HEADER + 3, 13, false),
        (DATA, 513, true),
    ]);
    bench.machine.notify(0);
    assert_eq!(bench.drivers[0].used()[0].1, 513);
    assert_eq!(bench.get(DATA, 512), original(0, 512));
    assert_eq!(bench.get(DATA + 512, 1), [OK]);
}

#[test]
fn what_lies_beside_the_disk_or_is_no_whole_sector_is_refused() {
    let mut bench = Bench::plain();
    let sectors = SIZE / 512;
    let before = bench.on_disk();
    for (sector, len) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 513),
    ] {
        let case = format!("{len} bytes at {sector}");
        let (status, _) = bench.ask(bit::VIRTIO_BLK_T_IN, sector, &[(DATA, len, true)]);
        assert_eq!(status, IOERR, "{case}");
        let (status, _) = bench.ask(bit::VIRTIO_BLK_T_OUT, sector, &[(DATA, len, false)]);
        assert_eq!(status, IOERR, "{case}");
    }
    assert!(bench.on_disk() == before);
    for kind in [2, 3, 5, 10, 12, 14, u32::MAX] {
        assert_eq!(bench.ask(kind, 0, &[]).0, UNSUPP, "{kind}");
    }
    assert!(!bench.is_broken());
}

#[test]
fn a_disk_says_its_name() {
    let mut bench = Bench::plain();
    assert_eq!(
        bench.ask(bit::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]),
        (OK, 21)
    );
    assert_eq!(bench.get(DATA, 20), *b"ferry-disk-0\0\0\0\0\0\0\0\0");
    assert_eq!(
        bench
            .ask(bit::VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 19, true)])
            .0,
        IOERR
    );
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut bench = Bench::new(true, false, 1, 0);
    assert_eq!(bench.machine.offered() & (RO | DISCARD | WRITE_ZEROES), RO);
    let before = bench.on_disk();
    assert_eq!(
        bench.ask(bit::VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]).0,
        IOERR
    );
    let kinds = [bit::VIRTIO_BLK_T_DISCARD, bit::VIRTIO_BLK_T_WRITE_ZEROES];
    for kind in kinds {
        assert_eq!(bench.ask(kind, 0, &[(DATA, 16, false)]).0, UNSUPP);
    }
    assert_eq!(
        bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0,
        OK
    );
    assert_eq!(bench.ask(bit::VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    assert!(bench.on_disk() == before);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn ranges_are_checked_before_the_first_is_touched() {
    let mut bench = Bench::plain();
    let before = bench.on_disk();
    let zeroes = bit::VIRTIO_BLK_T_WRITE_ZEROES;
    let discard = bit::VIRTIO_BLK_T_DISCARD;
    let good = range(0, 8, 0);
    let too_long = MAX_WRITE_ZEROES_SECTORS + 1;
    for (kind, second, want) in [
        (zeroes, range(SIZE / 512, 1, 0), IOERR),
        (zeroes, range(u64::MAX, 1, 0), IOERR),
        (zeroes, range(0, too_long, 0), IOERR),
        (zeroes, range(0, 0, 0), IOERR),
        (zeroes, range(0, 1, 2), UNSUPP),
        (zeroes, vec![0; 15], IOERR),
        (discard, range(0, 1, 1), UNSUPP),
        (discard, range(SIZE / 512 - 1, 2, 0), IOERR),
    ] {
        let bytes = [good.clone(), second].concat();
        bench.put(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        assert_eq!(
            bench.ask(kind, 0, &[(DATA, len, false)]).0,
            want,
            "{bytes:?}"
        );
    }
    let many = vec![good; 17].concat();
    bench.put(DATA, &many);
    assert_eq!(bench.ask(zeroes, 0, &[(DATA, 17 * 16, false)]).0, IOERR);
    assert_eq!(bench.ask(zeroes, 0, &[]).0, IOERR);
    assert!(bench.on_disk() == before);

    let mut expected = before;
    bench.put(DATA, &[range(8, 2, 0), range(100, 300, 1)].concat());
    assert_eq!(bench.ask(zeroes, 0, &[(DATA, 32, false)]), (OK, 1));
    expected[8 * 512..10 * 512].fill(0);
    expected[100 * 512..400 * 512].fill(0);
    assert!(bench.on_disk() == expected);
    bench.put(DATA, &range(0, 8, 0));
    assert_eq!(bench.ask(discard, 0, &[(DATA, 16, false)]), (OK, 1));
    assert!(bench.on_disk()[4096..] == expected[4096..]);
}

/// Where zeros have to be written a request of several ranges would keep a pause waiting for as many times as long.
#[test]
fn ranges_to_be_zeroed_are_no_longer_together_than_one() {
    let file = file();
    file.as_file().set_len(64 << 20).unwrap();
    let mut bench = Bench::on(file, false, false, 1, 0);
    let zeroes = bit::VIRTIO_BLK_T_WRITE_ZEROES;
    let half = MAX_WRITE_ZEROES_SECTORS / 2;
    for (second, want) in [(half, OK), (half + 1, IOERR)] {
        bench.put(DATA, &[range(0, half, 0), range(0, second, 0)].concat());
        assert_eq!(bench.ask(zeroes, 0, &[(DATA, 32, false)]).0, want);
    }
}

#[test]
fn what_is_no_request_costs_the_guest_its_device() {
    let header = (HEADER, 16, false);
    for chain in [
        vec![(HEADER, 15, false), (STATUS, 1, true)],
        vec![header],
        vec![(STATUS, 1, true)],
        vec![header, (DATA, 512, false)],
    ] {
        let mut bench = Bench::plain();
        bench.header(bit::VIRTIO_BLK_T_OUT, 0);
        bench.drivers[0].add(&chain);
        let before = bench.on_disk();
        bench.machine.notify(0);
        assert!(bench.is_broken(), "{chain:?}");
        assert!(bench.on_disk() == before);
        // After a reset it works again.
        let offered = bench.machine.offered();
        bench.drivers = bench.machine.set_up(offered, 64);
        assert_eq!(
            bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0,
            OK
        );
    }
}

#[test]
fn a_request_is_bounded() {
    let large = NamedTempFile::new().unwrap();
    large.as_file().set_len(64 << 20).unwrap();
    let mut bench = Bench::on(large, false, false, 1, 0);
    // A region of 2 MiB fifteen times over is 30 MiB, and once more is more than a request may have.
    let part = (1 << 32, 2 << 20, true);
    assert_eq!(bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[part; 15]).0, OK);
    assert_eq!(bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[part; 16]).0, IOERR);
    assert!(!bench.is_broken());
}

/// A driver without FLUSH takes a write for safe when it is done. Whether it was brought to the disk shows on one that
/// says that something was lost.
#[test]
fn without_flush_every_write_is_flushed() {
    for (without, want) in [(0, OK), (FLUSH, IOERR)] {
        let mut bench = Bench::new(false, false, 1, without);
        bench.disk.lose_writes();
        bench.put(DATA + 512, &range(0, 1, 0));
        let out = [(DATA, 512, false)];
        let ranges = [(DATA + 512, 16, false)];
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_OUT, 0, &out).0, want);
        assert_eq!(
            bench.ask(bit::VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges).0,
            want
        );
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_DISCARD, 0, &ranges).0, want);
        assert_eq!(bench.ask(bit::VIRTIO_BLK_T_FLUSH, 0, &[]).0, IOERR);
        assert_eq!(
            bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0,
            OK
        );
    }
}

#[test]
fn the_configuration_space_tells_size_and_limits() {
    let device = |read_only| VirtioBlock::new(open(&file(), read_only, false), 4, "x").unwrap();
    let field = |device: &VirtioBlock, at, len: usize| {
        let mut bytes = [0; 8];
        device.read_config(at, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    };
    let disk = device(false);
    assert_eq!(
        disk.features() & (MQ | BLK_SIZE | DISCARD),
        MQ | BLK_SIZE | DISCARD
    );
    let fields = [(0, 8), (8, 4), (12, 4), (20, 4), (24, 1), (26, 2), (34, 2)];
    let values = fields.map(|(at, len)| field(&disk, at, len));
    assert_eq!(values, [SIZE / 512, 128 << 10, 254, 512, 3, 8, 4]);
    let fields = [(36, 4), (40, 4), (44, 4), (48, 4), (52, 4), (56, 1)];
    let values = fields.map(|(at, len)| field(&disk, at, len));
    assert_eq!(values, [2 << 20, 16, 1, 64 << 10, 1, 1]);
    assert_eq!(
        fields.map(|(at, len)| field(&device(true), at, len)),
        [0; 6]
    );
    assert_eq!(field(&disk, 59, 4), 0, "beyond its end");
    assert_eq!(field(&disk, u64::MAX, 4), 0);
}

/// Drained before the save: what was begun is done, and in the memory and on the disk that the move leaves behind; what
/// was not begun lies in the queue, and is done once, on the other side.
#[test]
fn nothing_is_under_way_when_a_disk_is_paused() {
    let mut bench = Bench::new(false, false, 2, 0);
    bench.header(bit::VIRTIO_BLK_T_OUT, 0);
    bench.put(DATA, &[1; 512]);
    bench.offer(1, &[(DATA, 512, false)]);
    bench.machine.notify(1);
    assert!(bench.on_disk()[..512] == [1; 512]);
    // Offered and said, but nobody has come to it.
    bench.put(DATA, &[2; 512]);
    bench.offer(1, &[(DATA, 512, false)]);
    bench.machine.put(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    let state = bench.machine.save();
    bench.machine.service();
    assert!(bench.on_disk()[..512] == [1; 512], "it is paused");

    let disk = open(&bench.file, false, false);
    let device: VirtioBlock = state.restore(0, BlockParts { disk }).unwrap();
    bench.machine = bench.machine.moved(&state, Box::new(device));
    for driver in &mut bench.drivers {
        driver.follow(&bench.machine.ram);
    }
    bench.machine.mmio.resume();
    bench.machine.service();
    assert!(bench.on_disk()[..512] == [2; 512]);
    assert_eq!(bench.drivers[1].used().len(), 2);
    assert_eq!(bench.drivers[0].used(), []);
    assert_eq!(
        bench.ask(bit::VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).0,
        OK
    );
}

#[test]
fn a_disk_that_is_not_the_guests_is_refused() {
    let mut bench = Bench::plain();
    let state: VmState = bench.machine.save();
    let small = NamedTempFile::new().unwrap();
    small.as_file().set_len(SIZE - 512).unwrap();
    let refusal = |disk| {
        let restored = state.restore::<VirtioBlock>(0, BlockParts { disk });
        restored.unwrap_err().to_string()
    };
    let text = refusal(open(&small, false, false));
    assert!(
        text.contains("1048576 bytes") && text.contains("has 1048064"),
        "{text}"
    );
    let text = refusal(open(&bench.file, true, false));
    assert!(text.contains("(read-only: true)"), "{text}");
    for queues in [0, MAX_QUEUES + 1] {
        let disk = open(&bench.file, false, false);
        let why = VirtioBlock::new(disk, queues, "x").unwrap_err();
        assert!(why.contains("1 to 8"), "{why}");
    }
    let fresh = BlockState::fresh(&bench.disk, 1, "x");
    let disk = bench.disk.clone();
    for state in [
        BlockState {
            block_size: 0,
            ..fresh.clone()
        },
        BlockState {
            block_size: 8192,
            ..fresh.clone()
        },
        BlockState {
            block_size: 1000,
            ..fresh.clone()
        },
        BlockState {
            features: fresh.features | MQ,
            ..fresh.clone()
        },
        BlockState {
            features: VERSION_1,
            ..fresh.clone()
        },
    ] {
        let disk = disk.clone();
        assert!(VirtioBlock::restore(state, BlockParts { disk }).is_err());
    }
}
