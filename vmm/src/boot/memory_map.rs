//! The memory map that a guest is given: which addresses are RAM, and which of them are not for it to use.
//!
//! It is what a PC's firmware answers to INT 15h, AX = E820h, and carries its type numbers; Linux's boot
//! params and PVH's start info hold the same entries in their own forms.

use migration::pages::MemoryLayout;

use crate::layout::{KERNEL_START, KVM_IDENTITY_MAP_START, KVM_PAGES_END, LOW_RESERVED_START};

/// Type of an entry: RAM for the guest to use.
pub(super) const RAM: u32 = 1;
/// Type of an entry: to be left alone.
pub(super) const RESERVED: u32 = 2;

/// One piece of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// [`RAM`] or [`RESERVED`].
    pub(super) kind: u32,
}

impl MapEntry {
    fn new(start: u64, end: u64, kind: u32) -> Self {
        Self {
            start,
            bytes: end.saturating_sub(start),
            kind,
        }
    }
}

/// The map of a machine with that memory, ascending. The first region begins at 0 and is larger than 1 MiB.
pub(super) fn entries(layout: &MemoryLayout) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry::new(0, LOW_RESERVED_START, RAM),
        // Legacy video memory, and the ACPI tables.
        MapEntry::new(LOW_RESERVED_START, KERNEL_START, RESERVED),
    ];
    for region in layout.regions() {
        let start = region.gpa.max(KERNEL_START);
        map.push(MapEntry::new(start, region.gpa + region.bytes, RAM));
    }
    map.push(MapEntry::new(
        KVM_IDENTITY_MAP_START,
        KVM_PAGES_END,
        RESERVED,
    ));
    map.sort_by_key(|entry| entry.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::memory_layout;

    #[test]
    fn all_memory_is_in_the_map_once() {
        for mib in [4, 128, 3072, 3074, 8192] {
            let layout = memory_layout(mib << 20).unwrap();
            let map = entries(&layout);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].bytes <= pair[1].start, "{pair:x?}");
            }
            let ram: u64 = map.iter().filter(|e| e.kind == RAM).map(|e| e.bytes).sum();
            assert_eq!(ram + (KERNEL_START - LOW_RESERVED_START), layout.bytes());
            for entry in map.iter().filter(|e| e.kind == RAM) {
                let last = entry.start + entry.bytes - 1;
                assert!(layout.page(entry.start).is_some() && layout.page(last).is_some());
            }
        }
    }
}
