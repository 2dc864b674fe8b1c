//! The report of a move: what `--report` writes. The names are a contract, kept by
//! `migration/report.schema.json`; every field is always there, `null` where it is not known.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::millis;
use crate::dirty::Tracking;
use crate::guest::Heartbeat;
use crate::options::Options;
use crate::wire::frame::Figures;
use crate::wire::transport::Identity;
use crate::work::Lost;

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest runs on the destination.
    Completed,
    /// Cancelled in time: the guest runs on the source.
    Cancelled,
    /// The guest runs on the source, and `reason` says why.
    Failed,
    /// Cut between GO and LIVE: the guest is paused on the source and may run on the destination.
    Unknown,
    /// Failed or cancelled with the guest stopped, and it could not go on: it is paused on the source and runs nowhere.
    /// `reason` says why, both times.
    Paused,
}

/// How the blackout was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlackoutClock {
    /// Both ends read one CLOCK_BOOTTIME: exact.
    Shared,
    /// On the source's clock up to the arrival of LIVE: the blackout was at most that long, and at least
    /// that less one round trip.
    Bounded,
}

/// Where the blackout went, in milliseconds. The parts add up to `blackout_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// Until vCPUs and devices stood still.
    pub stop_vcpus_ms: f64,
    /// Reading the dirty log, twice.
    pub final_dirty_sync_ms: f64,
    /// Handing the last pages to the network.
    pub final_pages_ms: f64,
    /// Saving the state.
    pub save_state_ms: f64,
    /// Comparing both memories, where that was asked for.
    pub verify_ms: f64,
    /// All that is spent between the two ends: pages and state still under way, READY, GO.
    pub send_state_ms: f64,
    /// On the destination: from the state's last byte to a guest that can run.
    pub restore_ms: f64,
    /// On the destination: from GO to the return of resume.
    pub resume_ms: f64,
}

impl Blackout {
    /// The parts in the order in which they happen, each with its name for people, in milliseconds. Verifying is none
    /// where it did not happen.
    pub fn parts(&self) -> Vec<(&'static str, f64)> {
        let Self {
            stop_vcpus_ms,
            final_dirty_sync_ms,
            final_pages_ms,
            save_state_ms,
            verify_ms,
            send_state_ms,
            restore_ms,
            resume_ms,
        } = *self;
        let parts = [
            ("stop vCPUs", stop_vcpus_ms),
            ("final dirty sync", final_dirty_sync_ms),
            ("final pages", final_pages_ms),
            ("save state", save_state_ms),
            ("verify", verify_ms),
            ("send state", send_state_ms),
            ("restore", restore_ms),
            ("resume", resume_ms),
        ];
        let happened = |&(name, part): &(&str, f64)| name != "verify" || part > 0.0;
        parts.into_iter().filter(happened).collect()
    }
}

/// One pass over the pages written since the one before. The last one of a move that got so far is the
/// final copy, with the vCPUs stopped.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// 0 sends all memory.
    pub index: u32,
    /// Until its last byte had arrived; of the last round, in which the guest stands still, until the network had taken
    /// it.
    pub duration_ms: f64,
    /// Pages it had to deal with: `sent_pages`, `zero_pages` and `rewritten_pages` together.
    pub dirty_pages: u64,
    /// Pages sent with their bytes.
    pub sent_pages: u64,
    /// Pages of zeros, sent without bytes.
    pub zero_pages: u64,
    /// Pages left to the next round, since they were written again before their turn.
    #[serde(default)]
    pub rewritten_pages: u64,
    /// All bytes on the wire, headers too.
    pub wire_bytes: u64,
    /// `wire_bytes` over the duration.
    pub bandwidth_bytes_per_s: u64,
    /// How fast pages were written for the first time during the round.
    pub dirty_bytes_per_s: u64,
    /// How much each vCPU was slowed down during it, in the mean.
    pub throttle_percent: Vec<u8>,
    /// How long each vCPU was kept from running by that.
    pub throttled_ms: Vec<f64>,
    /// What the blackout was predicted to be, had the guest been stopped at its end.
    pub predicted_blackout_ms: f64,
}

/// A move in numbers. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Why it switched over, or failed.
    pub reason: String,
    /// From the call until LIVE, or until the guest was back.
    pub total_ms: f64,
    /// Connecting, and saying what the guest is: until the dirty log is started.
    pub setup_ms: f64,
    /// From the start of the dirty log, while which the destination makes the guest, to the first vCPU told to stop:
    /// the guest runs, slower.
    pub brownout_ms: Option<f64>,
    /// From the first vCPU told to stop to the first instruction on the destination.
    pub blackout_ms: Option<f64>,
    /// Where it went.
    pub blackout: Option<Blackout>,
    /// What it was predicted to be when the guest was stopped.
    pub predicted_blackout_ms: Option<f64>,
    /// What was asked for.
    pub downtime_limit_ms: f64,
    /// On which clock it was measured.
    pub blackout_clock: Option<BlackoutClock>,
    /// Last heartbeat on the source to the first on the destination.
    pub guest_gap_ms: Option<f64>,
    /// The largest distance between two heartbeats in the whole move; None where that of the move itself is not known.
    pub largest_gap_ms: Option<f64>,
    /// How long each vCPU was kept from running by throttling, in the whole move.
    pub throttled_ms: Vec<f64>,
    /// How much less the guest got done from the beginning of the move to its first instruction on the destination than
    /// in so much time before it, in a guest that counts its work: the mean of `vcpu_work_lost_percent`.
    pub guest_work_lost_percent: Option<f64>,
    /// The same by vCPU; `null` for one that did nothing before the move. Empty where nothing is counted.
    pub vcpu_work_lost_percent: Vec<Option<f64>>,
    /// The same in what each vCPU did per second of its processor time: 0 for one that merely had to share its core.
    pub vcpu_work_per_cpu_s_lost_percent: Vec<Option<f64>>,
    /// How long the comparison of both memories took, where it was asked for.
    pub verify_ms: Option<f64>,
    /// One entry a round.
    pub rounds: Vec<Round>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// All bytes that the source sent.
    pub wire_bytes: u64,
    /// What compressed pages were compressed to: the bytes behind PACKED frames; 0 where none was.
    pub compressed_bytes: u64,
    /// What pages took that were sent as differences: the bytes behind DELTA frames; 0 where none was.
    pub delta_bytes: u64,
    /// Pages of zeros in all rounds.
    pub zero_pages: u64,
    /// Pages never touched, that were not even read.
    pub untouched_pages: u64,
    /// How written pages were found, once their log was on; `null` in a move that needs none.
    pub dirty_tracking: Option<Tracking>,
    /// Connections that carried pages.
    pub streams: u16,
    /// Whether all that was sent was encrypted, and the destination had to prove who it is.
    pub tls: bool,
    /// The first name in the destination's certificate.
    pub tls_peer: Option<String>,
    /// `wire_bytes` over the time from the first round to the end.
    pub mean_bandwidth_bytes_per_s: u64,
}

impl Report {
    /// The report of a move that has just begun.
    pub(crate) fn begun(options: &Options) -> Self {
        Self {
            outcome: Outcome::Failed,
            reason: String::new(),
            total_ms: 0.0,
            setup_ms: 0.0,
            brownout_ms: None,
            blackout_ms: None,
            blackout: None,
            predicted_blackout_ms: None,
            downtime_limit_ms: millis(options.downtime_limit),
            blackout_clock: None,
            guest_gap_ms: None,
            largest_gap_ms: None,
            throttled_ms: Vec::new(),
            guest_work_lost_percent: None,
            vcpu_work_lost_percent: Vec::new(),
            vcpu_work_per_cpu_s_lost_percent: Vec::new(),
            verify_ms: None,
            rounds: Vec::new(),
            memory_bytes: 0,
            wire_bytes: 0,
            compressed_bytes: 0,
            delta_bytes: 0,
            zero_pages: 0,
            untouched_pages: 0,
            dirty_tracking: None,
            streams: 1,
            tls: false,
            tls_peer: None,
            mean_bandwidth_bytes_per_s: 0,
        }
    }

    /// Notes who the destination has proved to be, if it had to.
    pub(crate) fn secured_with(&mut self, peer: Option<&Identity>) {
        self.tls = peer.is_some();
        self.tls_peer = peer.map(|peer| peer.name.clone());
    }

    /// Adds what the guest got done less.
    pub(crate) fn work(&mut self, lost: Lost) {
        self.guest_work_lost_percent = lost.guest;
        self.vcpu_work_lost_percent = lost.vcpus;
        self.vcpu_work_per_cpu_s_lost_percent = lost.per_cpu_s;
    }

    /// Adds what the guest's own heartbeats say of the blackout. Both ends' times can be compared only if
    /// they share a clock.
    pub(crate) fn heartbeats(&mut self, source: Heartbeat, destination: &Figures) {
        let shared = self.blackout_clock == Some(BlackoutClock::Shared);
        let gap = (destination.first_heartbeat_ns)
            .checked_sub(source.last_ns)
            .filter(|_| shared && source.count > 0);
        let largest = source
            .largest_gap_ns
            .max(destination.largest_gap_ns)
            .max(gap.unwrap_or(0));
        let ms = |ns| millis(Duration::from_nanos(ns));
        self.guest_gap_ms = gap.map(ms);
        // The gap of the move itself is most likely the largest, so without it nothing is known.
        let known = largest > 0 && (gap.is_some() || source.count == 0);
        self.largest_gap_ms = known.then(|| ms(largest));
    }
}
