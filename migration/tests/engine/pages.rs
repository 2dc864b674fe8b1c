//! Page sets against a naive model, and what is and is not a memory layout.

use std::collections::BTreeSet;
use std::ops::Range;

use migration::pages::{LayoutError, MAX_MEMORY, MemoryLayout, PageSet, REGION_ALIGN, Region};
use proptest::prelude::*;

fn set(capacity: u64, pages: &BTreeSet<u64>) -> PageSet {
    let mut set = PageSet::empty(capacity);
    pages.iter().for_each(|&page| set.insert(page));
    set
}

/// Runs as anybody would write them down.
fn naive_runs(pages: &BTreeSet<u64>, range: Range<u64>, max: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &page in pages.range(range) {
        match runs.last_mut() {
            Some(run) if run.end == page && run.end - run.start < max => run.end += 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

proptest! {
    #[test]
    fn a_set_is_what_was_put_in(
        capacity in 1u64..700,
        pages in proptest::collection::btree_set(0u64..800, 0..300),
        other in proptest::collection::btree_set(0u64..800, 0..300),
    ) {
        let inside: BTreeSet<_> = pages.range(..capacity).copied().collect();
        let mut a = set(capacity, &pages);
        prop_assert_eq!(a.len(), u64::try_from(inside.len()).unwrap());
        prop_assert_eq!(a.is_empty(), inside.is_empty());
        for page in 0..900 {
            prop_assert_eq!(a.contains(page), inside.contains(&page));
        }
        a.union(&set(capacity, &other));
        let both: BTreeSet<_> = inside.union(&other).copied().filter(|&p| p < capacity).collect();
        prop_assert_eq!(&a, &set(capacity, &both));
        a.clear();
        prop_assert_eq!(a, PageSet::empty(capacity));
    }

    #[test]
    fn runs_are_the_naive_runs(
        capacity in 1u64..700,
        pages in proptest::collection::btree_set(0u64..700, 0..600),
        start in 0u64..720,
        len in 0u64..720,
        max in 1u64..200,
    ) {
        let inside: BTreeSet<_> = pages.range(..capacity).copied().collect();
        let range = start..start + len;
        let runs: Vec<_> = set(capacity, &pages).runs(range.clone(), max).collect();
        prop_assert_eq!(runs, naive_runs(&inside, range, max));
    }

    #[test]
    fn words_are_the_bits(capacity in 1u64..700, words in proptest::collection::vec(any::<u64>(), 0..12), first in 0u64..10) {
        let mut set = PageSet::empty(capacity);
        set.insert_words(first * 64, &words);
        for page in 0..800u64 {
            let word = (page / 64).checked_sub(first).and_then(|i| words.get(usize::try_from(i).unwrap()));
            let bit = word.is_some_and(|word| word >> (page % 64) & 1 == 1);
            prop_assert_eq!(set.contains(page), bit && page < capacity);
        }
        let all: u32 = set.words(0..capacity).iter().map(|word| word.count_ones()).sum();
        prop_assert_eq!(u64::from(all), set.len());
    }
}

/// Sets large enough for both levels to matter: a few runs of pages, anywhere.
fn sparse(capacity: u64) -> impl Strategy<Value = BTreeSet<u64>> {
    let runs = proptest::collection::vec((0..capacity, 1u64..200), 0..8);
    runs.prop_map(move |runs| {
        let pages = runs.iter().flat_map(|&(start, len)| start..start + len);
        pages.filter(|&page| page < capacity).collect()
    })
}

/// The set of the same pages, put in run by run.
fn by_runs(capacity: u64, pages: &BTreeSet<u64>) -> PageSet {
    let mut set = PageSet::empty(capacity);
    for run in naive_runs(pages, 0..capacity, u64::MAX) {
        set.insert_run(run);
    }
    set
}

const LARGE: u64 = 3 * 4096 + 70;

proptest! {
    #[test]
    fn large_sets_are_what_was_put_in_and_taken_out(
        pages in sparse(LARGE),
        other in sparse(LARGE),
        from in 0..LARGE + 100,
    ) {
        let mut a = by_runs(LARGE, &pages);
        let b = by_runs(LARGE, &other);
        prop_assert_eq!(&a, &set(LARGE, &pages));
        let mut words = PageSet::empty(LARGE);
        words.insert_words(0, a.words(0..LARGE));
        prop_assert_eq!(&a, &words);
        prop_assert_eq!(a.len(), u64::try_from(pages.len()).unwrap());
        prop_assert_eq!(a.first_from(from), pages.range(from..).next().copied());
        let runs: Vec<_> = a.runs(0..LARGE, u64::MAX).collect();
        prop_assert_eq!(runs, naive_runs(&pages, 0..LARGE, u64::MAX));

        let (start, end) = (from.min(LARGE) & !63, LARGE.min((from & !63) + 640));
        let mut part = PageSet::full(LARGE);
        part.subtract_within(start..end, &a, &b);
        let kept = |page: &u64| {
            !(start..end).contains(page) || !pages.contains(page) || other.contains(page)
        };
        prop_assert_eq!(&part, &set(LARGE, &(0..LARGE).filter(kept).collect()));

        a.subtract(&b);
        let less: BTreeSet<_> = pages.difference(&other).copied().collect();
        prop_assert_eq!(&a, &set(LARGE, &less));
        prop_assert_eq!(a.is_empty(), less.is_empty());
        a.union(&b);
        let both: BTreeSet<_> = less.union(&other).copied().collect();
        prop_assert_eq!(&a, &set(LARGE, &both));
        a.clear();
        prop_assert_eq!(&a, &PageSet::empty(LARGE));
        a.fill();
        prop_assert_eq!(a, PageSet::full(LARGE));
    }

    #[test]
    fn pieces_are_those_with_pages_and_no_piece_spans_two_regions(
        first in 1u64..5,
        second in 1u64..5,
        pages in sparse(8 * 512),
        size in prop_oneof![Just(64u64), Just(192), Just(1024), Just(4096)],
    ) {
        let regions = vec![region(0, first * REGION_ALIGN), region(4 << 30, second * REGION_ALIGN)];
        let layout = MemoryLayout::new(regions).unwrap();
        let pages: BTreeSet<_> = pages.range(..layout.pages()).copied().collect();
        let all = layout.ranges().flat_map(|(_, range)| {
            let end = range.end;
            range.step_by(usize::try_from(size).unwrap()).map(move |start| start..end.min(start + size))
        });
        let expected: Vec<_> = all.filter(|piece| pages.range(piece.clone()).next().is_some()).collect();
        let found: Vec<_> = set(layout.pages(), &pages).pieces(&layout, size).collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn the_full_set_is_one_run_a_piece() {
    let runs: Vec<_> = PageSet::full(130).runs(0..130, 50).collect();
    assert_eq!(runs, [0..50, 50..100, 100..130]);
    assert_eq!(PageSet::full(130).len(), 130);
    assert!(!PageSet::full(130).contains(130));
}

/// Where the end of a run is looked for behind the piece that is asked for, this takes half an hour.
#[test]
fn a_piece_of_a_large_set_costs_what_is_in_it() {
    const PAGES: u64 = 1 << 28;
    const PIECE: u64 = 2048;
    let set = PageSet::full(PAGES);
    let starts = (0..PAGES).step_by(usize::try_from(PIECE).unwrap());
    let runs = starts.flat_map(|start| set.runs(start..start + PIECE, u64::MAX));
    assert!(runs.eq((0..PAGES / PIECE).map(|piece| piece * PIECE..(piece + 1) * PIECE)));
}

fn region(gpa: u64, bytes: u64) -> Region {
    Region { gpa, bytes }
}

#[test]
fn layouts_are_checked() {
    const A: u64 = REGION_ALIGN;
    let layout = |regions: &[Region]| MemoryLayout::new(regions.to_vec());
    assert_eq!(layout(&[]), Err(LayoutError::Count(0)));
    let many: Vec<_> = (0..17).map(|i| region(i * A, A)).collect();
    assert_eq!(layout(&many), Err(LayoutError::Count(17)));
    for (gpa, bytes) in [(0, 0), (4096, A), (0, A + 4096), (A, 0)] {
        assert_eq!(
            layout(&[region(gpa, bytes)]),
            Err(LayoutError::Align { gpa, bytes })
        );
    }
    let twice = layout(&[region(0, 2 * A), region(A, A)]);
    assert_eq!(twice, Err(LayoutError::Overlap { gpa: A, bytes: A }));
    let descending = layout(&[region(2 * A, A), region(0, A)]);
    assert_eq!(descending, Err(LayoutError::Overlap { gpa: 0, bytes: A }));
    let end = u64::MAX - A + 1;
    let wraps = layout(&[region(end, A)]);
    assert_eq!(wraps, Err(LayoutError::Overlap { gpa: end, bytes: A }));
    assert!(layout(&[region(0, MAX_MEMORY)]).is_ok());
    let much = layout(&[region(0, MAX_MEMORY + A)]);
    assert_eq!(much, Err(LayoutError::TooLarge(MAX_MEMORY + A)));
}

#[test]
fn pages_and_addresses_are_two_names_of_the_same() {
    let high = 4 << 30;
    let regions = vec![region(0, 2 * REGION_ALIGN), region(high, REGION_ALIGN)];
    let layout = MemoryLayout::new(regions).unwrap();
    assert_eq!(layout.pages(), 3 * 512);
    for page in 0..layout.pages() {
        let gpa = layout.gpa(page).unwrap();
        assert_eq!(layout.page(gpa), Some(page));
        assert_eq!(layout.page(gpa + 4095), Some(page));
    }
    assert_eq!(layout.gpa(1024), Some(high));
    assert_eq!(layout.gpa(3 * 512), None);
    assert_eq!(layout.page(2 * REGION_ALIGN), None);
    assert_eq!(layout.page(high - 1), None);
    assert_eq!(layout.page(high + REGION_ALIGN), None);
}
