//! The engine's inner loops by themselves: sets of pages, frames, the search for zeros.
//! `cargo bench -p migration` runs them; `make bench` measures whole moves.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use migration::guest::GuestRam;
use migration::pages::{MemoryLayout, PAGE_SIZE, PageSet, REGION_ALIGN, Region};
use migration::ram::RamView;
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::{Frame, MAX_RUNS, Run};
use vm_memory::{Bytes, GuestAddress};

/// Pages of a guest of 1 GiB.
const PAGES: u64 = (1 << 30) / PAGE_SIZE;

/// What the dirty log says after a round, as words of 64 pages.
const LOGS: [(&str, u64); 3] = [
    ("clean", 0),
    ("every 64th page", 1),
    ("half of them", 0x5555_5555_5555_5555),
];

fn sets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("set of 1 GiB");
    group.throughput(Throughput::Elements(PAGES));
    for (name, word) in LOGS {
        let log = vec![word; usize::try_from(PAGES / 64).unwrap()];
        let mut set = PageSet::empty(PAGES);
        group.bench_function(format!("insert_words, {name}"), |bench| {
            bench.iter(|| set.insert_words(0, black_box(&log)));
        });
        group.bench_function(format!("runs, {name}"), |bench| {
            bench.iter(|| black_box(&set).runs(0..PAGES, 4096).count());
        });
    }
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let first = (0..).step_by(1024).take(MAX_RUNS);
    let runs = first.map(|first| Run { first, pages: 512 }).collect();
    let frame = Frame::Zero { round: 3, runs };
    let mut bytes = Vec::new();
    codec::encode(&frame, &mut bytes).unwrap();
    let (head, body) = bytes.split_first_chunk::<HEADER>().unwrap();

    let mut group = criterion.benchmark_group("frame of the most runs");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    let mut into = Vec::with_capacity(bytes.len());
    group.bench_function("encode", |bench| {
        bench.iter(|| {
            into.clear();
            codec::encode(black_box(&frame), &mut into)
        });
    });
    group.bench_function("decode", |bench| {
        bench.iter(|| codec::parse(Header::parse(*black_box(head)).unwrap(), black_box(body)));
    });
    group.finish();
}

fn zeros(criterion: &mut Criterion) {
    let bytes = REGION_ALIGN * 32;
    let layout = MemoryLayout::new(vec![Region { gpa: 0, bytes }]).unwrap();
    let start = GuestAddress(0);
    let ram = GuestRam::from_ranges(&[(start, usize::try_from(bytes).unwrap())]).unwrap();
    let view = RamView::new(&ram, &layout).unwrap();
    let pages = bytes / PAGE_SIZE;

    let mut group = criterion.benchmark_group("search for zeros");
    group.throughput(Throughput::Bytes(bytes));
    for (name, byte, at) in [
        ("zeros", 0u8, 0),
        ("last byte set", 1, PAGE_SIZE - 1),
        ("first byte set", 1, 0),
    ] {
        for page in 0..pages {
            ram.write_slice(&[0; 4096], GuestAddress(page * PAGE_SIZE))
                .unwrap();
            ram.write_obj(byte, GuestAddress(page * PAGE_SIZE + at))
                .unwrap();
        }
        group.bench_function(name, |bench| {
            bench.iter(|| (0..pages).filter(|page| view.is_zero(*page)).count());
        });
    }
    group.finish();
}

criterion_group! {
    name = engine;
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = sets, frames, zeros
}
criterion_main!(engine);
