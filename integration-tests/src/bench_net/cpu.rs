//! What processes take of the processors: all their threads, those of vCPUs too, and the host kernel's threads that
//! work for them.

use std::fs;

/// A clock tick of /proc, in seconds (USER_HZ is 100 on x86).
const TICK: f64 = 0.01;

/// Processor time of these processes so far, in seconds, with that of the vhost threads that they have.
pub fn seconds(pids: &[u32]) -> f64 {
    pids.iter()
        .flat_map(|pid| std::iter::once(*pid).chain(vhost_threads(*pid)))
        .filter_map(ticks)
        .sum::<f64>()
        * TICK
}

/// The kernel calls them after the process for which it made them, and lists them as processes.
fn vhost_threads(owner: u32) -> Vec<u32> {
    let wanted = format!("vhost-{owner}");
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == wanted)
        })
        .collect()
}

/// User and system time of a process, in ticks.
fn ticks(pid: u32) -> Option<f64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 14 and 15 of proc(5); a name before them may have anything in it, so it is counted from its end.
fn parse(stat: &str) -> Option<f64> {
    let behind = stat.rsplit_once(')')?.1;
    let mut fields = behind.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 30 0 0 20 0";
        assert_eq!(parse(stat), Some(280.0));
        assert_eq!(parse("7 (x) S 1"), None);
        assert!(seconds(&[std::process::id()]) >= 0.0);
    }
}
