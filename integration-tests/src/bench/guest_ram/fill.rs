//! Fills guest memory from outside: noise, or text.

use guest_images::fill;

use super::{GuestRam, PAGE};
use crate::Error;
use crate::bench::Fill;

/// Below it lie pulse itself and its tables.
const FIRST: u64 = 8 << 20;

/// Words of a log, a dozen bits of choice among each other.
const WORDS: [&str; 16] = [
    "INFO ",
    "WARN ",
    "request ",
    "completed ",
    "in ",
    "status=",
    "user=",
    "ms ",
    "GET ",
    "/api/v1/",
    "connection ",
    "closed ",
    "by ",
    "peer ",
    "retry ",
    "\n",
];

impl GuestRam {
    /// Fills all pages from 8 MiB up by seed, working sets included: the stamps of a page lie outside of
    /// what is filled.
    ///
    /// # Errors
    /// Memory cannot be written.
    pub fn fill(&self, how: Fill, seed: u64) -> Result<(), Error> {
        let page = match how {
            Fill::Untouched => return Ok(()),
            Fill::Noise => fill::page,
            Fill::Text => text,
        };
        let memory = self.open()?;
        let filled = self.by_workers(|worker| {
            let mut bytes = [0; fill::BYTES];
            for chunk in self.chunks(worker).filter(|chunk| chunk.gpa >= FIRST) {
                for gpa in (chunk.gpa..chunk.gpa + chunk.bytes).step_by(PAGE) {
                    page(seed, gpa, &mut bytes);
                    memory.write(gpa + fill::FIRST as u64, &bytes)?;
                }
            }
            Ok(())
        });
        filled.map_err(|e| self.failed("write", e))?;
        Ok(())
    }
}

/// Text-like bytes: words and numbers drawn by the noise of the same page.
fn text(seed: u64, gpa: u64, into: &mut [u8; fill::BYTES]) {
    let mut noise = [0; fill::BYTES];
    fill::page(seed, gpa, &mut noise);
    let mut at = 0;
    for draw in noise {
        let number = format!("{draw} ");
        let word = match WORDS.get(usize::from(draw)) {
            None if draw % 4 == 0 => number.as_str(),
            _ => WORDS[usize::from(draw) % WORDS.len()],
        };
        let end = (at + word.len()).min(into.len());
        into[at..end].copy_from_slice(&word.as_bytes()[..end - at]);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fills_a_page_and_differs_from_page_to_page() {
        let (mut one, mut other) = ([0; fill::BYTES], [0; fill::BYTES]);
        text(1, 0x80_0000, &mut one);
        text(1, 0x80_1000, &mut other);
        assert!(one.iter().all(|byte| byte.is_ascii() && *byte != 0));
        assert_ne!(one, other);
    }
}
