//! What a VM is made of, before there is one: from the command line on the source, from the peer's
//! description on the destination.

use devices::virtio::balloon;
use devices::virtio::block::MAX_QUEUES;
use devices::virtio::net::MAX_PAIRS;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use migration::guest::{Description, GuestError};
use migration::pages::MemoryLayout;
use migration::state::{Kind, StateError, VmState};
use serde::{Deserialize, Serialize};

use crate::config::MAX_CPUS;
use crate::kvm::cpuid::{self, baseline::Baseline};
use crate::kvm::vcpu_state::{self, VcpuCaps};
use crate::kvm::{mitigations, msr};
use crate::layout::{self, VIRTIO_SLOTS};

/// Version of the device list. Of those that are still read, version 1 knows no disks, to versions 1 and 2 a network
/// card has one queue pair, and to all three the slots have the interrupt lines of that time.
pub const DEVICES_VERSION: u32 = 4;
/// Version of the CPU model. Of those that are still read, version 1 has no baseline and no MSRs, and guests of
/// versions 1 and 2 have their host's performance counters and may have been told anything of its mitigations.
pub const CPU_VERSION: u32 = 3;
/// A guest has no more MSRs than KVM takes in one call.
const MAX_MSRS: usize = kvm_bindings::KVM_MAX_MSR_ENTRIES;
/// More CPUID entries than KVM itself takes are not looked at.
const MAX_CPUID_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
/// virtio device type of a network card (virtio 1.2, 5.1).
const TYPE_NET: u32 = 1;
/// virtio device type of a disk (virtio 1.2, 5.2).
const TYPE_BLOCK: u32 = 2;
/// virtio device type of an entropy source (virtio 1.2, 5.4).
const TYPE_RNG: u32 = 4;
/// virtio device type of a balloon (virtio 1.2, 5.5).
const TYPE_BALLOON: u32 = 5;

/// What sits in a virtio slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// virtio-net.
    Net(CardShape),
    /// virtio-rng.
    Rng,
    /// virtio-balloon.
    Balloon,
    /// virtio-blk.
    Block(DiskShape),
}

/// What a network card is, whatever tap it is plugged into: the same on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardShape {
    /// How many queue pairs it has, 1 to [`MAX_PAIRS`].
    pub pairs: u16,
    /// The MTU that it announces, where it does.
    pub mtu: Option<u16>,
}

impl CardShape {
    /// A card of one pair that says nothing of its MTU, as all were once.
    pub const PLAIN: Self = Self {
        pairs: 1,
        mtu: None,
    };
}

/// What a disk is, whatever lies behind it: the same on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShape {
    /// How large it is, in bytes.
    pub bytes: u64,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// What its requests are multiples of, in bytes.
    pub block_size: u32,
    /// How many queues it has, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

impl SlotKind {
    /// The device type of the virtio specification.
    fn device_type(self) -> u32 {
        match self {
            SlotKind::Net(_) => TYPE_NET,
            SlotKind::Rng => TYPE_RNG,
            SlotKind::Balloon => TYPE_BALLOON,
            SlotKind::Block(_) => TYPE_BLOCK,
        }
    }

    /// How many queues it has: receive and transmit of each pair, and control; one; all that balloons have; as many as
    /// the disk was made with.
    pub fn queues(self) -> u32 {
        match self {
            SlotKind::Net(card) => 2 * u32::from(card.pairs) + 1,
            SlotKind::Rng => 1,
            SlotKind::Balloon => balloon::QUEUES.into(),
            SlotKind::Block(disk) => disk.queues.into(),
        }
    }
}

/// What a VM is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where its memory lies.
    pub layout: MemoryLayout,
    /// How many vCPUs it has, 1 to [`MAX_CPUS`].
    pub vcpus: u8,
    /// The CPU that it was asked to be.
    pub baseline: Baseline,
    /// The CPUID of its vCPUs, less what differs between them.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC in kHz, once it is known.
    pub tsc_khz: Option<u32>,
    /// The MSRs of its vCPUs that travel; empty until they are known, or where the source did not tell.
    pub msrs: Vec<u32>,
    /// What its vCPUs read in IA32_ARCH_CAPABILITIES, once it is known and where the source told.
    pub arch_capabilities: Option<u64>,
    /// Whether it has its host's performance counters, whose counts do not travel.
    pub counters: bool,
    /// What sits in slot 0, 1, …
    pub slots: Vec<SlotKind>,
    /// The interrupt line of each: its guest was told when it booted.
    pub lines: Vec<u32>,
    /// Whether it has the heartbeat port of the bare test guest.
    pub heartbeat: bool,
}

/// The CPU model as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModel {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    baseline: Baseline,
    msrs: Vec<u32>,
    arch_capabilities: Option<u64>,
    counters: bool,
}

/// Its second version.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModelV2 {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    baseline: Baseline,
    msrs: Vec<u32>,
}

/// Its first version.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModelV1 {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
}

impl From<CpuModelV2> for CpuModel {
    fn from(model: CpuModelV2) -> Self {
        let CpuModelV2 {
            cpuid,
            tsc_khz,
            baseline,
            msrs,
        } = model;
        Self {
            cpuid,
            tsc_khz,
            baseline,
            msrs,
            arch_capabilities: None,
            counters: true,
        }
    }
}

impl From<CpuModelV1> for CpuModelV2 {
    fn from(CpuModelV1 { cpuid, tsc_khz }: CpuModelV1) -> Self {
        Self {
            cpuid,
            tsc_khz,
            baseline: Baseline::Host,
            msrs: Vec::new(),
        }
    }
}

impl CpuModel {
    fn read(sections: &VmState) -> Result<Self, StateError> {
        let second = match sections.section(Kind::CPU_MODEL, 0)?.version {
            1 => sections
                .get::<CpuModelV1>(Kind::CPU_MODEL, 0, 1)
                .map(CpuModelV2::from)?,
            2 => sections.get(Kind::CPU_MODEL, 0, 2)?,
            _ => return sections.get(Kind::CPU_MODEL, 0, CPU_VERSION),
        };
        Ok(second.into())
    }
}

/// The device list as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceList {
    heartbeat: bool,
    /// virtio device types, slot by slot.
    slots: Vec<u32>,
    /// The disks among them, in the same order.
    disks: Vec<DiskShape>,
    /// The network cards among them, in the same order.
    cards: Vec<CardShape>,
    /// The interrupt lines (GSIs) of the slots, in the same order.
    lines: Vec<u32>,
}

/// Its third version.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceListV3 {
    heartbeat: bool,
    slots: Vec<u32>,
    disks: Vec<DiskShape>,
    cards: Vec<CardShape>,
}

/// Its second version.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceListV2 {
    heartbeat: bool,
    slots: Vec<u32>,
    disks: Vec<DiskShape>,
}

/// Its first version.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceListV1 {
    heartbeat: bool,
    slots: Vec<u32>,
}

impl From<DeviceListV3> for DeviceList {
    fn from(list: DeviceListV3) -> Self {
        let DeviceListV3 {
            heartbeat,
            slots,
            disks,
            cards,
        } = list;
        Self {
            heartbeat,
            disks,
            cards,
            // Of as many as there can be, as below.
            lines: (0..VIRTIO_SLOTS)
                .map(layout::former_slot_gsi)
                .take(slots.len())
                .collect(),
            slots,
        }
    }
}

impl From<DeviceListV2> for DeviceListV3 {
    fn from(list: DeviceListV2) -> Self {
        let DeviceListV2 {
            heartbeat,
            slots,
            disks,
        } = list;
        let cards = slots.iter().filter(|&&id| id == TYPE_NET).count();
        Self {
            heartbeat,
            disks,
            // Of as many as there can be: more are refused anyway.
            cards: vec![CardShape::PLAIN; cards.min(VIRTIO_SLOTS as usize)],
            slots,
        }
    }
}

impl From<DeviceListV1> for DeviceListV2 {
    fn from(DeviceListV1 { heartbeat, slots }: DeviceListV1) -> Self {
        Self {
            heartbeat,
            slots,
            disks: Vec::new(),
        }
    }
}

impl DeviceList {
    fn read(sections: &VmState) -> Result<Self, StateError> {
        let third = match sections.section(Kind::DEVICE_LIST, 0)?.version {
            1 => sections
                .get::<DeviceListV1>(Kind::DEVICE_LIST, 0, 1)
                .map(|list| DeviceListV2::from(list).into())?,
            2 => sections
                .get::<DeviceListV2>(Kind::DEVICE_LIST, 0, 2)
                .map(DeviceListV3::from)?,
            3 => sections.get(Kind::DEVICE_LIST, 0, 3)?,
            _ => return sections.get(Kind::DEVICE_LIST, 0, DEVICES_VERSION),
        };
        Ok(third.into())
    }
}

impl Shape {
    /// The description that the destination has to agree to.
    ///
    /// # Errors
    /// Something cannot be encoded.
    pub fn describe(&self) -> Result<Description, GuestError> {
        let encode = |e| GuestError::new("describe the guest", e);
        let mut sections = VmState::default();
        let cpu = CpuModel {
            cpuid: self.cpuid.clone(),
            tsc_khz: self.tsc_khz,
            baseline: self.baseline,
            msrs: self.msrs.clone(),
            arch_capabilities: self.arch_capabilities,
            counters: self.counters,
        };
        let devices = DeviceList {
            heartbeat: self.heartbeat,
            slots: self.slots.iter().map(|s| s.device_type()).collect(),
            disks: (self.slots.iter())
                .filter_map(|slot| match slot {
                    SlotKind::Block(disk) => Some(*disk),
                    SlotKind::Net(_) | SlotKind::Rng | SlotKind::Balloon => None,
                })
                .collect(),
            cards: (self.slots.iter())
                .filter_map(|slot| match slot {
                    SlotKind::Net(card) => Some(*card),
                    SlotKind::Block(_) | SlotKind::Rng | SlotKind::Balloon => None,
                })
                .collect(),
            lines: self.lines.clone(),
        };
        sections
            .put(Kind::CPU_MODEL, 0, CPU_VERSION, &cpu)
            .map_err(encode)?;
        sections
            .put(Kind::DEVICE_LIST, 0, DEVICES_VERSION, &devices)
            .map_err(encode)?;
        Ok(Description {
            layout: self.layout.clone(),
            vcpus: u32::from(self.vcpus),
            sections,
        })
    }

    /// The shape that a peer describes, checked against what this host's KVM can do.
    ///
    /// # Errors
    /// Why this host cannot run that guest.
    pub fn from_description(description: &Description, kvm: &Kvm) -> Result<Self, GuestError> {
        let shape = Self::parse(description)?;
        check_cpuid(&shape.cpuid, kvm)?;
        Ok(shape)
    }

    /// The shape that a peer describes, as far as it can be checked without KVM.
    ///
    /// # Errors
    /// What cannot be.
    pub fn parse(description: &Description) -> Result<Self, GuestError> {
        let bad = |e| GuestError::new("read the guest's description", e);
        let cpu = CpuModel::read(&description.sections).map_err(bad)?;
        let devices = DeviceList::read(&description.sections).map_err(bad)?;
        let vcpus = u8::try_from(description.vcpus)
            .ok()
            .filter(|n| (1..=MAX_CPUS).contains(n))
            .ok_or_else(|| {
                GuestError::bare(format!(
                    "the guest has {} vCPUs; this ferry runs 1 to {MAX_CPUS}",
                    description.vcpus
                ))
            })?;
        check_entries(&cpu.cpuid)?;
        if cpu.msrs.len() > MAX_MSRS {
            return Err(GuestError::bare(format!(
                "the guest's CPU model has {} MSRs; at most {MAX_MSRS} are accepted",
                cpu.msrs.len()
            )));
        }
        Ok(Self {
            layout: description.layout.clone(),
            vcpus,
            cpuid: cpu.cpuid,
            tsc_khz: cpu.tsc_khz,
            baseline: cpu.baseline,
            msrs: cpu.msrs,
            arch_capabilities: cpu.arch_capabilities,
            counters: cpu.counters,
            slots: slots(&devices)?,
            lines: lines(devices.lines, devices.slots.len())?,
            heartbeat: devices.heartbeat,
        })
    }

    /// The frequency that a vCPU's TSC has to be scaled to here; None where it is that already, within the 250 ppm by
    /// which two crystals of one nominal frequency may differ.
    ///
    /// # Errors
    /// It is another, and this host cannot scale it.
    pub fn scale_tsc(
        &self,
        host_khz: Option<u32>,
        can_scale: bool,
    ) -> Result<Option<u32>, GuestError> {
        match (self.tsc_khz, host_khz) {
            (Some(guest), Some(host)) if !vcpu_state::tsc_close(guest, host) => {
                if can_scale {
                    return Ok(Some(guest));
                }
                Err(GuestError::bare(format!(
                    "the guest's TSC runs at {guest} kHz, this host's at {host} kHz, and KVM here cannot scale it: choose a host of the same TSC frequency (within 250 ppm)"
                )))
            }
            _ => Ok(None),
        }
    }

    /// Has the MSRs travel that the guest has had from its start.
    ///
    /// # Errors
    /// This host lacks some.
    pub fn settle_msrs(&mut self, caps: &mut VcpuCaps) -> Result<(), GuestError> {
        if !self.msrs.is_empty() {
            caps.keep(&self.msrs).map_err(|missing| {
                let names: Vec<_> = missing.iter().map(|&msr| msr::name(msr)).collect();
                GuestError::bare(format!(
                    "this host's KVM lacks MSRs that the guest has: {}; choose a host with a CPU and a kernel like the source's, or start guests that are to come here with a baseline (--cpu v2)",
                    names.join(", ")
                ))
            })?;
        }
        self.msrs = caps.msrs().to_vec();
        Ok(())
    }

    /// Compares what the guest was told of its processor's mitigations with what a vCPU reads `here`; a new guest is
    /// told that.
    ///
    /// # Errors
    /// The guest was told more than is so here.
    pub fn settle_mitigations(&mut self, here: Option<u64>) -> Result<(), GuestError> {
        match (self.arch_capabilities, here) {
            (Some(told), Some(here)) => {
                if let Some(why) = mitigations::refusal(told, here) {
                    return Err(GuestError::bare(why));
                }
            }
            // Of a guest with counters, a former ferry did not say what it was told.
            (None, here) if !self.counters => self.arch_capabilities = here,
            _ => {}
        }
        Ok(())
    }
}

fn check_entries(guest: &[kvm_cpuid_entry2]) -> Result<(), GuestError> {
    if guest.is_empty() || guest.len() > MAX_CPUID_ENTRIES {
        return Err(GuestError::bare(format!(
            "the guest's CPU model has {} CPUID entries; 1 to {MAX_CPUID_ENTRIES} are accepted",
            guest.len()
        )));
    }
    Ok(())
}

/// Whether this host offers every CPU feature that the guest was given.
fn check_cpuid(guest: &[kvm_cpuid_entry2], kvm: &Kvm) -> Result<(), GuestError> {
    let host = cpuid::supported(kvm).map_err(|e| GuestError::new("look at this host's CPU", e))?;
    match cpuid::refusal(guest, &host) {
        None => Ok(()),
        Some(why) => Err(GuestError::bare(why)),
    }
}

/// The slots of a device list that arrived.
fn slots(list: &DeviceList) -> Result<Vec<SlotKind>, GuestError> {
    let types = &list.slots;
    let (mut disks, mut cards) = (list.disks.iter(), list.cards.iter());
    if types.len() > VIRTIO_SLOTS as usize {
        return Err(GuestError::bare(format!(
            "the guest has {} virtio devices; this ferry has {VIRTIO_SLOTS} slots",
            types.len()
        )));
    }
    let slots: Vec<SlotKind> = types
        .iter()
        .enumerate()
        .map(|(slot, &id)| match id {
            TYPE_NET => card(slot, cards.next()),
            TYPE_RNG => Ok(SlotKind::Rng),
            TYPE_BALLOON => Ok(SlotKind::Balloon),
            TYPE_BLOCK => disk(slot, disks.next()),
            other => Err(GuestError::bare(format!(
                "the guest has a virtio device of type {other} in slot {slot}, which this ferry does not know: use the same or a newer ferry here"
            ))),
        })
        .collect::<Result<_, _>>()?;
    for (what, more) in [("disks", disks.count()), ("network cards", cards.count())] {
        if more > 0 {
            return Err(GuestError::bare(format!(
                "the guest's device list describes {more} {what} that it does not have: run the same ferry on both ends"
            )));
        }
    }
    Ok(slots)
}

/// The interrupt lines of so many slots, of which there are not too many.
fn lines(lines: Vec<u32>, slots: usize) -> Result<Vec<u32>, GuestError> {
    if lines.len() != slots {
        return Err(GuestError::bare(format!(
            "the guest has {slots} virtio devices and {} interrupt lines for them: run the same ferry on both ends",
            lines.len()
        )));
    }
    let wrong = |&(slot, line): &(usize, &u32)| {
        !layout::may_be_slot_gsi(*line) || lines[..slot].contains(line)
    };
    match lines.iter().enumerate().find(wrong) {
        None => Ok(lines),
        Some((slot, line)) => Err(GuestError::bare(format!(
            "the guest's virtio slot {slot} has interrupt line {line}, which no slot or another one has: run the same ferry on both ends"
        ))),
    }
}

/// The network card in a slot, as far as it can be judged without the tap.
fn card(slot: usize, described: Option<&CardShape>) -> Result<SlotKind, GuestError> {
    let Some(card) = described else {
        return Err(GuestError::bare(format!(
            "the guest has a network card in slot {slot} of which nothing is said: run the same ferry on both ends"
        )));
    };
    if !(1..=MAX_PAIRS).contains(&card.pairs) {
        return Err(GuestError::bare(format!(
            "the guest's network card in slot {slot} has {} queue pairs; this ferry has cards of 1 to {MAX_PAIRS}",
            card.pairs
        )));
    }
    Ok(SlotKind::Net(*card))
}

/// The disk in a slot, as far as it can be judged without the host's end.
fn disk(slot: usize, described: Option<&DiskShape>) -> Result<SlotKind, GuestError> {
    let Some(disk) = described else {
        return Err(GuestError::bare(format!(
            "the guest has a disk in slot {slot} of which nothing is said: run the same ferry on both ends"
        )));
    };
    if !(1..=MAX_QUEUES).contains(&disk.queues) {
        return Err(GuestError::bare(format!(
            "the guest's disk in slot {slot} has {} queues; this ferry has disks of 1 to {MAX_QUEUES}",
            disk.queues
        )));
    }
    Ok(SlotKind::Block(*disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tsc_khz: Option<u32>) -> Shape {
        Shape {
            layout: crate::layout::memory_layout(16 << 20).unwrap(),
            vcpus: 1,
            baseline: Baseline::V2,
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz,
            msrs: vec![0x10, 0x6e0],
            arch_capabilities: None,
            counters: false,
            slots: vec![SlotKind::Rng],
            lines: vec![16],
            heartbeat: false,
        }
    }

    #[test]
    fn a_tsc_of_another_frequency_is_scaled_or_refused() {
        let guest = shape(Some(2_000_000));
        // As fast, within 250 ppm on both sides, or not known.
        for host in [Some(2_000_000), Some(2_000_500), Some(1_999_501), None] {
            for can_scale in [true, false] {
                assert_eq!(guest.scale_tsc(host, can_scale).unwrap(), None, "{host:?}");
            }
        }
        assert_eq!(shape(None).scale_tsc(Some(1), false).unwrap(), None);
        for host in [2_000_501, 1_999_499, 2_600_000] {
            assert_eq!(guest.scale_tsc(Some(host), true).unwrap(), Some(2_000_000));
            let text = guest.scale_tsc(Some(host), false).unwrap_err().to_string();
            let figures = format!("runs at 2000000 kHz, this host's at {host} kHz");
            assert!(
                text.contains(&figures) && text.contains("250 ppm"),
                "{text}"
            );
        }
    }

    /// A description of an older version has no mitigations, of the first neither baseline nor MSRs, and both are read.
    #[test]
    fn cpu_models_of_all_versions_are_read() {
        let described = shape(Some(5)).describe().unwrap().sections;
        let now = CpuModel::read(&described).unwrap();
        assert_eq!((now.baseline, now.msrs), (Baseline::V2, vec![0x10, 0x6e0]));
        assert!(!now.counters);
        let model = CpuModelV1 {
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz: Some(5),
        };
        let mut newer = VmState::default();
        newer.put(Kind::CPU_MODEL, 0, 4, &model).unwrap();
        let text = CpuModel::read(&newer).unwrap_err().to_string();
        assert!(
            text.contains("version 4, this build reads up to 3"),
            "{text}"
        );
        let mut first = VmState::default();
        first.put(Kind::CPU_MODEL, 0, 1, &model).unwrap();
        let read = CpuModel::read(&first).unwrap();
        assert_eq!(
            (read.tsc_khz, read.baseline, read.msrs.len(), read.counters),
            (Some(5), Baseline::Host, 0, true)
        );
        let mut second = VmState::default();
        let model = CpuModelV2 {
            baseline: Baseline::V3,
            msrs: vec![0x10],
            ..CpuModelV2::from(model)
        };
        second.put(Kind::CPU_MODEL, 0, 2, &model).unwrap();
        let read = CpuModel::read(&second).unwrap();
        assert_eq!(
            (read.baseline, read.msrs, read.arch_capabilities),
            (Baseline::V3, vec![0x10], None)
        );
        assert!(read.counters);
    }

    #[test]
    fn a_guest_keeps_what_it_was_told_of_mitigations() {
        let mut guest = shape(None);
        guest.settle_mitigations(Some(0x21)).unwrap();
        assert_eq!(guest.arch_capabilities, Some(0x21));
        // A host that has more does not tell it.
        guest.settle_mitigations(Some(0x121)).unwrap();
        assert_eq!(guest.arch_capabilities, Some(0x21));
        let text = guest.settle_mitigations(Some(1)).unwrap_err().to_string();
        assert!(text.contains("told of MDS_NO"), "{text}");
        let mut former = Shape {
            counters: true,
            ..shape(None)
        };
        former.settle_mitigations(Some(1)).unwrap();
        assert_eq!(former.arch_capabilities, None);
    }
}
