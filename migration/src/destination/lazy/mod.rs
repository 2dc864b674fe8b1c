//! A guest that runs before its memory is there.
//!
//! Where the newest bytes of each page lie is found out first, by reading a snapshot's frames and passing over their
//! pages: some milliseconds a GiB, since the pages are not read. The guest then gets its state and may run. Whoever
//! touches a page has it fetched ([`Lazy::fetch`]); all others follow in the order of the files ([`Lazy::advance`]),
//! which is also how the digests are computed. So a damaged file is found out when the guest has been running for a
//! while: it must be ended then.

mod index;

use std::fs::File;
use std::hash::Hasher;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use twox_hash::XxHash3_64;

use self::index::{Index, Piece, Place};
use super::restore::{RestoreError, Restored, Snapshot, agree};
use crate::cancel::CancelToken;
use crate::event::Arrival;
use crate::guest::{BlankGuest, GuestError, GuestRam, Host};
use crate::pack::Codec;
use crate::pack::codec::Decompressor;
use crate::pages::{PAGE_SIZE, PageSet};
use crate::ram::RamView;
use crate::wire::frame::Run;

/// Bytes in a page, as lengths in memory have it.
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);
/// So many pages are read at a time, if they are not packed together: 1 MiB. Who waits for a page waits for no more.
const STEP: u32 = 256;

/// Makes the guest that some snapshots hold, paused, as [`restore`](super::restore) does, but without its memory:
/// `serve` is given that, and must fetch each page that is touched from then on, even before this returns.
///
/// # Errors
/// There is no guest; what `serve` has begun has to end.
pub fn restore_lazily<H: Host>(
    host: &mut H,
    files: Vec<(File, String)>,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Arrival),
    serve: &mut dyn FnMut(&GuestRam, Lazy) -> Result<(), GuestError>,
) -> Result<Restored<H>, RestoreError> {
    let (mut snapshots, mut contents) = (Vec::new(), Vec::new());
    for (file, name) in files {
        let again = file.try_clone();
        let again = again.map_err(|e| GuestError::new(format!("open {name} once more"), e))?;
        snapshots.push(Snapshot::open(file, name, cancel)?);
        contents.push(again);
    }
    let description = agree(&mut snapshots)?.description;
    // The host says first whether it has memory for such a guest: the index grows with that.
    let blank = host.prepare(&description, None)?;
    RamView::new(blank.ram(), &description.layout)?;
    let mut index = Index::new(&description.layout);
    let mut state = None;
    for (snapshot, file) in snapshots.iter().zip(contents) {
        state = Some(index.read(file, snapshot.name(), snapshot.position(), cancel)?);
    }
    let state = state.ok_or_else(|| GuestError::bare("no snapshot was given"))?;
    events(Arrival::Accepted {
        peer: snapshots.last().map_or("", Snapshot::name).to_owned(),
        memory_bytes: description.layout.bytes(),
        vcpus: description.vcpus,
    });
    serve(blank.ram(), Lazy::of(index))?;
    cancel.commit()?;
    let paused = blank.load(&state, Instant::now())?;
    events(Arrival::Ready);
    Ok(paused)
}

/// What puts pages where they belong: a run of pages, and their bytes.
pub type Install<'a> = dyn FnMut(Run, &[u8]) -> Result<(), GuestError> + 'a;

/// A file that is read to its end mark.
#[derive(Debug)]
struct Whole {
    file: File,
    name: String,
    /// Bytes before the end mark, and their digest as it says.
    bytes: u64,
    digest: u64,
}

impl Whole {
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), RestoreError> {
        self.file
            .read_exact_at(into, at)
            .map_err(|source| RestoreError::Read {
                name: self.name.clone(),
                offset: at,
                source,
            })
    }

    /// How long the file is now.
    fn len(&self) -> Result<u64, RestoreError> {
        let data = self.file.metadata();
        data.map(|data| data.len())
            .map_err(|source| RestoreError::Read {
                name: self.name.clone(),
                offset: 0,
                source,
            })
    }

    fn damaged(&self, offset: u64, what: String) -> RestoreError {
        RestoreError::Damaged {
            name: self.name.clone(),
            offset,
            what,
        }
    }
}

/// The memory of a guest that is made already, still in files.
pub struct Lazy {
    files: Vec<Whole>,
    /// Frames with pages, in the order of the files.
    pieces: Vec<Piece>,
    /// For each page of the guest, where its newest bytes are.
    places: Vec<Place>,
    /// The piece that was unpacked last, and its pages.
    unpacked: (Option<usize>, Vec<u8>),
    packed: Vec<u8>,
    codec: Decompressor,
    way: Way,
}

/// How far [`Lazy::advance`] is.
struct Way {
    file: usize,
    piece: usize,
    /// Pages of that piece that are done.
    pages: u32,
    /// Bytes of the file that are in the digest.
    bytes: u64,
    digest: XxHash3_64,
}

impl Way {
    fn at(file: usize, piece: usize) -> Self {
        Self {
            file,
            piece,
            pages: 0,
            bytes: 0,
            digest: XxHash3_64::with_seed(0),
        }
    }
}

impl Lazy {
    fn of(index: Index) -> Self {
        Self {
            files: index.files,
            pieces: index.pieces,
            places: index.places,
            unpacked: (None, Vec::new()),
            packed: Vec::new(),
            codec: Decompressor::default(),
            way: Way::at(0, 0),
        }
    }

    /// The pages that have bytes in a file. All others are zero.
    pub fn pages(&self) -> PageSet {
        let mut set = PageSet::empty(u64::try_from(self.places.len()).unwrap_or(0));
        for (page, place) in (0..).zip(&self.places) {
            if !place.is_zero() {
                set.insert(page);
            }
        }
        set
    }

    /// How many bytes of the files [`advance`](Self::advance) has yet to come to.
    pub fn left(&self) -> u64 {
        let files = self.files.get(self.way.file..).unwrap_or_default();
        let all: u64 = files.iter().map(|file| file.bytes).sum();
        all.saturating_sub(self.way.bytes)
    }

    /// The bytes of a page; `None` for one that is zero, or that the guest has not.
    ///
    /// # Errors
    /// They cannot be read or unpacked.
    pub fn fetch(&mut self, page: u64) -> Result<Option<&[u8]>, RestoreError> {
        let place = usize::try_from(page).ok().and_then(|p| self.places.get(p));
        let Some((piece, nth)) = place.and_then(|place| place.get()) else {
            return Ok(None);
        };
        let from = nth as usize * PAGE;
        match self.pieces[piece].packing {
            Some(codec) => {
                self.unpack(piece, codec)?;
                Ok(self.unpacked.1.get(from..from + PAGE))
            }
            None => {
                // Read anew, and not kept: what was unpacked goes.
                self.unpacked.0 = None;
                self.unpacked.1.resize(PAGE, 0);
                let Piece { file, at, .. } = self.pieces[piece];
                self.files[file].read(at + u64::from(nth) * PAGE_SIZE, &mut self.unpacked.1)?;
                Ok(Some(&self.unpacked.1))
            }
        }
    }

    /// Unpacks a piece, unless it was the last that was.
    fn unpack(&mut self, number: usize, codec: Codec) -> Result<(), RestoreError> {
        if self.unpacked.0 == Some(number) {
            return Ok(());
        }
        let piece = &self.pieces[number];
        let file = &self.files[piece.file];
        // A frame has bounded both: to 1 MiB, and to 256 pages.
        self.packed
            .resize(usize::try_from(piece.bytes).unwrap_or(0), 0);
        file.read(piece.at, &mut self.packed)?;
        self.unpacked.0 = None;
        self.unpacked.1.resize(piece.pages() as usize * PAGE, 0);
        self.codec
            .unpack(codec, &self.packed, &mut self.unpacked.1)
            .map_err(|e| file.damaged(piece.at, crate::source::chain(&e)))?;
        self.unpacked.0 = Some(number);
        Ok(())
    }

    /// Goes on through the files by at most 1 MiB of pages, and gives what is the newest of its pages to `install`:
    /// runs of pages with their bytes. Says whether there is more.
    ///
    /// # Errors
    /// The file cannot be read, or is not what was written; or what `install` says.
    pub fn advance(&mut self, install: &mut Install<'_>) -> Result<bool, RestoreError> {
        let (number, done) = (self.way.piece, self.way.pages);
        let piece = match self.pieces.get(number) {
            Some(piece) if piece.file == self.way.file => piece,
            _ => return self.next_file(),
        };
        let (at, bytes, pages, packing) = (piece.at, piece.bytes, piece.pages(), piece.packing);
        let step = match packing {
            Some(codec) => {
                self.digest_up_to(at)?;
                // What was packed is in the buffer then, whoever had it unpacked.
                self.unpack(number, codec)?;
                self.way.digest.write(&self.packed);
                self.way.bytes += bytes;
                pages
            }
            None => {
                let step = STEP.min(pages - done);
                let from = at + u64::from(done) * PAGE_SIZE;
                self.digest_up_to(from)?;
                self.unpacked.0 = None;
                self.unpacked.1.resize(step as usize * PAGE, 0);
                self.files[self.way.file].read(from, &mut self.unpacked.1)?;
                self.way.digest.write(&self.unpacked.1);
                self.way.bytes += u64::from(step) * PAGE_SIZE;
                step
            }
        };
        for (run, nth) in self.newest(number, done, step) {
            let from = (nth - done) as usize * PAGE;
            let bytes = &self.unpacked.1[from..from + run.pages as usize * PAGE];
            install(run, bytes)?;
        }
        self.way.pages += step;
        if self.way.pages == pages {
            (self.way.piece, self.way.pages) = (number + 1, 0);
        }
        Ok(true)
    }

    /// Of so many pages of a piece from the `first`th on, those that are nowhere newer: as runs, with what number in
    /// the piece each begins.
    fn newest(&self, number: usize, first: u32, count: u32) -> Vec<(Run, u32)> {
        let mut found: Vec<(Run, u32)> = Vec::new();
        let all = self.pieces[number].runs.iter();
        let all = all.flat_map(|run| run.first..run.first + u64::from(run.pages));
        let some = (0u32..).zip(all).skip(first as usize).take(count as usize);
        for (nth, page) in some {
            let place = self.places[usize::try_from(page).unwrap_or(0)];
            if place.get() != Some((number, nth)) {
                continue;
            }
            match found.last_mut() {
                Some((run, from))
                    if run.first + u64::from(run.pages) == page && *from + run.pages == nth =>
                {
                    run.pages += 1;
                }
                _ => found.push((
                    Run {
                        first: page,
                        pages: 1,
                    },
                    nth,
                )),
            }
        }
        found
    }

    /// Adds to the digest all bytes of the file that are before `end`.
    fn digest_up_to(&mut self, end: u64) -> Result<(), RestoreError> {
        let mut piece = [0; 64 << 10];
        while self.way.bytes < end {
            let left = usize::try_from(end - self.way.bytes).unwrap_or(usize::MAX);
            let some = left.min(piece.len());
            self.files[self.way.file].read(self.way.bytes, &mut piece[..some])?;
            self.way.digest.write(&piece[..some]);
            self.way.bytes += some as u64;
        }
        Ok(())
    }

    /// A file is done: its digest has to be that of its end mark.
    fn next_file(&mut self) -> Result<bool, RestoreError> {
        let Some(bytes) = self.files.get(self.way.file).map(|file| file.bytes) else {
            return Ok(false);
        };
        self.digest_up_to(bytes)?;
        let (file, found) = (&self.files[self.way.file], self.way.digest.finish());
        if found != file.digest {
            let what = format!(
                "its digest says {:016x}, its bytes have {found:016x}",
                file.digest
            );
            return Err(file.damaged(bytes, what));
        }
        self.way = Way::at(self.way.file + 1, self.way.piece);
        Ok(self.way.file < self.files.len())
    }
}

impl std::fmt::Debug for Lazy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lazy")
            .field("files", &self.files)
            .field("pieces", &self.pieces.len())
            .finish_non_exhaustive()
    }
}
