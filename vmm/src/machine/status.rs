//! The answer to "how is it".

use std::time::Instant;

use crate::control::{BalloonStatus, DeviceStatus, DirtyLogStatus, MemoryRegion, State, Status};
use crate::vm::{SlotKind, View};

/// What belongs to the host side of a network card.
#[derive(Debug, Clone)]
pub struct CardInfo {
    /// The tap's name.
    pub tap: String,
    /// The guest's MAC address, where this process gave it.
    pub mac: Option<String>,
}

/// The part of a status that comes from the VM.
pub fn of(state: State, view: Option<&View>, cards: &[CardInfo], since: Option<Instant>) -> Status {
    let mut status = Status {
        state,
        pid: std::process::id(),
        ..Status::default()
    };
    let Some(view) = view else {
        return status;
    };
    status.vcpus = u32::from(view.vcpus);
    status.memory_bytes = view.layout.bytes();
    status.memory_regions = view
        .layout
        .regions()
        .iter()
        .zip(&view.host_addresses)
        .map(|(region, &host_address)| MemoryRegion {
            gpa: region.gpa,
            bytes: region.bytes,
            host_address,
        })
        .collect();
    status.uptime_ms = since.map_or(0, |since| {
        u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
    });
    status.devices = devices(view, cards);
    status.dirty_log = Some(DirtyLogStatus {
        kind: view.dirty_log_kind().into(),
        on: view.dirty_log_on(),
    });
    status.balloon = view.balloon.as_ref().map(|balloon| {
        let levels = balloon.levels();
        BalloonStatus {
            driven: balloon.is_driven(),
            target_bytes: levels.target(),
            actual_bytes: levels.actual(),
            inflated_bytes: levels.inflated(),
            reported_bytes: levels.reported(),
        }
    });
    status.heartbeat = view.heartbeat().map(Into::into);
    status
}

fn devices(view: &View, cards: &[CardInfo]) -> Vec<DeviceStatus> {
    let mut cards = cards.iter();
    let mut disks = view.disks.iter();
    let mut list = vec![DeviceStatus {
        kind: "serial".into(),
        slot: None,
        tap: None,
        mac: None,
        disk: None,
        queues: None,
    }];
    for (slot, kind) in (0u32..).zip(&view.slots) {
        let card = match kind {
            SlotKind::Net(_) => cards.next(),
            SlotKind::Rng | SlotKind::Balloon | SlotKind::Block(_) => None,
        };
        let disk = match kind {
            SlotKind::Block(_) => disks.next(),
            SlotKind::Net(_) | SlotKind::Rng | SlotKind::Balloon => None,
        };
        list.push(DeviceStatus {
            kind: match kind {
                SlotKind::Net(_) => "virtio-net".into(),
                SlotKind::Rng => "virtio-rng".into(),
                SlotKind::Balloon => "virtio-balloon".into(),
                SlotKind::Block(_) => "virtio-blk".into(),
            },
            slot: Some(slot),
            tap: card.map(|c| c.tap.clone()),
            mac: card.and_then(|c| c.mac.clone()),
            disk: disk.map(|path| path.display().to_string()),
            queues: match kind {
                SlotKind::Net(card) => Some(card.pairs),
                SlotKind::Block(disk) => Some(disk.queues),
                SlotKind::Rng | SlotKind::Balloon => None,
            },
        });
    }
    list
}
