//! Still in the blackout: asks the destination for the digests of what has arrived, while those of the guest's memory
//! are computed here, and compares.

use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Instant;

use super::connecting::Link;
use super::error::MoveError;
use super::line::Line;
use super::streams::SIGN;
use super::trip::instead_of;
use crate::guest::{GuestError, GuestRam};
use crate::pages::MemoryLayout;
use crate::verify::{BLOCK_PAGES, Digests, Memory, pages};
use crate::wire::frame::{Frame, Question};

/// In so many blocks at most the pages that differ are looked for. More of them say no more.
const ASKED: usize = 16;
/// So many pages are named.
const NAMED: usize = 8;

/// Compares all memory. Nothing may write to it meanwhile, on neither side.
pub(super) fn compare(ram: &GuestRam, link: &mut Link) -> Result<(), MoveError> {
    let layout = link.description.layout.clone();
    let line = &mut link.main;
    // First, so that both sides compute at the same time.
    line.channel.send(&Frame::Verify(Question::Blocks))?;
    let memory = Memory::new(ram, &layout)?;
    let (ours, theirs) = thread::scope(|scope| {
        let both = gather(&memory, scope, line);
        memory.stop();
        both
    })?;
    let differ = |(ours, theirs): &(&u64, &u64)| ours != theirs;
    let blocks = (0..).zip(ours.iter().zip(&theirs));
    let blocks: Vec<u64> = blocks
        .filter_map(|(block, pair)| differ(&pair).then_some(block))
        .collect();
    match blocks.is_empty() {
        true => Ok(()),
        false => Err(MoveError::Differs {
            peer: line.channel.peer().to_owned(),
            what: name(&blocks, &memory, &layout, line)?,
        }),
    }
}

/// The digests of all blocks, as they are here and there.
fn gather<'scope>(
    memory: &'scope Memory<'_>,
    scope: &'scope thread::Scope<'scope, '_>,
    line: &mut Line,
) -> Result<(Vec<u64>, Vec<u64>), MoveError> {
    let computed = memory.start(scope)?;
    let (mut ours, mut theirs) = (List::new(memory.blocks()), List::new(memory.blocks()));
    while !theirs.is_whole() {
        let digests = receive(line)?;
        theirs.put(digests).map_err(|()| misplaced(line))?;
    }
    let mut told = Instant::now();
    while !ours.is_whole() {
        match computed.recv_timeout(SIGN) {
            Ok(digests) => ours.put(digests).map_err(|()| ended_early())?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(ended_early()),
        }
        // The destination has nothing to do, and should know that this side lives.
        if told.elapsed() >= SIGN {
            line.keep_alive()?;
            told = Instant::now();
        }
        line.channel.interrupted()?;
    }
    Ok((ours.digests, theirs.digests))
}

/// Which pages of these blocks differ, in words.
fn name(
    blocks: &[u64],
    memory: &Memory<'_>,
    layout: &MemoryLayout,
    line: &mut Line,
) -> Result<String, MoveError> {
    let mut differ = Vec::new();
    for &block in blocks.iter().take(ASKED) {
        line.channel
            .send(&Frame::Verify(Question::Pages { block }))?;
        let (first, theirs) = receive(line)?;
        let ours = memory.pages_of(block).unwrap_or_default();
        if first != block * BLOCK_PAGES || theirs.len() != ours.len() {
            return Err(misplaced(line));
        }
        let pairs = pages(block).zip(ours.iter().zip(&theirs));
        differ.extend(pairs.filter_map(|(page, (ours, theirs))| (ours != theirs).then_some(page)));
    }
    let named: Vec<_> = (differ.iter().take(NAMED))
        .filter_map(|&page| layout.gpa(page))
        .map(|gpa| format!("{gpa:#x}"))
        .collect();
    let more = match differ.len() > named.len() || blocks.len() > ASKED {
        true => " and more",
        false => "",
    };
    let least = match blocks.len() > ASKED {
        true => "at least ",
        false => "",
    };
    let (count, plural) = (differ.len(), if differ.len() == 1 { "" } else { "s" });
    let (named, blocks) = (named.join(", "), blocks.len());
    Ok(format!(
        "{least}{count} page{plural} of 4 KiB in {blocks} of {} blocks of 2 MiB differ, at guest-physical {named}{more}",
        memory.blocks()
    ))
}

/// The next digests from the destination.
fn receive(line: &mut Line) -> Result<Digests, MoveError> {
    match line.answer()? {
        Frame::Digests { first, digests } => Ok((first, digests)),
        frame => Err(instead_of("DIGESTS", &frame, &line.channel)),
    }
}

fn misplaced(line: &Line) -> MoveError {
    MoveError::Unexpected {
        peer: line.channel.peer().to_owned(),
        frame: "DIGESTS of other memory",
        expected: "those that it asked for, each once",
    }
}

fn ended_early() -> MoveError {
    GuestError::bare("the threads that compute digests ended before all were there").into()
}

/// The digests of all blocks, as they come in.
struct List {
    digests: Vec<u64>,
    /// Which are here.
    have: Vec<bool>,
    missing: usize,
}

impl List {
    fn new(blocks: u64) -> Self {
        // At most 16 TiB of memory in 2 MiB each.
        let blocks = usize::try_from(blocks).unwrap_or(0);
        Self {
            digests: vec![0; blocks],
            have: vec![false; blocks],
            missing: blocks,
        }
    }

    fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// Takes some; an error for those that are here already or belong to no block.
    fn put(&mut self, (first, digests): Digests) -> Result<(), ()> {
        let first = usize::try_from(first).map_err(|_| ())?;
        let end = first.checked_add(digests.len()).ok_or(())?;
        let have = self.have.get_mut(first..end).ok_or(())?;
        if have.contains(&true) {
            return Err(());
        }
        have.fill(true);
        self.missing -= digests.len();
        self.digests[first..end].copy_from_slice(&digests);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_is_taken_once_and_where_it_belongs() {
        let mut list = List::new(4);
        assert!(list.put((3, vec![1, 2])).is_err());
        assert!(list.put((u64::MAX, vec![1])).is_err());
        list.put((2, vec![7, 8])).unwrap();
        assert!(list.put((1, vec![5, 6])).is_err());
        assert!(!list.is_whole());
        list.put((0, vec![5, 6])).unwrap();
        assert!(list.is_whole());
        assert_eq!(list.digests, [5, 6, 7, 8]);
    }
}
