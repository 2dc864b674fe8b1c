//! What a hypervisor's process has in RAM beside its guest's memory, by /proc/PID/smaps (proc_pid_smaps(5)).

use std::fs;

use crate::Error;

/// Resident bytes of all mappings that are smaller than the guest's memory: that lies in one, whoever made it.
///
/// # Errors
/// The process is gone.
pub fn beside(pid: u32, guest: u64) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(|e| Error::file("read", path.as_ref(), e))?;
    Ok(parse(&text, guest))
}

fn parse(text: &str, guest: u64) -> u64 {
    let (mut bytes, mut is_guest) = (0, false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (
            words.next(),
            words.next().and_then(|n| n.parse::<u64>().ok()),
        ) {
            (Some("Size:"), Some(kib)) => is_guest = kib << 10 >= guest,
            (Some("Rss:"), Some(kib)) if !is_guest => bytes += kib << 10,
            _ => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_mapping_is_the_guest() {
        let text = "55d0-55e0 r-xp 00000000 fe:01 12 /usr/bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 1 kB\n\
                    7000-9000 rw-p 00000000 00:00 0\nSize: 2048 kB\nRss: 1500 kB\n\
                    a000-b000 rw-p 00000000 00:00 0\nSize: 8 kB\nRss: 6 kB\n";
        assert_eq!(parse(text, 2 << 20), 10 << 10);
        assert_eq!(parse("Rss: x kB\nSize:\n", 1), 0);
    }
}
