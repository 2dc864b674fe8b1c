//! The body of a frame, field by field. Every count is checked before it is used, and nothing may be left
//! over.

use super::codec::{BY_DESCRIPTOR, FrameError, Header, VERIFY, XXH3, clean};
use super::frame::{
    Figures, Frame, FrameKind, Hello, Live, MAX_DATA, MAX_DIGESTS, MAX_FILLER, MAX_RUNS,
    MAX_SECTIONS, MAX_VCPUS, Question, Run, delta_len,
};
use crate::guest::Description;
use crate::pack::{Codec, MAX_PACKED_PAGES};
use crate::pages::{MAX_MEMORY, MAX_REGIONS, MemoryLayout, PAGE_SIZE, REGION_ALIGN, Region};
use crate::state::{Kind, Section, VmState};

/// Makes a frame from its checked header and its body, which has exactly the header's length.
///
/// # Errors
/// What does not fit.
pub fn parse(header: Header, body: &[u8]) -> Result<Frame, FrameError> {
    let kind = header.kind;
    let mut fields = Fields {
        kind: kind.name(),
        rest: body,
    };
    let frame = match kind {
        FrameKind::Hello => Frame::Hello(Box::new(fields.hello()?)),
        FrameKind::Accept => Frame::Accept {
            boot: fields.array()?,
            streams: fields.not_zero("number of streams")?,
        },
        FrameKind::Join => Frame::Join {
            session: fields.array()?,
            index: fields.not_zero("index of the stream")?,
        },
        FrameKind::Probe => Frame::Probe {
            session: fields.array()?,
            streams: fields.not_zero("number of streams")?,
        },
        FrameKind::Filler => Frame::Filler {
            bytes: fields.filler()?,
        },
        FrameKind::Refuse => Frame::Refuse(fields.text()),
        FrameKind::Failed => Frame::Failed(fields.text()),
        FrameKind::Abort => Frame::Abort(fields.text()),
        FrameKind::Ping => Frame::Ping(fields.u64()?),
        FrameKind::Pong => Frame::Pong(fields.u64()?),
        FrameKind::Memory => Frame::Memory {
            files: fields.u32()?,
        },
        FrameKind::Pages => {
            let (round, runs) = fields.runs(MAX_DATA / PAGE_SIZE)?;
            Frame::Pages { round, runs }
        }
        FrameKind::Zero => {
            let (round, runs) = fields.runs(MAX_MEMORY / PAGE_SIZE)?;
            Frame::Zero { round, runs }
        }
        FrameKind::Packed => fields.packed()?,
        FrameKind::Delta => fields.delta()?,
        FrameKind::RoundEnd => Frame::RoundEnd {
            round: fields.u32()?,
            pages: fields.u64()?,
        },
        FrameKind::Verify => Frame::Verify(fields.question()?),
        FrameKind::Digests => fields.digests()?,
        FrameKind::State => Frame::State(fields.sections()?),
        FrameKind::Ready => Frame::Ready,
        FrameKind::Go => Frame::Go,
        FrameKind::Live => Frame::Live(Live {
            restore_ns: fields.u64()?,
            resume_ns: fields.u64()?,
            resumed_at_ns: fields.u64()?,
        }),
        FrameKind::Figures => Frame::Figures(Figures {
            first_heartbeat_ns: fields.u64()?,
            largest_gap_ns: fields.u64()?,
        }),
        FrameKind::Snapshot => fields.snapshot()?,
        FrameKind::End => Frame::End {
            bytes: fields.u64()?,
            digest: fields.u64()?,
        },
    };
    fields.finish()?;
    Ok(frame)
}

/// All pages of some runs.
fn pages(runs: &[Run]) -> u64 {
    runs.iter().map(|run| u64::from(run.pages)).sum()
}

/// What is left of a body.
struct Fields<'a> {
    kind: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(FrameError::Short(self.kind))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(FrameError::Short(self.kind))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn not_zero(&mut self, field: &'static str) -> Result<u16, FrameError> {
        match self.u16()? {
            0 => Err(self.value(field, 0, "at least 1")),
            number => Ok(number),
        }
    }

    fn filler(&mut self) -> Result<u32, FrameError> {
        match self.u32()? {
            bytes if bytes > 0 && bytes <= MAX_FILLER => Ok(bytes),
            bytes => Err(self.value("number of bytes", u64::from(bytes), "1 to 1048576")),
        }
    }

    fn value(&self, field: &'static str, value: u64, expected: &'static str) -> FrameError {
        FrameError::Value {
            kind: self.kind,
            field,
            value,
            expected,
        }
    }

    fn text(&mut self) -> String {
        clean(&String::from_utf8_lossy(std::mem::take(&mut self.rest)))
    }

    fn runs(&mut self, max_pages: u64) -> Result<(u32, Vec<Run>), FrameError> {
        let round = self.u32()?;
        let count = self.u32()?;
        let max = u32::try_from(MAX_RUNS).unwrap_or(u32::MAX);
        if count == 0 || count > max {
            return Err(self.value("number of runs", u64::from(count), "1 to 1000"));
        }
        let mut runs = Vec::with_capacity(MAX_RUNS.min(self.rest.len() / 12));
        let mut total = 0u64;
        for _ in 0..count {
            let run = Run {
                first: self.u64()?,
                pages: self.u32()?,
            };
            if run.pages == 0 {
                return Err(self.value("pages in a run", 0, "at least 1"));
            }
            if run.first > MAX_MEMORY / PAGE_SIZE {
                return Err(self.value("first page of a run", run.first, "a page below 16 TiB"));
            }
            total += u64::from(run.pages);
            runs.push(run);
        }
        if total > max_pages {
            return Err(self.value("pages in the frame", total, "no more than the limit"));
        }
        Ok((round, runs))
    }

    fn packed(&mut self) -> Result<Frame, FrameError> {
        let (round, runs) = self.runs(MAX_PACKED_PAGES)?;
        let number = self.u16()?;
        let codec = Codec::from_number(number)
            .ok_or_else(|| self.value("codec", u64::from(number), "1 or 2"))?;
        let reserved = self.u16()?;
        if reserved != 0 {
            return Err(self.value("reserved field", u64::from(reserved), "0"));
        }
        let bytes = self.u32()?;
        if bytes == 0 || u64::from(bytes) > pages(&runs) * PAGE_SIZE {
            let expected = "at least 1 and no more than the pages have";
            return Err(self.value("number of packed bytes", u64::from(bytes), expected));
        }
        Ok(Frame::Packed {
            round,
            runs,
            codec,
            bytes,
        })
    }

    fn delta(&mut self) -> Result<Frame, FrameError> {
        let (round, runs) = self.runs(MAX_PACKED_PAGES)?;
        let bytes = self.u32()?;
        let (least, most) = delta_len(pages(&runs));
        if !(least..=most).contains(&u64::from(bytes)) {
            let expected = "6 to 2054 for each page";
            return Err(self.value("number of bytes of deltas", u64::from(bytes), expected));
        }
        Ok(Frame::Delta { round, runs, bytes })
    }

    fn snapshot(&mut self) -> Result<Frame, FrameError> {
        let (id, base) = (self.array()?, self.array()?);
        if id == [0; 16] {
            return Err(self.value("name of the snapshot", 0, "another number"));
        }
        let base = Some(base).filter(|base| *base != [0; 16]);
        Ok(Frame::Snapshot { id, base })
    }

    fn question(&mut self) -> Result<Question, FrameError> {
        let hash = self.u16()?;
        if hash != XXH3 {
            return Err(self.value("kind of digests", u64::from(hash), "1"));
        }
        let (what, block) = (self.u16()?, self.u64()?);
        match (what, block) {
            (0, 0) => Ok(Question::Blocks),
            (0, _) => Err(self.value("block", block, "0, as all are asked for")),
            (1, block) if block < MAX_MEMORY / REGION_ALIGN => Ok(Question::Pages { block }),
            (1, _) => Err(self.value("block", block, "a block below 16 TiB")),
            _ => Err(self.value("question", u64::from(what), "0 or 1")),
        }
    }

    fn digests(&mut self) -> Result<Frame, FrameError> {
        let first = self.u64()?;
        if first >= MAX_MEMORY / PAGE_SIZE {
            return Err(self.value("first index", first, "a page below 16 TiB"));
        }
        let count = self.u32()?;
        let most = u32::try_from(MAX_DIGESTS).unwrap_or(u32::MAX);
        if count == 0 || count > most {
            return Err(self.value("number of digests", u64::from(count), "1 to 1024"));
        }
        let digests: Result<_, _> = (0..count).map(|_| self.u64()).collect();
        Ok(Frame::Digests {
            first,
            digests: digests?,
        })
    }

    fn hello(&mut self) -> Result<Hello, FrameError> {
        let session = self.array()?;
        let boot = self.array()?;
        let streams = self.not_zero("number of streams")?;
        let flags = self.u16()?;
        // Memory that both ends map is one: there is nothing to compare.
        if ![0, BY_DESCRIPTOR, VERIFY].contains(&flags) {
            return Err(self.value("flags", u64::from(flags), "0, 1 or 2"));
        }
        let page_size = self.u32()?;
        if u64::from(page_size) != PAGE_SIZE {
            return Err(self.value("page size", u64::from(page_size), "4096"));
        }
        let vcpus = self.u32()?;
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(self.value("number of vCPUs", u64::from(vcpus), "1 to 4096"));
        }
        let layout = self.layout()?;
        let sections = self.sections()?;
        Ok(Hello {
            session,
            boot,
            streams,
            by_descriptor: flags == BY_DESCRIPTOR,
            verify: flags == VERIFY,
            page_size,
            description: Description {
                layout,
                vcpus,
                sections,
            },
        })
    }

    fn layout(&mut self) -> Result<MemoryLayout, FrameError> {
        let count = self.u32()?;
        if usize::try_from(count).is_ok_and(|count| count > MAX_REGIONS) {
            return Err(self.value("number of memory regions", u64::from(count), "1 to 16"));
        }
        let mut regions = Vec::with_capacity(MAX_REGIONS);
        for _ in 0..count {
            regions.push(Region {
                gpa: self.u64()?,
                bytes: self.u64()?,
            });
        }
        MemoryLayout::new(regions).map_err(FrameError::Layout)
    }

    fn sections(&mut self) -> Result<VmState, FrameError> {
        let count = self.u32()?;
        if count > MAX_SECTIONS {
            return Err(self.value("number of sections", u64::from(count), "at most 4096"));
        }
        // A section is at least 16 bytes, and the bytes at hand bound what is allocated.
        let mut sections = Vec::with_capacity((self.rest.len() / 16).min(64));
        for _ in 0..count {
            let kind = Kind(self.u32()?);
            let instance = self.u32()?;
            let version = self.u32()?;
            let len = usize::try_from(self.u32()?).map_err(|_| FrameError::Short(self.kind))?;
            sections.push(Section {
                kind,
                instance,
                version,
                bytes: self.take(len)?.to_vec(),
            });
        }
        Ok(VmState::from_sections(sections))
    }

    fn finish(self) -> Result<(), FrameError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(FrameError::Trailing {
                kind: self.kind,
                extra,
            }),
        }
    }
}
