//! MSI-X: a function's table of messages, each of them an interrupt (PCI Local Bus 3.0, 6.8.2).
//!
//! A message is a write of 32 bits to an address, at which an interrupt controller listens: it costs the guest no access
//! to a register, and each queue of a device can have one of its own. What is raised while its entry is masked is
//! remembered, and sent when it no longer is.

use serde::{Deserialize, Serialize};

/// The most vectors of a table: as many as there are bits of what is pending.
pub const MAX_VECTORS: usize = 64;
/// Bytes of an entry of the table.
pub const ENTRY_LEN: usize = 16;

/// Message Control: the function uses MSI-X.
pub const ENABLE: u16 = 1 << 15;
/// Message Control: no vector is sent, whatever its own mask says.
const MASK_ALL: u16 = 1 << 14;
/// Vector Control: this one is not sent.
const MASK: u32 = 1;

/// Where messages go.
pub trait MessageSink: Send + Sync {
    /// Sends one. The guest chose both values: where that address is no interrupt controller's, nothing happens.
    fn send(&self, address: u64, data: u32);
}

/// An entry of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Where its message goes.
    pub address: u64,
    /// What the message says.
    pub data: u32,
    /// It is not sent.
    pub masked: bool,
}

impl MsixEntry {
    /// As after a reset.
    pub const RESET: Self = Self {
        address: 0,
        data: 0,
        masked: true,
    };

    fn bytes(&self) -> [u8; ENTRY_LEN] {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        let [i, j, k, l] = self.data.to_le_bytes();
        let control = if self.masked { MASK } else { 0 };
        let [m, n, o, p] = control.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    fn set(&mut self, bytes: [u8; ENTRY_LEN]) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, ..] = bytes;
        self.address = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        self.data = u32::from_le_bytes([i, j, k, l]);
        self.masked = u32::from(m) & MASK != 0;
    }
}

/// The table with what belongs to it; all of it moves with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    enabled: bool,
    masked: bool,
    entries: Vec<MsixEntry>,
    /// Vectors that were raised and not sent, one a bit.
    pending: u64,
    /// The function may write to memory, and so send messages. It follows from its command register, and does not
    /// travel.
    #[serde(skip)]
    masters: bool,
}

impl Msix {
    /// A table of so many vectors, at most [`MAX_VECTORS`], as after a reset.
    pub fn new(vectors: usize) -> Self {
        Self {
            enabled: false,
            masked: false,
            entries: vec![MsixEntry::RESET; vectors.min(MAX_VECTORS)],
            pending: 0,
            masters: false,
        }
    }

    /// Whether this can be the table of a function of so many vectors.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, vectors: usize) -> Result<(), String> {
        let count = self.entries.len();
        if count != vectors || count > MAX_VECTORS {
            return Err(format!("{count} MSI-X vectors for a function of {vectors}"));
        }
        if (count..MAX_VECTORS).any(|vector| self.pending >> vector & 1 == 1) {
            return Err(format!(
                "pending MSI-X vectors {:#x} of {count}",
                self.pending
            ));
        }
        Ok(())
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.entries.len()
    }

    /// Message Control of the capability.
    pub fn control(&self) -> u16 {
        let last = u16::try_from(self.entries.len().saturating_sub(1)).unwrap_or(u16::MAX);
        let bit = |is: bool, bit| if is { bit } else { 0 };
        last | bit(self.enabled, ENABLE) | bit(self.masked, MASK_ALL)
    }

    /// The guest writes Message Control.
    pub fn set_control(&mut self, value: u16, sink: &dyn MessageSink) {
        self.enabled = value & ENABLE != 0;
        self.masked = value & MASK_ALL != 0;
        if !self.enabled {
            self.forget_pending();
        }
        self.send_pending(sink);
    }

    /// Whether the function may write to memory from now on. What is raised while it may not is pending.
    pub fn let_master(&mut self, masters: bool, sink: &dyn MessageSink) {
        self.masters = masters;
        self.send_pending(sink);
    }

    /// Nothing that was raised is sent any more.
    pub fn forget_pending(&mut self) {
        self.pending = 0;
    }

    /// Reads the table; behind its end it is zero.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let entry = self.entries.get(at / ENTRY_LEN);
            *byte = entry.map_or(0, |entry| entry.bytes()[at % ENTRY_LEN]);
        }
    }

    /// The guest writes to the table, within one entry; anything else has no effect.
    pub fn write_table(&mut self, offset: usize, data: &[u8], sink: &dyn MessageSink) {
        let Some(entry) = self.entries.get_mut(offset / ENTRY_LEN) else {
            return;
        };
        let (mut bytes, at) = (entry.bytes(), offset % ENTRY_LEN);
        let Some(written) = bytes.get_mut(at..at + data.len()) else {
            return;
        };
        written.copy_from_slice(data);
        entry.set(bytes);
        self.send_pending(sink);
    }

    /// Reads the pending bits; behind their end they are zero.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.pending.to_le_bytes().get(at).copied().unwrap_or(0);
        }
    }

    /// Sends the message of a vector now or, where that is masked, later. Without effect while the function does not
    /// use MSI-X, and where there is no such vector.
    pub fn raise(&mut self, vector: u16, sink: &dyn MessageSink) {
        let Some(entry) = self.entries.get(usize::from(vector)) else {
            return;
        };
        if !self.enabled {
            return;
        }
        if self.masked || entry.masked || !self.masters {
            self.pending |= 1 << vector;
        } else {
            sink.send(entry.address, entry.data);
        }
    }

    fn send_pending(&mut self, sink: &dyn MessageSink) {
        if !self.enabled || self.masked || !self.masters || self.pending == 0 {
            return;
        }
        for (vector, entry) in self.entries.iter().enumerate() {
            if self.pending >> vector & 1 == 1 && !entry.masked {
                self.pending &= !(1 << vector);
                sink.send(entry.address, entry.data);
            }
        }
    }
}

#[cfg(test)]
mod tests;
