//! A running guest's memory, as far as a move will have to do with it: how much was ever touched, and how much of that
//! is zeros.

use super::question::Memory;
use super::random::Random;
use crate::guest::{GuestError, GuestRam};
use crate::pages::{MemoryLayout, PageSet};
use crate::ram::RamView;
use crate::touched::{PAGEMAP, touched};

/// So many pages are looked at, evenly over those touched, to say how many are zeros: to a percent or two.
const LOOKS: u64 = 8192;

/// What [`survey`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Survey {
    /// How much there is, and of what.
    pub memory: Memory,
    /// Where the written pages lie in it: see [`Question::before`](super::Question::before). `None` if there are none,
    /// or no others.
    pub before: Option<f64>,
}

/// Looks at memory, of which `written` is what the guest was seen to write, without touching what nobody has touched.
/// Takes some milliseconds.
///
/// # Errors
/// The memory is not laid out as the layout says.
pub fn survey(
    ram: &GuestRam,
    layout: &MemoryLayout,
    written: &PageSet,
) -> Result<Survey, GuestError> {
    let view = RamView::new(ram, layout)?;
    let pages = touched(ram, layout).unwrap_or_else(|error| {
        tracing::info!("all memory counts as touched: {PAGEMAP}: {error}");
        let mut all = PageSet::empty(layout.pages());
        all.insert_run(0..layout.pages());
        all
    });
    let touched = pages.len();
    // One page of each so many, anywhere among them: memory has patterns.
    let step = (touched / LOOKS).max(1);
    let mut random = Random::new(touched);
    let (mut seen, mut zero, mut before) = (0u64, 0u64, 0u64);
    for run in pages.runs(0..layout.pages(), u64::MAX) {
        let len = run.end - run.start;
        let mut next = before.next_multiple_of(step);
        while next < before + len {
            let anywhere = next + random.below(step.min(before + len - next));
            seen += 1;
            zero += u64::from(view.is_zero(run.start + anywhere - before));
            next += step;
        }
        before += len;
    }
    Ok(Survey {
        memory: Memory {
            bytes: layout.bytes(),
            touched,
            zero: zero as f64 / seen.max(1) as f64,
        },
        before: before_written(&pages, written, layout),
    })
}

/// The share of the touched pages that are not written which lie before one that is, in the mean over these.
fn before_written(touched: &PageSet, written: &PageSet, layout: &MemoryLayout) -> Option<f64> {
    let all = 0..layout.pages();
    let mut runs = written.runs(all.clone(), u64::MAX).peekable();
    // Untouched pages are no part of either.
    let (mut still, mut sum) = (0u64, 0.0);
    for run in touched.runs(all, u64::MAX) {
        let mut from = run.start;
        while let Some(next) = runs.next_if(|next| next.start < run.end) {
            still += next.start.saturating_sub(from);
            from = from.max(next.end);
            sum += still as f64 * (next.end - next.start) as f64;
        }
        still += run.end.saturating_sub(from);
    }
    (still > 0 && !written.is_empty()).then(|| sum / (still as f64 * written.len() as f64))
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::pages::{PAGE_SIZE, REGION_ALIGN, Region};

    #[test]
    fn touched_pages_are_counted_and_zeros_among_them() {
        let bytes = 64 * REGION_ALIGN;
        let len = usize::try_from(bytes).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), len)]).unwrap();
        let layout = MemoryLayout::new(vec![Region { gpa: 0, bytes }]).unwrap();
        let nothing = PageSet::empty(layout.pages());
        let survey = |written: &PageSet| survey(&ram, &layout, written).unwrap();
        let none = survey(&nothing).memory;
        assert_eq!((none.bytes, none.touched, none.zero), (bytes, 0, 0.0));
        // Of 12,288 pages every third holds something.
        for page in 0..12_288 {
            let at = GuestAddress(page * PAGE_SIZE + 512);
            ram.write_obj(u8::from(page % 3 == 0), at).unwrap();
        }
        let Survey { memory, before } = survey(&nothing);
        assert_eq!(before, None);
        assert!(
            (12_288..=12_288 + 512).contains(&memory.touched),
            "{memory:?}"
        );
        assert!((memory.zero - 2.0 / 3.0).abs() < 0.04, "{memory:?}");
        // Looking has touched nothing.
        assert_eq!(survey(&nothing).memory.touched, memory.touched);
        // Written in the middle, and a little at the end.
        let mut written = nothing.clone();
        written.insert_run(4096..8192);
        let before = survey(&written).before.unwrap();
        assert!((before - 0.5).abs() < 0.05, "{before}");
        written.insert_run(12_288 - 1024..12_288);
        let later = survey(&written).before.unwrap();
        assert!((before + 0.02..before + 0.2).contains(&later), "{later}");
    }
}
