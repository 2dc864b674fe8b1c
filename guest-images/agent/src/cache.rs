//! Memory that the guest's kernel fills and frees, as its page cache does: a file of a file system in memory, with
//! something in every page that can be known again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::process::Command;

/// Where the file system is mounted.
const FOLDER: &str = "/cache";
const FILE: &str = "/cache/file";
/// Bytes written and read at once.
const PIECE: usize = 1 << 20;
/// Words of a page.
const WORDS: usize = 512;

/// Fills so many MiB. What was there before is freed.
///
/// # Errors
/// There is not so much memory.
pub fn fill(mib: u32) -> io::Result<()> {
    free()?;
    fs::create_dir_all(FOLDER)?;
    let size = format!("size={mib}m");
    run(&["mount", "-t", "tmpfs", "-o", &size, "cache", FOLDER])?;
    let mut file = File::create(FILE)?;
    (0..mib).try_for_each(|number| file.write_all(&piece(number)))
}

/// Frees it all.
///
/// # Errors
/// It is in use.
pub fn free() -> io::Result<()> {
    match fs::exists(FILE)? {
        true => run(&["umount", FOLDER]),
        false => Ok(()),
    }
}

/// Looks whether all is there as it was written; how many MiB that are.
///
/// # Errors
/// The first MiB that is not.
pub fn check() -> io::Result<u32> {
    let mut file = File::open(FILE)?;
    let mut found = vec![0; PIECE];
    let mut number = 0;
    loop {
        match file.read_exact(&mut found) {
            Ok(()) if found == piece(number) => number += 1,
            Ok(()) => {
                let text = format!("MiB {number} of the file is not what was written");
                return Err(io::Error::other(text));
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(number),
            Err(error) => return Err(error),
        }
    }
}

/// What a MiB holds: words that are all different, so that no page of it is like another, or zero.
fn piece(number: u32) -> Vec<u8> {
    let first = u64::from(number) * (PIECE / 8) as u64;
    let words = (first..).take(PIECE / 8);
    // A page's first word says which it is; the rest is next to nothing to compute, since that may be emulated.
    let words = words.map(|word| (word + 1) | (word / WORDS as u64) << 40);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Runs a program to its end.
///
/// # Errors
/// It does not start, or fails, with what it said.
pub fn run(words: &[&str]) -> io::Result<()> {
    let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let output = Command::new(program).args(arguments).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(format!("{}: {said}", words.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_like_another() {
        let all = [piece(0), piece(1)].concat();
        let mut pages: Vec<_> = all.chunks(4096).collect();
        assert!(pages.iter().all(|page| page.iter().any(|byte| *byte != 0)));
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), 512);
    }
}
