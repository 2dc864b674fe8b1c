//! The bytes of the sections that are not a device's: vCPU, interrupt controllers and clock, CPU model, device list.
//! And of all kinds there are, that none is without the bytes of each of its versions.

use std::path::{Path, PathBuf};

use devices::heartbeat::HeartbeatPort;
use devices::pci::PciBus;
use devices::serial::Serial;
use devices::virtio::{VirtioBalloon, VirtioBlock, VirtioMmio, VirtioNet, VirtioPci, VirtioRng};
use kvm_bindings::kvm_cpuid_entry2;
use migration::guest::Description;
use migration::pages::{MemoryLayout, Region};
use migration::state::{Kind, Snapshot, VmState};
use serde::{Serialize, de::DeserializeOwned};

use super::STATE_VERSION;
use super::shape::{self, CardShape, DiskShape, Shape, SlotKind};
use crate::kvm::cpuid::baseline::Baseline;
use crate::kvm::vcpu_state::VcpuState;
use crate::kvm::vm_state::VmCommonState;
use crate::layout::Transport;

#[path = "../../../devices/tests/support/golden.rs"]
mod golden_file;

use golden_file::{arrived, check, kept, write_missing};

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn of_devices() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../devices/tests/golden")
}

/// Where a kind's bytes are kept, under which name, and the version that this build writes.
///
/// A kind that is new needs its line here, a golden test beside those of its neighbours, and the file that
/// `FERRY_GOLDEN=write cargo test` makes.
fn place(kind: Kind) -> (PathBuf, &'static str, u32) {
    match kind {
        Kind::VCPU => (ours(), "vcpu", STATE_VERSION),
        Kind::VM => (ours(), "vm", STATE_VERSION),
        Kind::CPU_MODEL => (ours(), "cpu_model", shape::CPU_VERSION),
        Kind::DEVICE_LIST => (ours(), "device_list", shape::DEVICES_VERSION),
        Kind::SERIAL => (of_devices(), "serial", Serial::VERSION),
        Kind::VIRTIO_MMIO => (of_devices(), "virtio_mmio", VirtioMmio::VERSION),
        Kind::VIRTIO_NET => (of_devices(), "virtio_net", VirtioNet::VERSION),
        Kind::VIRTIO_BLK => (of_devices(), "virtio_blk", VirtioBlock::VERSION),
        Kind::VIRTIO_RNG => (of_devices(), "virtio_rng", VirtioRng::VERSION),
        Kind::VIRTIO_BALLOON => (of_devices(), "virtio_balloon", VirtioBalloon::VERSION),
        Kind::VIRTIO_PCI => (of_devices(), "virtio_pci", VirtioPci::VERSION),
        Kind::PCI_BUS => (of_devices(), "pci_bus", PciBus::VERSION),
        Kind::HEARTBEAT => (of_devices(), "heartbeat", HeartbeatPort::VERSION),
        other => panic!("{other} has no golden bytes"),
    }
}

#[test]
fn every_kind_has_golden_bytes_of_every_version() {
    for &kind in Kind::ALL {
        let (folder, name, newest) = place(kind);
        for version in 1..=newest {
            kept(&folder, version, name).unwrap_or_else(|why| panic!("{kind}: {why}"));
        }
    }
}

/// A value whose fields are all different, as far as bytes go round: `T` is a C structure, which is written as its
/// bytes with their number in front.
fn filled<T: Default + Serialize + DeserializeOwned>(from: u8) -> T {
    let mut bytes = postcard::to_stdvec(&T::default()).unwrap();
    let (_, rest) = postcard::take_from_bytes::<u64>(&bytes).unwrap();
    let prefix = bytes.len() - rest.len();
    let mut next = from;
    for byte in &mut bytes[prefix..] {
        *byte = next;
        next = next.wrapping_add(1);
    }
    postcard::from_bytes(&bytes).unwrap()
}

fn vcpu() -> VcpuState {
    VcpuState {
        mp_state: filled(1),
        regs: filled(2),
        sregs: filled(3),
        xsave: (0..1024u32)
            .map(|word| word.wrapping_mul(0x0100_0001))
            .collect(),
        xcrs: filled(4),
        debugregs: filled(5),
        lapic: filled(6),
        tsc_khz: Some(2_345_678),
        msrs: vec![filled(7), filled(8)],
        events: filled(9),
    }
}

fn common() -> VmCommonState {
    let mut irqchips = crate::kvm::vm_state::blank_chips();
    for chip in &mut irqchips {
        let id = chip.chip_id;
        *chip = filled(u8::try_from(id).unwrap());
        chip.chip_id = id;
    }
    VmCommonState {
        irqchips,
        pit: filled(10),
        clock: filled(11),
        wall_ns: 1_700_000_000_000_000_000,
    }
}

fn guest() -> Shape {
    let region = Region {
        gpa: 0,
        bytes: 2 << 20,
    };
    Shape {
        layout: MemoryLayout::new(vec![region]).unwrap(),
        vcpus: 2,
        baseline: Baseline::V2,
        cpuid: vec![filled(1), filled(2), kvm_cpuid_entry2::default()],
        tsc_khz: Some(2_345_678),
        msrs: vec![0x10, 0x6e0],
        arch_capabilities: Some(0x0123_4567_89ab_cdef),
        counters: false,
        slots: vec![
            SlotKind::Net(card()),
            SlotKind::Block(disk()),
            SlotKind::Rng,
        ],
        transport: Transport::Mmio,
        lines: vec![16, 9, 5],
        heartbeat: true,
    }
}

fn card() -> CardShape {
    CardShape {
        pairs: 4,
        mtu: Some(9000),
    }
}

fn disk() -> DiskShape {
    DiskShape {
        bytes: 3 << 30,
        read_only: true,
        block_size: 4096,
        queues: 4,
    }
}

/// `state` is written as the newest bytes, and every version is read as what is written so.
fn golden<T: Serialize + DeserializeOwned>(kind: Kind, state: &T) {
    let (folder, name, newest) = place(kind);
    write_missing(&folder, newest, name, state).unwrap();
    check(&folder, newest, name, state).unwrap_or_else(|why| panic!("{why}"));
    for version in 1..=newest {
        let bytes = kept(&folder, version, name).unwrap();
        let read: T = (arrived(kind, version, bytes).get(kind, 0, version))
            .unwrap_or_else(|error| panic!("version {version} of {name}: {error}"));
        check(&folder, newest, name, &read).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn vcpu_and_vm_are_their_golden_bytes() {
    golden(Kind::VCPU, &vcpu());
    golden(Kind::VM, &common());
    common().check().unwrap();
}

/// A description goes the whole way: to a shape, and back.
#[test]
fn cpu_model_and_device_list_are_their_golden_bytes() {
    let said = guest().describe().unwrap();
    let mut sections = Vec::new();
    for section in said.sections.sections() {
        let (folder, name, newest) = place(section.kind);
        assert_eq!(section.version, newest);
        let bytes = Bare(&section.bytes);
        write_missing(&folder, newest, name, &bytes).unwrap();
        check(&folder, newest, name, &bytes).unwrap_or_else(|why| panic!("{why}"));
        let bytes = kept(&folder, newest, name).unwrap();
        sections.extend_from_slice(arrived(section.kind, newest, bytes).sections());
    }
    let kept = Description {
        sections: VmState::from_sections(sections),
        ..said.clone()
    };
    assert_eq!(Shape::parse(&kept).unwrap().describe().unwrap(), said);
}

/// An older version of one section, beside the `other` of today, is read as this guest.
fn is_read_as(kind: Kind, version: u32, other: Kind, guest: &Shape) {
    let said = guest.describe().unwrap();
    let (folder, name, _) = place(kind);
    let old = kept(&folder, version, name).unwrap();
    let mut sections = arrived(kind, version, old).sections().to_vec();
    sections.push(said.sections.section(other, 0).unwrap().clone());
    let arrived = Description {
        sections: VmState::from_sections(sections),
        ..said.clone()
    };
    assert_eq!(Shape::parse(&arrived).unwrap().describe().unwrap(), said);
}

/// Versions 1 and 2 of the CPU model say nothing of mitigations, and their guests have counters; version 1 says nothing
/// of a baseline, and of no MSRs.
#[test]
fn older_cpu_models_are_read() {
    let second = Shape {
        arch_capabilities: None,
        counters: true,
        ..guest()
    };
    let first = Shape {
        baseline: Baseline::Host,
        msrs: Vec::new(),
        ..second.clone()
    };
    for (version, guest) in [(1, first), (2, second)] {
        is_read_as(Kind::CPU_MODEL, version, Kind::DEVICE_LIST, &guest);
    }
}

/// To versions 1 and 2 of the device list a network card has one queue pair; version 1 knows no disks; to all before
/// version 4 the slots have the lines from 8 on; to version 4 they have lines.
#[test]
fn older_device_lists_are_read() {
    is_read_as(Kind::DEVICE_LIST, 4, Kind::CPU_MODEL, &guest());
    let card = SlotKind::Net(CardShape::PLAIN);
    let older = [
        (1, vec![card, SlotKind::Rng]),
        (2, vec![card, SlotKind::Block(disk()), SlotKind::Rng]),
        (3, guest().slots),
    ];
    for (version, slots) in older {
        let lines = (8..).take(slots.len()).collect();
        let guest = Shape {
            slots,
            lines,
            ..guest()
        };
        is_read_as(Kind::DEVICE_LIST, version, Kind::CPU_MODEL, &guest);
    }
}

/// A guest with a balloon says so by its type alone: the list's form is that of one without.
#[test]
fn a_balloon_is_in_the_device_list() {
    let with = Shape {
        slots: vec![SlotKind::Rng, SlotKind::Balloon],
        lines: vec![16, 17],
        ..guest()
    };
    let said = with.describe().unwrap();
    let shape = Shape::parse(&said).unwrap();
    assert_eq!(shape.slots, with.slots);
    assert_eq!(shape.describe().unwrap(), said);
}

/// Slots that send messages have no lines.
#[test]
fn what_slots_are_behind_is_in_the_device_list() {
    let with = Shape {
        transport: Transport::Pci,
        lines: Vec::new(),
        ..guest()
    };
    let said = with.describe().unwrap();
    let shape = Shape::parse(&said).unwrap();
    assert_eq!(shape.transport, Transport::Pci);
    assert_eq!(shape.describe().unwrap(), said);
    let both = Shape {
        lines: vec![16, 17, 18],
        ..with
    };
    let text = Shape::parse(&both.describe().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("3 interrupt lines") && text.contains("need 0"),
        "{text}"
    );
}

/// What is said of disks and cards fits the slots, or the guest is refused before anything is made.
#[test]
fn devices_that_do_not_fit_their_slots_are_refused() {
    let with_lines = |slots: &[u32], disks: &[DiskShape], cards: &[CardShape], lines: &[u32]| {
        let mut said = guest().describe().unwrap();
        let mut sections = VmState::default();
        let list = (true, slots, disks, cards, lines, Transport::Mmio);
        sections
            .put(Kind::DEVICE_LIST, 0, shape::DEVICES_VERSION, &list)
            .unwrap();
        let mut sections = sections.sections().to_vec();
        sections.push(said.sections.section(Kind::CPU_MODEL, 0).unwrap().clone());
        said.sections = VmState::from_sections(sections);
        Shape::parse(&said).map(drop).unwrap_err().to_string()
    };
    let refusal = |slots: &[u32], disks: &[DiskShape], cards: &[CardShape]| {
        with_lines(slots, disks, cards, &[16, 17])
    };
    for lines in [&[16][..], &[16, 17, 18]] {
        let text = with_lines(&[4, 4], &[], &[], lines);
        let wanted = format!(
            "{} interrupt lines for virtio devices that need 2",
            lines.len()
        );
        assert!(text.contains(&wanted), "{text}");
    }
    for (lines, wanted) in [
        ([16, 16], "slot 1"),
        ([4, 16], "slot 0"),
        ([16, 24], "slot 1"),
    ] {
        let text = with_lines(&[4, 4], &[], &[], &lines);
        assert!(
            text.contains(wanted) && text.contains("interrupt line"),
            "{text}"
        );
    }
    let nothing_said = [
        (&[4, 2], "a disk in slot 1 of which nothing is said"),
        (&[4, 1], "a network card in slot 1 of which nothing is said"),
    ];
    for (slots, wanted) in nothing_said {
        let text = refusal(slots, &[], &[]);
        assert!(text.contains(wanted), "{text}");
    }
    assert!(refusal(&[4], &[disk()], &[]).contains("describes 1 disks that it does not have"));
    let text = refusal(&[4], &[], &[card(), card()]);
    assert!(
        text.contains("describes 2 network cards that it does not have"),
        "{text}"
    );
    for queues in [0, 9, u16::MAX] {
        let text = refusal(&[2], &[DiskShape { queues, ..disk() }], &[]);
        assert!(text.contains(&format!("has {queues} queues")), "{text}");
        let pairs = queues;
        let text = refusal(&[1], &[], &[CardShape { pairs, ..card() }]);
        assert!(text.contains(&format!("has {pairs} queue pairs")), "{text}");
    }
}

/// Bytes that are encoded already.
struct Bare<'a>(&'a [u8]);

impl Serialize for Bare<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0
            .iter()
            .try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}

#[test]
fn an_encoding_that_changed_without_a_new_version_is_noticed() {
    #[derive(Serialize)]
    struct More {
        state: VmCommonState,
        boot_ns: u64,
    }
    let more = More {
        state: common(),
        boot_ns: 0,
    };
    assert!(check(&ours(), 1, "vm", &more).is_err());
    let mut other = vcpu();
    other.msrs.swap(0, 1);
    assert!(check(&ours(), 1, "vcpu", &other).is_err());
}
