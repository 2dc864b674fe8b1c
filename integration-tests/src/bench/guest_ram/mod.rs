//! A guest's memory, past its VMM: found in the process, filled by seed, and told by a digest.
//!
//! Nothing here asks the VMM but, for Ferry, where guest memory lies; so what is found is what is there.

mod digest;
mod fill;
mod locate;

use std::io;

use guest_images::procmem::{Mapping, ProcMem};

use crate::Error;

pub use digest::{Digest, Unstable};
pub use locate::locate;

/// Where the memory of a guest lies in its VMM.
#[derive(Debug, Clone)]
pub struct GuestRam {
    /// The VMM.
    pub pid: u32,
    /// The pieces, ascending by guest-physical address.
    pub mappings: Vec<Mapping>,
}

/// Threads that fill and read guest memory: what Ferry and QEMU do is not measured meanwhile.
const WORKERS: u64 = 2;
/// What a worker takes at a time.
const CHUNK: u64 = 2 << 20;
const PAGE: usize = 4096;

impl GuestRam {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// The process is gone, or belongs to somebody else.
    pub fn open(&self) -> Result<ProcMem, Error> {
        ProcMem::open(self.pid, self.mappings.clone()).map_err(|e| self.failed("open", e))
    }

    /// The chunks of at most 2 MiB that worker number `worker` looks after: address in the guest, address in the
    /// process, bytes.
    fn chunks(&self, worker: u64) -> impl Iterator<Item = Mapping> + '_ {
        let all = self.mappings.iter().flat_map(|piece| {
            (0..piece.bytes.div_ceil(CHUNK)).map(|number| Mapping {
                gpa: piece.gpa + number * CHUNK,
                host: piece.host + number * CHUNK,
                bytes: CHUNK.min(piece.bytes - number * CHUNK),
            })
        });
        all.filter(move |chunk| chunk.gpa / CHUNK % WORKERS == worker)
    }

    /// Runs `work` once for each worker, at the same time; the first error counts.
    fn by_workers<T: Send>(
        &self,
        work: impl Fn(u64) -> io::Result<T> + Sync,
    ) -> io::Result<Vec<T>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let work = &work;
                    scope.spawn(move || work(worker))
                })
                .collect();
            let ended = threads.into_iter().map(|thread| {
                let panicked = |_| Err(io::Error::other("a worker panicked"));
                thread.join().unwrap_or_else(panicked)
            });
            ended.collect()
        })
    }

    fn failed(&self, act: &'static str, cause: io::Error) -> Error {
        Error::file(act, format!("/proc/{}/mem", self.pid).as_ref(), cause)
    }
}
