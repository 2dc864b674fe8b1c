//! An ELF kernel with a PVH entry: an unpacked `vmlinux`, or a bare guest. 32-bit and 64-bit files are alike.
//!
//! The entry is not the one in the ELF header but the one in a note of Xen's, type 18
//! (XEN_ELFNOTE_PHYS32_ENTRY): a physical address, entered in flat 32-bit protected mode (Xen:
//! docs/misc/pvh.pandoc). linux-loader's own ELF loader knows only 64-bit files and does not bound what the
//! headers say, so the `elf` crate parses and this room checks.

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::{ParseAt, ParseError};
use elf::segment::{ProgramHeader, SegmentTable};
use migration::guest::GuestRam;

use super::BootError;
use super::image::Image;
use crate::layout::KERNEL_START;

/// The most program headers that are looked at; kernels have fewer than ten.
const MAX_SEGMENTS: u16 = 64;
/// The most bytes of notes in a segment that are looked at; kernels have a few hundred.
const MAX_NOTES: u64 = 64 << 10;
/// The PVH entry (Xen: xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
/// Any Linux x86 kernel has a note of this name in the same segment (Linux: include/linux/elfnote.h users).
const LINUX_NOTE: &[u8] = b"Linux\0";

/// Checked segments and the entry.
#[derive(Debug)]
pub(super) struct ElfKernel {
    segments: Vec<Segment>,
    entry: u32,
    linux: bool,
}

/// Bytes of the file that go to one place in memory; what follows them up to `end` stays zero.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    bytes: u64,
    gpa: u64,
    end: u64,
}

impl ElfKernel {
    /// Reads and checks the headers of a file that has ELF's magic number.
    pub(super) fn parse(image: &Image) -> Result<Self, BootError> {
        let (class, headers) = program_headers(image)?;
        let of_type = |wanted| headers.iter().filter(move |header| header.p_type == wanted);
        let mut notes = Notes::default();
        for header in of_type(abi::PT_NOTE) {
            notes.read(image, class, header)?;
        }
        let entry = notes
            .entry
            .ok_or_else(|| image.unsupported("it is an ELF file without a PVH entry"))?;
        let segments = of_type(abi::PT_LOAD)
            .filter(|header| header.p_memsz > 0)
            .map(|header| segment(image, header))
            .collect::<Result<Vec<_>, _>>()?;
        if !segments
            .iter()
            .any(|s| (s.gpa..s.gpa + s.bytes).contains(&u64::from(entry)))
        {
            let why = format!("its PVH entry {entry:#x} lies outside of what it loads");
            return Err(image.unsupported(why));
        }
        Ok(Self {
            segments,
            entry,
            linux: notes.linux,
        })
    }

    /// The physical address of its first instruction.
    pub(super) fn entry(&self) -> u32 {
        self.entry
    }

    /// Whether it says that it is Linux.
    pub(super) fn is_linux(&self) -> bool {
        self.linux
    }

    /// The end of what it occupies in guest memory.
    pub(super) fn end(&self) -> u64 {
        self.segments.iter().map(|s| s.end).max().unwrap_or(0)
    }

    /// Reads the segments into guest memory.
    pub(super) fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), BootError> {
        self.segments
            .iter()
            .try_for_each(|s| image.load(ram, s.offset, s.gpa, s.bytes))
    }
}

/// The program headers, bounded in number.
fn program_headers(image: &Image) -> Result<(Class, Vec<ProgramHeader>), BootError> {
    let malformed =
        |error: ParseError| image.unsupported(format!("its ELF header is bad: {error}"));
    let mut ident = [0; abi::EI_NIDENT];
    image.read(0, &mut ident)?;
    let ident = parse_ident::<LittleEndian>(&ident).map_err(malformed)?;
    let class = ident.1;
    // 52 and 64 bytes, less the 16 of the identification.
    let mut tail = vec![0; if class == Class::ELF32 { 36 } else { 48 }];
    image.read(abi::EI_NIDENT as u64, &mut tail)?;
    let header = FileHeader::parse_tail(ident, &tail).map_err(malformed)?;

    let machine = header.e_machine;
    if machine != abi::EM_X86_64 && machine != abi::EM_386 {
        return Err(image.unsupported(format!("it is an ELF file for machine {machine}, not x86")));
    }
    let count = header.e_phnum;
    if !(1..=MAX_SEGMENTS).contains(&count) {
        let why = format!("it has {count} ELF program headers, not 1 to {MAX_SEGMENTS}");
        return Err(image.unsupported(why));
    }
    ProgramHeader::validate_entsize(class, usize::from(header.e_phentsize)).map_err(malformed)?;
    let mut table = vec![0; usize::from(count) * usize::from(header.e_phentsize)];
    image.read(header.e_phoff, &mut table)?;
    Ok((
        class,
        SegmentTable::new(LittleEndian, class, &table)
            .iter()
            .collect(),
    ))
}

/// Checks one loadable segment.
fn segment(image: &Image, header: &ProgramHeader) -> Result<Segment, BootError> {
    let (offset, bytes, gpa) = (header.p_offset, header.p_filesz, header.p_paddr);
    let end = gpa.checked_add(header.p_memsz);
    let Some(end) = end.filter(|_| gpa >= KERNEL_START && bytes <= header.p_memsz) else {
        let memory = header.p_memsz;
        return Err(image.unsupported(format!(
            "an ELF segment of {bytes} bytes, {memory} in memory, is to lie at {gpa:#x}; it has to lie at {KERNEL_START:#x} or above and have no more bytes than it takes up"
        )));
    };
    let needed = offset.saturating_add(bytes);
    if needed > image.bytes() {
        return Err(image.cut_short(needed));
    }
    Ok(Segment {
        offset,
        bytes,
        gpa,
        end,
    })
}

/// What the notes say.
#[derive(Debug, Default)]
struct Notes {
    entry: Option<u32>,
    linux: bool,
}

impl Notes {
    fn read(
        &mut self,
        image: &Image,
        class: Class,
        header: &ProgramHeader,
    ) -> Result<(), BootError> {
        let (offset, bytes) = (header.p_offset, header.p_filesz);
        if bytes > MAX_NOTES {
            let why = format!("it has {bytes} bytes of ELF notes, more than {MAX_NOTES}");
            return Err(image.unsupported(why));
        }
        let mut data = vec![0; usize::try_from(bytes).unwrap_or(0)];
        image.read(offset, &mut data)?;
        // Linkers say 0, 1, 4 or 8, and mean 4 by all but the last.
        let align = if header.p_align == 8 { 8 } else { 4 };
        for note in NoteIterator::new(LittleEndian, class, align, &data) {
            let Note::Unknown(note) = note else { continue };
            self.linux |= note.name == LINUX_NOTE;
            if note.name == b"Xen\0" && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY {
                self.entry = Some(address(note.desc).ok_or_else(|| {
                    image.unsupported("the note with its PVH entry holds no 32-bit address")
                })?);
            }
        }
        Ok(())
    }
}

/// A little-endian address of 4 or 8 bytes that is below 4 GiB.
fn address(bytes: &[u8]) -> Option<u32> {
    match bytes.len() {
        4 => Some(u32::from_le_bytes(bytes.try_into().ok()?)),
        8 => u32::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok(),
        _ => None,
    }
}
