//! A journal on the guest's first disk: numbered blocks, one after the other and round again, each brought to the disk
//! (fdatasync) before it counts as acknowledged. What was acknowledged has to be there, whatever happened to the guest.
//!
//! Block N lies at N modulo [`BLOCKS`]; its words of 8 bytes, little-endian, are N xor their index in the upper 16
//! bits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The guest's first disk.
const DISK: &str = "/dev/vda";
/// Blocks of the journal.
const BLOCKS: u64 = 512;
/// Bytes of a block.
const BLOCK: usize = 4096;
/// Time between two writes.
const PAUSE: Duration = Duration::from_millis(5);

/// The journal, written to by a thread of its own for ever.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// The number of the last block that is on the disk.
    acknowledged: AtomicU64,
    /// Held while a block is written, or all are read. What went wrong, if anything did: then nothing more is written.
    failure: Mutex<Option<String>>,
}

impl Journal {
    /// Begins to write, from block 1 on.
    ///
    /// # Errors
    /// There is no disk, or no thread.
    pub fn begin() -> io::Result<Arc<Self>> {
        let journal = Arc::new(Self {
            file: OpenOptions::new().read(true).write(true).open(DISK)?,
            acknowledged: AtomicU64::new(0),
            failure: Mutex::new(None),
        });
        let writer = journal.clone();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                while writer.write_next() {
                    thread::sleep(PAUSE);
                }
            })?;
        Ok(journal)
    }

    /// The number of the last block that is on the disk.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(SeqCst)
    }

    /// Why nothing more is written.
    pub fn failure(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it went well.
    fn write_next(&self) -> bool {
        let mut failure = self.lock();
        let number = self.acknowledged() + 1;
        let at = number % BLOCKS * BLOCK as u64;
        let written = self.file.write_all_at(&block(number), at);
        match written.and_then(|()| self.file.sync_data()) {
            Ok(()) => self.acknowledged.store(number, SeqCst),
            Err(error) => *failure = Some(format!("block {number}: {error}")),
        }
        failure.is_none()
    }

    /// Reads all blocks from the disk, past the kernel's cache, between two writes. Gives how many there are.
    ///
    /// # Errors
    /// The first that is not what was acknowledged.
    pub fn verify(&self) -> Result<u64, String> {
        let failure = self.lock();
        if let Some(failure) = &*failure {
            return Err(failure.clone());
        }
        fs::write("/proc/sys/vm/drop_caches", "1").map_err(|e| format!("drop the cache: {e}"))?;
        let last = self.acknowledged();
        let first = last.saturating_sub(BLOCKS - 1).max(1);
        for number in first..=last {
            let mut found = vec![0; BLOCK];
            let at = number % BLOCKS * BLOCK as u64;
            let read = self.file.read_exact_at(&mut found, at);
            read.map_err(|e| format!("block {number}: {e}"))?;
            if found != block(number) {
                let holds = found
                    .first_chunk()
                    .map_or(0, |word| u64::from_le_bytes(*word));
                return Err(format!("block {number} begins with {holds:#x}"));
            }
        }
        Ok((first..=last).count() as u64)
    }
}

/// What a block holds.
fn block(number: u64) -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8).map(|index| number ^ index << 48);
    words.flat_map(u64::to_le_bytes).collect()
}
