//! From what a driver names, numbers of pages or buffers, to ranges of whole pages of guest memory, each within one
//! region: checked before the first of them is given away.

use std::ops::Range;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::features::{MAX_REPORT, NUMBER, PAGE};
use crate::GuestRam;
use crate::virtio::chain::Segment;

/// Guest-physical addresses, from the first byte to the one behind the last: whole pages, in one region of memory.
pub type Pages = Range<u64>;

/// The pages of a list of numbers, 32 bits each and little-endian: in order, each once, neighbours joined.
///
/// # Errors
/// The list ends within a number, or names what is not memory.
pub fn of_numbers(ram: &GuestRam, list: &[u8], into: &mut Vec<Pages>) -> Result<(), &'static str> {
    into.clear();
    if list.is_empty() || !(list.len() as u64).is_multiple_of(NUMBER) {
        return Err("its list of pages is empty or ends within a number");
    }
    let (numbers, _) = list.as_chunks::<4>();
    let mut numbers: Vec<u64> = (numbers.iter())
        .map(|bytes| u32::from_le_bytes(*bytes).into())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let start = number * PAGE;
        let end = start + PAGE;
        let region = region(ram, start).filter(|region| end <= region.end);
        let Some(region) = region else {
            return Err("it names a page that is not memory");
        };
        match into.last_mut() {
            // Two regions that touch each other are two mappings all the same.
            Some(last) if last.end == start && region.start < start => last.end = end,
            _ => into.push(start..end),
        }
    }
    Ok(())
}

/// The whole pages within buffers, which lie in guest memory. What a buffer has of a page besides is left out: the
/// rest of that page has not been given away.
///
/// # Errors
/// They are more than a report may name.
pub fn of_buffers(
    ram: &GuestRam,
    buffers: &[Segment],
    into: &mut Vec<Pages>,
) -> Result<(), &'static str> {
    into.clear();
    let mut bytes = 0;
    for buffer in buffers {
        bytes += u64::from(buffer.len);
        if bytes > MAX_REPORT {
            return Err("it reports more than 1 GiB at a time");
        }
        let start = buffer.addr.raw_value();
        let end = start.saturating_add(buffer.len.into());
        let mut at = start.next_multiple_of(PAGE);
        let end = end - end % PAGE;
        while at < end {
            let Some(region) = region(ram, at) else {
                return Err("it reports what is not memory");
            };
            let part = at..end.min(region.end);
            at = part.end;
            into.push(part);
        }
    }
    Ok(())
}

/// Where the region of memory begins and ends that an address is in.
fn region(ram: &GuestRam, gpa: u64) -> Option<Range<u64>> {
    let region = ram.find_region(GuestAddress(gpa))?;
    let start = region.start_addr().raw_value();
    Some(start..start + region.len())
}

/// How many bytes these are.
pub fn bytes(ranges: &[Pages]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}
