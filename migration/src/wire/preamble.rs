//! The first 16 bytes of each direction: is the other end Ferry, and of which version?
//!
//! Both ends send theirs at once and then read the other's. This layout never changes.

use thiserror::Error;

/// Bytes in a preamble.
pub const PREAMBLE: usize = 16;
/// What they begin with. No text begins like that, and a line-based server that gets it sees a whole line
/// and answers at once instead of waiting for more.
pub const MAGIC: [u8; 8] = *b"\x89FERRY\r\n";
/// The protocol version of this build.
pub const VERSION: u16 = 3;
/// The oldest version that this build still speaks.
pub const OLDEST: u16 = 1;

/// What TLS begins with: the type of a handshake's record, and its major version.
const TLS_RECORD: [u8; 2] = [22, 3];

/// So much of what is not a preamble is shown.
const SHOWN: usize = 32;

/// Why the other end cannot be talked to.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PreambleError {
    /// It speaks something else.
    #[error("{peer} is not Ferry: it began with {got}; check address and port")]
    NotFerry {
        /// Its name.
        peer: String,
        /// Its first bytes, printable.
        got: String,
    },
    /// It speaks TLS.
    #[error(
        "{peer} speaks TLS, and nothing is encrypted here: start `ferry receive` with --tls DIR, or, on a network that is yours alone, move with --insecure-plaintext"
    )]
    Encrypted {
        /// Its name.
        peer: String,
    },
    /// It is Ferry, but there is no version that both ends speak.
    #[error(
        "{peer} speaks versions {theirs_oldest} to {theirs} of the migration protocol, this ferry {OLDEST} to {VERSION}: use versions of ferry that are closer to each other"
    )]
    Version {
        /// Its name.
        peer: String,
        /// The newest it speaks.
        theirs: u16,
        /// The oldest it speaks.
        theirs_oldest: u16,
    },
}

/// What this build sends.
pub fn ours() -> [u8; PREAMBLE] {
    encode(VERSION, OLDEST)
}

pub(crate) fn encode(version: u16, oldest: u16) -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    bytes[10..12].copy_from_slice(&oldest.to_le_bytes());
    bytes
}

/// Checks the magic as far as it has come: a peer that is not Ferry may send fewer bytes than a preamble.
///
/// # Errors
/// [`PreambleError::NotFerry`].
pub fn check_magic(bytes: &[u8], peer: &str) -> Result<(), PreambleError> {
    let len = bytes.len().min(MAGIC.len());
    if bytes[..len] == MAGIC[..len] {
        return Ok(());
    }
    // RFC 8446, 5.1: a record of a handshake, of legacy version 3.1 or 3.3.
    if bytes.starts_with(&TLS_RECORD[..bytes.len().min(2)]) {
        return Err(PreambleError::Encrypted {
            peer: peer.to_owned(),
        });
    }
    Err(PreambleError::NotFerry {
        peer: peer.to_owned(),
        got: match bytes.get(..SHOWN) {
            Some(first) => format!("\"{}\"...", first.escape_ascii()),
            None => format!("\"{}\"", bytes.escape_ascii()),
        },
    })
}

/// The newest version that both ends speak.
///
/// # Errors
/// There is none, or the other end is not Ferry.
pub fn agree(bytes: [u8; PREAMBLE], peer: &str) -> Result<u16, PreambleError> {
    check_magic(&bytes, peer)?;
    let theirs = u16::from_le_bytes([bytes[8], bytes[9]]);
    let theirs_oldest = u16::from_le_bytes([bytes[10], bytes[11]]);
    let version = theirs.min(VERSION);
    if version < OLDEST || version < theirs_oldest {
        return Err(PreambleError::Version {
            peer: peer.to_owned(),
            theirs,
            theirs_oldest,
        });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_overlap_agree_on_the_newest_common_one() {
        assert_eq!(agree(ours(), "x"), Ok(VERSION));
        assert_eq!(agree(encode(VERSION + 5, OLDEST), "x"), Ok(VERSION));
        let newer = agree(encode(VERSION + 5, VERSION + 1), "x").unwrap_err();
        assert!(newer.to_string().contains("versions 4 to 8"), "{newer}");
        assert!(agree(encode(OLDEST - 1, OLDEST - 1), "x").is_err());
    }

    #[test]
    fn other_programs_are_told_apart_by_what_they_say() {
        assert_eq!(check_magic(b"", "x"), Ok(()));
        assert_eq!(check_magic(&MAGIC[..3], "x"), Ok(()));
        let http = check_magic(b"HTTP/1.1 400 Bad", "tcp:a:1").unwrap_err();
        assert!(http.to_string().contains("\"HTTP/1.1 400 Bad\""), "{http}");
        let tls = check_magic(b"\x16\x03\x01\x02", "tcp:a:1").unwrap_err();
        assert!(tls.to_string().contains("--tls DIR"), "{tls}");
        let random = check_magic(&[0x1b, 0xff], "x").unwrap_err();
        assert!(random.to_string().contains(r"\x1b\xff"), "{random}");
    }
}
