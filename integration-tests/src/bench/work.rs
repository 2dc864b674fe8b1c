//! How much less a guest does because it is moved, counted in its memory from outside.
//!
//! Pulse counts the pages that it has written. What it writes in two seconds before the move is its usual rate; how far
//! the count in the source's memory came during the move is what it did. Both are read past the program that moves
//! it, and the move lasts from its command to its end, by the program's own report of how long that took.

use std::thread;
use std::time::{Duration, Instant};

use guest_images::ReadGuest;
use guest_images::pulse::{VCPU_GPA, Vcpu};

/// How long the guest is watched for its usual rate.
const WATCHED: Duration = Duration::from_secs(2);
/// Between two entries of a tally that are kept.
const SPACING: Duration = Duration::from_millis(2);

/// What vCPU 0 of the guest has done; None where there is no guest any more.
pub fn done(memory: &impl ReadGuest) -> Option<u64> {
    vcpu(memory).map(|vcpu| vcpu.pages_written)
}

fn vcpu(memory: &impl ReadGuest) -> Option<Vcpu> {
    let mut page = [0; 4096];
    // All that pulse keeps there is in the first two lines; the rest of the page stays zero.
    memory.read(VCPU_GPA, &mut page[..128]).ok()?;
    Vcpu::parse(&page).ok()
}

/// Pages written in a second while nothing is done to the guest; None of one that writes none. Takes two seconds.
pub fn usual_rate(memory: &impl ReadGuest) -> Option<f64> {
    vcpu(memory).filter(|vcpu| vcpu.ws_pages > 0)?;
    let (before, began) = (done(memory)?, Instant::now());
    thread::sleep(WATCHED);
    let after = done(memory)?;
    let rate = after.saturating_sub(before) as f64 / began.elapsed().as_secs_f64();
    (rate > 0.0).then_some(rate)
}

/// The guest's count on the source, when it was seen to grow.
#[derive(Debug, Clone, Default)]
pub struct Tally(Vec<(Instant, u64)>);

impl Tally {
    /// The count at a moment. The newest is always kept, of the others one every two milliseconds.
    pub fn note(&mut self, at: Instant, done: u64) {
        match self.0.as_mut_slice() {
            [.., newest] if newest.1 == done => {}
            [.., kept, newest] if newest.0 < kept.0 + SPACING => *newest = (at, done),
            _ => self.0.push((at, done)),
        }
    }

    /// What the guest did less, in percent, in a move of `wall_ms` that ended `blackout_ms` after its last write on the
    /// source. None where too little was seen.
    pub fn lost_percent(&self, usual_rate: f64, wall_ms: f64, blackout_ms: f64) -> Option<f64> {
        let wall = Duration::try_from_secs_f64(wall_ms / 1e3).ok()?;
        let blackout = Duration::try_from_secs_f64(blackout_ms / 1e3).ok()?;
        let (stood_still, last) = *self.0.last()?;
        let began = (stood_still + blackout).checked_sub(wall)?;
        let before = self.0.iter().take_while(|(at, _)| *at <= began);
        let (_, first) = *before.last()?;
        let usual = usual_rate * wall.as_secs_f64();
        Some(100.0 * (1.0 - (last - first) as f64 / usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn half_the_rate_and_a_blackout_are_lost() {
        // A page a millisecond; from 1.1 s on, when the move begins, every other; still at 2 s; alive again at 2.1 s.
        let (start, mut tally) = (Instant::now(), Tally::default());
        for quarter in 0..10_000u32 {
            let at = quarter / 4;
            let done = at.min(1100) + at.clamp(1100, 2000).saturating_sub(1100) / 2;
            tally.note(start + MS * at, done.into());
        }
        assert!(
            tally.0.len() > 500 && tally.0.len() < 2000,
            "{}",
            tally.0.len()
        );
        let lost = tally.lost_percent(1000.0, 1000.0, 100.0);
        assert!(
            lost.is_some_and(|lost| (lost - 55.0).abs() < 1.0),
            "{lost:?}"
        );
        assert_eq!(tally.lost_percent(1000.0, 1e9, 0.0), None, "not seen");
        assert_eq!(tally.lost_percent(1000.0, f64::NAN, 0.0), None);
        assert_eq!(Tally::default().lost_percent(1.0, 1.0, 1.0), None);
    }

    #[test]
    fn a_guest_that_is_not_there_has_done_nothing() {
        let gone = |_: u64, _: &mut [u8]| Err(std::io::ErrorKind::NotFound.into());
        assert_eq!((done(&gone), usual_rate(&gone)), (None, None));
        // An idle one is not watched.
        let idle = |_: u64, into: &mut [u8]| {
            into.fill(0);
            Ok(())
        };
        assert_eq!((done(&idle), usual_rate(&idle)), (Some(0), None));
    }
}
