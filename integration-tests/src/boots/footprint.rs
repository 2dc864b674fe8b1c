//! What a hypervisor's process has in RAM beside its guest's memory, by /proc/PID/smaps (proc_pid_smaps(5)).

use std::fs;

use serde::Serialize;

use crate::Error;

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Own {
    /// All that is not the guest's.
    pub bytes: u64,
    /// What of that are files, such as the program itself: pages that all who run it share.
    pub files: u64,
}

/// Sums up all mappings that are smaller than the guest's memory: that lies in one, whoever made it.
///
/// # Errors
/// The process is gone.
pub fn beside(pid: u32, guest: u64) -> Result<Own, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", path.as_ref(), e))?;
    Ok(parse(&text, guest))
}

fn parse(text: &str, guest: u64) -> Own {
    let (mut own, mut is_guest, mut is_file) = (Own::default(), false, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse::<u64>)) {
            (Some("Size:"), Some(Ok(kib))) => is_guest = kib << 10 >= guest,
            (Some("Rss:"), Some(Ok(kib))) if !is_guest => {
                own.bytes += kib << 10;
                own.files += if is_file { kib << 10 } else { 0 };
            }
            // Begin-end, permissions, offset, device, inode, and perhaps a path.
            (Some(range), _) if !range.ends_with(':') => {
                is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            }
            _ => {}
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_mapping_is_the_guest() {
        let text = "55d0-55e0 r-xp 00000000 fe:01 12 /usr/bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 1 kB\n\
                    7000-9000 rw-p 00000000 00:00 0\nSize: 2048 kB\nRss: 1500 kB\n\
                    a000-b000 rw-p 00000000 00:00 0 [stack]\nSize: 8 kB\nRss: 6 kB\n";
        let own = Own {
            bytes: 10 << 10,
            files: 4 << 10,
        };
        assert_eq!(parse(text, 2 << 20), own);
        assert_eq!(parse("Rss: x kB\nSize:\n", 1), Own::default());
    }
}
