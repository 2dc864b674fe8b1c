//! Reading one ring.

use std::ops::Deref;

use super::entry::{Entry, Place, State};

/// One ring, seen from the reader's side.
///
/// KVM writes entries one after another, and takes back, in the same order, those that were marked as read; it stops at
/// the first that is not. It goes round. An overflow is when it comes to entries that it has not taken back yet. It is
/// not meant to: a vCPU leaves the guest while there is a reserve. But a KVM that emulates guest code has been seen to;
/// it then writes over what is there, and pages are missing. It counts all the same: an entry that was written twice is
/// taken back once and counted twice, and so KVM's idea of where its oldest entry lies is behind the truth by as many
/// as were written over. It will not take back anything before those that are not there are marked for it
/// ([`bridge`](Self::bridge)).
#[derive(Debug)]
pub struct Ring<M> {
    entries: M,
    course: Course,
    /// The first entry that was read and not taken back, while there is one.
    oldest: usize,
    /// Where KVM writes its next entry, or has written it.
    next: usize,
    /// Entries that were read and not yet taken back.
    unreturned: usize,
    /// Entries were marked that are not there, since all was taken back the last time.
    bridged: bool,
    /// The ring was seen empty, and nothing was marked since.
    empty: bool,
}

/// How much is known of where KVM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// It writes at `next` and takes back from `oldest` on.
    Sure,
    /// It writes at `next`, but may want something back that lies before `oldest`.
    Doubtful,
    /// Nothing, after an overflow, until the ring is seen empty and what it writes then shows where that is.
    Astray,
}

/// What a look into a ring has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Entries that were read.
    pub pages: u64,
    /// The ring was full to its last entry, or is not in order since it was: others may have been lost.
    pub overflow: bool,
}

impl<M: Deref<Target = [Entry]>> Ring<M> {
    /// A ring that nobody has used yet. It has at least one entry.
    pub fn new(entries: M) -> Self {
        Self {
            entries,
            course: Course::Sure,
            oldest: 0,
            next: 0,
            unreturned: 0,
            bridged: false,
            empty: false,
        }
    }

    /// How many entries it has.
    pub fn size(&self) -> usize {
        self.entries.len()
    }

    /// Entries that were read and wait for KVM to take them back.
    pub fn unreturned(&self) -> usize {
        self.unreturned
    }

    /// How much is known of it.
    pub fn course(&self) -> Course {
        self.course
    }

    /// Reads what KVM has written since the last time, and marks it as read.
    pub fn read(&mut self, note: &mut dyn FnMut(Place)) -> Look {
        if self.course == Course::Astray {
            return self.sweep(note);
        }
        let sure = self.course == Course::Sure;
        if self.unreturned == 0 {
            self.oldest = self.next;
        }
        let mut pages = 0;
        while self.unreturned < self.size()
            && let Some(place) = self.entries[self.next].read()
        {
            note(place);
            pages += 1;
            self.unreturned += 1;
            self.next = self.after(self.next);
        }
        let full = self.unreturned == self.size();
        if full {
            self.course = Course::Astray;
        }
        let overflow = full || (!sure && pages > 0);
        Look { pages, overflow }
    }

    /// Reads every entry that is written, wherever it is, and forgets what was known. If the ring was empty before,
    /// then where the entries lie tells where KVM writes. It has to have been: KVM may have written over entries that
    /// it then took back for older ones, and so be ahead of the last one that is left.
    pub fn sweep(&mut self, note: &mut dyn FnMut(Place)) -> Look {
        self.course = Course::Astray;
        let in_use = |entry: &Entry| entry.state() != State::Unused;
        let (mut pages, mut used) = (0, 0);
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut before = self.entries.last().is_some_and(in_use);
        for (at, entry) in self.entries.iter().enumerate() {
            // In use is what is marked when we leave it. An entry that KVM writes right now is not: it would be passed
            // over for good, and KVM wait for it for good.
            let place = entry.read();
            let now = place.is_some() || entry.state() == State::Read;
            if let Some(place) = place {
                note(place);
                pages += 1;
            }
            used += usize::from(now);
            match (before, now) {
                (false, true) => starts.push(at),
                (true, false) => ends.push(at),
                _ => {}
            }
            before = now;
        }
        // KVM may have begun behind our back, and have gone on ahead of us.
        let begins = |start| !in_use(&self.entries[self.before(start)]);
        if let (true, &[start], &[end]) = (self.empty, &starts[..], &ends[..])
            && begins(start)
        {
            (self.oldest, self.next) = (start, end);
            self.course = Course::Doubtful;
        }
        self.unreturned = used;
        self.empty = used == 0;
        // As long as the ring is not in order, an entry may be written over while it is read.
        let overflow = used > 0;
        Look { pages, overflow }
    }

    /// Looks what KVM has taken back, after it was told to. Says whether the ring overflowed meanwhile.
    pub fn settle(&mut self) -> bool {
        let before = self.unreturned;
        self.unreturned = self.left();
        if before == 0 || self.unreturned > 0 {
            return false;
        }
        let bridged = std::mem::take(&mut self.bridged);
        match self.course {
            Course::Astray => {
                self.empty = self.is_empty();
                return false;
            }
            // Had KVM stood before them, it would not have come to them.
            Course::Doubtful if !bridged => self.course = Course::Sure,
            Course::Doubtful | Course::Sure => {}
        }
        // Had KVM come round to the oldest before that was taken back, then the one before it were written.
        let overflow = self.entries[self.before(self.oldest)].state() == State::Written;
        if overflow {
            self.course = Course::Astray;
            self.unreturned = self.left();
        }
        overflow
    }

    /// KVM takes nothing back although there are entries to be taken: it wants something that lies before them and is
    /// not there. Marks the one right before them, which KVM will come to on its way, as it has counted to beyond them.
    /// To be repeated until KVM takes something. `false` where something else is in the way.
    pub fn bridge(&mut self) -> bool {
        let state = |at: usize| self.entries[at].state();
        let begins =
            |&at: &usize| state(at) == State::Read && state(self.before(at)) == State::Unused;
        let start = match self.course {
            Course::Astray => (0..self.size()).find(begins),
            Course::Doubtful | Course::Sure => Some(self.oldest).filter(begins),
        };
        let Some(start) = start else {
            return false;
        };
        let before = self.before(start);
        if !self.entries[before].pass_over() {
            return false;
        }
        self.oldest = before;
        self.unreturned += 1;
        self.empty = false;
        self.bridged = true;
        true
    }

    /// Marks entries of an empty ring from `at` on, at most `count`, so that KVM goes past those of them that it wants
    /// back.
    pub fn pass_over(&mut self, at: usize, count: usize) {
        self.empty = false;
        let marked = self.entries.iter().skip(at).take(count);
        self.unreturned += marked.filter(|entry| entry.pass_over()).count();
    }

    /// Takes those marks off again. Says how many were still there. KVM must not be writing to this ring: its vCPU is
    /// not in the guest.
    pub fn unmark(&mut self) -> usize {
        let left = self.entries.iter().filter(|entry| entry.unmark()).count();
        self.unreturned = 0;
        self.empty = self.is_empty();
        left
    }

    fn is_empty(&self) -> bool {
        let mut states = self.entries.iter().map(Entry::state);
        states.all(|state| state == State::Unused)
    }

    /// How many entries that were read KVM has not taken back.
    fn left(&self) -> usize {
        let read = |entry: &&Entry| entry.state() == State::Read;
        if self.course != Course::Sure {
            return self.entries.iter().filter(read).count();
        }
        // The last one marked is the last one that KVM takes back.
        match self.entries[self.before(self.next)].state() {
            State::Read => self.unreturned,
            State::Unused | State::Written => 0,
        }
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) % self.size()
    }

    fn before(&self, at: usize) -> usize {
        (at + self.size() - 1) % self.size()
    }
}
