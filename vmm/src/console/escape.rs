//! The keys that are ferry's, not the guest's: those of QEMU's serial terminal.

/// What a person at a terminal has to know, in one line.
pub const HELP: &str =
    "ferry: Ctrl-A x ends the guest, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h shows this";

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// Splits what is typed into the guest's bytes and ferry's keys. The prefix may be the last byte of one piece and
/// its key the first of the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Escape {
    /// The prefix was typed and its key is still to come.
    prefixed: bool,
}

/// What some typed bytes mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the guest.
    pub guest: Vec<u8>,
    /// End the guest; what came after it is not looked at.
    pub quit: bool,
    /// Show [`HELP`].
    pub help: bool,
}

impl Escape {
    /// Takes the next bytes typed.
    pub fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            if !std::mem::replace(&mut self.prefixed, false) {
                match byte {
                    PREFIX => self.prefixed = true,
                    _ => typed.guest.push(byte),
                }
                continue;
            }
            match byte {
                b'x' | b'X' => {
                    typed.quit = true;
                    return typed;
                }
                PREFIX | b'a' => typed.guest.push(PREFIX),
                _ => typed.help = true,
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the bytes come to, in pieces of every size.
    fn typed(bytes: &[u8]) -> Typed {
        let whole = Escape::default().feed(bytes);
        for size in 1..bytes.len().max(2) {
            let mut escape = Escape::default();
            let mut sum = Typed::default();
            for piece in bytes.chunks(size) {
                let next = escape.feed(piece);
                sum.guest.extend(next.guest);
                sum.help |= next.help;
                if next.quit {
                    sum.quit = true;
                    break;
                }
            }
            assert_eq!(sum, whole, "{bytes:?} in pieces of {size}");
        }
        whole
    }

    fn guest(bytes: &[u8]) -> Typed {
        Typed {
            guest: bytes.to_vec(),
            ..Typed::default()
        }
    }

    #[test]
    fn everything_but_the_prefix_is_the_guests() {
        let others: Vec<u8> = (0..=255).filter(|byte| *byte != PREFIX).collect();
        assert_eq!(typed(&others), guest(&others));
        assert_eq!(typed(b""), guest(b""));
    }

    #[test]
    fn the_prefix_has_keys() {
        assert_eq!(typed(b"ab\x01\x01cd"), guest(b"ab\x01cd"));
        assert_eq!(typed(b"\x01a"), guest(b"\x01"));
        let quit = Typed {
            quit: true,
            ..guest(b"ls\r")
        };
        assert_eq!(typed(b"ls\r\x01xrest"), quit);
        assert!(typed(b"\x01h").help);
        let unknown = typed(b"\x01?y");
        assert!(unknown.help && !unknown.quit);
        assert_eq!(unknown.guest, b"y");
        assert_eq!(typed(b"x\x01"), guest(b"x"));
    }
}
