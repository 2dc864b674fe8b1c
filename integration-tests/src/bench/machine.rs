//! The machine that all figures are of.

use std::fs;

use serde::Serialize;

/// What a reader of the figures wants to know of it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors.
    pub cpus: usize,
    /// Their name.
    pub processor: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// For which memory the kernel gives transparent huge pages.
    pub huge_pages: String,
    /// The congestion control that sockets have without asking.
    pub congestion_control: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let processor = line_of("/proc/cpuinfo", "model name");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            processor: processor.trim_start_matches([':', '\t', ' ']).to_owned(),
            memory_bytes: meminfo("MemTotal:").unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease"),
            huge_pages: huge_pages(),
            congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }
}

/// The kernel's setting of transparent huge pages: `madvise` where whoever asks gets them.
pub fn huge_pages() -> String {
    let all = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let chosen = all.split(['[', ']']).nth(1);
    chosen.unwrap_or("unknown").to_owned()
}

/// Memory that can be had without swapping, in bytes.
pub fn available_bytes() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(name: &str) -> Option<u64> {
    super::cpu::bytes_of("/proc/meminfo", name)
}

fn line_of(path: &str, name: &str) -> String {
    let text = read(path);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}
