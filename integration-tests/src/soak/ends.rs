//! Both ends of a move that was disturbed: waited for, and asked what has become of them.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use vmm::control::State;
use vmm::control::client::Client;

use super::fault::{Act, Whom};
use super::injector::Injector;
use crate::Error;
use crate::ferry::Ferry;

/// What became of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// It says that it runs the guest.
    Runs,
    /// It does not know.
    Unknown,
    /// It has ended because the guest has left.
    Left,
    /// We have killed it.
    Killed,
    /// Anything else, after all time was given.
    Odd,
}

/// What became of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// It says that it runs the guest.
    Runs,
    /// It waits for another, or has ended without.
    Empty,
    /// We have killed it.
    Killed,
    /// Anything else, after all time was given.
    Odd,
}

/// Both VMMs of a move.
pub(super) struct Ends {
    pub source: Ferry,
    pub destination: Ferry,
    /// Which of them we have killed.
    pub killed: Option<Whom>,
}

impl Ends {
    /// Waits for the end of `ferry migrate`. A process that the fault has frozen is killed once the others have come to
    /// rest.
    pub fn wait_client(
        &mut self,
        client: &mut Child,
        act: Act,
        injector: &Injector,
        patience: Duration,
    ) -> Result<Option<i32>, Error> {
        let began = Instant::now();
        let mut frozen = act.freezes();
        loop {
            let ended = client.try_wait();
            let ended = ended.map_err(|e| Error::file("wait for", "ferry migrate".as_ref(), e))?;
            if let (Some(to), true) = (frozen, injector.fired())
                && (ended.is_some() || self.others_rest(to) || began.elapsed() > patience)
            {
                match to {
                    Whom::Source => self.source.kill(),
                    Whom::Destination => self.destination.kill(),
                    Whom::Client => drop(client.kill()),
                }
                self.killed = Some(to);
                frozen = None;
            }
            if let Some(status) = ended {
                return Ok(status.code());
            }
            if began.elapsed() > 2 * patience {
                // What is wrong is seen by what becomes of the guest.
                let _ = client.kill();
                let _ = client.wait();
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The fault's signal was sent: whom it was to end, or has frozen, is dead from here on.
    pub fn fallen(&mut self, act: Act) {
        match act.kills() {
            Some(Whom::Source) => self.source.kill(),
            Some(Whom::Destination) => self.destination.kill(),
            Some(Whom::Client) | None => {}
        }
        self.killed = act.kills();
    }

    /// Whether those who are not frozen wait for nothing any more.
    fn others_rest(&mut self, frozen: Whom) -> bool {
        match frozen {
            Whom::Source => matches!(
                self.destination(),
                Some(Destination::Runs | Destination::Empty)
            ),
            // The end of the client says so.
            Whom::Destination => false,
            Whom::Client => self.source().is_some(),
        }
    }

    /// Where both come to rest.
    pub fn settle(&mut self, patience: Duration) -> (Source, Destination) {
        let deadline = Instant::now() + patience;
        loop {
            let (source, destination) = (self.source(), self.destination());
            if let (Some(source), Some(destination)) = (source, destination) {
                return (source, destination);
            }
            if Instant::now() > deadline {
                return (
                    source.unwrap_or(Source::Odd),
                    destination.unwrap_or(Destination::Odd),
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the source is, unless it is under way to that.
    fn source(&mut self) -> Option<Source> {
        if let Some(status) = self.source.ended() {
            let left = status.code() == Some(0);
            return Some(match self.killed {
                Some(Whom::Source) if !left => Source::Killed,
                _ if left => Source::Left,
                _ => Source::Odd,
            });
        }
        match Client::new(&self.source.control()).status().ok()?.state {
            State::Running => Some(Source::Runs),
            State::Unknown => Some(Source::Unknown),
            _ => None,
        }
    }

    fn destination(&mut self) -> Option<Destination> {
        if self.destination.ended().is_some() {
            return Some(match self.killed {
                Some(Whom::Destination) => Destination::Killed,
                _ => Destination::Odd,
            });
        }
        match Client::new(&self.destination.control())
            .status()
            .ok()?
            .state
        {
            State::Running => Some(Destination::Runs),
            State::Waiting => Some(Destination::Empty),
            _ => None,
        }
    }
}
