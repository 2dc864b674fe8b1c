//! Tables of sample moves, as text.

use migration::dirty::Tracking;
use migration::report::Round;

use super::*;

fn round(index: u32) -> Round {
    Round {
        index,
        duration_ms: 9_120.4 / f64::from(1 << index.min(9)),
        dirty_pages: 262_144 >> index.min(9),
        sent_pages: 252_144 >> index.min(9),
        zero_pages: 10_000 >> index.min(9),
        rewritten_pages: 0,
        wire_bytes: 1_034_000_000 >> index.min(9),
        bandwidth_bytes_per_s: 117_500_000,
        dirty_bytes_per_s: 40_000_000,
        throttle_percent: vec![0, if index > 1 { 20 } else { 0 }],
        throttled_ms: vec![0.0, if index > 1 { 456.1 } else { 0.0 }],
        predicted_blackout_ms: 300.0,
    }
}

/// A move that went well, of so many rounds.
pub(crate) fn sample(rounds: u32) -> Report {
    Report {
        outcome: Outcome::Completed,
        reason: "the predicted downtime of 46.1 ms is within the limit".to_owned(),
        total_ms: 9_303.1,
        setup_ms: 3.12,
        brownout_ms: Some(9_251.7),
        blackout_ms: Some(48.23),
        blackout: Some(Blackout {
            stop_vcpus_ms: 0.41,
            final_dirty_sync_ms: 0.92,
            final_pages_ms: 31.02,
            save_state_ms: 2.13,
            verify_ms: 0.0,
            send_state_ms: 6.15,
            restore_ms: 6.1,
            resume_ms: 1.5,
        }),
        predicted_blackout_ms: Some(46.1),
        downtime_limit_ms: 50.0,
        blackout_clock: Some(BlackoutClock::Shared),
        guest_gap_ms: Some(49.0),
        largest_gap_ms: Some(49.0),
        throttled_ms: vec![0.0, 456.1],
        guest_work_lost_percent: None,
        vcpu_work_lost_percent: Vec::new(),
        vcpu_work_per_cpu_s_lost_percent: Vec::new(),
        verify_ms: None,
        rounds: (0..rounds).map(round).collect(),
        memory_bytes: 1 << 30,
        wire_bytes: 1_283_490_189,
        compressed_bytes: 0,
        delta_bytes: 0,
        zero_pages: 12_345,
        untouched_pages: 0,
        dirty_tracking: Some(Tracking::Bitmap),
        streams: 1,
        tls: true,
        tls_peer: Some("beta.example.org".into()),
        mean_bandwidth_bytes_per_s: 117_312_000,
    }
}

const TABLE: &str = "
Moved: the guest runs on tcp:10.0.0.2:7000.
  the predicted downtime of 46.1 ms is within the limit

  downtime (blackout)       48.2 ms   limit 50.0 ms, predicted 46.1 ms
    stop vCPUs              0.41 ms   ▎
    final dirty sync        0.92 ms   ▌
    final pages             31.0 ms   ███████████████████▎
    save state              2.13 ms   █▎
    send state              6.15 ms   ███▊
    restore                 6.10 ms   ███▊
    resume                  1.50 ms   ▉
  brown-out                  9.25 s   guest slowed down, by 20 % at most
    throttled                456 ms   asleep, the vCPU that was most
  set-up                    3.12 ms
  total                      9.30 s   3 rounds
  guest gap                 49.0 ms   between heartbeats; largest 49.0 ms
  memory                   1.00 GiB   12,345 pages of zeros
  on the wire              1.20 GiB   mean 938 Mbit/s
    encrypted               TLS 1.3   to beta.example.org, by its certificate

  round      time       pages      zero       wire        link     dirtied thr.
      0    9.12 s     262,144    10,000    986 MiB  940 Mbit/s  320 Mbit/s    -
      1    4.56 s     131,072     5,000    493 MiB  940 Mbit/s  320 Mbit/s    -
      2    2.28 s      65,536     2,500    247 MiB  940 Mbit/s  320 Mbit/s 20 %
";

#[test]
fn a_completed_move_reads_at_a_glance() {
    let table = report_table(&sample(3), "tcp:10.0.0.2:7000", Style::PLAIN);
    assert_eq!(table, TABLE, "\n{table}");
}

#[test]
fn colours_change_no_character() {
    let coloured = report_table(&sample(3), "tcp:10.0.0.2:7000", Style::COLOURED);
    assert!(coloured.contains("\x1b["));
    let mut plain = String::new();
    for (index, piece) in coloured.split("\x1b[").enumerate() {
        plain.push_str(if index == 0 {
            piece
        } else {
            piece.split_once('m').unwrap().1
        });
    }
    assert_eq!(plain, TABLE);
}

#[test]
fn many_rounds_are_shortened_and_nothing_is_wider_than_a_terminal() {
    let mut report = sample(100);
    report.outcome = Outcome::Failed;
    report.reason = "word ".repeat(60);
    report.blackout_clock = Some(BlackoutClock::Bounded);
    report.downtime_limit_ms = 10.0;
    report.rounds[99].dirty_pages = 999_999_999;
    let table = report_table(&report, "tcp:[2001:db8::1]:7000", Style::PLAIN);
    for line in table.lines() {
        assert!(
            line.chars().count() <= 80,
            "{} columns: {line}",
            line.chars().count()
        );
    }
    assert!(table.contains("89 rounds not shown"), "{table}");
    assert!(
        table.contains("\n      3 ") && table.contains("\n     99 "),
        "{table}"
    );
    assert!(table.contains("Failed: the guest runs here."));
}

#[test]
fn what_was_packed_is_shown_where_it_was() {
    let mut report = sample(1);
    report.compressed_bytes = 300 << 20;
    report.delta_bytes = 5 << 10;
    let table = report_table(&report, "unix:/x", Style::PLAIN);
    for line in [
        "\n    compressed              300 MiB   of these\n",
        "\n    differences            5.00 KiB   of these\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

#[test]
fn work_lost_names_the_vcpu_that_lost_most() {
    let mut report = sample(1);
    report.guest_work_lost_percent = Some(21.04);
    report.vcpu_work_lost_percent = vec![Some(42.08), None, Some(0.0)];
    let table = report_table(&report, "unix:/x", Style::PLAIN);
    let line = "\n  guest work lost            21.0 %   during the move; vCPU 0 most, 42.1 %\n";
    assert!(table.contains(line), "{table}");
    report.vcpu_work_lost_percent = vec![Some(21.04)];
    let table = report_table(&report, "unix:/x", Style::PLAIN);
    assert!(
        table.contains("\n  guest work lost            21.0 %   during the move\n"),
        "{table}"
    );
}

#[test]
fn what_is_not_known_is_not_shown() {
    let mut report = sample(0);
    report.outcome = Outcome::Cancelled;
    report.blackout_ms = None;
    report.blackout = None;
    report.brownout_ms = None;
    report.guest_gap_ms = None;
    let table = report_table(&report, "unix:/x", Style::PLAIN);
    for word in ["downtime (", "brown-out", "guest gap", "round  "] {
        assert!(!table.contains(word), "{word:?} in {table}");
    }
    assert!(table.contains("Cancelled: the guest runs here."));
}

#[test]
fn an_unknown_outcome_says_what_to_do() {
    let mut report = sample(1);
    report.outcome = Outcome::Unknown;
    let table = report_table(&report, "tcp:b:1", Style::PLAIN);
    assert!(
        table.contains("paused here") && table.contains("resume --force"),
        "{table}"
    );
}

#[test]
fn a_guest_that_would_not_go_on_is_not_said_to_run() {
    let mut report = sample(1);
    report.outcome = Outcome::Paused;
    let table = report_table(&report, "tcp:b:1", Style::PLAIN);
    let told = table.contains("paused here: it runs nowhere") && table.contains("`ferry resume`");
    assert!(told && !table.contains("runs here"), "{table}");
}

#[test]
fn a_hostile_reason_moves_no_cursor() {
    let mut report = sample(1);
    report.reason = "no\x1b[2Jroom\r\nleft".to_owned();
    let table = report_table(&report, "tcp:b:1", Style::PLAIN);
    assert!(
        !table.contains('\x1b') && !table.contains('\r'),
        "{table:?}"
    );
}

#[test]
fn bars_are_parts_of_the_whole() {
    let table = [
        (0.0, 10.0, 0),
        (10.0, 10.0, BAR),
        (5.0, 10.0, BAR / 2),
        (20.0, 10.0, BAR),
        (1.0, 0.0, BAR),
        (f64::NAN, 1.0, 0),
        (0.0, 0.0, 0),
    ];
    for (part, whole, length) in table {
        assert_eq!(
            bar(part, whole).chars().count(),
            length,
            "{part} of {whole}"
        );
    }
    assert_eq!(bar(0.5, 30.0), "▌");
}
