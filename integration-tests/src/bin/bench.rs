//! `make bench`: what moves cost on this machine, beside what the machine itself can do.
//!
//! Real moves of `pulse` guests over loopback, from one Ferry process to another; scenarios interleaved,
//! medians and the range. Every move is verified: page stamps, and the fill by seed. The limits (loopback
//! TCP and memory copy) are measured in the same run, and ratios are what counts: absolute figures are the
//! machine's.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use integration_tests::ferry::{Ferry, PulseGuest};
use integration_tests::{Error, chain, programs};
use serde_json::{Value, json};

/// Seed of the guest's incompressible memory.
const SEED: u64 = 0x0f0e_0d0c;
/// Bytes over which the limits are measured.
const LIMIT_BYTES: usize = 1 << 30;
/// Bytes of one write.
const BLOCK: usize = 1 << 20;

/// Moves guests with known working sets over loopback and prints what it cost
#[derive(Parser)]
struct Cli {
    /// Runs of each scenario
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Where all figures go
    #[arg(long, value_name = "FILE", default_value_os_t = default_file())]
    json: PathBuf,
}

fn default_file() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("bench/bench.json")
}

/// A guest, and what it does while it is moved.
struct Scenario {
    name: &'static str,
    words: &'static str,
    mib: u64,
    /// Whether all of its memory is full of incompressible pages.
    full: bool,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        name: "1G-idle",
        words: "beat=1",
        mib: 1024,
        full: true,
    },
    Scenario {
        name: "1G-hot64",
        words: "beat=1 ws=16:64 rate=max pattern=sweep",
        mib: 1024,
        full: true,
    },
    Scenario {
        name: "1G-untouched",
        words: "beat=1",
        mib: 1024,
        full: false,
    },
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    match bench(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<(), Error> {
    let mut rows = Vec::new();
    let mut limits = Vec::new();
    for run in 0..cli.runs {
        limits.push((tcp_bytes_per_s()?, copy_bytes_per_s()));
        for scenario in &SCENARIOS {
            rows.push(one_move(scenario, run)?);
            eprint!(".");
        }
    }
    eprintln!();
    print_table(&rows);
    let tcp = median(limits.iter().map(|l| l.0).collect());
    let copy = median(limits.iter().map(|l| l.1).collect());
    println!(
        "limits: loopback TCP, 1 stream into touched memory {:.2} GB/s; memory copy {:.2} GB/s",
        tcp / 1e9,
        copy / 1e9
    );
    let all = json!({
        "rows": rows,
        "limits": { "loopback_tcp_bytes_per_s": tcp, "memory_copy_bytes_per_s": copy },
    });
    write(&cli.json, &all)?;
    println!("all figures: {}", cli.json.display());
    Ok(())
}

/// One move, verified.
fn one_move(scenario: &Scenario, run: u32) -> Result<Value, Error> {
    let guest = PulseGuest {
        words: scenario.words,
        cpus: 1,
        mib: scenario.mib,
    };
    let source = guest.boot(None)?;
    let ranges = [guest.fillable()];
    if scenario.full {
        source.fill(SEED, &ranges)?;
    }
    let tcp = format!("tcp:127.0.0.1:{}", free_port()?);
    let destination = Ferry::receive(None, &tcp, &[])?;
    let report = source.migrate(&tcp, &[])?.completed()?.report;
    let summary = destination.check_pulse()?;
    if scenario.full {
        destination.check_fill(SEED, &ranges)?;
    }
    Ok(json!({
        "scenario": scenario.name,
        "program": "ferry",
        "setting": "default",
        "run": run,
        "wall_ms": report["total_ms"],
        "blackout_ms": report["blackout_ms"],
        "predicted_blackout_ms": report["predicted_blackout_ms"],
        "guest_gap_ms": report["guest_gap_ms"],
        "wire_bytes": report["wire_bytes"],
        "rounds": report["rounds"].as_array().map_or(0, Vec::len),
        "memory_bytes": scenario.mib << 20,
        "link": "loopback",
        "verified": summary.pages_checked,
    }))
}

/// A port of the loopback address that was free a moment ago.
fn free_port() -> Result<u16, Error> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Error::file("listen on", "127.0.0.1:0".as_ref(), e))
}

/// What one loopback TCP stream carries into memory that is touched already.
fn tcp_bytes_per_s() -> Result<f64, Error> {
    let failed = |e| Error::file("measure", "loopback TCP".as_ref(), e);
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address)?;
        let block = vec![1u8; BLOCK];
        for _ in 0..LIMIT_BYTES / BLOCK {
            stream.write_all(&block)?;
        }
        Ok(())
    });
    let (mut stream, _) = listener.accept().map_err(failed)?;
    let mut block = vec![2u8; BLOCK];
    let began = Instant::now();
    let mut bytes = 0u64;
    loop {
        match stream.read(&mut block).map_err(failed)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    sender
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the sender panicked")))
        .map_err(failed)?;
    Ok(bytes as f64 / seconds)
}

/// What a plain copy between two touched buffers does.
fn copy_bytes_per_s() -> f64 {
    let from = vec![1u8; LIMIT_BYTES / 4];
    let mut to = vec![2u8; LIMIT_BYTES / 4];
    let began = Instant::now();
    to.copy_from_slice(&from);
    let seconds = began.elapsed().as_secs_f64();
    std::hint::black_box(&to);
    from.len() as f64 / seconds
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median and range of a figure over the runs of a scenario.
fn spread(rows: &[Value], scenario: &str, figure: &str) -> String {
    let values: Vec<f64> = rows
        .iter()
        .filter(|row| row["scenario"] == scenario)
        .filter_map(|row| row[figure].as_f64())
        .collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.2} ({least:.2}-{most:.2})", median(values))
}

fn print_table(rows: &[Value]) {
    println!(
        "{:<14} {:>26} {:>20} {:>20} {:>10}",
        "scenario", "total ms", "downtime ms", "guest gap ms", "wire MiB"
    );
    for Scenario { name, .. } in &SCENARIOS {
        let wire = rows
            .iter()
            .filter(|row| row["scenario"] == *name)
            .filter_map(|row| row["wire_bytes"].as_f64())
            .collect();
        println!(
            "{name:<14} {:>26} {:>20} {:>20} {:>10.1}",
            spread(rows, name, "wall_ms"),
            spread(rows, name, "blackout_ms"),
            spread(rows, name, "guest_gap_ms"),
            median(wire) / f64::from(1 << 20)
        );
    }
}

fn write(path: &std::path::Path, value: &Value) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    fs::write(path, text).map_err(|e| Error::file("write", path, e))
}
