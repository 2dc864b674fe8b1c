//! Programs as bytes: a target that does one thing after the other reads its steps from the front of its input, and
//! seeds are written in the same way. Whatever the bytes are, they are a program; at their end come zeros.

use arbitrary::Unstructured;

/// What is left of a program.
pub struct Program<'a>(Unstructured<'a>);

impl<'a> Program<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.0.arbitrary().unwrap()
    }

    pub fn u16(&mut self) -> u16 {
        self.0.arbitrary().unwrap()
    }

    pub fn u32(&mut self) -> u32 {
        self.0.arbitrary().unwrap()
    }

    pub fn u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap()
    }

    /// So many bytes, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        self.0.bytes(count.min(self.0.len())).unwrap()
    }

    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}

/// Writes programs.
#[derive(Clone, Default)]
pub struct Written(pub Vec<u8>);

impl Written {
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let Written(bytes) = Written::default()
            .u8(1)
            .u16(0x203)
            .u32(0x0405_0607)
            .u64(u64::MAX - 1)
            .bytes(&[8, 9]);
        let mut program = Program::new(&bytes);
        assert_eq!((program.u8(), program.u16()), (1, 0x203));
        assert_eq!((program.u32(), program.u64()), (0x0405_0607, u64::MAX - 1));
        assert!(!program.is_over());
        assert_eq!(program.bytes(9), [8, 9]);
        assert!(program.is_over());
        assert_eq!(program.u32(), 0);
    }
}
