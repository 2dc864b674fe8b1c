//! `GET /metrics`: the VM in numbers, in Prometheus' text format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), which OpenMetrics readers take, too.
//!
//! Written by hand: what there is to tell is a snapshot that the main thread has anyway ([`Status`] and a few counts),
//! and the format is a line a number. A registry of shared atomics, which is what the client libraries are, would be a
//! second home of the same numbers.
//!
//! Names: `ferry_` in front, base units (`_seconds`, `_bytes`, `_ratio`) behind, `_total` behind what only grows. What
//! is not known is left out, not told as 0.

use std::fmt::{Display, Write};
use std::sync::Arc;

use migration::report::{Outcome, Report};

use super::footprint::Footprint;
use super::status::{State, Status};
use migration::pages::PAGE_SIZE;

/// The type of the body.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All that is told.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// How the VM is.
    pub status: Status,
    /// The counters of its network cards, in the order of their slots: name and number.
    pub cards: Vec<Vec<(&'static str, u64)>>,
    /// Moves so far.
    pub moves: MoveCounts,
    /// Where the process's memory is read; None where that cannot be.
    pub footprint: Option<Arc<Footprint>>,
}

/// The moves that this process was an end of.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MoveCounts {
    /// Out of here, by outcome, in the order of [`OUTCOMES`].
    pub out: [u64; OUTCOMES.len()],
    /// In: the guest runs here, or it did not come.
    pub arrived: u64,
    /// Attempts to come in that failed.
    pub not_arrived: u64,
    /// Figures of the last one out.
    pub last_out: Option<LastFigures>,
    /// How long the one in took, from its connection to the guest running here, in seconds.
    pub in_seconds: Option<f64>,
}

/// What the last move cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LastFigures {
    /// From the call to its end, in seconds.
    pub seconds: f64,
    /// How long the guest stood still, in seconds; None if it was never stopped.
    pub blackout_seconds: Option<f64>,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// The outcomes of moves out, in the order of [`MoveCounts::out`].
const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Completed, "completed"),
    (Outcome::Failed, "failed"),
    (Outcome::Cancelled, "cancelled"),
    (Outcome::Unknown, "unknown"),
    (Outcome::Paused, "paused"),
];

impl MoveCounts {
    /// Counts a move out of here that is over.
    pub fn departed(&mut self, report: &Report) {
        for (count, (outcome, _)) in self.out.iter_mut().zip(OUTCOMES) {
            *count += u64::from(report.outcome == outcome);
        }
        self.last_out = Some(LastFigures {
            seconds: report.total_ms / 1e3,
            blackout_seconds: report.blackout_ms.map(|ms| ms / 1e3),
            wire_bytes: report.wire_bytes,
        });
    }
}

impl Metrics {
    /// The whole body.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        self.guest(&mut page);
        self.memory(&mut page);
        self.balloon(&mut page);
        self.network(&mut page);
        self.moves(&mut page);
        self.current_move(&mut page);
        page.0
    }

    fn guest(&self, page: &mut Page) {
        let status = &self.status;
        page.gauge("ferry_info", "Which Ferry this is")
            .with(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        let mut states = page.gauge(
            "ferry_guest_state",
            "What the VM is doing: 1 for one of the states",
        );
        for state in State::ALL {
            states.with(&[("state", state.word())], u8::from(state == status.state));
        }
        page.gauge("ferry_guest_vcpus", "vCPUs of the guest; 0 without one")
            .one(status.vcpus);
        page.gauge("ferry_guest_memory_bytes", "Guest memory, all regions")
            .one(status.memory_bytes);
        page.gauge(
            "ferry_guest_uptime_seconds",
            "Since the guest began to run in this process",
        )
        .one(seconds(status.uptime_ms));
        if let Some(heartbeat) = &status.heartbeat {
            page.counter(
                "ferry_guest_heartbeats_total",
                "Heartbeats of the guest seen in this process",
            )
            .one(heartbeat.count);
        }
        if let Some(log) = &status.dirty_log {
            page.gauge(
                "ferry_dirty_log_enabled",
                "Whether written pages are logged now",
            )
            .with(&[("kind", &log.kind)], u8::from(log.on));
        }
    }

    fn memory(&self, page: &mut Page) {
        let Some(footprint) = &self.footprint else {
            return;
        };
        match footprint.read(&self.status.memory_regions) {
            Ok(resident) => {
                page.gauge(
                    "ferry_guest_resident_memory_bytes",
                    "Guest memory that is in RAM",
                )
                .one(resident.guest);
                page.gauge(
                    "ferry_vmm_resident_memory_bytes",
                    "Memory of the process in RAM beyond the guest's",
                )
                .one(resident.vmm);
            }
            Err(error) => tracing::warn!("the process's memory cannot be read: {error}"),
        }
    }

    fn balloon(&self, page: &mut Page) {
        let Some(balloon) = &self.status.balloon else {
            return;
        };
        page.gauge(
            "ferry_balloon_target_bytes",
            "How much of its memory the guest is to do without",
        )
        .one(balloon.target_bytes);
        page.gauge(
            "ferry_balloon_actual_bytes",
            "How much of its memory the guest says that it does without",
        )
        .one(balloon.actual_bytes);
        page.counter(
            "ferry_balloon_inflated_bytes_total",
            "Memory that the guest has put into its balloon",
        )
        .one(balloon.inflated_bytes);
        page.counter(
            "ferry_balloon_reported_bytes_total",
            "Memory that the guest has reported as free, and that was given back",
        )
        .one(balloon.reported_bytes);
    }

    fn network(&self, page: &mut Page) {
        let cards: Vec<_> = (self.status.devices.iter())
            .filter(|device| device.kind == "virtio-net")
            .zip(&self.cards)
            .collect();
        if cards.is_empty() {
            return;
        }
        for (counter, name, help) in [
            (
                "rx_bytes",
                "ferry_network_receive_bytes_total",
                "Bytes of frames handed to the guest",
            ),
            (
                "rx_frames",
                "ferry_network_receive_frames_total",
                "Frames handed to the guest",
            ),
            (
                "rx_dropped",
                "ferry_network_receive_dropped_frames_total",
                "Frames for the guest that it had no room for, or that were none",
            ),
            (
                "tx_bytes",
                "ferry_network_transmit_bytes_total",
                "Bytes of frames from the guest",
            ),
            (
                "tx_frames",
                "ferry_network_transmit_frames_total",
                "Frames from the guest",
            ),
            (
                "tx_dropped",
                "ferry_network_transmit_dropped_frames_total",
                "Frames from the guest that the tap did not take, or that were none",
            ),
        ] {
            let mut family = page.counter(name, help);
            for (device, counters) in &cards {
                let value = counters.iter().find(|(known, _)| *known == counter);
                let slot = device.slot.unwrap_or_default().to_string();
                let tap = device.tap.as_deref().unwrap_or_default();
                family.with(
                    &[("slot", &slot), ("tap", tap)],
                    value.map_or(0, |(_, n)| *n),
                );
            }
        }
    }

    fn moves(&self, page: &mut Page) {
        let moves = &self.moves;
        let mut total = page.counter(
            "ferry_moves_total",
            "Moves that are over, by how they ended",
        );
        for (count, (_, word)) in moves.out.iter().zip(OUTCOMES) {
            total.with(&[("direction", "out"), ("outcome", word)], count);
        }
        for (count, word) in [(moves.arrived, "completed"), (moves.not_arrived, "failed")] {
            total.with(&[("direction", "in"), ("outcome", word)], count);
        }
        let both = [
            ("out", moves.last_out.map(|last| last.seconds)),
            ("in", moves.in_seconds),
        ];
        let mut duration = page.gauge(
            "ferry_last_move_duration_seconds",
            "How long the last move took",
        );
        for (direction, value) in both {
            if let Some(value) = value {
                duration.with(&[("direction", direction)], value);
            }
        }
        let Some(last) = moves.last_out else {
            return;
        };
        if let Some(blackout) = last.blackout_seconds {
            page.gauge(
                "ferry_last_move_blackout_seconds",
                "How long the guest stood still in the last move out",
            )
            .one(blackout);
        }
        page.gauge(
            "ferry_last_move_wire_bytes",
            "Bytes on the wire of the last move out",
        )
        .one(last.wire_bytes);
    }

    fn current_move(&self, page: &mut Page) {
        let moving = &self.status.migration;
        page.gauge(
            "ferry_move_active",
            "Whether a move out of here, or a snapshot, is under way",
        )
        .one(u8::from(moving.is_some()));
        let Some(progress) = moving else {
            return;
        };
        page.gauge("ferry_move_round", "The round that the move is in")
            .one(progress.round);
        page.gauge(
            "ferry_move_remaining_bytes",
            "Guest memory that the round has still to deal with",
        )
        .one(progress.remaining_pages.saturating_mul(PAGE_SIZE));
        page.gauge(
            "ferry_move_wire_bytes",
            "Bytes on the wire since the move began",
        )
        .one(progress.wire_bytes);
        page.gauge(
            "ferry_move_bandwidth_bytes_per_second",
            "What the link has carried in this round",
        )
        .one(progress.bandwidth_bytes_per_s);
        let mut throttle = page.gauge(
            "ferry_move_throttle_ratio",
            "How much a vCPU is slowed down, 0 to 1",
        );
        for (vcpu, percent) in progress.throttle_percent.iter().enumerate() {
            throttle.with(&[("vcpu", &vcpu.to_string())], f64::from(*percent) / 100.0);
        }
        page.gauge(
            "ferry_move_committed",
            "Whether the move can no longer be cancelled",
        )
        .one(u8::from(progress.committed));
    }
}

#[allow(clippy::cast_precision_loss, reason = "285,000 years fit")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

/// A page of families.
#[derive(Debug, Default)]
struct Page(String);

/// One family: its head, and samples behind it.
struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
    head: Option<(&'static str, &'static str)>,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn counter(&mut self, name: &'static str, help: &'static str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) -> Family<'_> {
        Family {
            page: &mut self.0,
            name,
            head: Some((kind, help)),
        }
    }
}

impl Family<'_> {
    /// A number without labels.
    fn one(&mut self, value: impl Display) {
        self.with(&[], value);
    }

    /// A number with labels. The head comes before the first: a family without numbers is not told.
    fn with(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let name = self.name;
        // Writing to a string does not fail.
        if let Some((kind, help)) = self.head.take() {
            let _ = write!(self.page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        let labels: Vec<_> = (labels.iter())
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.page, "{name} {value}"),
            false => writeln!(self.page, "{name}{{{}}} {value}", labels.join(",")),
        };
    }
}

/// As a label's value is written: a tap's name may have anything in it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests;
