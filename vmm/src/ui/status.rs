//! The table of `ferry status`.

use std::fmt::Write;

use super::number::{bytes, count, millis};
use super::style::{Colour, Style};
use super::text::{hang, plain};
use crate::control::{BalloonStatus, DeviceStatus, LastMove, MoveProgress, State, Status};
use crate::sandbox::{InForce, Mode};
use migration::report::Outcome;

/// How a VM is, in at most 80 columns.
pub fn status_table(status: &Status, style: Style) -> String {
    let colour = match status.state {
        State::Running => Colour::Good,
        State::Unknown => Colour::Bad,
        State::Waiting => Colour::Faint,
        State::Paused | State::Receiving | State::Migrating | State::Saving => Colour::Warning,
    };
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        text.push_str(&hang(&format!("{name:<12}"), 12, value));
    };
    row("state", &style.paint(colour, status.state.word()));
    row("process", &status.pid.to_string());
    if status.vcpus > 0 {
        row("vCPUs", &status.vcpus.to_string());
        row("memory", &bytes(status.memory_bytes));
        if status.memory_to_come_bytes > 0 {
            let left = bytes(status.memory_to_come_bytes);
            row("", &format!("{left} of snapshots still to be read"));
        }
        row("up for", &millis(as_f64(status.uptime_ms)));
    }
    for (index, device) in status.devices.iter().enumerate() {
        row(
            if index == 0 { "devices" } else { "" },
            &device_line(device),
        );
    }
    if let Some(balloon) = &status.balloon {
        row("balloon", &balloon_line(balloon));
    }
    if let Some(log) = &status.dirty_log {
        let on = if log.on { "on" } else { "off" };
        row("dirty log", &format!("{}, {on}", plain(&log.kind)));
    }
    if let Some(sandbox) = status.sandbox {
        row("sandbox", &sandbox_line(sandbox));
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

fn sandbox_line(sandbox: InForce) -> String {
    let calls = match sandbox.system_calls {
        Mode::Off => return "off".to_owned(),
        Mode::Kill => "forbidden system calls kill",
        Mode::Log => "forbidden system calls are only logged",
    };
    match sandbox.landlock_abi {
        0 => format!("{calls}; this kernel has no Landlock"),
        abi => format!("{calls}; Landlock ABI {abi}"),
    }
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
    if let Some(disk) = &device.disk {
        let _ = write!(line, ", {}", plain(disk));
    }
    // One is what everybody expects.
    if let Some(queues) = device.queues.filter(|queues| *queues > 1) {
        let what = if device.disk.is_some() {
            "queues"
        } else {
            "queue pairs"
        };
        let _ = write!(line, ", {queues} {what}");
    }
    line
}

fn balloon_line(balloon: &BalloonStatus) -> String {
    if !balloon.driven {
        return format!(
            "{} wanted; the guest has no driver for it",
            bytes(balloon.target_bytes)
        );
    }
    format!(
        "{} of {} wanted; {} reported free so far",
        bytes(balloon.actual_bytes),
        bytes(balloon.target_bytes),
        bytes(balloon.reported_bytes)
    )
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
        Outcome::Paused => "failed, paused",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_receiver_has_little_to_tell() {
        let status = Status {
            pid: 7,
            ..Status::default()
        };
        assert_eq!(
            status_table(&status, Style::PLAIN),
            "state       waiting\nprocess     7\n"
        );
    }

    #[test]
    fn a_move_and_the_one_before_it_are_told() {
        let status = Status {
            state: State::Migrating,
            pid: 7,
            vcpus: 2,
            memory_bytes: 1 << 30,
            migration: Some(MoveProgress {
                peer: Some("10.0.0.2:7000".to_owned()),
                round: 3,
                pages: 2000,
                remaining_pages: 1500,
                wire_bytes: 1 << 30,
                bandwidth_bytes_per_s: 125_000_000,
                throttle_percent: vec![0, 30],
                committed: true,
                ..MoveProgress::default()
            }),
            last_move: Some(LastMove {
                target: "tcp:b:1".to_owned(),
                outcome: Outcome::Failed,
                reason: "the peer\x1b[2J hung up ".repeat(5),
            }),
            ..Status::default()
        };
        let table = status_table(&status, Style::PLAIN);
        assert!(
            table.contains("round 3, 1,500 of 2,000 pages left"),
            "{table}"
        );
        assert!(
            table.contains("throttle 30 %") && table.contains("committed"),
            "{table}"
        );
        assert!(table.contains("to tcp:b:1 failed: the peer"), "{table}");
        assert!(
            !table.contains('\x1b') && table.lines().all(|line| line.len() <= 80),
            "{table}"
        );
    }
}
