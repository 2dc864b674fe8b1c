//! Times that two processes can compare, and identities that nobody has to hand out.

use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_BOOTTIME: one clock for all processes of a booted kernel (time namespaces aside).
pub fn boottime_ns() -> u64 {
    // CLOCK_BOOTTIME is there since Linux 2.6.39 and cannot fail; 0 would merely look like a clock that is
    // not shared.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let time = Duration::from(time);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Which boot of which kernel this is (`/proc/sys/kernel/random/boot_id`): two ends that read the same share
/// CLOCK_BOOTTIME. `None` where /proc is not mounted. It is read once: it never changes, and a confined process could
/// not read it later.
pub(crate) fn boot_id() -> Option<[u8; 16]> {
    static FOUND: OnceLock<Option<[u8; 16]>> = OnceLock::new();
    let read = || parse_uuid(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?);
    *FOUND.get_or_init(read)
}

/// Sixteen bytes that no other move has: random ones, else (a kernel before 3.17) time and process.
pub(crate) fn session_id() -> [u8; 16] {
    let mut id = [0; 16];
    match getrandom::fill(&mut id) {
        Ok(()) => id,
        Err(_) => (u128::from(boottime_ns()) << 64 | u128::from(std::process::id())).to_le_bytes(),
    }
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    // In the order in which the digits are written.
    (digits.len() == 32).then(|| {
        let mut bytes = number.to_le_bytes();
        bytes.reverse();
        bytes
    })
}

/// Milliseconds, as reports have them.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_in_the_order_of_their_digits() {
        let id = parse_uuid("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(id[15], 0xff);
        assert_eq!(parse_uuid("0011"), None);
        assert_eq!(parse_uuid("no such thing"), None);
    }

    #[test]
    fn session_ids_differ_and_the_boot_id_does_not() {
        assert_ne!(session_id(), session_id());
        assert_eq!(boot_id(), boot_id());
    }
}
