//! The program inside Ferry's Linux test guest.
//!
//! It is the guest's own witness of a move: it ticks on the console, echoes on TCP port 7, and writes a
//! working set whose every page it checks again and again, so that it notices by itself a page that got
//! lost or is stale. It is asked by lines on the console or on TCP port 9 ([`commands`]).

mod cache;
mod clock;
mod commands;
mod disk;
mod memory;
mod parameters;
mod server;
mod witness;
mod worker;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use crate::parameters::Parameters;
use crate::witness::Witness;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("AGENT FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let parameters: Parameters = std::fs::read_to_string("/proc/cmdline")?.parse()?;
    let (witness, workers) = Witness::new(&parameters);
    let witness = Arc::new(witness);
    for worker in workers {
        let witness = witness.clone();
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || worker.run(&witness))?;
    }
    server::start(&witness)?;
    // Begins a line of its own, whatever firmware or kernel left on the console.
    println!(
        "\nAGENT READY version={} cpus={} ws_mib={} rate={} nics={}",
        env!("CARGO_PKG_VERSION"),
        thread::available_parallelism().map_or(1, usize::from),
        parameters.ws_mib,
        parameters.rate,
        nics()
    );
    tick(&parameters, &witness)
}

/// Prints a tick a period, for ever. After a pause it goes on from where it is; it does not catch up.
fn tick(parameters: &Parameters, witness: &Witness) -> ! {
    let mut pace = clock::Pace::new(parameters.tick);
    loop {
        pace.wait();
        let number = witness.tick();
        println!(
            "tick {number} {} {:.2}",
            clock::monotonic().as_nanos(),
            clock::uptime().as_secs_f64()
        );
    }
}

fn nics() -> usize {
    std::fs::read_dir("/sys/class/net").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name() != "lo")
            .count()
    })
}
