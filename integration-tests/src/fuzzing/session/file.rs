//! A snapshot file, and a chain of two, that somebody has written who means harm: frames of a regular one, spoilt as
//! the input asks, with an end mark that is right, or not.

use std::fs::File;
use std::hash::Hasher;
use std::io::{Seek, Write};
use std::sync::Arc;

use migration::cancel::CancelToken;
use migration::destination::{RestoreError, Snapshot, restore, restore_lazily};
use migration::guest::GuestRam;
use migration::wire::codec;
use migration::wire::frame::{Frame, Run};
use twox_hash::XxHash3_64;

use super::super::input::{Program, Written};
use super::peer::{OVER, Source};
use super::support::{FakeHost, Paused, World};

/// The name of each file of a chain, in its order.
const IDS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

/// The input: how many files there are, and of each its first frames, its end and what is between.
pub fn run(input: &[u8]) {
    restored(input);
}

/// Whether there is a guest: only out of files whose digests are those of their bytes.
fn restored(input: &[u8]) -> bool {
    let mut program = Program::new(input);
    let world = World::idle(&[2]);
    let count = 1 + usize::from(program.u8() % 2);
    let (mut files, mut all_right) = (Vec::new(), true);
    for number in 0..count {
        let mut bytes = Source::new(&world).file(number, &IDS, &mut program);
        all_right &= end(program.u8(), &mut bytes);
        files.push(bytes);
    }
    let ways = [read, read_lazily].map(|read| read(&world, &files));
    for restored in &ways {
        match restored {
            Ok(_) => assert!(
                all_right,
                "a guest out of a file that is not what was written"
            ),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert_eq!(world.running(), 0, "a restored guest runs by itself");
    let [at_once, lazily] = ways.map(|restored| restored.is_ok());
    // Differences of pages are the one thing that cannot be fetched.
    assert!(at_once || !lazily, "lazily there is a guest, at once not");
    at_once
}

/// Puts an end mark behind a file, for most inputs the right one.
fn end(how: u8, bytes: &mut Vec<u8>) -> bool {
    let mut digest = XxHash3_64::with_seed(0);
    digest.write(bytes);
    let (wrong, missing) = (how % 16 == 14, how % 16 == 15);
    let mark = Frame::End {
        bytes: bytes.len() as u64,
        digest: digest.finish() ^ u64::from(wrong),
    };
    if !missing {
        codec::encode(&mark, bytes).unwrap();
    }
    !wrong && !missing
}

/// With all of its memory fetched, some pages before they come by themselves.
fn read_lazily(world: &Arc<World>, files: &[Vec<u8>]) -> Result<Paused, RestoreError> {
    let cancel = CancelToken::new().unwrap();
    let files = files.iter().map(|bytes| (file(bytes), "a file".to_owned()));
    let mut lazy = None;
    let mut serve = |_: &GuestRam, all| {
        lazy = Some(all);
        Ok(())
    };
    let host = &mut FakeHost(world.clone());
    let paused = restore_lazily(host, files.collect(), &cancel, &mut |_| {}, &mut serve)?;
    let mut lazy = lazy.unwrap();
    for page in [0, 9, 511, 512, u64::MAX] {
        assert!(lazy.fetch(page)?.is_none_or(|bytes| bytes.len() == 4096));
    }
    let pages = lazy.pages();
    let mut come = 0;
    let mut install = |run: Run, bytes: &[u8]| {
        assert_eq!(bytes.len(), run.pages as usize * 4096);
        assert!(
            (run.first..)
                .take(run.pages as usize)
                .all(|page| pages.contains(page))
        );
        come += u64::from(run.pages);
        Ok(())
    };
    while lazy.advance(&mut install)? {}
    assert_eq!((come, lazy.left()), (pages.len(), 0));
    Ok(paused)
}

fn read(world: &Arc<World>, files: &[Vec<u8>]) -> Result<Paused, RestoreError> {
    let cancel = CancelToken::new().unwrap();
    let open = |bytes: &Vec<u8>| Snapshot::open(file(bytes), "a file", &cancel);
    let snapshots: Result<Vec<_>, _> = files.iter().map(open).collect();
    restore(
        &mut FakeHost(Arc::clone(world)),
        snapshots?,
        &cancel,
        &mut |_| {},
    )
}

/// A file in memory with these bytes.
fn file(bytes: &[u8]) -> File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = File::from(nix::sys::memfd::memfd_create(c"snapshot", flags).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Whole ones, chains, and some that are not.
pub fn seeds() -> Vec<Vec<u8>> {
    // Preamble, SNAPSHOT and HELLO as they should be; then steps of `Source::step`.
    let begun = |seed: Written| seed.u8(4).u8(0).u8(0).u8(0);
    let pages = |seed: Written, first: u16| seed.u8(1).u16(first).u8(3).u8(1).u8(7).u8(3);
    let finished = |seed: Written| seed.u8(7).u8(OVER).u8(0);
    let one = || pages(begun(Written::default().u8(0)), 0);
    let two = || {
        let first = finished(pages(begun(Written::default().u8(1)), 0));
        pages(begun(first), 9).u8(2).u16(40).u8(2).u8(0).u8(3)
    };
    vec![
        finished(one()).0,
        finished(two()).0,
        finished(two().u8(5).u16(9).u8(1).u8(0).u8(0).u8(3).u8(3)).0,
        one().u8(7).u8(OVER).u8(14).0,
        one().u8(7).u8(OVER).u8(15).0,
        one().u8(OVER).u8(0).0,
        finished(one().u8(11)).0,
        finished(one().u8(9)).0,
        finished(begun(Written::default().u8(1))).0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_that_are_whole_are_restored() {
        let whole: Vec<_> = seeds().iter().map(|seed| restored(seed)).collect();
        assert_eq!(whole[..3], [true; 3]);
        assert_eq!(whole[3..8], [false; 5]);
    }
}
