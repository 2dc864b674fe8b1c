//! A guest saved into a file: a move to nobody. The rounds, the stop and the state are a move's, written in the same
//! frames; what is left out is everything that asks the other end. Then the guest goes on, and the end mark makes
//! the file whole.

use std::fs::File;
use std::time::{Duration, Instant};

use super::After;
use super::connecting::Link;
use super::error::MoveError;
use super::handover::Handover;
use super::precopy::Precopy;
use super::trip::{Failed, Trip, give_back, resume};
use crate::cancel::CancelToken;
use crate::clock::{boot_id, millis, session_id};
use crate::event::Event;
use crate::guest::{GuestError, PausedGuest, RunningGuest, survive};
use crate::options::Options;
use crate::pages::PAGE_SIZE;
use crate::report::{Blackout, BlackoutClock, Outcome, Report};
use crate::wire::Connected;
use crate::wire::channel::ChannelError;
use crate::wire::file::FileSink;
use crate::wire::frame::{Frame, Hello, SnapshotId};

/// What a guest does when its snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// It goes on as soon as its state is read; the file is finished meanwhile.
    #[default]
    No,
    /// It stays paused.
    Yes,
}

/// What is to be kept, and how.
#[derive(Debug)]
pub struct Keep {
    /// Where to: a file, empty, that stands at its beginning.
    pub file: File,
    /// What people call it.
    pub name: String,
    /// Only what was written since that snapshot, which the dirty log was left on for. That this is so is the caller's
    /// to know.
    pub base: Option<SnapshotId>,
    /// The dirty log stays on afterwards, so that the next snapshot can stand on this one.
    pub track: bool,
    /// What becomes of the guest.
    pub hold: Hold,
}

/// Where the guest is.
pub enum Kept<G: RunningGuest> {
    /// It runs. The log is on if that was asked for and the snapshot was taken, else off.
    Running(G),
    /// It is paused, as was asked for; its snapshot is whole.
    Paused(G::Paused),
    /// It could not be resumed.
    Stuck(G::Paused, GuestError),
}

/// An attempt to take a snapshot, over.
pub struct Snapshotted<G: RunningGuest> {
    /// What it was like; names are those of a move.
    pub report: Report,
    /// Where the guest is.
    pub guest: Kept<G>,
    /// The snapshot's name, or why there is none. What is in the file then is of no use.
    pub id: Result<SnapshotId, MoveError>,
}

/// Saves a running guest into a file.
///
/// It runs meanwhile, but for the stop at the end, in which the last pages and the state are written. Whatever goes
/// wrong, it runs on.
pub fn snapshot<G: RunningGuest>(
    guest: G,
    keep: Keep,
    options: &Options,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Event),
) -> Snapshotted<G> {
    let options = Options {
        // One file, and nobody on the other side who could compare.
        streams: 1,
        verify: false,
        ..options.clone()
    };
    let Keep {
        file,
        name,
        base,
        track,
        hold,
    } = keep;
    let id = session_id();
    let target = Connected::new(FileSink::new(file), name.clone());
    let mut trip = Trip::new(&target, &options, cancel, events);
    let beginning = Beginning { guest, id, base };
    let taken = beginning.run(&mut trip).and_then(|precopy| {
        let handover = precopy.run(&mut trip)?.run(&mut trip)?;
        Ending { handover, track }.run(hold, &mut trip)
    });
    match taken {
        Ok(guest) => {
            trip.set_totals();
            let mut report = trip.report;
            report.outcome = Outcome::Completed;
            Snapshotted {
                report,
                guest,
                id: Ok(id),
            }
        }
        Err(failed) => {
            let Failed { guest, error } = *failed;
            let error = of_a_file(error, &name);
            let failed = Failed { guest, error };
            let report = trip.failed(&failed);
            Snapshotted {
                report,
                guest: match failed.guest {
                    After::Running(guest) => Kept::Running(guest),
                    After::Stuck(guest, error) => Kept::Stuck(guest, error),
                    // Neither happens without GO.
                    After::Gone(guest) | After::Unknown(guest) => Kept::Paused(guest),
                },
                id: Err(failed.error),
            }
        }
    }
}

/// What a connection's error means where there is a file instead.
fn of_a_file(error: MoveError, name: &str) -> MoveError {
    match error {
        MoveError::Channel(ChannelError::Io { source, .. }) => MoveError::File {
            name: name.to_owned(),
            source,
        },
        error => error,
    }
}

/// The guest runs; nothing is written yet.
struct Beginning<G> {
    guest: G,
    id: SnapshotId,
    base: Option<SnapshotId>,
}

impl<G: RunningGuest> Beginning<G> {
    /// Writes what the guest is, and has its dirty log on.
    fn run(self, trip: &mut Trip<'_>) -> Result<Precopy<G>, Box<Failed<G>>> {
        let description = self.guest.describe();
        trip.baseline = self.guest.work().map(|work| (work, Instant::now()));
        trip.report.memory_bytes = description.layout.bytes();
        let mut link = match survive(|| Link::open(trip, description)) {
            Ok(link) => link,
            // The log may be on for this.
            Err(error) => return Err(give_back(self.guest, None, error)),
        };
        link.main.kept = true;
        match survive(|| self.begin(&mut link, trip)) {
            Ok(first) => Ok(Precopy::new(self.guest, link, first, trip.options)),
            Err(error) => Err(give_back(self.guest, Some(link), error)),
        }
    }

    /// Gives the number of the first round.
    fn begin(&self, link: &mut Link, trip: &mut Trip<'_>) -> Result<u32, MoveError> {
        let channel = &mut link.main.channel;
        channel.begin()?;
        channel.send(&Frame::Snapshot {
            id: self.id,
            base: self.base,
        })?;
        channel.send(&Frame::Hello(Box::new(Hello {
            session: self.id,
            boot: boot_id().unwrap_or_default(),
            streams: 1,
            by_descriptor: false,
            verify: false,
            page_size: u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX),
            description: link.description.clone(),
        })))?;
        trip.heartbeat = self.guest.heartbeat();
        trip.brownout_began = Some(Instant::now());
        trip.report.setup_ms = millis(trip.started.elapsed());
        let log = self.guest.dirty_log();
        trip.report.dirty_tracking = Some(log.tracking());
        trip.report.streams = 1;
        let first = match self.base {
            None => {
                log.start()?;
                0
            }
            // Round 0 is what the base has.
            Some(_) => {
                let (round, pages) = (0, 0);
                channel.send(&Frame::RoundEnd { round, pages })?;
                1
            }
        };
        trip.tell(Event::Connected {
            peer: trip.target.name(),
            memory_bytes: link.description.layout.bytes(),
        });
        Ok(first)
    }
}

/// The guest is paused, and all of it is written but for the end mark.
struct Ending<G: RunningGuest> {
    handover: Handover<G>,
    track: bool,
}

impl<G: RunningGuest> Ending<G> {
    fn run(self, hold: Hold, trip: &mut Trip<'_>) -> Result<Kept<G>, Box<Failed<G>>> {
        let track = self.track;
        let Handover {
            paused,
            mut link,
            spent,
        } = self.handover;
        // All that the guest stood still for is written.
        link.hurry(spent.began, None);
        let parts = Blackout {
            stop_vcpus_ms: millis(spent.stop),
            final_dirty_sync_ms: millis(spent.sync),
            final_pages_ms: millis(spent.pages),
            save_state_ms: millis(spent.save),
            ..Blackout::default()
        };
        if hold == Hold::Yes {
            return match survive(|| finish(&mut link, trip)) {
                Ok(()) => Ok(Kept::Paused(paused)),
                Err(error) => Err(resume(paused, Some(link), error, trip)),
            };
        }
        let resuming = Instant::now();
        let guest = match paused.resume() {
            Ok(guest) => guest,
            Err(stuck) => {
                let error = GuestError::bare("the snapshot was broken off").into();
                return Err(Box::new(Failed {
                    guest: After::Stuck(stuck.guest, stuck.error),
                    error,
                }));
            }
        };
        let (total, resumed) = (spent.began.elapsed(), resuming.elapsed());
        guest.throttle(&[], Duration::ZERO);
        trip.account_work(spent.began + total);
        let known = spent.stop + spent.sync + spent.pages + spent.save + resumed;
        trip.report.blackout_ms = Some(millis(total));
        trip.report.blackout = Some(Blackout {
            send_state_ms: millis(total.saturating_sub(known)),
            resume_ms: millis(resumed),
            ..parts
        });
        trip.report.blackout_clock = Some(BlackoutClock::Shared);
        trip.tell(Event::Live {
            blackout_ms: millis(total),
        });
        if !track && let Err(error) = guest.dirty_log().stop() {
            tracing::warn!("the dirty log stays on: {}", super::chain(&error));
        }
        match survive(|| finish(&mut link, trip)) {
            Ok(()) => Ok(Kept::Running(guest)),
            Err(error) => Err(give_back(guest, Some(link), error)),
        }
    }
}

/// Writes the end mark, and waits until all is on the disk. A cancel that comes before that leaves no snapshot.
fn finish(link: &mut Link, trip: &mut Trip<'_>) -> Result<(), MoveError> {
    let channel = &mut link.main.channel;
    if let Some(kept) = channel.kept() {
        let (bytes, digest) = (kept.bytes, kept.digest);
        channel.send(&Frame::End { bytes, digest })?;
    }
    channel.settle()?;
    link.account(&mut trip.report);
    Ok(trip.cancel.commit()?)
}
