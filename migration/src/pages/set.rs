//! A set of pages, in two levels: what is clean is passed over 4096 pages at a time, so a round over few dirty pages
//! costs next to nothing, however large the guest.

use std::ops::Range;

use super::{MemoryLayout, Pieces, Runs};

/// A set of pages out of `0..pages`. The one bitmap type of Ferry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    /// Bit `i % 64` of word `i / 64` is page `i`; bits beyond the last page are never set.
    words: Vec<u64>,
    /// Bit `i % 64` of entry `i / 64` is set exactly where word `i` is not 0.
    used: Vec<u64>,
    pages: u64,
}

/// An index into a list of words; beyond every list where it does not fit.
fn index(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl PageSet {
    /// The empty set out of `pages` pages.
    ///
    /// # Panics
    /// If a set of so many pages cannot be addressed on this machine; a [`MemoryLayout`] never asks for that.
    pub fn empty(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a page set fits the address space");
        Self {
            words: vec![0; words],
            used: vec![0; words.div_ceil(64)],
            pages,
        }
    }

    /// The set of all `pages` pages.
    pub fn full(pages: u64) -> Self {
        let mut set = Self::empty(pages);
        set.fill();
        set
    }

    /// How many pages there could be: one more than the highest index.
    pub fn capacity(&self) -> u64 {
        self.pages
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.used_words()
            .map(|at| u64::from(self.words[at].count_ones()))
            .sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.used.iter().all(|&used| used == 0)
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        let Self { words, used, .. } = self;
        for (used, words) in used.iter_mut().zip(words.chunks_mut(64)) {
            if *used != 0 {
                *used = 0;
                words.fill(0);
            }
        }
    }

    /// Puts every page in.
    pub fn fill(&mut self) {
        self.insert_run(0..self.pages);
    }

    /// Whether a page is in the set; `false` beyond the last page.
    pub fn contains(&self, page: u64) -> bool {
        let word = self.words.get(index(page / 64));
        word.is_some_and(|w| w >> (page % 64) & 1 == 1)
    }

    /// Puts a page in; pages beyond the last are ignored.
    pub fn insert(&mut self, page: u64) {
        if page < self.pages {
            self.add(index(page / 64), 1 << (page % 64));
        }
    }

    /// Puts a run of pages in; those beyond the last are ignored.
    pub fn insert_run(&mut self, run: Range<u64>) {
        let end = run.end.min(self.pages);
        let mut page = run.start;
        while page < end {
            let next = (page & !63) + 64;
            let upto = u64::MAX >> (64 - (end.min(next) - (page & !63)));
            self.add(index(page / 64), upto & (u64::MAX << (page % 64)));
            page = next;
        }
    }

    /// Puts in what the words say from page `first` on, which is a multiple of 64; bits beyond the last
    /// page are ignored. KVM hands its log over in this form, region by region.
    pub fn insert_words(&mut self, first: u64, words: &[u64]) {
        debug_assert_eq!(first % 64, 0);
        let start = index(first / 64).min(self.words.len());
        let room = self.words.len() - start;
        // In blocks, as a processor sees in one go that all of a block is 0.
        for (block, at) in words[..words.len().min(room)]
            .chunks(8)
            .zip((start..).step_by(8))
        {
            if block.iter().fold(0, |any, word| any | word) != 0 {
                for (at, &word) in (at..).zip(block) {
                    self.add(at, word & self.allowed(at));
                }
            }
        }
    }

    /// The words that hold the pages of `range`, whose start is a multiple of 64; clipped to the set.
    pub fn words(&self, range: Range<u64>) -> &[u64] {
        debug_assert_eq!(range.start % 64, 0);
        let at = |word: u64| index(word).min(self.words.len());
        let (start, end) = (at(range.start / 64), at(range.end.div_ceil(64)));
        &self.words[start..end.max(start)]
    }

    /// Adds all pages of another set of the same capacity.
    pub fn union(&mut self, other: &PageSet) {
        let len = self.words.len();
        for at in other.used_words().take_while(|&at| at < len) {
            self.add(at, other.words[at] & self.allowed(at));
        }
    }

    /// Takes out all pages of another set of the same capacity.
    pub fn subtract(&mut self, other: &PageSet) {
        let len = self.words.len();
        for at in other.used_words().take_while(|&at| at < len) {
            self.remove(at, other.words[at]);
        }
    }

    /// Takes out the pages of `range`, which starts at a multiple of 64 and ends at one or at the last page, that are
    /// in the one set and not in the other, both of the same capacity.
    pub fn subtract_within(&mut self, range: Range<u64>, set: &PageSet, but: &PageSet) {
        let first = index(range.start / 64);
        let words = set.words(range.clone()).iter().zip(but.words(range));
        for (at, (&set, &but)) in (first..self.words.len()).zip(words) {
            self.remove(at, set & !but);
        }
    }

    /// The first page in the set from `page` on.
    pub fn first_from(&self, page: u64) -> Option<u64> {
        let at = index(page / 64);
        let rest = self.words.get(at)? & (u64::MAX << (page % 64));
        let (at, word) = match rest {
            0 => {
                let at = next_bit(&self.used, at + 1)?;
                (at, self.words[at])
            }
            rest => (at, rest),
        };
        Some(at as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The runs of neighbouring pages within `range`, each at most `max` pages long.
    pub fn runs(&self, range: Range<u64>, max: u64) -> Runs<'_> {
        Runs::new(self, range, max)
    }

    /// Memory in pieces of `pages` (the last of a region may be shorter), of those that have pages of this set in
    /// them: each within one region, and counted from its beginning.
    pub fn pieces(&self, layout: &MemoryLayout, pages: u64) -> Pieces<'_> {
        Pieces::new(self, layout, pages)
    }

    /// The first page from `page` on that is not in the set; `end`, or one beyond the last, where all up to it are. No
    /// word behind it is looked at: who goes through a full set piece by piece would else read all of it for each.
    pub fn first_outside(&self, mut page: u64, end: u64) -> u64 {
        let end = end.min(self.pages);
        while page < end {
            let word = self.words.get(index(page / 64)).copied().unwrap_or(0);
            let outside = !word & (u64::MAX << (page % 64));
            if outside != 0 {
                return ((page & !63) + u64::from(outside.trailing_zeros())).min(end);
            }
            page = (page & !63) + 64;
        }
        end
    }

    /// The bits that a word may have.
    fn allowed(&self, at: usize) -> u64 {
        match self.pages % 64 {
            tail if tail != 0 && at + 1 == self.words.len() => (1 << tail) - 1,
            _ => u64::MAX,
        }
    }

    /// Adds bits to a word.
    fn add(&mut self, at: usize, bits: u64) {
        self.words[at] |= bits;
        self.used[at / 64] |= u64::from(bits != 0) << (at % 64);
    }

    /// Takes bits out of a word.
    fn remove(&mut self, at: usize, bits: u64) {
        self.words[at] &= !bits;
        if self.words[at] == 0 {
            self.used[at / 64] &= !(1 << (at % 64));
        }
    }

    /// The words that are not 0.
    fn used_words(&self) -> impl Iterator<Item = usize> + '_ {
        let entries = (0..).step_by(64).zip(&self.used);
        entries
            .filter(|(_, used)| **used != 0)
            .flat_map(|(first, &used)| {
                let mut left = used;
                std::iter::from_fn(move || {
                    let bit = (left != 0).then(|| left.trailing_zeros())?;
                    left &= left - 1;
                    Some(first + bit as usize)
                })
            })
    }
}

/// The first bit from `from` on that is set in these words.
fn next_bit(words: &[u64], from: usize) -> Option<usize> {
    let mut at = from / 64;
    let mut word = words.get(at)? & (u64::MAX << (from % 64));
    while word == 0 {
        at += 1;
        word = *words.get(at)?;
    }
    Some(at * 64 + word.trailing_zeros() as usize)
}
