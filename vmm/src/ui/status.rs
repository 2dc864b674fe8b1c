//! The table of `ferry status`.

use std::fmt::Write;

use super::number::{bytes, count, millis};
use super::progress::plain;
use super::style::{Colour, Style};
use crate::control::{DeviceStatus, LastMove, MoveProgress, State, Status};
use migration::report::Outcome;

/// How a VM is, in at most 80 columns.
pub fn status_table(status: &Status, style: Style) -> String {
    let colour = match status.state {
        State::Running => Colour::Good,
        State::Unknown => Colour::Bad,
        State::Waiting => Colour::Faint,
        State::Paused | State::Receiving | State::Migrating => Colour::Warning,
    };
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    row("state", &style.paint(colour, status.state.word()));
    row("process", &status.pid.to_string());
    if status.vcpus > 0 {
        row("vCPUs", &status.vcpus.to_string());
        row("memory", &bytes(status.memory_bytes));
        row("up for", &millis(as_f64(status.uptime_ms)));
    }
    for (index, device) in status.devices.iter().enumerate() {
        row(
            if index == 0 { "devices" } else { "" },
            &device_line(device),
        );
    }
    if let Some(log) = &status.dirty_log {
        let on = if log.on { "on" } else { "off" };
        row("dirty log", &format!("{}, {on}", plain(&log.kind)));
    }
    if let Some(beat) = &status.heartbeat {
        let largest = millis(as_f64(beat.largest_gap_ns / 1000) / 1000.0);
        row(
            "heartbeats",
            &format!("{}, largest gap {largest}", count(beat.count)),
        );
    }
    if let Some(progress) = &status.migration {
        row("move", &move_line(progress));
    }
    if let Some(last) = &status.last_move {
        row("last move", &last_line(last));
    }
    text
}

fn device_line(device: &DeviceStatus) -> String {
    let mut line = plain(&device.kind);
    if let Some(slot) = device.slot {
        let _ = write!(line, " in slot {slot}");
    }
    if let Some(tap) = &device.tap {
        let _ = write!(line, ", tap {}", plain(tap));
    }
    if let Some(mac) = &device.mac {
        let _ = write!(line, ", {}", plain(mac));
    }
    line
}

fn move_line(progress: &MoveProgress) -> String {
    let mut line = format!(
        "round {}, {} of {} pages left, {} on the wire",
        progress.round,
        count(progress.remaining_pages),
        count(progress.pages),
        bytes(progress.wire_bytes),
    );
    if let Some(peer) = &progress.peer {
        let _ = write!(line, "; peer {}", plain(peer));
    }
    if let Some(most) = progress
        .throttle_percent
        .iter()
        .max()
        .filter(|most| **most > 0)
    {
        let _ = write!(line, "; throttle {most} %");
    }
    if progress.committed {
        line.push_str("; committed");
    }
    line
}

fn last_line(last: &LastMove) -> String {
    let outcome = match last.outcome {
        Outcome::Completed => "completed",
        Outcome::Cancelled => "cancelled",
        Outcome::Failed => "failed",
        Outcome::Unknown => "unknown",
    };
    format!(
        "to {} {outcome}: {}",
        plain(&last.target),
        plain(&last.reason)
    )
}

/// Exact below 2^53, far above any time shown.
#[allow(clippy::cast_precision_loss, reason = "three figures are shown")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
