//! `make demo`: moves a stock Linux guest between two hosts while somebody talks to it.
//!
//! ```text
//!  world: echo client --- br0 ------------------+
//!                          |                    |
//!  host A (a namespace)   br0 - tap0 - guest   br0 - tap0 - (guest, later)   host B (a namespace)
//!                          10.9.0.1 ---- link ---- 10.9.0.2
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use integration_tests::ferry::{Agent, EchoClient, EchoCount, Image, LinuxGuest, Ticks, World};
use integration_tests::nested::{self, Options, Place};
use integration_tests::{Error, chain, programs};
use serde_json::{Value, json};

/// What is generous for one step on a slow machine.
const STEP: Duration = Duration::from_secs(60);
/// The whole demo is meant to take less than six minutes; hung, it ends here.
const WHOLE: Duration = Duration::from_secs(350);

/// Moves a running Linux guest from one host to another, with a TCP connection to it that must not notice.
#[derive(Parser)]
struct Cli {
    /// Where the report of the move goes, with what the demo saw added
    #[arg(long, value_name = "FILE", default_value_os_t = default_report())]
    report: PathBuf,
}

fn default_report() -> PathBuf {
    programs::target()
        .unwrap_or_else(|| "target".into())
        .join("demo/report.json")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let place = Place::choose();
    let result = match place {
        Place::Native(_) => here(&cli.report),
        Place::Nested(_) => {
            println!("{place}");
            inside(&cli.report)
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The same program with the same arguments, in a nested host that can write the report.
fn inside(report: &Path) -> Result<bool, Error> {
    let folder = report.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    let words = ["--report", &report.to_string_lossy()];
    let ended = nested::enter_with(
        &words,
        &Options {
            share: Some(folder.to_owned()),
            timeout: WHOLE,
            ..Options::new(programs::nested_host()?)
        },
    )?;
    Ok(ended.status() == 0)
}

/// What the demo saw, beside Ferry's own report.
struct Seen {
    report: Value,
    echoes: EchoCount,
    checksum_ok: bool,
    uptime_goes_on: bool,
}

fn here(report: &Path) -> Result<bool, Error> {
    let seen = act()?;
    let verdict = seen.verdict();
    let mut whole = seen.report;
    whole["demo"] = json!({
        "echoes_sent": seen.echoes.sent,
        "echoes_lost": seen.echoes.lost,
        "connection_survived": seen.echoes.connection_survived,
        "checksum_ok": seen.checksum_ok,
        "network_gap_ms": seen.echoes.largest_gap_ms,
    });
    if let Some(folder) = report.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    fs::write(report, format!("{whole:#}\n")).map_err(|e| Error::file("write", report, e))?;
    println!("report: {}", report.display());
    Ok(verdict)
}

fn act() -> Result<Seen, Error> {
    let start = Instant::now();
    let say = |text: &str| println!("[{:5.1} s] {text}", start.elapsed().as_secs_f64());

    let mut guest = LinuxGuest::new(Image::built("cloud")?);
    guest.append = "agent.ws=64 agent.rate=2000".into();
    let world = World::new(1)?;
    say("two hosts (network namespaces) with a link between them, and a bridge that both are on");
    let source = guest.boot(Some(&world.a))?;
    say("a stock Debian kernel runs on host A and dirties 2,000 pages/s");

    let agent = Agent::new(&world.world, 0);
    let before = agent.ask("status", STEP)?;
    let echo = EchoClient::start(&world.world, agent.echo_address()?, STEP)?;
    echo.wait_more(200, STEP)?;
    say("a TCP connection to the guest carries an echo every 10 ms");

    let peer = format!("{}:4700", World::B);
    let destination = guest.receive(&world.b, &peer)?;
    say("host B waits for the guest; moving it now");
    let moved = source
        .migrate(&format!("tcp:{peer}"), &["--insecure-plaintext"])?
        .completed()?;
    println!("\n{}\n", moved.stdout.trim());
    say("the guest runs on host B");

    echo.wait_more(200, STEP)?;
    let check = agent.ask("check", STEP)?;
    let after = agent.ask("status", STEP)?;
    let echoes = echo.finish(STEP);
    let ticks = Ticks::unbroken(&[source.console().text(), destination.console().text()])
        .inspect_err(|error| eprintln!("demo: {error}"));
    let uptime = |status: &Value| status["uptime_s"].as_f64().unwrap_or(f64::NAN);
    Ok(Seen {
        report: moved.report,
        echoes,
        checksum_ok: check["ok"] == true && after["mismatches"] == 0,
        uptime_goes_on: uptime(&after) > uptime(&before) && ticks.is_ok(),
    })
}

impl Seen {
    /// Prints what was to be shown and whether it was.
    fn verdict(&self) -> bool {
        let EchoCount {
            sent,
            lost,
            repeated,
            late,
            largest_gap_ms,
            connection_survived,
            ..
        } = self.echoes;
        let points = [
            (
                connection_survived,
                "the same TCP connection lives on".to_owned(),
            ),
            (
                lost == 0 && repeated == 0,
                format!(
                    "{sent} echoes sent, {lost} lost, {repeated} repeated, {late} late; largest gap {largest_gap_ms} ms"
                ),
            ),
            (
                self.checksum_ok,
                "the agent finds every page of its memory as it left it".to_owned(),
            ),
            (
                self.uptime_goes_on,
                "uptime goes on, no tick is missing or repeated".to_owned(),
            ),
        ];
        for (holds, text) in &points {
            println!("{}  {text}", if *holds { "ok  " } else { "FAIL" });
        }
        points.iter().all(|(holds, _)| *holds)
    }
}
