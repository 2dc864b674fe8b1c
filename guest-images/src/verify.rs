//! The independent reader: whether guest memory holds what `pulse` wrote into it.
//!
//! For each page of a working set the vCPU's table and the page must name the same write. A vCPU stores
//! the table first, then the head, then the tail, and counts a step as done after its last page; so in a
//! stopped guest only pages of one unfinished step may disagree, in a way that this order allows:
//!
//! - `uniform` and `zipf`: at most one page a vCPU, the one with the newest stamp in the table;
//! - `sweep`: a run of neighbouring pages that ends with the last page of the step, since the table is
//!   ahead of the pages for the whole step; at most its first page is half written.
//!
//! A roll-back of everything, tables and counters included, agrees with itself. It is found by comparing
//! with numbers from before: [`Summary::follows`], and [`Summary::beat`] with the last number seen at the
//! heartbeat port.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::ReadGuest;
use crate::pulse::{IDENTITY, ParseError, Pattern, Phase, STATUS_GPA, Status, VCPU_GPA, Vcpu};

const PAGE: usize = 4096;
/// Pages read at once.
const CHUNK: u32 = 64;
/// How often a page in flight is looked at again while the guest runs, and the pause before it.
const LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// What the guest does while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: all vCPUs stand still.
    Stopped,
    /// It runs. A page in flight is looked at again until it has landed, for a second at most; a vCPU
    /// that is held longer in the middle of a page has to be read as stopped.
    Running,
}

/// What is wrong with the guest's memory.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// Memory cannot be read.
    #[error("guest memory at {gpa:#x}: cannot read {bytes} bytes")]
    Read {
        /// Where.
        gpa: u64,
        /// How many.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
    /// A status or vCPU page is not one.
    #[error("page {gpa:#x} of pulse is not one")]
    Parse {
        /// Where.
        gpa: u64,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Pulse has not come to work yet, or refused its parameters.
    #[error("pulse is {0:?}, not running: there is nothing to verify")]
    Phase(Phase),
    /// A page is not the one that it should be.
    #[error("page {gpa:#x} of vCPU {vcpu}: holds the identity of page {found:#x}")]
    Identity {
        /// The page.
        gpa: u64,
        /// Whose working set it is in.
        vcpu: u32,
        /// The page whose identity was found.
        found: u64,
    },
    /// A page holds another write than the table says.
    #[error(
        "page {gpa:#x} of vCPU {vcpu} is lost or stale: last written by write {table}, but its head is of write {head}, its tail of write {tail}"
    )]
    Stale {
        /// The page.
        gpa: u64,
        /// Whose working set it is in.
        vcpu: u32,
        /// The write that the table names.
        table: u32,
        /// The write that the page's first word names.
        head: u32,
        /// The write that the page's last word names.
        tail: u32,
    },
    /// The table names a write that the counter does not know of.
    #[error(
        "table of vCPU {vcpu} names write {table} for page {gpa:#x}, but only {done} writes were counted (steps of {step}): the table or the counter is stale"
    )]
    Future {
        /// The page.
        gpa: u64,
        /// The vCPU.
        vcpu: u32,
        /// The write in the table.
        table: u32,
        /// The count (its low 32 bits).
        done: u32,
        /// The most writes that are not yet counted.
        step: u32,
    },
    /// The last write that was counted is nowhere.
    #[error(
        "vCPU {vcpu} counted {done} writes, but the newest in its table is {newest}: a page of the table is stale"
    )]
    NewestMissing {
        /// The vCPU.
        vcpu: u32,
        /// The count (its low 32 bits).
        done: u32,
        /// The newest write in the table.
        newest: u32,
    },
    /// A counter is behind an earlier reading of it.
    #[error("{counter} went back from {before} to {after}: the guest's memory was rolled back")]
    Backwards {
        /// Which.
        counter: String,
        /// At the earlier reading.
        before: u64,
        /// At this one.
        after: u64,
    },
}

/// What one vCPU had done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuSummary {
    /// Page writes.
    pub pages_written: u64,
    /// Loops counted.
    pub loops: u64,
    /// Time by which it fell behind its rate and gave up, in TSC cycles.
    pub forgiven_tsc: u64,
    /// How often it saw its TSC go backwards.
    pub tsc_backwards: u32,
}

/// What was verified, and the counters at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The status page.
    pub status: Status,
    /// Pages of working sets that were checked.
    pub pages_checked: u64,
    /// Pages that were being written while the guest stood still, or stood still too long to wait for.
    pub in_flight: u64,
    /// One entry a vCPU.
    pub vcpus: Vec<VcpuSummary>,
}

/// Whether `a` was counted after `b`, where counters wrap.
fn newer(a: u32, b: u32) -> bool {
    let distance = a.wrapping_sub(b);
    distance != 0 && distance < 1 << 31
}

/// The low half of a counter: what a stamp has room for.
fn low(count: u64) -> u32 {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the low 32 bits are what is asked for"
    )]
    let low = count as u32;
    low
}

impl Summary {
    /// Page writes of all vCPUs.
    pub fn pages_written(&self) -> u64 {
        self.vcpus.iter().map(|v| v.pages_written).sum()
    }

    /// Number of the last heartbeat.
    pub fn beat(&self) -> u32 {
        self.status.beat
    }

    /// Checks that no counter is behind where it was at an earlier reading.
    ///
    /// # Errors
    /// The counter that went back.
    pub fn follows(&self, earlier: &Summary) -> Result<(), VerifyError> {
        let check = |counter: String, before: u64, after: u64, back: bool| {
            if back {
                return Err(VerifyError::Backwards {
                    counter,
                    before,
                    after,
                });
            }
            Ok(())
        };
        let (before, after) = (earlier.beat(), self.beat());
        check(
            "the heartbeat".into(),
            before.into(),
            after.into(),
            newer(before, after),
        )?;
        for (index, (after, before)) in self.vcpus.iter().zip(&earlier.vcpus).enumerate() {
            let (b, a) = (before.pages_written, after.pages_written);
            check(format!("page writes of vCPU {index}"), b, a, a < b)?;
            check(
                format!("loops of vCPU {index}"),
                before.loops,
                after.loops,
                after.loops < before.loops,
            )?;
        }
        Ok(())
    }
}

/// Reads all that `pulse` wrote and checks it.
///
/// # Errors
/// The first thing found wrong.
pub fn check(memory: &impl ReadGuest, mode: Mode) -> Result<Summary, VerifyError> {
    let status = status(memory)?;
    if status.phase != Phase::Running {
        return Err(VerifyError::Phase(status.phase));
    }
    let mut summary = Summary {
        pages_checked: 0,
        in_flight: 0,
        vcpus: Vec::new(),
        status,
    };
    for index in 0..summary.status.cpus {
        let checker = Checker {
            memory,
            mode,
            index,
            vcpu: vcpu(memory, index)?,
        };
        summary.in_flight += checker.run()?;
        summary.pages_checked += u64::from(checker.vcpu.ws_pages);
        let now = vcpu(memory, index)?;
        summary.vcpus.push(VcpuSummary {
            pages_written: now.pages_written,
            loops: now.loops,
            forgiven_tsc: now.forgiven_tsc,
            tsc_backwards: now.tsc_backwards,
        });
    }
    Ok(summary)
}

/// Reads the status page.
///
/// # Errors
/// It cannot be read, or is not one.
pub fn status(memory: &impl ReadGuest) -> Result<Status, VerifyError> {
    let mut page = [0; PAGE];
    read(memory, STATUS_GPA, &mut page)?;
    Status::parse(&page).map_err(|source| VerifyError::Parse {
        gpa: STATUS_GPA,
        source,
    })
}

/// Reads the page of vCPU `index`.
///
/// # Errors
/// It cannot be read, or is not one.
pub fn vcpu(memory: &impl ReadGuest, index: u32) -> Result<Vcpu, VerifyError> {
    let gpa = VCPU_GPA + u64::from(index) * PAGE as u64;
    let mut page = [0; PAGE];
    read(memory, gpa, &mut page)?;
    Vcpu::parse(&page).map_err(|source| VerifyError::Parse { gpa, source })
}

fn read(memory: &impl ReadGuest, gpa: u64, into: &mut [u8]) -> Result<(), VerifyError> {
    let bytes = into.len();
    memory
        .read(gpa, into)
        .map_err(|source| VerifyError::Read { gpa, bytes, source })
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .take(4)
        .rev()
        .fold(0, |value, &byte| value << 8 | u32::from(byte))
}

/// One page as it was found. `before` and `after` are the table's entry before and after the page was read.
#[derive(Debug, Clone, Copy)]
struct Found {
    page: u32,
    before: u32,
    after: u32,
    head: u32,
    tail: u32,
}

impl Found {
    /// Whether head and tail are of a write between the two looks at the table.
    fn agrees(&self) -> bool {
        let within = |stamp| !newer(self.before, stamp) && !newer(stamp, self.after);
        within(self.head) && within(self.tail)
    }

    /// Whether a vCPU that stopped in the middle of writing this page leaves it so. What the write replaces
    /// may itself be of the step in flight: a step that draws its pages may draw the same one twice.
    fn half_written(&self, done: u32) -> bool {
        let untouched = self.head == self.tail && newer(self.after, self.head);
        let head_only = self.head == self.after && newer(self.after, self.tail);
        newer(self.after, done) && (untouched || head_only)
    }
}

struct Checker<'a, M> {
    memory: &'a M,
    mode: Mode,
    index: u32,
    vcpu: Vcpu,
}

impl<M: ReadGuest> Checker<'_, M> {
    /// Checks the vCPU's whole working set; gives back how many pages were in flight.
    fn run(&self) -> Result<u64, VerifyError> {
        let mut uncounted = Vec::new();
        let mut disagree = Vec::new();
        let mut newest = 0;
        let mut page = 0;
        while page < self.vcpu.ws_pages {
            let count = CHUNK.min(self.vcpu.ws_pages - page);
            for found in self.read_pages(page, count)? {
                if page == 0 && found.page == 0 || newer(found.after, newest) {
                    newest = found.after;
                }
                if newer(found.after, low(self.vcpu.pages_written)) {
                    uncounted.push(found);
                }
                if !found.agrees() {
                    disagree.push(found);
                }
            }
            page += count;
        }
        match self.mode {
            Mode::Running => self.wait_for(&disagree),
            Mode::Stopped => {
                let done = low(self.vcpu.pages_written);
                if self.vcpu.ws_pages > 0 && newer(done, newest) {
                    return Err(VerifyError::NewestMissing {
                        vcpu: self.index,
                        done,
                        newest,
                    });
                }
                self.judge(done, &uncounted, &disagree)
            }
        }
    }

    /// In a stopped guest: whether what disagrees is just the write in flight.
    fn judge(
        &self,
        done: u32,
        uncounted: &[Found],
        disagree: &[Found],
    ) -> Result<u64, VerifyError> {
        let last = uncounted.last().map(|f| f.page);
        let run_start =
            last.map(|l| (l + 1).saturating_sub(u32::try_from(disagree.len()).unwrap_or(u32::MAX)));
        for (position, found) in (0u32..).zip(disagree) {
            let allowed = match self.vcpu.pattern {
                Pattern::Uniform | Pattern::Zipf => {
                    disagree.len() == 1 && uncounted.iter().all(|u| !newer(u.after, found.after))
                }
                Pattern::Sweep => {
                    Some(found.page) == run_start.map(|start| start + position)
                        && (position == 0 || found.head == found.tail)
                }
            };
            if !allowed || !found.half_written(done) {
                return Err(self.stale(found));
            }
        }
        Ok(disagree.len() as u64)
    }

    /// In a running guest: looks again at pages that disagree until they have landed.
    fn wait_for(&self, disagree: &[Found]) -> Result<u64, VerifyError> {
        'pages: for found in disagree {
            let mut last = *found;
            for _ in 0..LOOKS {
                if last.agrees() {
                    continue 'pages;
                }
                std::thread::sleep(PAUSE);
                for again in self.read_pages(found.page, 1)? {
                    last = again;
                }
            }
            return Err(self.stale(&last));
        }
        Ok(0)
    }

    fn stale(&self, found: &Found) -> VerifyError {
        VerifyError::Stale {
            gpa: self.gpa(found.page),
            vcpu: self.index,
            table: found.after,
            head: found.head,
            tail: found.tail,
        }
    }

    fn gpa(&self, page: u32) -> u64 {
        (u64::from(self.vcpu.ws_first_page) + u64::from(page)) * PAGE as u64
    }

    /// Reads table, pages, table again; checks identities, and that the counter knows of each write.
    fn read_pages(&self, first: u32, count: u32) -> Result<Vec<Found>, VerifyError> {
        let table_gpa = u64::from(self.vcpu.table_gpa) + u64::from(first) * 4;
        let mut before = vec![0; count as usize * 4];
        let mut bytes = vec![0; count as usize * PAGE];
        read(self.memory, table_gpa, &mut before)?;
        read(self.memory, self.gpa(first), &mut bytes)?;
        let mut after = vec![0; before.len()];
        read(self.memory, table_gpa, &mut after)?;
        // Read after the table: the table is never more than one step ahead of it.
        let done = low(vcpu(self.memory, self.index)?.pages_written);

        let tables = before.chunks_exact(4).zip(after.chunks_exact(4));
        (first..)
            .zip(bytes.chunks_exact(PAGE).zip(tables))
            .map(|(page, (bytes, (before, after)))| {
                let found = Found {
                    page,
                    before: word(before),
                    after: word(after),
                    head: word(bytes),
                    tail: word(&bytes[PAGE - 4..]),
                };
                self.check_page(&found, word(&bytes[4..]), done)?;
                Ok(found)
            })
            .collect()
    }

    fn check_page(&self, found: &Found, identity: u32, done: u32) -> Result<(), VerifyError> {
        let gpa = self.gpa(found.page);
        let number = identity ^ IDENTITY;
        if u64::from(number) * PAGE as u64 != gpa {
            return Err(VerifyError::Identity {
                gpa,
                vcpu: self.index,
                found: u64::from(number) * PAGE as u64,
            });
        }
        if newer(found.after, done.wrapping_add(self.vcpu.step)) {
            return Err(VerifyError::Future {
                gpa,
                vcpu: self.index,
                table: found.after,
                done,
                step: self.vcpu.step,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Found;

    #[test]
    fn a_write_in_flight_may_replace_one_of_the_same_step() {
        let half_written = |table, head, tail| {
            let found = Found {
                page: 0,
                before: table,
                after: table,
                head,
                tail,
            };
            found.half_written(20_096)
        };
        assert!(
            half_written(20_123, 20_049, 20_049),
            "written by an earlier step"
        );
        assert!(
            half_written(20_123, 20_123, 20_049),
            "half, over an earlier step"
        );
        assert!(
            half_written(20_123, 20_100, 20_100),
            "written by this step before"
        );
        assert!(half_written(20_123, 20_123, 20_122), "half, over this step");
        assert!(!half_written(20_123, 20_049, 20_100), "tail before head");
        assert!(!half_written(20_123, 20_124, 20_124), "ahead of its table");
        assert!(
            !half_written(20_090, 20_049, 20_049),
            "counted, so not in flight"
        );
    }
}
