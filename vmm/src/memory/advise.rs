//! madvise(2) on memory that the guest has or will have.
#![allow(
    unsafe_code,
    reason = "madvise on a part of a mapping, of which some advice changes the contents"
)]

use std::io;
use std::ops::Range;

use vm_memory::MmapRegion;

/// What is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// Huge pages back it, where the host has them.
    HugePages,
    /// It is touched as a write would touch it (Linux 5.14).
    Touch,
    /// It reads as zeros: anonymous memory is dropped from this process.
    Drop,
    /// It reads as zeros: of a file the pages go, whoever has it mapped, and a hole stays.
    PunchHole,
}

/// Follows the advice for the bytes of the mapping from one offset to another.
///
/// # Errors
/// They are not in the mapping, or do not begin at a page, or the kernel refuses.
pub(super) fn advise<B>(
    memory: &MmapRegion<B>,
    bytes: Range<usize>,
    advice: Advice,
) -> io::Result<()>
where
    B: vm_memory::bitmap::Bitmap,
{
    if bytes.start > bytes.end || bytes.end > memory.size() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let advice = match advice {
        Advice::HugePages => libc::MADV_HUGEPAGE,
        Advice::Touch => libc::MADV_POPULATE_WRITE,
        Advice::Drop => libc::MADV_DONTNEED,
        Advice::PunchHole => libc::MADV_REMOVE,
    };
    // SAFETY: the range lies in the mapping, as was just checked, and that lives as long as the reference. No advice
    // takes the mapping itself away or moves it. What changes the contents makes zeros of them; memory of guests, and
    // what is set aside for them, is never referred to but by volatile accesses (vm-memory's, or words read in
    // `migration::ram`), which take whatever is there, as they do when a vCPU writes.
    let done =
        unsafe { libc::madvise(memory.as_ptr().add(bytes.start).cast(), bytes.len(), advice) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_the_mapping_is_left_alone() {
        let memory: MmapRegion = MmapRegion::new(8192).unwrap();
        let backwards = Range {
            start: 4096,
            end: 0,
        };
        for bytes in [0..8193, 8192..12288, backwards, usize::MAX..usize::MAX] {
            let error = advise(&memory, bytes.clone(), Advice::Drop).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bytes:?}");
        }
        advise(&memory, 4096..8192, Advice::Touch).unwrap();
        assert!(advise(&memory, 1..4096, Advice::Drop).is_err());
    }
}
