//! The program's own pages. Most of what lies in memory of it was touched by the start alone: reading flags, parsing a
//! kernel, making a VM. It is clean, and the file is at hand.
#![allow(
    unsafe_code,
    reason = "madvise on the program's text, whose bounds the linker knows"
)]

use std::ptr::addr_of;

const PAGE: usize = 4096;

// What GNU ld and LLD call the ends of the text (ld's manual, "PROVIDE": etext is the first address past it).
unsafe extern "C" {
    static __executable_start: u8;
    static etext: u8;
}

/// Gives up the pages of the program's text. Those that are still needed come back from the page cache as they are
/// touched, with their neighbours: some tens of microseconds, once. It says nothing of what fails: it saves memory, no
/// more.
pub fn forget_text() {
    let (start, end) = (addr_of!(__executable_start), addr_of!(etext));
    let first = start.addr().next_multiple_of(PAGE);
    let last = end.addr() & !(PAGE - 1);
    let Some(len) = last.checked_sub(first) else {
        return;
    };
    // SAFETY: the range is that of the program's headers, read-only data and text, which are mapped from its file,
    // private, and never written: what is given up is read again from the file, which holds the same bytes as long as
    // the program runs (the kernel refuses to write a running program).
    unsafe {
        libc::madvise(
            start.with_addr(first).cast_mut().cast(),
            len,
            libc::MADV_DONTNEED,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on() {
        let before = env!("CARGO_PKG_NAME").to_owned();
        forget_text();
        assert_eq!(before, env!("CARGO_PKG_NAME"));
    }
}
