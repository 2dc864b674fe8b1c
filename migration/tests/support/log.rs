//! A dirty log without KVM.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use migration::dirty::DirtyLog;
use migration::guest::GuestError;
use migration::pages::PageSet;

use super::{Panic, ToPanic, World};

/// A log as KVM's with manual protect: `take` leaves the marks, `rearm` removes them.
#[derive(Debug)]
pub struct FakeLog {
    words: Vec<AtomicU64>,
    pages: u64,
    on: AtomicBool,
    faults: (bool, bool),
    panics: ToPanic,
}

impl FakeLog {
    pub fn new(world: &World) -> Self {
        let pages = world.layout.pages();
        Self {
            words: (0..pages / 64).map(|_| AtomicU64::new(0)).collect(),
            pages,
            on: AtomicBool::new(false),
            faults: (world.faults.start_log, world.faults.take),
            panics: world.panics.clone(),
        }
    }

    pub fn mark(&self, page: u64) {
        if self.on.load(SeqCst) {
            let word = usize::try_from(page / 64).unwrap();
            self.words[word].fetch_or(1 << (page % 64), SeqCst);
        }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }
}

impl DirtyLog for FakeLog {
    fn start(&self) -> Result<(), GuestError> {
        if self.faults.0 {
            return Err(GuestError::bare("cannot start the log on purpose"));
        }
        for word in &self.words {
            word.store(u64::MAX, SeqCst);
        }
        self.on.store(true, SeqCst);
        Ok(())
    }

    fn take(&self, into: &mut PageSet) -> Result<(), GuestError> {
        assert!(self.is_on());
        if self.faults.1 {
            return Err(GuestError::bare("cannot take the log on purpose"));
        }
        for (index, word) in self.words.iter().enumerate() {
            into.insert_words(u64::try_from(index).unwrap() * 64, &[word.load(SeqCst)]);
        }
        Ok(())
    }

    fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError> {
        self.take(into).map(|()| true)
    }

    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError> {
        if thread::current().name() == Some("stream") {
            self.panics.at(Panic::Stream);
        }
        assert!(
            range.start.is_multiple_of(64)
                && (range.end.is_multiple_of(64) || range.end == self.pages)
        );
        let first = usize::try_from(range.start / 64).unwrap();
        for (index, word) in set.words(range).iter().enumerate() {
            self.words[first + index].fetch_and(!word, SeqCst);
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), GuestError> {
        self.on.store(false, SeqCst);
        Ok(())
    }
}
