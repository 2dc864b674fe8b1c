//! The source's half: runs of pages become frames with as few bytes behind them as was asked for. One for
//! each stream, for as long as the move.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::auto::Meter;
use super::cache::{Cache, Sending};
use super::codec::Compressor;
use super::{Codec, Compress, MAX_PACKED_PAGES, PAGE};
use crate::guest::GuestError;
use crate::pages::PageSet;
use crate::ram::RamView;
use crate::wire::frame::{DELTA_HEADER, Frame, Run};
use crate::wire::iov::Out;

/// Packed pages go packed if that saves at least this part of them; less is not worth unpacking them.
const SAVES: usize = 16;
/// Pages in a sample, spread over a batch: 64 KiB.
const SAMPLE_PAGES: u64 = 16;

/// What all streams of a move with `--delta` share.
#[derive(Debug)]
pub(crate) struct Resent {
    cache: Cache,
    /// Pages that were written while the guest was watched: they are kept from the first round on.
    hot: PageSet,
}

impl Resent {
    pub fn new(cache_bytes: u64, hot: PageSet) -> Self {
        Self {
            cache: Cache::new(cache_bytes),
            hot,
        }
    }

    /// Whether this page is to be kept. In the first round most pages will never go again, so only those that
    /// are known to be written are.
    fn keeps(&self, round: u32, page: u64) -> bool {
        round > 0 || self.hot.contains(page)
    }
}

/// What became of the bytes of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Bytes behind PACKED frames.
    pub compressed: u64,
    /// Bytes behind DELTA frames.
    pub delta: u64,
}

/// Sends pages of one stream.
pub(crate) struct Packer {
    compress: Compress,
    meter: Meter,
    compressor: Compressor,
    resent: Option<Arc<Resent>>,
    batch: Batch,
    packed: Vec<u8>,
    /// Sums over all that this stream has sent.
    pub sums: Packed,
}

/// Pages that were copied, and what is to become of them.
#[derive(Default)]
struct Batch {
    whole: Vec<Run>,
    bytes: Vec<u8>,
    changed: Vec<Run>,
    deltas: Vec<u8>,
}

impl Default for Packer {
    /// One that changes nothing.
    fn default() -> Self {
        Self::new(Compress::None, None)
    }
}

impl Packer {
    pub fn new(compress: Compress, resent: Option<Arc<Resent>>) -> Self {
        Self {
            compress,
            meter: Meter::default(),
            compressor: Compressor::default(),
            resent,
            batch: Batch::default(),
            packed: Vec::new(),
            sums: Packed::default(),
        }
    }

    /// Whether pages may take fewer bytes than they have.
    pub fn is_used(&self) -> bool {
        self.compress != Compress::None || self.resent.is_some()
    }

    /// Hands the pages of `runs`, which are not all zeros, to `deliver`: frames, and what belongs behind them.
    pub fn send<E: From<GuestError>>(
        &mut self,
        round: u32,
        runs: Vec<Run>,
        ram: &RamView<'_>,
        mut deliver: impl FnMut(&Frame, &[Out<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.is_used() {
            return live(round, runs, ram, &mut deliver);
        }
        for runs in batches(&runs) {
            self.send_batch(round, runs, ram, &mut deliver)?;
        }
        Ok(())
    }

    /// The pages of `runs` are sent as pages of zeros.
    pub fn zero(&self, runs: &[Run]) {
        if let Some(resent) = &self.resent {
            pages(runs).for_each(|page| resent.cache.zero(page));
        }
    }

    fn send_batch<E: From<GuestError>>(
        &mut self,
        round: u32,
        runs: Vec<Run>,
        ram: &RamView<'_>,
        deliver: &mut impl FnMut(&Frame, &[Out<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let codec = self.codec(&runs, ram);
        let mut sending = Duration::ZERO;
        let mut wire = 0;
        let mut deliver = |frame: &Frame, data: &[Out<'_>]| {
            let began = Instant::now();
            wire += data.iter().map(Out::len).sum::<usize>();
            let delivered = deliver(frame, data);
            sending += began.elapsed();
            delivered
        };
        let began = Instant::now();
        let count = pages(&runs).count();
        let kept = |page| {
            let resent = self.resent.as_ref();
            resent.is_some_and(|resent| resent.keeps(round, page))
        };
        if codec.is_none() && !pages(&runs).any(kept) {
            live(round, runs, ram, &mut deliver)?;
        } else {
            self.batch.fill(runs, ram)?;
            if let Some(resent) = &self.resent {
                self.batch.compare(round, resent);
            }
            self.send_deltas(round, &mut deliver)?;
            self.send_whole(round, codec, &mut deliver)?;
        }
        if self.compress == Compress::Auto {
            let packing = began.elapsed().saturating_sub(sending);
            let [pages, wire] = [count * PAGE, wire].map(|n| u64::try_from(n).unwrap_or(u64::MAX));
            self.meter.sent(codec, pages, wire, packing, sending);
        }
        Ok(())
    }

    /// The codec for the next batch.
    fn codec(&mut self, runs: &[Run], ram: &RamView<'_>) -> Option<Codec> {
        match self.compress {
            Compress::None => None,
            Compress::Always(codec) => Some(codec),
            Compress::Auto => {
                if let Some(codec) = self.meter.wanted() {
                    self.sample(codec, runs, ram);
                }
                self.meter.codec()
            }
        }
    }

    /// Tries a codec on some pages that are about to be sent.
    fn sample(&mut self, codec: Codec, runs: &[Run], ram: &RamView<'_>) {
        let count = u64::try_from(pages(runs).count()).unwrap_or(u64::MAX);
        if count < SAMPLE_PAGES {
            return;
        }
        let step = usize::try_from(count / SAMPLE_PAGES).unwrap_or(1);
        let mut chosen = Vec::new();
        (pages(runs).step_by(step)).for_each(|page| push(&mut chosen, page));
        self.packed.resize(Compressor::bound(MAX_BYTES), 0);
        let began = Instant::now();
        if self.batch.fill(chosen, ram).is_err() {
            return;
        }
        let bytes = &self.batch.bytes;
        if let Some(len) = self.compressor.pack(codec, bytes, &mut self.packed) {
            let [bytes, len] = [bytes.len(), len].map(|n| u64::try_from(n).unwrap_or(u64::MAX));
            self.meter.sampled(codec, bytes, len, began.elapsed());
        }
    }

    fn send_deltas<E>(
        &mut self,
        round: u32,
        deliver: &mut impl FnMut(&Frame, &[Out<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = length(&self.batch.deltas);
        if bytes == 0 {
            return Ok(());
        }
        self.sums.delta += u64::from(bytes);
        let runs = std::mem::take(&mut self.batch.changed);
        let frame = Frame::Delta { round, runs, bytes };
        deliver(&frame, &[Out::bytes(&self.batch.deltas)])
    }

    fn send_whole<E>(
        &mut self,
        round: u32,
        codec: Option<Codec>,
        deliver: &mut impl FnMut(&Frame, &[Out<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let runs = std::mem::take(&mut self.batch.whole);
        let bytes = &self.batch.bytes[..];
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(codec) = codec {
            self.packed.resize(Compressor::bound(MAX_BYTES), 0);
            let packed = self.compressor.pack(codec, bytes, &mut self.packed);
            let worth = |&len: &usize| len < bytes.len() - bytes.len() / SAVES;
            if let Some(len) = packed.filter(worth) {
                let data = &self.packed[..len];
                let bytes = length(data);
                self.sums.compressed += u64::from(bytes);
                let frame = Frame::Packed {
                    round,
                    runs,
                    codec,
                    bytes,
                };
                return deliver(&frame, &[Out::bytes(data)]);
            }
        }
        deliver(&Frame::Pages { round, runs }, &[Out::bytes(bytes)])
    }
}

/// Bytes of the largest batch.
const MAX_BYTES: usize = super::MAX_PACKED as usize;

impl Batch {
    /// Copies pages. What the guest writes from here on is in the dirty log.
    fn fill(&mut self, runs: Vec<Run>, ram: &RamView<'_>) -> Result<(), GuestError> {
        self.bytes.resize(pages(&runs).count() * PAGE, 0);
        let mut rest = &mut self.bytes[..];
        for &run in &runs {
            let len = usize::try_from(run.pages).unwrap_or(0) * PAGE;
            let (place, behind) = rest.split_at_mut(len);
            ram.read(run, place).ok_or_else(|| outside(run))?;
            rest = behind;
        }
        self.whole = runs;
        self.changed.clear();
        self.deltas.clear();
        Ok(())
    }

    /// Takes out the pages that can go as deltas.
    fn compare(&mut self, round: u32, resent: &Resent) {
        let runs = std::mem::take(&mut self.whole);
        let mut stay = 0;
        let (all, _) = self.bytes.as_chunks_mut::<PAGE>();
        for (index, page) in pages(&runs).enumerate() {
            let sending = match resent.keeps(round, page) {
                true => compare(round, page, &all[index], &resent.cache, &mut self.deltas),
                false => Sending::Whole,
            };
            match sending {
                Sending::Delta => push(&mut self.changed, page),
                Sending::Whole => {
                    push(&mut self.whole, page);
                    all.copy_within(index..=index, stay);
                    stay += 1;
                }
            }
        }
        self.bytes.truncate(stay * PAGE);
    }
}

/// Appends length, checksum and delta of a page, where it goes as such.
fn compare(
    round: u32,
    page: u64,
    bytes: &[u8; PAGE],
    cache: &Cache,
    deltas: &mut Vec<u8>,
) -> Sending {
    let header = deltas.len();
    deltas.extend_from_slice(&[0; DELTA_HEADER]);
    let sending = cache.send(round, page, bytes, deltas);
    match sending {
        Sending::Whole => deltas.truncate(header),
        Sending::Delta => {
            let delta = deltas.len() - header - DELTA_HEADER;
            // At most MAX_DELTA.
            let len = u16::try_from(delta).unwrap_or(u16::MAX).to_le_bytes();
            deltas[header..header + 2].copy_from_slice(&len);
            let checksum = crc32fast::hash(bytes).to_le_bytes();
            deltas[header + 2..header + DELTA_HEADER].copy_from_slice(&checksum);
        }
    }
    sending
}

/// Pages straight from guest memory.
fn live<E: From<GuestError>>(
    round: u32,
    runs: Vec<Run>,
    ram: &RamView<'_>,
    deliver: &mut impl FnMut(&Frame, &[Out<'_>]) -> Result<(), E>,
) -> Result<(), E> {
    let mut pieces = Vec::with_capacity(runs.len());
    for &run in &runs {
        pieces.push(ram.out(run).ok_or_else(|| outside(run))?);
    }
    deliver(&Frame::Pages { round, runs }, &pieces)
}

/// The pages of runs, one by one.
fn pages(runs: &[Run]) -> impl Iterator<Item = u64> {
    runs.iter()
        .flat_map(|run| run.first..run.first + u64::from(run.pages))
}

/// Appends a page, to the last run if it can.
fn push(runs: &mut Vec<Run>, page: u64) {
    match runs.last_mut() {
        Some(run) if run.first + u64::from(run.pages) == page => run.pages += 1,
        _ => runs.push(Run {
            first: page,
            pages: 1,
        }),
    }
}

/// The same pages in lists of at most [`MAX_PACKED_PAGES`].
fn batches(runs: &[Run]) -> Vec<Vec<Run>> {
    let mut batches = Vec::new();
    let (mut batch, mut room) = (Vec::new(), MAX_PACKED_PAGES);
    for run in runs {
        let mut rest = *run;
        while rest.pages > 0 {
            // At most 256.
            let taken = rest.pages.min(u32::try_from(room).unwrap_or(u32::MAX));
            batch.push(Run {
                first: rest.first,
                pages: taken,
            });
            rest.first += u64::from(taken);
            rest.pages -= taken;
            room -= u64::from(taken);
            if room == 0 {
                batches.push(std::mem::take(&mut batch));
                room = MAX_PACKED_PAGES;
            }
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn length(bytes: &[u8]) -> u32 {
    // At most 1 MiB.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn outside(run: Run) -> GuestError {
    GuestError::bare(format!(
        "cannot send pages {} to {}: they are not in one region of guest memory",
        run.first,
        run.first + u64::from(run.pages)
    ))
}
