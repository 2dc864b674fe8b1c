//! A working set that can tell whether one of its pages was lost, stale or swapped.
//!
//! What a page must hold follows from its number and its version alone. The versions are kept apart, in an
//! array of their own, so that no single lost page of guest memory hides itself. On top a checksum over all
//! versions runs along with the writes, and a pass over the pages as they are computes it anew.
//!
//! Page: word 0 is the version, every eighth word after it (one a cache line) follows from number and
//! version, and all others from the number alone.

use std::fmt;

const WORDS: usize = 512;
const LINE: usize = 8;

/// A page that does not hold what was last written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its number.
    pub page: usize,
    /// The version last written.
    pub expected: u32,
    /// What its version word holds.
    pub found: u64,
    /// The first word in it that is wrong.
    pub word: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            page,
            expected,
            found,
            word,
        } = self;
        write!(
            f,
            "page={page} expected={expected} found={found} word={word}"
        )
    }
}

/// A part of memory that one thread writes and checks.
#[derive(Debug)]
pub struct WorkingSet {
    words: Vec<u64>,
    versions: Vec<u32>,
    /// The checksum over all versions, kept up to date by [`WorkingSet::write`].
    running: u64,
    /// How far the present pass over the pages is, and its checksum so far.
    cursor: usize,
    pass: u64,
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The share of one page in the checksum.
fn share(page: usize, version: u64) -> u64 {
    mix(mix(page as u64 + 1) ^ version)
}

/// What `word` of a page must hold.
fn content(page: usize, version: u32, word: usize) -> u64 {
    if word == 0 {
        return version.into();
    }
    let version = if word.is_multiple_of(LINE) {
        version
    } else {
        0
    };
    mix(share(page, version.into()).wrapping_add(word as u64))
}

impl WorkingSet {
    /// So many pages, all of version 0.
    pub fn new(pages: usize) -> Self {
        let words = (0..pages * WORDS)
            .map(|at| content(at / WORDS, 0, at % WORDS))
            .collect();
        Self {
            words,
            versions: vec![0; pages],
            running: (0..pages).fold(0, |sum, page| sum.wrapping_add(share(page, 0))),
            cursor: 0,
            pass: 0,
        }
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.versions.len()
    }

    /// The checksum that runs along with the writes.
    pub fn checksum(&self) -> u64 {
        self.running
    }

    /// Writes the next version of a page.
    pub fn write(&mut self, page: usize) {
        let old = self.versions[page];
        let version = old.wrapping_add(1);
        self.versions[page] = version;
        let at = page * WORDS;
        for word in (0..WORDS).step_by(LINE) {
            self.words[at + word] = content(page, version, word);
        }
        let change = share(page, version.into()).wrapping_sub(share(page, old.into()));
        self.running = self.running.wrapping_add(change);
        if page < self.cursor {
            self.pass = self.pass.wrapping_add(change);
        }
    }

    fn check(&self, page: usize) -> Result<(), Mismatch> {
        let expected = self.versions[page];
        let words = &self.words[page * WORDS..(page + 1) * WORDS];
        match (0..WORDS).find(|&word| words[word] != content(page, expected, word)) {
            None => Ok(()),
            Some(word) => Err(Mismatch {
                page,
                expected,
                found: words[0],
                word,
            }),
        }
    }

    /// Checks the next pages of the present pass. Says whether it came to the pass's end, and there
    /// whether the checksum held.
    pub fn check_some(&mut self, pages: usize, mut wrong: impl FnMut(Mismatch)) -> Option<bool> {
        let end = self.pages().min(self.cursor.saturating_add(pages));
        for page in self.cursor..end {
            if let Err(mismatch) = self.check(page) {
                wrong(mismatch);
            }
            self.pass = self
                .pass
                .wrapping_add(share(page, self.words[page * WORDS]));
        }
        self.cursor = end;
        (end == self.pages()).then(|| {
            let held = self.pass == self.running;
            (self.cursor, self.pass) = (0, 0);
            held
        })
    }

    /// Checks every page at once, from the first.
    pub fn check_all(&mut self, wrong: impl FnMut(Mismatch)) -> bool {
        (self.cursor, self.pass) = (0, 0);
        self.check_some(usize::MAX, wrong).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worn() -> WorkingSet {
        let mut set = WorkingSet::new(16);
        for write in 0..100 {
            set.write(write * 7 % 16);
        }
        set
    }

    fn mismatches(set: &mut WorkingSet) -> (Vec<Mismatch>, bool) {
        let mut found = Vec::new();
        let held = set.check_all(|m| found.push(m));
        (found, held)
    }

    #[test]
    fn an_untouched_set_holds_also_while_it_is_written() {
        let mut set = worn();
        assert_eq!(mismatches(&mut set), (vec![], true));
        for page in 0..15 {
            assert_eq!(set.check_some(1, |m| panic!("{m}")), None);
            set.write(page);
            set.write(15 - page);
        }
        assert_eq!(set.check_some(1, |m| panic!("{m}")), Some(true));
    }

    #[test]
    fn a_stale_page_is_found_by_page_and_by_checksum() {
        let mut set = worn();
        let old: Vec<u64> = set.words[3 * WORDS..4 * WORDS].to_vec();
        set.write(3);
        set.words[3 * WORDS..4 * WORDS].copy_from_slice(&old);
        let (found, held) = mismatches(&mut set);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].page, found[0].word), (3, 0));
        assert!(!held);
    }

    #[test]
    fn any_wrong_word_and_any_stale_version_is_found() {
        for word in [1, 8, 9, 504, 511] {
            let mut set = worn();
            set.words[5 * WORDS + word] ^= 1;
            assert_eq!(mismatches(&mut set).0.len(), 1, "word {word}");
        }
        let mut set = worn();
        set.versions[2] -= 1;
        assert_eq!(mismatches(&mut set).0.len(), 1);
    }
}
