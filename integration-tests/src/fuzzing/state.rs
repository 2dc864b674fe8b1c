//! Sections of a state, and the description sent beforehand: whatever their bytes are, they are refused, or make
//! something that is saved as the same bytes again.
//!
//! vCPU and VM sections are looked at as far as Ferry looks itself; what their values mean is KVM's to judge, and no
//! bytes made by chance are handed to the kernel here.

use std::time::Instant;

use devices::heartbeat::HeartbeatPort;
use devices::pci::PciBus;
use devices::serial::Serial;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::block::{BlockParts, VirtioBlock};
use devices::virtio::net::{NetParts, VirtioNet};
use devices::virtio::{MmioParts, VirtioDevice, VirtioMmio, VirtioPci, VirtioRng};
use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry};
use migration::guest::{Description, GuestRam};
use migration::pages::{MemoryLayout, Region};
use migration::state::{Kind, Section, Snapshot, VmState};
use serde::{Serialize, de::DeserializeOwned};
use vm_memory::GuestAddress;
use vmm::kvm::cpuid::baseline::Baseline;
use vmm::kvm::standstill::Standstill;
use vmm::kvm::vcpu_state::VcpuState;
use vmm::kvm::vm_state::VmCommonState;
use vmm::kvm::{cpuid, vm_state};
use vmm::vm::{CardShape, DiskShape, Shape, SlotKind};

use super::input::Written;
use super::parts;
use super::virtio::{balloon_parts, wire};

/// The input: which section, and its bytes.
pub fn run(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    match which % 13 {
        0 => owner::<Serial>(bytes, parts::serial),
        1 => owner::<HeartbeatPort>(bytes, || ()),
        2 => owner::<VirtioRng>(bytes, || ()),
        3 => owner::<VirtioNet>(bytes, || NetParts {
            backend: Box::new(wire().0),
        }),
        4 => owner::<VirtioMmio>(bytes, || mmio_parts(card())),
        5 => owner::<VirtioMmio>(bytes, || mmio_parts(Box::new(VirtioRng::new()))),
        6 => drop(plain::<VcpuState>(Kind::VCPU, bytes)),
        9 => owner::<VirtioBlock>(bytes, || BlockParts {
            disk: parts::disk().into(),
        }),
        10 => owner::<VirtioBalloon>(bytes, balloon_parts),
        11 => owner::<VirtioPci>(bytes, || parts::pci(mmio_parts(card()))),
        12 => owner::<PciBus>(bytes, Vec::new),
        7 => {
            if let Some(state) = plain::<VmCommonState>(Kind::VM, bytes) {
                let standstill = Standstill::since(state.wall_ns, Instant::now());
                let _ = (state.check(), standstill.so_far());
            }
        }
        _ => description(bytes),
    }
}

fn section(kind: Kind, bytes: &[u8]) -> Section {
    Section {
        kind,
        instance: 0,
        version: version(kind),
        bytes: bytes.to_vec(),
    }
}

/// The version of a section that this build writes.
fn version(kind: Kind) -> u32 {
    match kind {
        Kind::VCPU | Kind::VM => vmm::vm::STATE_VERSION,
        Kind::CPU_MODEL => vmm::vm::CPU_VERSION,
        Kind::DEVICE_LIST => vmm::vm::DEVICES_VERSION,
        Kind::SERIAL => Serial::VERSION,
        Kind::HEARTBEAT => HeartbeatPort::VERSION,
        Kind::VIRTIO_RNG => VirtioRng::VERSION,
        Kind::VIRTIO_BLK => VirtioBlock::VERSION,
        Kind::VIRTIO_BALLOON => VirtioBalloon::VERSION,
        Kind::VIRTIO_NET => VirtioNet::VERSION,
        Kind::VIRTIO_MMIO => VirtioMmio::VERSION,
        Kind::VIRTIO_PCI => VirtioPci::VERSION,
        Kind::PCI_BUS => PciBus::VERSION,
        other => panic!("no version is known of {other}"),
    }
}

/// What the bytes mean, and the bytes that say it.
fn plain<T: Serialize + DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Option<T> {
    let state = VmState::from_sections(vec![section(kind, bytes)]);
    let value: T = state.get(kind, 0, version(kind)).ok()?;
    let mut said = VmState::default();
    said.put(kind, 0, version(kind), &value).unwrap();
    let again: T = said.get(kind, 0, version(kind)).unwrap();
    let mut said_again = VmState::default();
    said_again.put(kind, 0, version(kind), &again).unwrap();
    assert_eq!(said, said_again);
    Some(value)
}

fn owner<S: Snapshot>(bytes: &[u8], parts: impl Fn() -> S::Parts) {
    let arrived = VmState::from_sections(vec![section(S::KIND, bytes)]);
    let Ok(restored) = arrived.restore::<S>(0, parts()) else {
        return;
    };
    // A number can be written in more bytes than it needs; what is saved has the fewest.
    let mut meant = VmState::default();
    let value: S::State = arrived.get(S::KIND, 0, S::VERSION).unwrap();
    meant.put(S::KIND, 0, S::VERSION, &value).unwrap();
    let mut saved = VmState::default();
    saved.save(0, &restored).unwrap();
    assert_eq!(saved, meant);
    saved
        .restore::<S>(0, parts())
        .map_err(|e| e.to_string())
        .map(drop)
        .unwrap();
}

/// A CPU model and a device list, one behind the other, the first's length in front.
fn description(bytes: &[u8]) {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
    let (cpu, devices) = rest.split_at(len);
    let description = Description {
        layout: layout(),
        vcpus: 2,
        sections: VmState::from_sections(vec![
            section(Kind::CPU_MODEL, cpu),
            section(Kind::DEVICE_LIST, devices),
        ]),
    };
    if let Ok(shape) = Shape::parse(&description) {
        let _ = cpuid::refusal(&shape.cpuid, &[]);
        let _ = cpuid::for_vcpu(&shape.cpuid, 1, shape.vcpus);
        let _ = shape.scale_tsc(Some(1), false);
        let said = shape.describe().unwrap();
        let again = Shape::parse(&said).unwrap().describe().unwrap();
        assert_eq!(said, again);
    }
}

fn layout() -> MemoryLayout {
    let region = Region {
        gpa: 0,
        bytes: 2 << 20,
    };
    MemoryLayout::new(vec![region]).unwrap()
}

fn card() -> Box<dyn VirtioDevice> {
    let backend = Box::new(wire().0);
    Box::new(VirtioNet::new([2, 0, 0, 0, 0, 1], None, backend).unwrap())
}

fn mmio_parts(device: Box<dyn VirtioDevice>) -> MmioParts {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap();
    parts::mmio(&ram, device)
}

/// Fresh devices, and a card that is set up.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut add = |which: u8, bytes: &[u8]| seeds.push(Written::default().u8(which).bytes(bytes).0);
    add(0, &saved(&Serial::new(parts::serial()).unwrap()));
    add(1, &saved(&HeartbeatPort::new()));
    add(2, &saved(&VirtioRng::new()));
    let backend = Box::new(wire().0);
    add(
        3,
        &saved(&VirtioNet::new([2, 0, 0, 0, 0, 1], Some(1500), backend).unwrap()),
    );
    let devices: [(u8, Box<dyn VirtioDevice>); 2] = [(4, card()), (5, Box::new(VirtioRng::new()))];
    for (which, device) in devices {
        let mut mmio = VirtioMmio::new(mmio_parts(device)).unwrap();
        add(which, &saved(&mmio));
        super::virtio::set_up(&mut mmio);
        add(which, &saved(&mmio));
    }
    add(6, &encoded(&vcpu()));
    add(7, &encoded(&common()));
    let said = shape().describe().unwrap();
    let [cpu, devices] = said.sections.sections() else {
        panic!("a description has two sections");
    };
    let len = u16::try_from(cpu.bytes.len()).unwrap();
    let description = Written::default()
        .u16(len)
        .bytes(&cpu.bytes)
        .bytes(&devices.bytes);
    add(8, &description.0);
    add(
        9,
        &saved(&VirtioBlock::new(parts::disk().into(), 4, "x").unwrap()),
    );
    add(
        10,
        &saved(&VirtioBalloon::new(true, false, balloon_parts()).unwrap()),
    );
    add(
        11,
        &saved(&VirtioPci::new(parts::pci(mmio_parts(card()))).unwrap()),
    );
    add(12, &saved(&PciBus::new(Vec::new()).unwrap()));
    seeds
}

fn saved<S: Snapshot>(owner: &S) -> Vec<u8> {
    encoded(&owner.save())
}

fn encoded(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap()
}

fn vcpu() -> VcpuState {
    VcpuState {
        mp_state: Default::default(),
        regs: Default::default(),
        sregs: Default::default(),
        xsave: vec![0; 1024],
        xcrs: Default::default(),
        debugregs: Default::default(),
        lapic: Default::default(),
        tsc_khz: Some(2_000_000),
        msrs: vec![
            kvm_msr_entry {
                index: 0x10,
                data: 1 << 40,
                ..Default::default()
            };
            2
        ],
        events: Default::default(),
    }
}

fn common() -> VmCommonState {
    VmCommonState {
        irqchips: vm_state::blank_chips(),
        pit: Default::default(),
        clock: Default::default(),
        wall_ns: 1,
    }
}

fn shape() -> Shape {
    let entry = |function, ecx| kvm_cpuid_entry2 {
        function,
        ecx,
        ..Default::default()
    };
    let disk = DiskShape {
        bytes: 64 << 10,
        read_only: false,
        block_size: 512,
        queues: 4,
    };
    Shape {
        layout: layout(),
        vcpus: 2,
        baseline: Baseline::V2,
        cpuid: vec![entry(1, 1 << 31), entry(0xb, 0), entry(0x8000_0008, 0)],
        tsc_khz: Some(2_000_000),
        msrs: vec![0x10, 0x6e0],
        arch_capabilities: Some(0x21),
        counters: false,
        slots: vec![
            SlotKind::Net(CardShape::PLAIN),
            SlotKind::Rng,
            SlotKind::Block(disk),
        ],
        transport: vmm::layout::Transport::Mmio,
        lines: vec![16, 17, 18],
        heartbeat: true,
    }
}
