//! What has become of the guest, asked of the guest, and what an operator would do then.

use std::thread;
use std::time::{Duration, Instant};

use guest_images::procmem::ProcMem;
use guest_images::verify;

use super::ends::{Destination, Ends, Source};
use super::fault::{Fault, Whom};
use super::lab::MIB;
use super::outcome::{Outcome, Violation};
use crate::Error;
use crate::ferry::Ferry;

/// Time for anything that is quick on an idle machine.
const STEP: Duration = Duration::from_secs(60);
/// How long a guest that runs may take to show a few heartbeats.
const BEATS: Duration = Duration::from_secs(3);
/// How long one that stands still is looked at.
const STILL: Duration = Duration::from_millis(200);

/// Who has the guest, and whether everybody has told the truth about it.
pub(super) struct Judge<'a> {
    pub fault: &'a Fault,
    pub source: Source,
    pub destination: Destination,
    /// Exit status of `ferry migrate`.
    pub status: Option<i32>,
    /// The destination is known to have run the guest.
    pub live: bool,
    pub outcome: &'a mut Outcome,
}

impl Judge<'_> {
    pub fn double(&mut self, how: String) {
        self.outcome.violate(Violation::Double, how);
    }

    /// Who has the guest in the end, which runs there; `None` if it is gone.
    pub fn keeper(&mut self, ends: &mut Ends) -> Result<Option<Whom>, Error> {
        let here = matches!(self.source, Source::Runs | Source::Unknown | Source::Odd)
            && beats(&ends.source, self.source == Source::Runs);
        let there = self.destination != Destination::Killed
            && beats(&ends.destination, self.destination == Destination::Runs);
        self.words(here, there);
        self.outcome.unknown = self.source == Source::Unknown;
        if here && there {
            self.double("both ends' guests beat after the move".into());
            return Ok(None);
        }
        if self.outcome.unknown {
            return self.recover(ends, there).map(Some);
        }
        if !here && !there {
            self.gone();
            return Ok(None);
        }
        let benign = self.outcome.missed || self.fault.act.is_harmless();
        if benign && self.destination != Destination::Runs {
            self.outcome.needless = true;
        }
        if self.source == Source::Runs {
            let status = ends.source.status()?;
            let reason = status["last_move"]["reason"].as_str();
            self.outcome.reason = reason.map(str::to_owned);
        }
        Ok(Some(if here {
            Whom::Source
        } else {
            Whom::Destination
        }))
    }

    /// Does what the manual says: look at the destination, then `stop` or `resume --force` here.
    fn recover(&mut self, ends: &mut Ends, there: bool) -> Result<Whom, Error> {
        let keeper = if there {
            ends.source.act("stop")?;
            ends.source.wait_end(STEP)?;
            Whom::Destination
        } else {
            let output = ends.source.command("resume", &["--force"])?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                self.outcome.violate(Violation::Lost, said);
            }
            Whom::Source
        };
        let ferry = match keeper {
            Whom::Source => &ends.source,
            _ => &ends.destination,
        };
        if beats(ferry, true) {
            self.outcome.recovered = true;
        } else {
            let how = format!("unknown, and {keeper:?} does not run it after the explicit command");
            self.outcome.violate(Violation::Lost, how);
        }
        Ok(keeper)
    }

    /// Nobody runs it. It is gone with its owner where that was killed: the source until the destination has run it.
    fn gone(&mut self) {
        let owner_killed = match (self.source, self.destination) {
            (Source::Killed, _) => !self.live,
            (Source::Left, Destination::Killed) => true,
            _ => false,
        };
        if owner_killed {
            self.outcome.killed_with_owner = true;
        } else {
            let how = format!(
                "nobody runs the guest: source {:?}, destination {:?}",
                self.source, self.destination
            );
            self.outcome.violate(Violation::Lost, how);
        }
    }

    /// What both ends and the exit status said is what is the case.
    fn words(&mut self, here: bool, there: bool) {
        let (source, destination) = (self.source, self.destination);
        let mut untrue = Vec::new();
        if (source == Source::Runs) != here {
            untrue.push(format!("the source is {source:?}, but beats: {here}"));
        }
        if (destination == Destination::Runs) != there {
            untrue.push(format!(
                "the destination is {destination:?}, but beats: {there}"
            ));
        }
        let told = match self.status {
            Some(0) => matches!(source, Source::Left | Source::Killed),
            Some(1) => matches!(source, Source::Runs),
            Some(4) => matches!(source, Source::Unknown | Source::Killed),
            // We have killed it, or its source.
            None => self.fault.act.target() == Some(Whom::Client),
            Some(_) => false,
        };
        if !told {
            untrue.push(format!(
                "ferry migrate ended with {:?}, the source is {source:?}",
                self.status
            ));
        }
        for how in untrue {
            self.outcome.violate(Violation::Untrue, how);
        }
    }
}

/// Whether the guest's heart beats in a process; looked at for longer if it should.
fn beats(ferry: &Ferry, expected: bool) -> bool {
    let Ok(memory) = ferry
        .memory()
        .or_else(|_| ProcMem::find_pulse(ferry.pid(), MIB << 20))
    else {
        return false;
    };
    let beat = || verify::status(&memory).ok().map(|status| status.beat);
    let Some(start) = beat() else {
        return false;
    };
    let limit = if expected { BEATS } else { STILL };
    let began = Instant::now();
    while began.elapsed() < limit {
        thread::sleep(Duration::from_millis(2));
        if beat().is_some_and(|now| now.wrapping_sub(start) >= 3) {
            return true;
        }
    }
    false
}
