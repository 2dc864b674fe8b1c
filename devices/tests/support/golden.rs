//! Golden bytes: what a state is as a section, kept as hexadecimal numbers in `vVERSION-NAME.hex`. A guest that was
//! saved by an older build arrives as these bytes, so a file that is there never changes.
//!
//! A new kind or version gets its file from the tests themselves: `FERRY_GOLDEN=write cargo test` writes what is
//! missing, and nothing else.

use std::fs;
use std::path::Path;

use migration::state::{Kind, Section, VmState};
use serde::Serialize;

/// The bytes of a version.
pub fn kept(folder: &Path, version: u32, name: &str) -> Result<Vec<u8>, String> {
    let path = folder.join(format!("v{version}-{name}.hex"));
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let byte = |word| u8::from_str_radix(word, 16).map_err(|e| format!("{}: {e}", path.display()));
    text.split_whitespace().map(byte).collect()
}

/// Writes the file of `state` if there is none, and it was asked for.
pub fn write_missing(
    folder: &Path,
    version: u32,
    name: &str,
    state: &impl Serialize,
) -> Result<(), String> {
    let path = folder.join(format!("v{version}-{name}.hex"));
    if path.exists() || std::env::var_os("FERRY_GOLDEN").is_none_or(|what| what != "write") {
        return Ok(());
    }
    let written = postcard::to_stdvec(state).map_err(|e| e.to_string())?;
    fs::write(&path, hex(&written)).map_err(|e| format!("{}: {e}", path.display()))
}

/// Whether `state` is written, in this version, as the bytes that are kept.
pub fn check(
    folder: &Path,
    version: u32,
    name: &str,
    state: &impl Serialize,
) -> Result<(), String> {
    let written = postcard::to_stdvec(state).map_err(|e| e.to_string())?;
    if kept(folder, version, name)? == written {
        return Ok(());
    }
    Err(format!(
        "version {version} of {name} is written as other bytes than those in {}: give it a new version, and read the old one still. It is now\n{}",
        folder.display(),
        hex(&written)
    ))
}

/// A state of one section, as it arrives.
pub fn arrived(kind: Kind, version: u32, bytes: Vec<u8>) -> VmState {
    VmState::from_sections(vec![Section {
        kind,
        instance: 0,
        version,
        bytes,
    }])
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        let words: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        words.join(" ") + "\n"
    };
    bytes.chunks(16).map(line).collect()
}
