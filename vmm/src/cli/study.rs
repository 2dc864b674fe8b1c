//! `ferry study`: runs a sweep of moves and sums it up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;
use std::os::fd::AsFd;
use thiserror::Error;

use super::error::Failure;
use super::exit;
use crate::console::Signals;
use crate::log;
use crate::page;
use crate::study::case::Case;
use crate::study::place::{Place, Shaping};
use crate::study::sheet;
use crate::study::spec::{Spec, SpecError};
use crate::study::store::{self, Record, Store, StoreError};
use crate::study::summary::Summary;
use crate::study::trial::{self, TrialError};
use crate::ui::Style;
use crate::ui::millis;

/// Run a declared sweep of real moves of test guests on this machine, and draw what came of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The file is TOML, or JSON if it ends in .json. Every key of a sweep takes a value or a list; all
combinations are run:
  [[sweep]]
  name = \"uniform\"
  memory = \"512M\"              # 512M
  working_set = \"256M\"         # 256M
  pattern = [\"uniform\", \"sweep\", \"zipf\"]
  phases = \"1s:2s\"             # writing and resting; without it, no rest
  dirty_rate = [0, \"0.5x\", \"2x\", \"400MB/s\", \"max\"]    # x: times what the link carries
  writers = 1                  # vCPUs that share this
  computing = 1                # vCPUs that only compute
  link = [\"1Gbit\", \"loopback\"]
  throttle = [\"auto\", \"auto-converge\", \"off\"]
  downtime = [\"50ms\", \"300ms\"]
  streams = 2
  dirty_tracking = \"bitmap\"    # or ring
  timeout = \"120s\"
  on_timeout = \"cancel\"        # or switch
  predict = true               # predict each move first
  repeats = 3

The folder gets moves.csv, summary.json, index.html and a file a move. A study that was interrupted
goes on where it was; moves that failed are rows with their reasons. Links are made by htb between
network namespaces as root, by --bandwidth else.

Exit status: 0 all moves were made, 1 error or a guest that did not arrive whole, 2 usage, 3
interrupted.")]
pub struct Args {
    /// The sweep
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Where everything goes [default: the file's name without its ending]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Make moves anew that were made before
    #[arg(long)]
    again: bool,

    /// Only say what would be run
    #[arg(long)]
    list: bool,

    /// How links get their speed [default: htb as root, cap else]
    #[arg(long, value_name = "HOW", value_enum)]
    shaping: Option<ShapingFlag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ShapingFlag {
    /// The kernel's htb, between two network namespaces
    Htb,
    /// Ferry's own --bandwidth, over loopback
    Cap,
}

/// What ends a study.
#[derive(Debug, Error)]
enum StudyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot write the table")]
    Table(#[from] csv::Error),
    #[error("cannot write the summary")]
    Summary(#[from] serde_json::Error),
    #[error(
        "{0} of the guests did not arrive whole: see the moves that are marked so, and keep their files"
    )]
    Lost(usize),
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let spec = Spec::read(&self.file).map_err(|error| match error {
            SpecError::Read { .. } => Failure::error(error),
            _ => Failure::usage(error),
        })?;
        let cases: Vec<&Case> = spec.cases().collect();
        if self.list {
            for case in &cases {
                println!("{}", case.slug());
            }
            return Ok(exit::OK);
        }
        let folder = self
            .out
            .clone()
            .unwrap_or_else(|| self.file.with_extension(""));
        let folder = match folder == self.file {
            true => folder.with_extension("study"),
            false => folder,
        };
        self.study(&spec, &cases, &folder).map_err(Failure::error)
    }

    fn study(&self, spec: &Spec, cases: &[&Case], folder: &Path) -> Result<u8, StudyError> {
        let stop = Arc::new(AtomicBool::new(false));
        watch_signals(stop.clone()).map_err(StudyError::Signals)?;
        let store = Store::open(folder)?;
        let made_by = store::maker(self.shaping(), &machine())?;
        // The others' figures say nothing of this program on this machine.
        let (ours, others): (Vec<_>, Vec<_>) = cases
            .iter()
            .filter_map(|case| store.get(case))
            .partition(|record| record.made_by == made_by);
        if !others.is_empty() && !self.again {
            let (count, folder) = (others.len(), folder.display());
            log::complain(&format!(
                "{count} moves in {folder} are of another build, machine or shaping, and are made anew"
            ));
        }
        let mut view = View::new(cases.len());
        let mut records = Vec::new();
        let mut place = None;
        for (number, case) in cases.iter().enumerate() {
            let kept = ours.iter().find(|record| record.case == **case);
            if let Some(record) = kept.filter(|_| !self.again) {
                view.kept();
                records.push(record.clone());
                continue;
            }
            view.begin(number, case);
            let made = make(case, &mut place, self.shaping(), &stop, &mut view);
            if matches!(made, Err(TrialError::Interrupted)) || stop.load(Ordering::Relaxed) {
                break;
            }
            let record = Record::of(case, &made_by, made);
            store.put(&record)?;
            view.done(number, &record);
            records.push(record);
        }
        drop(place);
        view.finish();
        let summary = Summary::of(&spec.title, &records);
        store.write("moves.csv", &sheet::csv(&records)?)?;
        store.write("summary.json", &serde_json::to_vec_pretty(&summary)?)?;
        let html = page::study::page(&summary, &records, &machine());
        let page = store.write("index.html", html.as_bytes())?;
        print!("{}", crate::ui::study_table(&summary, Style::of_stdout()));
        println!("\nThe page: {}", page.display());
        let lost = records.iter().filter(|record| record.lost).count();
        if lost > 0 {
            return Err(StudyError::Lost(lost));
        }
        if records.len() < cases.len() {
            eprintln!(
                "interrupted: {} of {} moves are kept; the same command goes on from there",
                records.len(),
                cases.len()
            );
            return Ok(exit::CANCELLED);
        }
        Ok(exit::OK)
    }

    fn shaping(&self) -> Shaping {
        match self.shaping {
            Some(ShapingFlag::Htb) => Shaping::Htb,
            Some(ShapingFlag::Cap) => Shaping::Cap,
            None if Uid::effective().is_root() => Shaping::Htb,
            None => Shaping::Cap,
        }
    }
}

/// Makes a move, at the place of the one before if that has the same link.
fn make(
    case: &Case,
    place: &mut Option<Place>,
    shaping: Shaping,
    stop: &AtomicBool,
    view: &mut View,
) -> Result<trial::Made, TrialError> {
    let fits = |place: &Place| place.link == case.link;
    let here = match place.take().filter(fits) {
        Some(place) => place,
        None => Place::make(case.link, shaping)?,
    };
    let here = place.insert(here);
    trial::run(case, here, stop, &mut |step| view.step(step))
}

/// From the first signal on, the study ends as soon as it can; a second one ends it at once.
fn watch_signals(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    // Before any thread, so that no thread takes a signal the old way.
    let signals = Signals::block()?;
    let watch = move || {
        for _ in 0..2 {
            while signals.take().is_none() {
                let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(exit::CANCELLED));
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .map(drop)
}

/// What the figures are of.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let name = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name
        .unwrap_or("an unknown processor")
        .trim_start_matches(['\t', ' ', ':']);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "Measured on {name}, {cpus} processors, Linux {}.",
        kernel.trim()
    )
}

/// Progress: a bar on a terminal, a line a move everywhere.
struct View {
    bar: ProgressBar,
    total: usize,
    made: u32,
    began: Instant,
    title: String,
    style: Style,
}

impl View {
    fn new(total: usize) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(5);
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{pos:>4}/{len} [{bar:24.cyan}] {wide_msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            total,
            made: 0,
            began: Instant::now(),
            title: String::new(),
            style: Style::of_stderr(),
        }
    }

    /// A move that was made before.
    fn kept(&mut self) {
        self.bar.inc(1);
    }

    fn begin(&mut self, number: usize, case: &Case) {
        self.bar.set_position(number as u64);
        self.title = format!("{}: {}", case.policy(), case.title());
    }

    fn step(&mut self, step: &str) {
        let left = match self.made {
            0 => String::new(),
            made => {
                let each = self.began.elapsed() / made;
                let left = u32::try_from(self.total).unwrap_or(u32::MAX) - self.bar_position();
                format!(
                    ", about {} left",
                    millis((each * left).as_secs_f64() * 1000.0)
                )
            }
        };
        self.bar
            .set_message(format!("{} ({step}{left})", self.title));
    }

    fn bar_position(&self) -> u32 {
        u32::try_from(self.bar.position())
            .unwrap_or(u32::MAX)
            .min(u32::try_from(self.total).unwrap_or(u32::MAX))
    }

    fn done(&mut self, number: usize, record: &Record) {
        self.made += 1;
        self.bar.set_position(number as u64 + 1);
        let line = crate::ui::study_line(number + 1, self.total, record, self.style);
        match self.bar.is_hidden() {
            true => eprintln!("{line}"),
            false => self.bar.println(line),
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
