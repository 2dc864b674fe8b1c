//! What comes behind PACKED and DELTA frames, put into guest memory.

use migration::guest::GuestRam;
use migration::pack::codec::Compressor;
use migration::pack::unpacker::Unpacker;
use migration::pack::{Codec, delta};
use migration::pages::{MemoryLayout, Region};
use migration::ram::RamView;
use migration::wire::frame::Run;
use vm_memory::GuestAddress;

use super::input::{Program, Written};

const PAGE: usize = 4096;
const REGION: u64 = 2 << 20;
/// The two runs lie here: across nothing, and at the end of the first region.
const FIRST: u64 = 7;
const SECOND: u64 = 509;
/// Pages that are looked at: those of the runs, and those around them.
const LOOKED_AT: [u64; 14] = [5, 6, 7, 8, 9, 10, 11, 12, 508, 509, 510, 511, 512, 513];

/// The input: 0 LZ4, 1 Zstandard, 2 deltas; pages of the first run, and of the second; the bytes that came.
pub fn run(input: &[u8]) {
    let mut program = Program::new(input);
    let how = program.u8() % 3;
    let runs = runs(program.u8() % 5, program.u8() % 5);
    let came = program.rest();
    let (ram, layout) = memory();
    let view = RamView::new(&ram, &layout).unwrap();
    fill(&view);
    let before = LOOKED_AT.map(|page| read(&view, page));
    let mut unpacker = Unpacker::default();
    let len = u32::try_from(came.len()).unwrap();
    unpacker.buffer(len).copy_from_slice(came);
    let ok = match how {
        0 => unpacker.unpack(Codec::Lz4, &runs, &view).is_ok(),
        1 => unpacker.unpack(Codec::Zstd, &runs, &view).is_ok(),
        _ => unpacker.apply(&runs, &view).is_ok(),
    };
    let within = |page: u64| {
        let mut runs = runs.iter();
        runs.any(|run| (run.first..run.first + u64::from(run.pages)).contains(&page))
    };
    for (page, old) in LOOKED_AT.into_iter().zip(before) {
        let changed = read(&view, page) != old;
        assert!(!changed || within(page), "page {page} was not named");
        assert!(!changed || ok || how == 2, "page {page} of a damaged batch");
    }
}

fn runs(first: u8, second: u8) -> Vec<Run> {
    let runs = [(FIRST, first), (SECOND, second)];
    let runs = runs.into_iter().filter(|(_, pages)| *pages > 0);
    let run = |(first, pages)| Run {
        first,
        pages: u32::from(pages),
    };
    runs.map(run).collect()
}

fn memory() -> (GuestRam, MemoryLayout) {
    let regions = [0, 4 << 30].map(|gpa| Region { gpa, bytes: REGION });
    let bytes = usize::try_from(REGION).unwrap();
    let ranges = regions.map(|region| (GuestAddress(region.gpa), bytes));
    (
        GuestRam::from_ranges(&ranges).unwrap(),
        MemoryLayout::new(regions.to_vec()).unwrap(),
    )
}

/// What the source sent of these pages before.
fn fill(view: &RamView<'_>) {
    for page in LOOKED_AT {
        let run = Run {
            first: page,
            pages: 1,
        };
        view.write(run, &sent(page)).unwrap();
    }
}

fn sent(page: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    let words = page.to_le_bytes();
    for (to, from) in bytes.iter_mut().zip(words.iter().cycle()) {
        *to = *from;
    }
    bytes
}

fn read(view: &RamView<'_>, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let run = Run {
        first: page,
        pages: 1,
    };
    view.read(run, &mut bytes).unwrap();
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (how, codec) in [(0, Codec::Lz4), (1, Codec::Zstd)] {
        for pages in [1u8, 2, 4] {
            let text: Vec<u8> = (0..usize::from(pages) * PAGE)
                .map(|at| b"a page of words "[at % 16] + (at >> 9).to_le_bytes()[0] % 3)
                .collect();
            let mut packed = vec![0; Compressor::bound(text.len())];
            let len = Compressor::default().pack(codec, &text, &mut packed);
            let seed = Written::default().u8(how).u8(pages).u8(0);
            seeds.push(seed.bytes(&packed[..len.unwrap()]).0);
        }
    }
    // A page that changed, one that did not, and one behind a gap in memory.
    let mut deltas = Vec::new();
    for (page, change) in [(FIRST, 100..130), (FIRST + 1, 0..0), (SECOND, 4000..4096)] {
        let (old, mut new) = (sent(page), sent(page));
        new[change].fill(0xee);
        let mut bytes = Vec::new();
        assert!(delta::encode(&old, &new, &mut bytes));
        deltas.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
        deltas.extend(crc32fast::hash(&new).to_le_bytes());
        deltas.extend(bytes);
    }
    seeds.push(Written::default().u8(2).u8(2).u8(1).bytes(&deltas).0);
    seeds
}
