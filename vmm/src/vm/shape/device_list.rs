//! The devices of a guest, and the list of them as it travels, in all its versions.

use devices::virtio::balloon;
use devices::virtio::block::MAX_QUEUES;
use devices::virtio::net::MAX_PAIRS;
use migration::guest::GuestError;
use migration::state::{Kind, StateError, VmState};
use serde::{Deserialize, Serialize};

use crate::layout::{self, Transport, VIRTIO_SLOTS};

/// Version of the device list. Of those that are still read, version 1 knows no disks, to versions 1 and 2 a network
/// card has one queue pair, to all three the slots have the interrupt lines of that time, and to all four they are behind
/// virtio-mmio.
pub const DEVICES_VERSION: u32 = 5;
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

/// The device list as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DeviceList {
    pub heartbeat: bool,
    /// virtio device types, slot by slot.
    pub slots: Vec<u32>,
    /// The disks among them, in the same order.
    pub disks: Vec<DiskShape>,
    /// The network cards among them, in the same order.
    pub cards: Vec<CardShape>,
    /// The interrupt lines (GSIs) of the slots, in the same order; none where they send messages.
    pub lines: Vec<u32>,
    /// What all slots are behind.
    pub transport: Transport,
}

/// Its fourth version.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceListV4 {
    heartbeat: bool,
    slots: Vec<u32>,
    disks: Vec<DiskShape>,
    cards: Vec<CardShape>,
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

impl From<DeviceListV4> for DeviceList {
    fn from(list: DeviceListV4) -> Self {
        let DeviceListV4 {
            heartbeat,
            slots,
            disks,
            cards,
            lines,
        } = list;
        Self {
            heartbeat,
            slots,
            disks,
            cards,
            lines,
            transport: Transport::Mmio,
        }
    }
}

impl From<DeviceListV3> for DeviceListV4 {
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
    /// That of a guest here.
    pub fn new(heartbeat: bool, slots: &[SlotKind], lines: &[u32], transport: Transport) -> Self {
        Self {
            heartbeat,
            slots: slots.iter().map(|slot| slot.device_type()).collect(),
            disks: (slots.iter())
                .filter_map(|slot| match slot {
                    SlotKind::Block(disk) => Some(*disk),
                    SlotKind::Net(_) | SlotKind::Rng | SlotKind::Balloon => None,
                })
                .collect(),
            cards: (slots.iter())
                .filter_map(|slot| match slot {
                    SlotKind::Net(card) => Some(*card),
                    SlotKind::Block(_) | SlotKind::Rng | SlotKind::Balloon => None,
                })
                .collect(),
            lines: lines.to_vec(),
            transport,
        }
    }

    /// That of a description, of whatever version.
    pub fn read(sections: &VmState) -> Result<Self, StateError> {
        let third: DeviceListV3 = match sections.section(Kind::DEVICE_LIST, 0)?.version {
            1 => sections
                .get::<DeviceListV1>(Kind::DEVICE_LIST, 0, 1)
                .map(|list| DeviceListV2::from(list).into())?,
            2 => sections
                .get::<DeviceListV2>(Kind::DEVICE_LIST, 0, 2)
                .map(DeviceListV3::from)?,
            3 => sections.get(Kind::DEVICE_LIST, 0, 3)?,
            4 => {
                let fourth: DeviceListV4 = sections.get(Kind::DEVICE_LIST, 0, 4)?;
                return Ok(fourth.into());
            }
            _ => return sections.get(Kind::DEVICE_LIST, 0, DEVICES_VERSION),
        };
        Ok(DeviceListV4::from(third).into())
    }

    /// What sits in the slots of a guest from elsewhere.
    ///
    /// # Errors
    /// What this ferry does not have, or what the list contradicts itself in.
    pub fn slots(&self) -> Result<Vec<SlotKind>, GuestError> {
        let types = &self.slots;
        let (mut disks, mut cards) = (self.disks.iter(), self.cards.iter());
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

    /// The interrupt lines of the slots, of which there are not too many.
    ///
    /// # Errors
    /// They are no lines of slots.
    pub fn lines(self) -> Result<Vec<u32>, GuestError> {
        let lines = self.lines;
        let needed = match self.transport {
            Transport::Mmio => self.slots.len(),
            Transport::Pci => 0,
        };
        if lines.len() != needed {
            return Err(GuestError::bare(format!(
                "the guest has {} interrupt lines for virtio devices that need {needed}: run the same ferry on both ends",
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
