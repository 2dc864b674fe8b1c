//! `make figures`: writes docs/figures.md and its plots.

use std::path::Path;
use std::process::ExitCode;

use integration_tests::bench::machine::Machine;
use integration_tests::figures::{crowd, fold, gigabits, page, write};
use integration_tests::{Error, chain};
use vmm::page::chart::Chart;

fn main() -> ExitCode {
    match figures() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn figures() -> Result<(), Error> {
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
    let plot = |name: &str, chart: &Chart| {
        let path = docs.join("figures").join(format!("{name}.svg"));
        write(&path, &chart.image())
    };
    eprintln!("many guests from one host to another …");
    let crowd = crowd::run()?;
    eprintln!("a dirty rate between the speeds of two links …");
    let folds = fold::run()?;
    eprintln!("guests of 4 and 8 GiB over 1 and 10 Gbit/s …");
    let gigabits = gigabits::run()?;
    let machine = Machine::this();
    let machine = format!(
        "This machine: {}, {} processors, {} GiB, Linux {}.",
        machine.processor,
        machine.cpus,
        machine.memory_bytes >> 30,
        // What a distribution adds says nothing.
        machine.kernel.split('-').next().unwrap_or_default()
    );
    plot("gigabits", &page::gigabits_chart(&gigabits))?;
    plot("fold", &page::fold_chart(&folds.rows))?;
    let text = page::page(&machine, &gigabits, &folds, &crowd);
    write(&docs.join("figures.md"), &text)?;
    println!("docs/figures.md and its plots are written");
    Ok(())
}
