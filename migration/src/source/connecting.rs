//! First phase: reach the destination and agree on the guest. Nothing of the guest is touched until both
//! ends have agreed.

use std::time::{Duration, Instant};

use super::After;
use super::courier::answer;
use super::error::MoveError;
use super::precopy::Precopy;
use super::trip::{Failed, Trip, give_back, instead_of};
use crate::clock::{boot_id, millis, session_id};
use crate::event::Event;
use crate::guest::{Description, RunningGuest};
use crate::pages::PAGE_SIZE;
use crate::wire::channel::Channel;
use crate::wire::frame::{Frame, Hello};

/// The guest runs, nobody else knows of it.
pub(super) struct Connecting<G> {
    pub guest: G,
}

/// What both ends agreed on.
pub(super) struct Link {
    pub channel: Channel,
    pub description: Description,
    /// Both ends run on one kernel, so that their CLOCK_BOOTTIME is one clock.
    pub shared_clock: bool,
    /// The quickest answer to a PING so far.
    pub round_trip: Duration,
}

impl<G: RunningGuest> Connecting<G> {
    pub fn run(self, trip: &mut Trip<'_>) -> Result<Precopy<G>, Box<Failed<G>>> {
        let description = self.guest.describe();
        trip.report.memory_bytes = description.layout.bytes();
        let channel = match open(trip) {
            Ok(channel) => channel,
            // Nothing was started, so nothing needs stopping.
            Err(error) => {
                return Err(Box::new(Failed {
                    guest: After::Running(self.guest),
                    error,
                }));
            }
        };
        let mut link = Link {
            channel,
            description,
            shared_clock: false,
            round_trip: Duration::MAX,
        };
        if let Err(error) = link.agree(trip) {
            return Err(give_back(self.guest, Some(link.channel), error));
        }
        trip.report.setup_ms = millis(trip.started.elapsed());
        trip.tell(Event::Connected {
            peer: trip.target.name(),
            memory_bytes: link.description.layout.bytes(),
        });
        // Asking starts the measurement of the largest gap.
        trip.heartbeat = self.guest.heartbeat();
        trip.brownout_began = Some(Instant::now());
        match self.guest.dirty_log().start() {
            Ok(()) => Ok(Precopy::new(self.guest, link)),
            Err(error) => Err(give_back(self.guest, Some(link.channel), error.into())),
        }
    }
}

fn open(trip: &Trip<'_>) -> Result<Channel, MoveError> {
    let options = trip.options;
    let transport = trip.target.connect(options.connect_timeout, trip.cancel)?;
    let name = trip.target.name();
    Ok(Channel::new(
        transport,
        name,
        options.peer_timeout,
        trip.cancel,
    )?)
}

impl Link {
    fn agree(&mut self, trip: &mut Trip<'_>) -> Result<(), MoveError> {
        let channel = &mut self.channel;
        channel.greet()?;
        let boot = boot_id();
        channel.send(&Frame::Hello(Box::new(Hello {
            session: session_id(),
            boot: boot.unwrap_or_default(),
            streams: trip.options.streams.max(1),
            page_size: u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX),
            description: self.description.clone(),
        })))?;
        match channel.receive()? {
            Frame::Accept {
                boot: theirs,
                streams: _,
            } => self.shared_clock = boot == Some(theirs),
            frame => return Err(instead_of("ACCEPT", &frame, channel)),
        }
        self.measure_round_trip()
    }

    /// Asks three times on an idle connection and remembers the quickest answer.
    fn measure_round_trip(&mut self) -> Result<(), MoveError> {
        for number in 0..3 {
            let time = self.ping(number)?;
            self.round_trip = self.round_trip.min(time);
        }
        Ok(())
    }

    /// Waits until everything sent so far has arrived; says how long that took.
    pub fn ping(&mut self, number: u64) -> Result<Duration, MoveError> {
        let began = Instant::now();
        self.channel.send(&Frame::Ping(number))?;
        match answer(&mut self.channel)? {
            Frame::Pong(answer) if answer == number => Ok(began.elapsed()),
            frame => Err(instead_of("PONG", &frame, &self.channel)),
        }
    }
}
