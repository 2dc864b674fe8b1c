//! One move as it is kept in bench.json. The names of the fields are a contract.

use serde::Serialize;

/// A move that was made and verified. Times are of the program's own report unless said otherwise.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was moved.
    pub scenario: &'static str,
    /// `ferry` or `qemu`.
    pub program: &'static str,
    /// How the program was asked to.
    pub setting: String,
    /// The program's version.
    pub version: String,
    /// The run that it belongs to, from 0.
    pub run: u32,
    /// From the command to the guest's life on the destination.
    pub wall_ms: f64,
    /// The guest stood still so long, by the source's report.
    pub blackout_ms: f64,
    /// Last heartbeat on the source to the first on the destination, seen in the guest's memory from
    /// outside, the same way for every program.
    pub guest_gap_ms: f64,
    /// Heartbeats between these two that were not seen, and for which a period each was taken off; 0 if all
    /// is well.
    pub heartbeats_missed: u32,
    /// How much less the guest wrote from the command to its life on the destination than in so much time before the
    /// move, by its own count of pages in its memory, seen from outside, the same way for every program. Below 0 by
    /// chance; null for a guest that writes nothing.
    pub guest_work_lost_percent: Option<f64>,
    /// The gap as the program itself reports it.
    pub reported_gap_ms: Option<f64>,
    /// What the source expected of the blackout, where it tells.
    pub predicted_blackout_ms: Option<f64>,
    /// Bytes sent, by the source's report.
    pub wire_bytes: u64,
    /// Passes over the guest's memory.
    pub rounds: u64,
    /// Connections that carried pages.
    pub streams: u64,
    /// Processor time of the source from right before the move until its process had ended, the guest's own
    /// included.
    pub cpu_s_source: f64,
    /// Processor time of the destination from right before the move until it was over, likewise.
    pub cpu_s_destination: f64,
    /// The most that the source had resident.
    pub source_rss_bytes: u64,
    /// The most that the destination had resident when the move was over.
    pub destination_rss_bytes: u64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// What lay between the two processes.
    pub link: &'static str,
    /// `warm` or `cold`: the destination's free memory; or `touched`: what it took for the guest beforehand.
    pub temperature: &'static str,
    /// For which memory the kernel gives huge pages; both programs ask for them.
    pub huge_pages: String,
    /// How much of the destination was in huge pages when the move was over.
    pub destination_huge_page_bytes: u64,
    /// What one thread populated of fresh huge pages right before the move.
    pub populate_bytes_per_s: f64,
    /// The same by two threads; only of warm memory, since it makes it so.
    pub populate_2_bytes_per_s: Option<f64>,
    /// Whether page stamps and the digest of all memory were as they have to be. Always true: a row that
    /// cannot be verified ends the run.
    pub verified: bool,
    /// Pages with stamps that were checked.
    pub stamped_pages: u64,
    /// The digest of all guest memory but what the guest itself writes, on both sides.
    pub digest: String,
}
