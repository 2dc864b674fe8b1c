//! One row: boot, fill, warm, move, verify; the same for every program.

use std::thread;
use std::time::Duration;

use guest_images::verify::{self, Mode};

use super::cpu::{self, CpuClock};
use super::ferry::FerryPair;
use super::guest_ram::{GuestRam, Unstable};
use super::limits::populate;
use super::qemu::QemuPair;
use super::witness::Witness;
use super::work;
use super::{Fill, Place, Row, Scenario, Setting, Temperature, machine};
use crate::qemu::Package;
use crate::{Error, chain};

/// Seed of the guest's memory.
const SEED: u64 = 0x0f0e_0d0c;
/// How long heartbeats are watched before and after the move, to have them on the host's clock.
const MARGIN: Duration = Duration::from_millis(100);
/// Time for a source to end, that is to free its memory.
const STEP: Duration = Duration::from_secs(60);
/// As far as guest memory goes in one piece, in Ferry: 3 GiB.
const LOW: u64 = 3 << 30;

/// A guest in one process, and another process of the same program that waits for it.
pub trait Pair {
    /// The process that has the guest.
    fn source(&self) -> u32;
    /// The process that will have it.
    fn destination(&self) -> u32;
    /// The program's version.
    ///
    /// # Errors
    /// It cannot be asked.
    fn version(&self) -> Result<String, Error>;
    /// The guest's memory, before the move.
    ///
    /// # Errors
    /// It is not found.
    fn source_ram(&self) -> Result<GuestRam, Error>;
    /// The guest's memory, after the move.
    ///
    /// # Errors
    /// It is not found.
    fn destination_ram(&self) -> Result<GuestRam, Error>;
    /// Moves the guest; returns as soon as it lives on the destination.
    ///
    /// # Errors
    /// It does not, or not in time.
    fn migrate(&mut self) -> Result<Told, Failure>;
    /// Ends the source, if it does not do that by itself.
    ///
    /// # Errors
    /// It does not listen.
    fn end_source(&mut self) -> Result<(), Error>;
    /// Stops the guest on the destination.
    ///
    /// # Errors
    /// It does not listen.
    fn stop_destination(&mut self) -> Result<(), Error>;
}

/// What a program says of a move; see [`Row`] for the fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "a part of Row, which describes them")]
pub struct Told {
    pub wall_ms: f64,
    pub blackout_ms: f64,
    pub reported_gap_ms: Option<f64>,
    pub predicted_blackout_ms: Option<f64>,
    pub wire_bytes: u64,
    pub rounds: u64,
    pub streams: u64,
}

/// Why there is no row.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The guest did not arrive as it left.
    #[error("VERIFICATION FAILED: {scenario} moved by {program} ({setting}): {what}")]
    Lost {
        /// Which guest.
        scenario: &'static str,
        /// By which program.
        program: &'static str,
        /// In which setting.
        setting: String,
        /// What is wrong with it.
        what: String,
    },
    /// The move was still going on when it was ended.
    #[error("the move was still going on after {after:?}, {rounds} rounds and {wire_bytes} bytes")]
    Endless {
        /// When.
        after: Duration,
        /// Passes over the guest's memory until then.
        rounds: u64,
        /// Bytes sent until then.
        wire_bytes: u64,
    },
    /// A program did not do what it was asked.
    #[error("{0}")]
    Program(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Program(error)
    }
}

/// Makes one move and verifies it.
///
/// # Errors
/// A program does not do what it was asked; or the guest's memory is not what it has to be.
pub fn run(
    scenario: &Scenario,
    setting: &Setting,
    qemu: &Package,
    place: &Place,
    run: u32,
) -> Result<Row, Failure> {
    let mut pair: Box<dyn Pair> = match setting {
        Setting::Ferry(setting) => Box::new(FerryPair::start(scenario, setting, place)?),
        Setting::Qemu(setting) => Box::new(QemuPair::start(qemu, scenario, setting, place)?),
    };
    let shared = matches!(setting, Setting::Ferry(ferry) if !ferry.memory.is_empty());
    let ram = pair.source_ram()?;
    ram.fill(scenario.fill, SEED)?;
    let unstable = Unstable::of(&ram)?;
    let digest = ram.digest(&unstable, shared)?;
    let memory = ram.open()?;
    let lost = |what: String| Failure::Lost {
        scenario: scenario.name,
        program: setting.program(),
        setting: setting.name().to_owned(),
        what,
    };
    let before = verify::status(&memory).map_err(|e| lost(chain(&e)))?;

    // Before memory is warmed: it does not stay so.
    let usual_rate = work::usual_rate(&memory);

    let bytes = scenario.mib << 20;
    let probe = match scenario.temperature {
        // What is never touched need not be warm.
        Temperature::Warm if scenario.fill == Fill::Untouched => populate::warm(0),
        Temperature::Warm => populate::warm(bytes),
        Temperature::Cold => populate::rested(),
    }
    .map_err(|e| Error::file("populate", "memory".as_ref(), e))?;
    let (source, destination) = (pair.source(), pair.destination());
    let witness = Witness::begin(memory, source, destination, bytes.min(LOW))?;
    thread::sleep(MARGIN);
    let clocks = (CpuClock::of(source)?, CpuClock::of(destination)?);
    let began = (clocks.0.now()?, clocks.1.now()?);

    let told = pair.migrate()?;

    let destination_cpu = clocks.1.now()?.saturating_sub(began.1);
    let destination_rss = cpu::peak_rss(destination).unwrap_or_default();
    let destination_huge = cpu::huge_pages(destination).unwrap_or_default();
    pair.end_source()?;
    let source_cpu = clocks.0.at_the_end(STEP)?.saturating_sub(began.0);
    thread::sleep(MARGIN);
    let seen = witness.end()?;
    drop(probe.held);

    pair.stop_destination()?;
    let arrived = pair.destination_ram()?;
    let summary = verify::check(&arrived.open()?, Mode::Stopped).map_err(|e| lost(chain(&e)))?;
    if summary.beat().wrapping_sub(before.beat).cast_signed() < 0 {
        return Err(lost("its heartbeats went back".to_owned()));
    }
    let arrived = arrived.digest(&unstable, shared)?;
    if let Some(gpa) = digest.first_difference(&arrived) {
        return Err(lost(format!(
            "memory differs, first in the 2 MiB from {gpa:#x} on"
        )));
    }
    Ok(Row {
        scenario: scenario.name,
        program: setting.program(),
        setting: setting.name().to_owned(),
        version: pair.version()?,
        run,
        wall_ms: told.wall_ms,
        blackout_ms: told.blackout_ms,
        guest_gap_ms: seen.gap.as_secs_f64() * 1e3,
        heartbeats_missed: seen.missed,
        guest_work_lost_percent: usual_rate
            .and_then(|rate| seen.work.lost_percent(rate, told.wall_ms, told.blackout_ms)),
        reported_gap_ms: told.reported_gap_ms,
        predicted_blackout_ms: told.predicted_blackout_ms,
        wire_bytes: told.wire_bytes,
        rounds: told.rounds,
        streams: told.streams,
        cpu_s_source: source_cpu.as_secs_f64(),
        cpu_s_destination: destination_cpu.as_secs_f64(),
        source_rss_bytes: seen.source_rss,
        destination_rss_bytes: destination_rss,
        memory_bytes: bytes,
        link: scenario.link.name(),
        temperature: match setting.touched() {
            true => "touched",
            false => scenario.temperature.name(),
        },
        huge_pages: machine::huge_pages(),
        destination_huge_page_bytes: destination_huge,
        populate_bytes_per_s: probe.one,
        populate_2_bytes_per_s: probe.two,
        verified: true,
        stamped_pages: summary.pages_checked,
        digest: arrived.text(),
    })
}
