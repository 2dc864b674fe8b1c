//! What pages were when they were last sent, as many of them as fit: the base of differences. All streams of
//! a move share it, for a page may go over another stream the next time.
//!
//! An entry is, byte for byte, what the destination holds once all that was sent before has arrived. That is
//! so because an entry is made from the very copy that is sent, because a page is sent at most once in a
//! round, and because the destination takes nothing of a round before all of the one before it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{PAGE, delta};
use crate::pages::PAGE_SIZE;

/// So many locks, lest streams wait for each other. Neighbouring pages have different ones, so that a working
/// set spreads evenly.
const SHARDS: u64 = 64;
/// An entry that was not used in so many rounds may make room for another. All others stay: replacing the
/// oldest of them would lose every page of a working set that is a little larger than the cache.
const STALE_ROUNDS: u32 = 2;
/// So many entries are looked at for one that may go.
const LOOKS: usize = 8;

/// How a page is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Its delta was appended.
    Delta,
    /// All of it.
    Whole,
}

/// The cache of one move.
#[derive(Debug)]
pub struct Cache {
    shards: Vec<Mutex<Shard>>,
}

/// The pages of one lock.
#[derive(Debug)]
struct Shard {
    places: HashMap<u64, usize>,
    entries: Vec<Entry>,
    most: usize,
    /// Where the search for an entry that may go continues.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    page: u64,
    /// The round in which it was last sent.
    round: u32,
    bytes: Box<[u8; PAGE]>,
}

impl Cache {
    /// A cache of at most so many bytes of pages. Nothing is allocated before it is used.
    pub fn new(bytes: u64) -> Self {
        let most = (bytes / PAGE_SIZE / SHARDS).max(1);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let shard = |_| {
            Mutex::new(Shard {
                places: HashMap::new(),
                entries: Vec::new(),
                most,
                hand: 0,
            })
        };
        Self {
            shards: (0..SHARDS).map(shard).collect(),
        }
    }

    /// Says how to send `page`, which shall hold `new` at the destination, and remembers that. A delta is
    /// appended to `deltas`.
    pub fn send(&self, round: u32, page: u64, new: &[u8; PAGE], deltas: &mut Vec<u8>) -> Sending {
        let mut shard = self.shard(page);
        let Some(entry) = shard.entry(page) else {
            shard.insert(round, page, new);
            return Sending::Whole;
        };
        let small = delta::encode(&entry.bytes, new, deltas);
        entry.round = round;
        entry.bytes.copy_from_slice(new);
        if small {
            Sending::Delta
        } else {
            Sending::Whole
        }
    }

    /// The page is sent as a page of zeros.
    pub fn zero(&self, page: u64) {
        if let Some(entry) = self.shard(page).entry(page) {
            entry.bytes.fill(0);
        }
    }

    fn shard(&self, page: u64) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(page % SHARDS).unwrap_or(0);
        // A stream that panicked takes the whole move with it.
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn entry(&mut self, page: u64) -> Option<&mut Entry> {
        let place = *self.places.get(&page)?;
        self.entries.get_mut(place)
    }

    /// Remembers a page, if there is room or an entry that may go.
    fn insert(&mut self, round: u32, page: u64, bytes: &[u8; PAGE]) {
        if self.entries.len() < self.most {
            self.places.insert(page, self.entries.len());
            self.entries.push(Entry {
                page,
                round,
                bytes: Box::new(*bytes),
            });
            return;
        }
        for _ in 0..LOOKS.min(self.entries.len()) {
            let place = self.hand;
            self.hand = (place + 1) % self.entries.len();
            let entry = &mut self.entries[place];
            if round.saturating_sub(entry.round) >= STALE_ROUNDS {
                self.places.remove(&entry.page);
                self.places.insert(page, place);
                (entry.page, entry.round) = (page, round);
                entry.bytes.copy_from_slice(bytes);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Sending::{Delta, Whole};

    /// Sends pages filled with a byte, and says how they go.
    fn send(cache: &Cache, round: u32, page: u64, byte: u8) -> Sending {
        let mut bytes = [0; PAGE];
        bytes[..8].fill(byte);
        cache.send(round, page, &bytes, &mut Vec::new())
    }

    #[test]
    fn the_second_time_a_page_goes_as_its_difference() {
        let cache = Cache::new(1 << 20);
        let mut deltas = Vec::new();
        let mut page = [5; PAGE];
        assert_eq!(cache.send(1, 9, &page, &mut deltas), Whole);
        assert_eq!(deltas, []);
        page[100] = 6;
        assert_eq!(cache.send(2, 9, &page, &mut deltas), Delta);
        assert_eq!(deltas, [100, 1, 6]);
        // From what was sent last, also if it was whole because too much had changed, or zero.
        assert_eq!(cache.send(3, 9, &[8; PAGE], &mut deltas), Whole);
        deltas.clear();
        assert_eq!(cache.send(4, 9, &[8; PAGE], &mut deltas), Delta);
        assert_eq!(deltas, []);
        cache.zero(9);
        let mut page = [0; PAGE];
        page[0] = 1;
        assert_eq!(cache.send(6, 9, &page, &mut deltas), Delta);
        assert_eq!(deltas, [0, 1, 1]);
    }

    #[test]
    fn a_full_cache_keeps_what_it_has_until_that_is_not_used_any_more() {
        // Four pages a lock; these share one.
        let cache = Cache::new(4 * SHARDS * PAGE_SIZE);
        let pages: Vec<_> = (0..6).map(|n| n * SHARDS).collect();
        for round in [1, 2, 3] {
            for (index, &page) in pages.iter().enumerate() {
                let known = round > 1 && index < 4;
                let expected = if known { Delta } else { Whole };
                assert_eq!(send(&cache, round, page, 1), expected, "{round} {index}");
            }
        }
        // The first two are not written any more: two rounds later their places are taken.
        for (round, expected) in [(4, Whole), (5, Whole), (6, Delta)] {
            assert_eq!(send(&cache, round, pages[2], 1), Delta);
            assert_eq!(send(&cache, round, pages[3], 1), Delta);
            assert_eq!(send(&cache, round, pages[4], 1), expected, "{round}");
            assert_eq!(send(&cache, round, pages[5], 1), expected, "{round}");
        }
        assert_eq!(send(&cache, 7, pages[0], 1), Whole);
    }
}
