//! Memory that comes in round by round, straight to where it belongs.

use super::ReceiveError;
use crate::event::Arrival;
use crate::guest::BlankGuest;
use crate::pages::MemoryLayout;
use crate::ram::RamView;
use crate::wire::channel::Channel;
use crate::wire::frame::Run;

/// A blank guest whose memory is being filled.
pub(super) struct Filling<B> {
    pub blank: B,
    layout: MemoryLayout,
    /// The round that is under way. A round's pages are complete before the next one's begin.
    round: u32,
    /// Its pages with bytes so far.
    pages: u64,
    /// Its zero pages so far.
    zero_pages: u64,
}

impl<B: BlankGuest> Filling<B> {
    pub fn new(blank: B, layout: MemoryLayout) -> Self {
        Self {
            blank,
            layout,
            round: 0,
            pages: 0,
            zero_pages: 0,
        }
    }

    /// Takes the bytes behind a PAGES frame straight into guest memory.
    pub fn pages(
        &mut self,
        round: u32,
        runs: &[Run],
        channel: &mut Channel,
    ) -> Result<(), ReceiveError> {
        self.pages += self.admit(round, runs, channel)?;
        let ram = RamView::new(self.blank.ram(), &self.layout)?;
        let mut places = Vec::with_capacity(runs.len());
        for &run in runs {
            places.push(ram.place(run).ok_or_else(|| outside(run, channel))?);
        }
        channel.receive_data(&mut places)?;
        Ok(())
    }

    pub fn zero(
        &mut self,
        round: u32,
        runs: &[Run],
        channel: &Channel,
    ) -> Result<(), ReceiveError> {
        self.zero_pages += self.admit(round, runs, channel)?;
        let ram = RamView::new(self.blank.ram(), &self.layout)?;
        for &run in runs {
            ram.clear(run).ok_or_else(|| outside(run, channel))?;
        }
        Ok(())
    }

    /// Checks that pages belong to this round, and that it has no more of them than the guest: each comes at
    /// most once in a round. Says how many they are.
    fn admit(&self, round: u32, runs: &[Run], channel: &Channel) -> Result<u64, ReceiveError> {
        self.same_round(round, channel)?;
        let more: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
        let total = self.pages + self.zero_pages + more;
        if total > self.layout.pages() {
            let all = self.layout.pages();
            let what = format!("{total} pages in round {round}, the guest has {all}");
            return Err(broken(channel, what));
        }
        Ok(more)
    }

    pub fn round_end(
        &mut self,
        round: u32,
        pages: u64,
        channel: &Channel,
    ) -> Result<Arrival, ReceiveError> {
        self.same_round(round, channel)?;
        let got = self.pages + self.zero_pages;
        if got != pages {
            return Err(broken(
                channel,
                format!("round {round} ends with {got} pages received, {pages} were sent"),
            ));
        }
        let done = Arrival::RoundFinished {
            index: round,
            pages: self.pages,
            zero_pages: self.zero_pages,
        };
        (self.pages, self.zero_pages) = (0, 0);
        self.round = self.round.saturating_add(1);
        Ok(done)
    }

    fn same_round(&self, round: u32, channel: &Channel) -> Result<(), ReceiveError> {
        if round == self.round {
            return Ok(());
        }
        Err(broken(
            channel,
            format!("pages of round {round} came in round {}", self.round),
        ))
    }
}

fn outside(run: Run, channel: &Channel) -> ReceiveError {
    broken(
        channel,
        format!(
            "{} pages from page {} on are not in one region of the guest's memory",
            run.pages, run.first
        ),
    )
}

fn broken(channel: &Channel, what: String) -> ReceiveError {
    ReceiveError::Pages {
        peer: channel.peer().to_owned(),
        what,
    }
}
